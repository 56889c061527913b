"""Ranks of scores for the rank prior: by kernels where they can, by torch's sort where they cannot."""

from __future__ import annotations

import torch
import triton.language as tl
from torch import Tensor

from case.kernels.config import device_of
from case.kernels.matrix import RankTerm
from case.kernels.ranks import LIMIT, SortedChunks, sort_chunks, write_positions
from case.ops.reference import sinkhorn as reference
from case.ops.reference._numerics import accumulation_dtype


def _has_kernel(scores: Tensor, n: int, mask: Tensor | None) -> bool:
    """Keys of 64 bits hold float32 scores; rows that a mask takes out rank in a way of their own."""
    return scores.dtype != torch.float64 and mask is None and scores.shape[0] * n > 0 and n <= LIMIT


def rank_positions(scores: Tensor, ranks: str, mask: Tensor | None) -> Tensor:
    """p_n (B, N) of ``reference.rank_positions`` for scores (B, N) and a mask (B, N, K) or None."""
    dtype = accumulation_dtype(scores)
    if not _has_kernel(scores, scores.shape[1], mask):
        return reference.rank_positions(scores, ranks, None if mask is None else mask.any(-1)).to(dtype)
    positions = torch.empty(scores.shape, dtype=dtype, device=scores.device)
    write_positions(sort_chunks(scores, None, device_of(scores)), scores.shape[1], ranks, positions)
    return positions


def rank_term(
    scores: Tensor,
    centers: Tensor,
    sigma: float,
    ranks: str,
    *,
    mask: Tensor | None = None,
    index: Tensor | None = None,
    complement: bool = False,
    clear: Tensor | None = None,
) -> tuple[RankTerm, SortedChunks | None]:
    """The rank prior of scores (B, N), centers (B, K): its positions, or scores sorted so that a kernel finds them.

    index (N,): score n is scores[:, index[n]]. complement: of centres 1 - c. clear: filled with 0, see ``sort_chunks``.
    """
    dtype = accumulation_dtype(scores)
    problems, n = scores.shape[0], scores.shape[1] if index is None else index.shape[0]
    sorted_ = None
    if _has_kernel(scores, n, mask):
        positions = torch.empty((problems, n), dtype=dtype, device=scores.device)
        sorted_ = sort_chunks(scores, index, device_of(scores), clear)
        if ranks == "argsort":
            write_positions(sorted_, n, ranks, positions)
            sorted_ = None
    else:
        positions = rank_positions(scores if index is None else scores[:, index], ranks, mask)
        if clear is not None:
            clear.zero_()
    return RankTerm(positions, centers, *centers.stride(), tl.constexpr(complement), 1 / (2 * sigma**2)), sorted_
