"""The matrix L = scale * logits + log prior of a transport problem: what it is made of, and how a tile of it is loaded.

L is never written. ``LogMatrix`` holds addresses and strides; every kernel that needs L, or the plan exp(L + u + v),
reads a tile through ``load_log_matrix`` with the parts that are there (absent ones cost nothing).
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

# Sums of plan rows over repeats of a row are held as int64 multiples of this: integers have one sum, in any order. A
# row has room for two million repeats. Rounding to it is below float32's own wherever a weight exceeds 2^-18; a smaller
# one loses 2^-43 of the whole a sample, which no loss can show.
WEIGHT_UNIT = tl.constexpr(2.0**-42)
# Such a sum that has met a NaN. Whatever else is added, up to half a million repeats, it stays below -2^62.
NOT_A_NUMBER = tl.constexpr(-3 * 2**61)

ACCUMULATE = {torch.float64: tl.float64}  # everything else is computed in float32


def accumulator(dtype: torch.dtype) -> Any:
    """Triton's type in which inputs of ``dtype`` are computed."""
    return ACCUMULATE.get(dtype, tl.float32)


def torch_dtype(acc: Any) -> torch.dtype:
    """torch's dtype for an ``accumulator``."""
    return torch.float64 if acc == tl.float64 else torch.float32


class RankTerm(NamedTuple):
    """-(p_n - c_k)^2 * factor of the rank prior; factor = 1 / (2 sigma^2)."""

    positions: Tensor  # (B, N), in the accumulation dtype
    centers: Tensor
    stride_b: int  # of centers
    stride_k: int
    complement: tl.constexpr  # bool: c = 1 - centers, cluster labels as they stand
    factor: float


class LogMatrix(NamedTuple):
    """B problems of N rows and K columns. Strides are (b, n, k) in elements; 0 broadcasts."""

    logits: Tensor
    strides: tuple[int, int, int]
    scale: float
    streams: tl.constexpr  # int: logits of several streams, stride_stream apart, are added up
    stride_stream: int
    index: Tensor | None  # (N,) int64: row n of the problem is row index[n] of the logits
    prior: Tensor | None
    prior_strides: tuple[int, int, int]
    mask: Tensor | None  # uint8
    mask_strides: tuple[int, int, int]
    ranks: RankTerm | None
    # Triton 3.6 forgets constants of inner tuples (a stride of 1) unless a constant of this level comes after them.
    last: tl.constexpr = tl.constexpr(0)


def log_matrix(
    logits: Tensor,
    scale: float,
    *,
    prior: Tensor | None = None,
    mask: Tensor | None = None,
    ranks: RankTerm | None = None,
) -> LogMatrix:
    """Of tensors (B, N, K) with any strides, mask bool."""
    return LogMatrix(
        logits, _strides(logits), scale, tl.constexpr(1), 0, None,
        prior, _strides(prior), None if mask is None else mask.view(torch.uint8), _strides(mask), ranks,
    )  # fmt: skip


def _strides(x: Tensor | None) -> tuple[int, int, int]:
    return (0, 0, 0) if x is None else (x.stride(0), x.stride(1), x.stride(2))


@triton.jit
def weights_of_units(units, ACC: tl.constexpr):
    """What sums in ``WEIGHT_UNIT`` stand for."""
    return tl.where(units < -(2**62), float("nan"), units.to(ACC) * WEIGHT_UNIT)


@triton.jit
def row_indices(first, BLOCK: tl.constexpr):
    """first .. first + BLOCK as int64, so that no offset overflows at 2^31 elements."""
    return (first + tl.arange(0, BLOCK)).to(tl.int64)


@triton.jit
def load_log_matrix(m, problem, rows, cols, n, k, ACC: tl.constexpr, position):
    """The tile L[problem, rows, cols], -inf outside, where masked and where the prior is 0.

    problem int64 scalar, rows (BLOCK_N,) int64, cols (BLOCK_K,); position (BLOCK_N,): the rank prior's p of the rows
    where the kernel has just found them, else None.
    """
    inside = (rows < n)[:, None] & (cols < k)[None, :]
    source, columns = rows, cols.to(tl.int64)  # of a transposed matrix, columns are far apart
    if m.index is not None:
        source = tl.load(m.index + rows, mask=rows < n, other=0)
    at = m.logits + problem * m.strides[0] + source[:, None] * m.strides[1] + columns[None, :] * m.strides[2]
    x = tl.load(at, mask=inside, other=0.0).to(ACC)
    for stream in tl.static_range(1, m.streams):
        x += tl.load(at + stream * m.stride_stream, mask=inside, other=0.0).to(ACC)
    x *= m.scale
    if m.prior is not None:
        at = m.prior + problem * m.prior_strides[0] + rows[:, None] * m.prior_strides[1]
        weight = tl.load(at + columns[None, :] * m.prior_strides[2], mask=inside, other=0.0).to(ACC)
        inside &= weight != 0  # true of NaN, and of what is negative, whose logarithm is
        x += tl.log(tl.where(inside, weight, 1.0))
    if m.ranks is not None:
        if position is None:
            position = tl.load(m.ranks.positions + problem * n + rows, mask=rows < n, other=0.0)
        x += log_rank_prior(m.ranks, position, problem, cols, k, ACC)
    if m.mask is not None:
        at = m.mask + problem * m.mask_strides[0] + rows[:, None] * m.mask_strides[1]
        inside &= tl.load(at + columns[None, :] * m.mask_strides[2], mask=inside, other=0) != 0
    return tl.where(inside, x, float("-inf"))


@triton.jit
def log_rank_prior(ranks, position, problem, cols, k, ACC: tl.constexpr):
    at = ranks.centers + problem * ranks.stride_b + cols.to(tl.int64) * ranks.stride_k
    center = tl.load(at, mask=cols < k, other=0.0).to(ACC)
    if ranks.complement:
        center = 1.0 - center
    gap = position[:, None] - center[None, :]
    return -gap * gap * ranks.factor


@triton.jit
def softmax_rows(x):
    """(softmax over the last dimension, its logarithmic total); 0 and -inf where a row is all -inf, NaN if it has one.

    What is empty is asked of the sum, never of the peak: a maximum passes over NaN.
    """
    peak = tl.max(x, axis=1)
    peak = tl.where(peak > float("-inf"), peak, 0.0)
    e = tl.exp(x - peak[:, None])
    total = tl.sum(e, axis=1)
    empty = total == 0
    total = tl.where(empty, 1.0, total)
    return e / total[:, None], tl.where(empty, float("-inf"), peak + tl.log(total))
