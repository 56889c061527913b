"""A transport plan held as potentials, and the rank prior held as its inputs: (N, K) numbers that need not exist."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from case.ops.reference.sinkhorn import log_matrix


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
        log_m = log_matrix(self.logits, *split_prior(self.prior), mask, self.scale)
        return (log_m + self.u.unsqueeze(-1) + self.v.unsqueeze(-2)).exp().to(self.logits.dtype)


def split_prior(
    prior: Tensor | RankPrior | None,
) -> tuple[Tensor | None, Tensor | None, Tensor | None, float, str]:
    """The registered ops' five arguments (prior, rank_scores, rank_centers, rank_sigma, ranks)."""
    if isinstance(prior, RankPrior):
        return None, prior.scores, prior.centers, float(prior.sigma), prior.ranks
    return prior, None, None, 1.0, "true"


def as_matrix(op: str, name: str, value: Tensor | Plan | tuple[Tensor, Tensor, Tensor]) -> Tensor:
    """The (..., N, K) matrix that ``value`` stands for: itself, or a plan's Q."""
    if isinstance(value, Tensor):
        return value
    if isinstance(value, Plan):
        return value.dense()
    if isinstance(value, tuple) and len(value) == 3 and all(isinstance(part, Tensor) for part in value):
        return Plan(*value).dense()
    raise TypeError(
        f"{op}: {name} must be a torch.Tensor, a Plan or a triple (logits, u, v), got {type(value).__name__}"
    )


def expand_mask(mask: Tensor | None, logits: Tensor) -> Tensor | None:
    """A mask of rows (..., N) or of entries (..., N, K) as the latter; None stays None."""
    if mask is None:
        return None
    if mask.dim() == logits.dim() - 1:
        mask = mask.unsqueeze(-1)
    return torch.broadcast_to(mask, logits.shape)
