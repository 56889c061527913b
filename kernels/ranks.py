"""Ranks of scores without a full sort: chunks are sorted on their own, then each score is looked up in every chunk.

rank_n = number of scores ahead of score n: the larger ones, and among equals the earlier ones. Score and position make
one 64-bit key without ties, so that number is a sum of binary searches, one per sorted chunk: one launch to sort, and
the searches run inside the kernel that needs the ranks.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from case.kernels.config import Device, next_power_of_2
from case.kernels.matrix import row_indices

# Beyond, the searches (rows x chunks) cost more than the radix sort that torch calls.
LIMIT = 1 << 16
_LEAST = tl.constexpr(-(1 << 63))


class SortedChunks(NamedTuple):
    """Scores of B problems as keys, sorted downwards within chunks."""

    keys: Tensor  # (B, chunks, CHUNK) int64
    scores: Tensor
    stride_b: int
    stride_n: int
    index: Tensor | None  # (N,): score n of a problem is scores[index[n]]
    chunks: int
    CHUNK: tl.constexpr  # 2 ** BITS
    BITS: tl.constexpr
    BLOCK: tl.constexpr  # chunks searched at once


def chunk_size(n: int, device: Device) -> int:
    """512: 10 steps find a key; a chunk is sorted by 128 threads in 45 exchanges. The interpreter sorts slowly."""
    if device.interpreted:
        return 16 if n <= 256 else 64
    return 512


def sort_chunks(scores: Tensor, index: Tensor | None, device: Device, clear: Tensor | None = None) -> SortedChunks:
    """Of scores (B, L), any floating type but float64, in one launch; ``index`` as in ``LogMatrix``.

    clear: an int64 tensor to fill with 0 along the way, which spares a launch of its own.
    """
    problems, n = scores.shape[0], scores.shape[1] if index is None else index.shape[0]
    size = chunk_size(n, device)
    chunks = triton.cdiv(n, size)
    keys = torch.empty((problems, chunks, size), dtype=torch.int64, device=scores.device)
    block = min(32, next_power_of_2(chunks))
    constants = (tl.constexpr(size), tl.constexpr(size.bit_length() - 1), tl.constexpr(block))
    found = SortedChunks(keys, scores, scores.stride(0), scores.stride(1), index, chunks, *constants)
    programs, count = chunks * problems, 0 if clear is None else clear.numel()
    _sort[(problems, chunks)](found, n, clear, count, triton.cdiv(count, programs), BLOCK_CLEAR=1024, num_warps=4)
    return found


@triton.jit
def score_keys(sorted_, problem, rows, n):
    """Keys of the scores at ``rows``: larger score first, then earlier row. NaN ranks first, -0 equals 0."""
    source = rows
    if sorted_.index is not None:
        source = tl.load(sorted_.index + rows, mask=rows < n, other=0)
    at = sorted_.scores + problem * sorted_.stride_b + source * sorted_.stride_n
    bits = (tl.load(at, mask=rows < n, other=0.0).to(tl.float32) + 0.0).to(tl.int32, bitcast=True)
    # Negative floats order backwards as integers.
    bits = tl.where(bits < 0, bits ^ 0x7FFFFFFF, bits)
    return (bits.to(tl.int64) << 32) | (0x7FFFFFFF - rows)


@triton.jit
def _sort(sorted_, n, clear, count, count_per_program, BLOCK_CLEAR: tl.constexpr):
    problem = tl.program_id(0).to(tl.int64)
    chunk = tl.program_id(1)
    if clear is not None:
        begin = (problem * sorted_.chunks + chunk) * count_per_program
        end = min(begin + count_per_program, count)
        for first in range(begin, end, BLOCK_CLEAR):
            at = first + tl.arange(0, BLOCK_CLEAR)
            tl.store(clear + at, tl.zeros((BLOCK_CLEAR,), tl.int64), mask=at < end)
    rows = row_indices(chunk * sorted_.CHUNK, sorted_.CHUNK)
    keys = tl.where(rows < n, score_keys(sorted_, problem, rows, n), _LEAST)
    at = sorted_.keys + (problem * sorted_.chunks + chunk) * sorted_.CHUNK + tl.arange(0, sorted_.CHUNK)
    tl.store(at, tl.sort(keys, descending=True))


@triton.jit
def ranks_of(sorted_, problem, rows, n):
    """rank of each of ``rows``, int32."""
    key = score_keys(sorted_, problem, rows, n)
    ahead = tl.zeros_like(key).to(tl.int32)
    for first in range(0, sorted_.chunks, sorted_.BLOCK):
        chunk = first + tl.arange(0, sorted_.BLOCK)
        there = (chunk < sorted_.chunks)[None, :]
        base = sorted_.keys + (problem * sorted_.chunks + chunk)[None, :] * sorted_.CHUNK
        place = (key[:, None] + chunk[None, :]).to(tl.int32) * 0
        for bit in tl.static_range(1, sorted_.BITS + 1):
            probe = tl.load(base + place + ((sorted_.CHUNK >> bit) - 1), mask=there, other=_LEAST)
            place = tl.where(probe > key[:, None], place + (sorted_.CHUNK >> bit), place)
        probe = tl.load(base + place, mask=there, other=_LEAST)
        place = tl.where(probe > key[:, None], place + 1, place)
        ahead += tl.sum(tl.where(there, place, 0), axis=1)
    return ahead


@triton.jit
def _positions(sorted_, positions, n, SCATTER: tl.constexpr, BLOCK_N: tl.constexpr):
    problem = tl.program_id(0).to(tl.int64)
    rows = row_indices(tl.program_id(1) * BLOCK_N, BLOCK_N)
    rank = ranks_of(sorted_, problem, rows, n)
    if SCATTER:
        tl.store(positions + problem * n + rank, (rows + 1).to(tl.float32) / n, mask=rows < n)
    else:
        tl.store(positions + problem * n + rows, (rank + 1).to(tl.float32) / n, mask=rows < n)


def write_positions(sorted_: SortedChunks, n: int, ranks: str, positions: Tensor) -> None:
    """p (B, N) of the rank prior: (rank_n + 1) / N, or for "argsort" (n + 1) / N at place rank_n.

    The latter is the released code's: the index of the n-th largest score.
    """
    grid = (positions.shape[0], triton.cdiv(n, 64))
    _positions[grid](sorted_, positions, n, SCATTER=ranks == "argsort", BLOCK_N=64, num_warps=4)
