"""Public ops ``soft_cross_entropy``, ``generalized_cross_entropy`` and the whole chain ``clustering_losses``."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from case.ops import _check as check
from case.ops._registration import call, register
from case.ops.plan import PLAN_ARGUMENTS, PLAN_DIFFERENTIABLE, RANKS, Plan, plan_arguments
from case.ops.reference import losses as reference
from case.ops.reference._numerics import accumulation_dtype

REDUCTIONS = ("mean", "sum", "none")


class ClusteringLosses(NamedTuple):
    """Snippet clustering loss L_C, cluster classification loss L_R (scalars), cluster labels R (K, 2), no gradient."""

    scc: Tensor
    ccc: Tensor
    cluster_labels: Tensor


def soft_cross_entropy(
    logits: Tensor, targets: Tensor | Plan | tuple[Tensor, Tensor, Tensor], *, reduction: str = "mean"
) -> Tensor:
    """- sum_K targets * log_softmax(logits), per row (METHOD.md, SCC, CCC).

    Args:
        logits: (..., K), float32, bfloat16, float16 (computed in float32) or float64.
        targets: (..., K) weights, or a transport plan as ``Plan`` or (logits, u, v), which is not written out. A row of
            zeros takes no part: loss and gradient are 0 whatever its logits.
        reduction: "mean" or "sum" over all rows, or "none".

    Returns:
        A scalar, or (...) for "none"; float32 (float64 for float64 logits). Differentiable in logits and
        in targets, or the tensors that a plan is made of.
    """
    op = "soft_cross_entropy"
    check.floating(op, "logits", logits, at_least=1)
    check.choice(op, "reduction", reduction, REDUCTIONS)
    if not isinstance(targets, Tensor):
        plan = plan_arguments(op, "targets", targets)
        _check_targets("targets.logits", plan[0], logits)
        return _reduce(call("soft_cross_entropy_of_plan", logits, *plan), reduction)
    check.floating(op, "targets", targets)
    _check_targets("targets", targets, logits)
    return _reduce(call(op, logits, targets), reduction)


def _check_targets(name: str, targets: Tensor, logits: Tensor) -> None:
    check.same_device("soft_cross_entropy", name, targets, "logits", logits)
    check.shape("soft_cross_entropy", name, targets, tuple(logits.shape), "to match logits")


def generalized_cross_entropy(p: Tensor, target: Tensor, *, q: float, reduction: str = "mean") -> Tensor:
    """sum_t target (1 - (p + 1e-7)^q) / q / (sum_t target + 1e-7) over the last dimension (METHOD.md, Attention).

    Between cross entropy (q -> 0) and mean absolute error (q = 1): robust to wrong pseudo-labels.

    Args:
        p: (..., T) probabilities, float32, bfloat16, float16 (computed in float32) or float64.
        target: (..., T) non-negative weights, same shape.
        q: exponent in (0, 1].
        reduction: "mean" or "sum" over the leading dimensions, or "none".

    Returns:
        A scalar, or (...) for "none"; float32 (float64 for float64 p). Differentiable in both.
    """
    op = "generalized_cross_entropy"
    check.floating(op, "p", p, at_least=1)
    check.floating(op, "target", target)
    check.same_device(op, "target", target, "p", p)
    check.shape(op, "target", target, tuple(p.shape), "to match p")
    if not 0 < q <= 1:
        raise ValueError(f"{op}: q must lie in (0, 1], got {q!r}")
    check.choice(op, "reduction", reduction, REDUCTIONS)
    return _reduce(call(op, p, target, float(q)), reduction)


def clustering_losses(
    logits: Tensor,
    embeddings: Tensor,
    attention: Tensor,
    foreground: Tensor,
    cluster_labels: Tensor,
    *,
    index: Tensor | None = None,
    sigma: float,
    ranks: str = "true",
    ot_scale: float = 2.0,
    cosine_scale: float = 10.0,
    n_iters: int = 3,
) -> ClusteringLosses:
    """The chain that CASE adds to its baseline, all modalities at once (METHOD.md, SCC, CCC).

    S -> prior -> OT -> L_C, then prototypes -> U -> OT -> L_R. No gradient passes through the two plans, the
    attention or the pseudo-labels.

    Args:
        logits: (M, L, K) cluster logits S_m of M modalities at L distinct rows; float32, bfloat16, float16 or float64.
        embeddings: (M, L, H) embeddings E_m at the same rows, same dtype.
        attention: (L,) mean attention A.
        foreground: (N,) pseudo-labels g in [0, 1] of the N samples.
        cluster_labels: (K, 2) labels R of the previous step; their first column sets the prior's centres.
        index: (N,) int64, the row of each sample; None: N = L, each row once.
        sigma, ranks: of the rank prior, see ``rank_prior``.
        ot_scale, n_iters: of both transports, see ``sinkhorn``.
        cosine_scale: factor on the cosine between cluster and foreground/background prototypes.

    Returns:
        ``ClusteringLosses``: two scalars (sums over modalities) and the new labels R (K, 2), float32 (float64 for
        float64 logits). Differentiable in logits and embeddings.
    """
    op = "clustering_losses"
    check.floating(op, "logits", logits, 3)
    check.floating(op, "embeddings", embeddings, 3)
    m, rows, k = logits.shape
    check.shape(op, "embeddings", embeddings, (m, rows, embeddings.shape[-1]), "to match logits")
    if embeddings.dtype != logits.dtype:
        raise TypeError(
            f"{op}: embeddings must have the dtype of logits, {logits.dtype}, got {embeddings.dtype}; "
            "convert them with embeddings.to(logits.dtype)"
        )
    check.floating(op, "attention", attention, 1)
    check.shape(op, "attention", attention, (rows,), "to match logits")
    check.floating(op, "foreground", foreground, 1)
    check.floating(op, "cluster_labels", cluster_labels, 2)
    check.shape(op, "cluster_labels", cluster_labels, (k, 2), "to match logits")
    if index is None:
        check.shape(op, "foreground", foreground, (rows,), "to match logits without index")
    else:
        check.kind(op, "index", index, torch.int64, ".long")
        check.shape(op, "index", index, tuple(foreground.shape), "to match foreground")
        check.same_device(op, "index", index, "logits", logits)
    others = {
        "embeddings": embeddings,
        "attention": attention,
        "foreground": foreground,
        "cluster_labels": cluster_labels,
    }
    for name, value in others.items():
        check.same_device(op, name, value, "logits", logits)
    check.positive(op, "sigma", sigma)
    check.choice(op, "ranks", ranks, RANKS)
    check.whole(op, "n_iters", n_iters)
    scc, ccc, labels = call(
        op, logits, embeddings, attention, foreground, cluster_labels, index, float(sigma), ranks, float(ot_scale),
        float(cosine_scale), int(n_iters),
    )  # fmt: skip
    return ClusteringLosses(scc, ccc, labels.detach())


def _reduce(values: Tensor, reduction: str) -> Tensor:
    if reduction == "mean":
        return values.mean()
    return values.sum() if reduction == "sum" else values


def _fake_rows(x: Tensor, *_: object) -> Tensor:
    return x.new_empty(x.shape[:-1], dtype=accumulation_dtype(x))


def _fake_chain(logits: Tensor, *_: object) -> tuple[Tensor, Tensor, Tensor]:
    dtype = accumulation_dtype(logits)
    scalar = logits.new_empty((), dtype=dtype)
    return scalar, torch.empty_like(scalar), logits.new_empty((logits.shape[-1], 2), dtype=dtype)


register(
    "soft_cross_entropy", "Tensor logits, Tensor targets", "Tensor", reference.soft_cross_entropy, _fake_rows,
    differentiable=("logits", "targets"),
)  # fmt: skip
register(
    "soft_cross_entropy_of_plan", f"Tensor logits, {PLAN_ARGUMENTS}", "Tensor", reference.soft_cross_entropy_of_plan,
    _fake_rows, differentiable=("logits", *PLAN_DIFFERENTIABLE),
)  # fmt: skip
register(
    "generalized_cross_entropy", "Tensor p, Tensor target, float q", "Tensor", reference.generalized_cross_entropy,
    _fake_rows, differentiable=("p", "target"),
)  # fmt: skip
register(
    "clustering_losses",
    "Tensor logits, Tensor embeddings, Tensor attention, Tensor foreground, Tensor cluster_labels, Tensor? index, "
    "float sigma, str ranks, float ot_scale, float cosine_scale, int n_iters",
    "(Tensor scc, Tensor ccc, Tensor cluster_labels)", reference.clustering_losses, _fake_chain,
    differentiable=("logits", "embeddings"),
)  # fmt: skip

__all__ = ["ClusteringLosses", "clustering_losses", "generalized_cross_entropy", "soft_cross_entropy"]
