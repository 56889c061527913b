"""Sinkhorn-Knopp and its rank prior: public ops ``sinkhorn``, ``sinkhorn_potentials``, ``rank_prior``."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.distributed import ProcessGroup

from case.ops import _check as check
from case.ops._registration import call, register
from case.ops.plan import RANKS, Plan, RankPrior, checked_mask, checked_prior
from case.ops.reference import sinkhorn as reference
from case.ops.reference._numerics import accumulation_dtype

_ARGUMENTS = (
    "Tensor logits, Tensor? prior, Tensor? rank_scores, Tensor? rank_centers, float rank_sigma, str ranks, "
    "Tensor? row_marginal, Tensor? col_marginal, Tensor? mask, float scale, int n_iters, float? tol"
)
_DIFFERENTIABLE = ("logits", "prior", "rank_centers", "row_marginal", "col_marginal")


def sinkhorn(
    logits: Tensor,
    *,
    prior: Tensor | RankPrior | None = None,
    row_marginal: Tensor | None = None,
    col_marginal: Tensor | None = None,
    scale: float = 1.0,
    n_iters: int = 3,
    tol: float | None = None,
    mask: Tensor | None = None,
    group: ProcessGroup | None = None,
) -> Tensor:
    """Transport plan of M = exp(scale * logits) * prior, rows normalised to sum to 1 (METHOD.md, OT).

    Each iteration scales columns to their marginal, then rows; only ``n_iters`` of them are made, and the gradient is
    that of the iterations that ran. Log domain: finite for logits up to 1e4, and for entries of -inf.

    Args:
        logits: (..., N, K), float32, bfloat16, float16 (computed in float32) or float64. Leading dimensions are
            independent problems. N may be 0.
        prior: (..., N, K) non-negative weights that broadcast to logits, or a ``RankPrior``. Values are not checked,
            since the host would have to wait: one below 0 makes the problem NaN. Where it is 0 an entry takes no part,
            and the gradient in prior is 0, although a value above 0 would get a share.
        row_marginal: (..., N) non-negative, NaN below 0 likewise; only ratios matter. Default: uniform.
        col_marginal: (..., K) non-negative, likewise.
        scale: factor on the logits (an inverse temperature).
        n_iters: iterations, at least 1.
        tol: stop a problem whose columns are all within ``tol`` of their marginal, as shares of the mass. The
            remaining iterations run without effect: the host is never asked.
        mask: bool, (..., N) rows or (..., N, K) entries that take part. Rows wholly off come out as 0.
        group: process group over which N is split; each rank gives and gets its own rows. One collective of K
            numbers an iteration. Gradients are those of the sum of the ranks' losses. Runs on the reference path;
            a ``RankPrior`` needs all scores, so give the prior as a matrix here.

    Returns:
        (..., N, K) in the dtype of logits. Differentiable in logits, prior, marginals and the RankPrior's centres.

    Raises:
        TypeError, ValueError: naming the argument, what was got and what fits.
    """
    args = _arguments("sinkhorn", logits, prior, row_marginal, col_marginal, scale, n_iters, tol, mask, group)
    if group is not None:
        return reference.sinkhorn(*args, group)
    return call("sinkhorn", *args)


def sinkhorn_potentials(
    logits: Tensor,
    *,
    prior: Tensor | RankPrior | None = None,
    row_marginal: Tensor | None = None,
    col_marginal: Tensor | None = None,
    scale: float = 1.0,
    n_iters: int = 3,
    tol: float | None = None,
    mask: Tensor | None = None,
    group: ProcessGroup | None = None,
) -> tuple[Tensor, Tensor]:
    """As ``sinkhorn``, but the plan is never written: (u, v) with Q = exp(scale * logits + log prior + u + v).

    Returns:
        u (..., N) and v (..., K), float32 (float64 for float64 logits); ``Plan(logits, u, v, scale, prior, mask)``
        is what ``prototypes`` and ``soft_cross_entropy`` take in place of Q. Rows and columns without any mass have
        potential 0. Differentiable as ``sinkhorn``.
    """
    args = _arguments(
        "sinkhorn_potentials", logits, prior, row_marginal, col_marginal, scale, n_iters, tol, mask, group
    )
    if group is not None:
        return reference.sinkhorn_potentials(*args, group)
    return call("sinkhorn_potentials", *args)


def rank_prior(scores: Tensor, centers: Tensor, sigma: float, *, ranks: str = "true") -> Tensor:
    """exp(-(p_n - c_k)^2 / (2 sigma^2)), normalised to sum 1 over (N, K); p_n = (rank_n + 1) / N (METHOD.md, SCC).

    Args:
        scores: (..., N); rank 0 is the highest, ties rank in order of appearance.
        centers: (..., K), the relative rank at which each column expects its rows.
        sigma: width, > 0, in units of relative rank (0 to 1).
        ranks: "true", or "argsort" for the released code's p_n, the index of the n-th largest score.

    Returns:
        (..., N, K) in the dtype of scores. Differentiable in centers (ranks are piecewise constant).
    """
    op = "rank_prior"
    check.floating(op, "scores", scores, at_least=1)
    check.floating(op, "centers", centers, at_least=1)
    _check_rank(op, scores, centers, sigma, ranks)
    check.shape(op, "centers", centers, (*scores.shape[:-1], centers.shape[-1]), "to match scores")
    return call(op, scores, centers, float(sigma), ranks)


def _check_rank(op: str, scores: Tensor, centers: Tensor, sigma: float, ranks: str) -> None:
    check.same_device(op, "centers", centers, "scores", scores)
    check.positive(op, "sigma", sigma)
    check.choice(op, "ranks", ranks, RANKS)


def _arguments(
    op: str,
    logits: Tensor,
    prior: Tensor | RankPrior | None,
    row_marginal: Tensor | None,
    col_marginal: Tensor | None,
    scale: float,
    n_iters: int,
    tol: float | None,
    mask: Tensor | None,
    group: ProcessGroup | None,
) -> tuple[Any, ...]:
    """The registered op's arguments, checked and broadcast to the shape of logits."""
    check.floating(op, "logits", logits, at_least=2)
    n, k = logits.shape[-2:]
    lead = logits.shape[:-2]
    if k == 0:
        raise ValueError(f"{op}: logits must have at least one column, got shape {check.show(logits.shape)}")
    check.finite(op, "scale", scale)
    check.whole(op, "n_iters", n_iters)
    if tol is not None:
        check.positive(op, "tol", tol)
    split = checked_prior(op, "prior", prior, "logits", logits)
    if group is not None and split[1] is not None:
        raise ValueError(f"{op}: prior is a RankPrior, which needs the scores of all ranks; with group, give a matrix")
    marginals = []
    for name, marginal, length in (("row_marginal", row_marginal, n), ("col_marginal", col_marginal, k)):
        if marginal is not None:
            check.floating(op, name, marginal)
            check.same_device(op, name, marginal, "logits", logits)
            marginal = check.broadcast(op, name, marginal, (*lead, length), "to match logits")
        marginals.append(marginal)
    mask = checked_mask(op, "mask", mask, "logits", logits)
    tol = None if tol is None else float(tol)
    return (logits, *split, *marginals, mask, float(scale), int(n_iters), tol)


def _potentials_fake(logits: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
    dtype = accumulation_dtype(logits)
    lead, (n, k) = logits.shape[:-2], logits.shape[-2:]
    return logits.new_empty((*lead, n), dtype=dtype), logits.new_empty((*lead, k), dtype=dtype)


register(
    "sinkhorn", _ARGUMENTS, "Tensor", reference.sinkhorn,
    lambda logits, *_: logits.new_empty(logits.shape), differentiable=_DIFFERENTIABLE,
)  # fmt: skip
register(
    "sinkhorn_potentials", _ARGUMENTS, "(Tensor u, Tensor v)", reference.sinkhorn_potentials,
    _potentials_fake, differentiable=_DIFFERENTIABLE,
)  # fmt: skip
register(
    "rank_prior", "Tensor scores, Tensor centers, float sigma, str ranks", "Tensor", reference.rank_prior,
    lambda scores, centers, *_: scores.new_empty((*scores.shape, centers.shape[-1])), differentiable=("centers",),
)  # fmt: skip

__all__ = ["Plan", "RankPrior", "rank_prior", "sinkhorn", "sinkhorn_potentials"]
