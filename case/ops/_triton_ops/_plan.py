"""A transport plan in place of a matrix, from the registered ops' arguments to what kernels take."""

from __future__ import annotations

import triton.language as tl
from torch import Tensor

from case.kernels.matrix import RankTerm, log_matrix
from case.kernels.prototypes import Weights, of_plan
from case.ops._triton_ops._common import batch
from case.ops._triton_ops._ranks import rank_positions
from case.ops.reference._numerics import accumulation_dtype


def plan_weights(
    like: Tensor, logits: Tensor, u: Tensor, v: Tensor, prior: Tensor | None, rank_scores: Tensor | None,
    rank_centers: Tensor | None, rank_sigma: float, ranks: str, mask: Tensor | None, scale: float,
) -> Weights:  # fmt: skip
    """Q of the arguments of ``PLAN_ARGUMENTS``, to be computed as kernels compute with ``like``."""
    term = None
    if rank_scores is not None and rank_centers is not None:
        scores, centers = batch(rank_scores.to(accumulation_dtype(logits)), 1), batch(rank_centers, 1)
        positions = rank_positions(scores, ranks, None if mask is None else batch(mask, 2))
        positions = positions.to(accumulation_dtype(like)).contiguous()
        term = RankTerm(positions, centers, *centers.stride(), tl.constexpr(False), 1 / (2 * rank_sigma**2))
    matrix = log_matrix(
        batch(logits, 2), scale, ranks=term,
        prior=None if prior is None else batch(prior, 2), mask=None if mask is None else batch(mask, 2),
    )  # fmt: skip
    return of_plan(matrix, batch(u, 1), batch(v, 1))
