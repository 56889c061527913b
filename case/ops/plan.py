"""A transport plan held as potentials, and the rank prior held as its inputs: (N, K) numbers that need not exist."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from case.ops import _check as check
from case.ops.reference.sinkhorn import dense_plan

RANKS = ("true", "argsort")

# Of registered ops that take a plan in place of a matrix; ``plan_arguments`` gives the values.
PLAN_ARGUMENTS = (
    "Tensor plan_logits, Tensor u, Tensor v, Tensor? prior, Tensor? rank_scores, Tensor? rank_centers, "
    "float rank_sigma, str ranks, Tensor? mask, float scale"
)
PLAN_DIFFERENTIABLE = ("plan_logits", "u", "v", "prior", "rank_centers")


class RankPrior(NamedTuple):
    """The prior ``rank_prior(scores, centers, sigma, ranks=ranks)``, not written out.

    scores (..., N), centers (..., K), sigma > 0, ranks "true" or "argsort": see ``case.ops.rank_prior``.
    """

    scores: Tensor
    centers: Tensor
    sigma: float
    ranks: str = "true"


class Plan(NamedTuple):
    """Q = exp(scale * logits + log prior + u + v), rows summing to 1, as ``sinkhorn_potentials`` found it.

    logits (..., N, K), u (..., N), v (..., K); prior and mask as they were given to the op. Ops that take weights or
    targets accept a ``Plan``, or the plain triple (logits, u, v) of a plan without prior, mask and scale.
    """

    logits: Tensor
    u: Tensor
    v: Tensor
    scale: float = 1.0
    prior: Tensor | RankPrior | None = None
    mask: Tensor | None = None

    def dense(self) -> Tensor:
        """Q (..., N, K) in the dtype of the logits."""
        mask = expand_mask(self.mask, self.logits)
        q = dense_plan(self.logits, self.u, self.v, *split_prior(self.prior), mask, self.scale)
        return q.to(self.logits.dtype)


def split_prior(
    prior: Tensor | RankPrior | None,
) -> tuple[Tensor | None, Tensor | None, Tensor | None, float, str]:
    """The registered ops' five arguments (prior, rank_scores, rank_centers, rank_sigma, ranks)."""
    if isinstance(prior, RankPrior):
        return None, prior.scores, prior.centers, float(prior.sigma), prior.ranks
    return prior, None, None, 1.0, "true"


def plan_arguments(
    op: str, name: str, value: Plan | tuple[Tensor, Tensor, Tensor]
) -> tuple[Tensor, Tensor, Tensor, Tensor | None, Tensor | None, Tensor | None, float, str, Tensor | None, float]:
    """What registered ops take for a plan, checked: the arguments of ``PLAN_ARGUMENTS`` in their order.

    ``name`` is the public argument that ``value`` was given as; errors name its parts, "targets.u". Prior and mask
    come out broadcast to the shape of the plan's logits, without a copy.
    """
    if isinstance(value, tuple) and len(value) == 3 and all(isinstance(part, Tensor) for part in value):
        value = Plan(*value)
    if not isinstance(value, Plan):
        raise TypeError(
            f"{op}: {name} must be a torch.Tensor, a Plan or a triple (logits, u, v), got {type(value).__name__}"
        )
    logits = value.logits
    check.floating(op, f"{name}.logits", logits, at_least=2)
    for part, potential, shape in (
        ("u", value.u, logits.shape[:-1]),
        ("v", value.v, (*logits.shape[:-2], logits.shape[-1])),
    ):
        check.floating(op, f"{name}.{part}", potential)
        check.same_device(op, f"{name}.{part}", potential, f"{name}.logits", logits)
        check.shape(op, f"{name}.{part}", potential, tuple(shape), f"to match {name}.logits")
    prior = checked_prior(op, f"{name}.prior", value.prior, f"{name}.logits", logits)
    mask = checked_mask(op, f"{name}.mask", value.mask, f"{name}.logits", logits)
    check.finite(op, f"{name}.scale", value.scale)
    return (logits, value.u, value.v, *prior, mask, float(value.scale))


def checked_prior(
    op: str, name: str, prior: Tensor | RankPrior | None, logits_name: str, logits: Tensor
) -> tuple[Tensor | None, Tensor | None, Tensor | None, float, str]:
    """``split_prior``, checked and broadcast to the shape of the logits."""
    if prior is None:
        return split_prior(None)
    because = f"to match {logits_name}"
    if not isinstance(prior, RankPrior):
        check.floating(op, name, prior)
        check.same_device(op, name, prior, logits_name, logits)
        return split_prior(check.broadcast(op, name, prior, tuple(logits.shape), because))
    lead, (n, k) = logits.shape[:-2], logits.shape[-2:]
    parts = []
    for part, value, length in (("scores", prior.scores, n), ("centers", prior.centers, k)):
        check.floating(op, f"{name}.{part}", value)
        check.same_device(op, f"{name}.{part}", value, logits_name, logits)
        parts.append(check.broadcast(op, f"{name}.{part}", value, (*lead, length), because))
    check.positive(op, f"{name}.sigma", prior.sigma)
    check.choice(op, f"{name}.ranks", prior.ranks, RANKS)
    return split_prior(RankPrior(parts[0], parts[1], prior.sigma, prior.ranks))


def checked_mask(op: str, name: str, mask: Tensor | None, logits_name: str, logits: Tensor) -> Tensor | None:
    """``expand_mask``, checked."""
    if mask is None:
        return None
    check.kind(op, name, mask, torch.bool, ".bool")
    check.same_device(op, name, mask, logits_name, logits)
    try:
        return expand_mask(mask, logits)
    except RuntimeError:
        raise ValueError(
            f"{op}: {name} must have shape {check.show(logits.shape[:-1])} or {check.show(logits.shape)}, "
            f"got {check.show(mask.shape)}"
        ) from None


def expand_mask(mask: Tensor | None, logits: Tensor) -> Tensor | None:
    """A mask of rows (..., N) or of entries (..., N, K) as the latter; None stays None."""
    if mask is None:
        return None
    if mask.dim() == logits.dim() - 1:
        mask = mask.unsqueeze(-1)
    return torch.broadcast_to(mask, logits.shape)
