r"""Weighted sums of rows, z_k = sum_n W_nk E_n / size_k, for many rows and few columns; E is read once.

Rows are split among programs. Each adds up a (K, D) partial sum on tensor cores and writes it; a second kernel adds the
partial sums in a fixed order and divides by the column's mass or length. The weights are a matrix, or a transport plan
exp(L + u + v) of which each tile is computed where it is needed.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from case.kernels.config import MAX_REGISTERS, device_of, next_power_of_2, prototypes_launch
from case.kernels.dots import full_dot
from case.kernels.matrix import LogMatrix, accumulator, load_log_matrix, row_indices, torch_dtype, weights_of_units
from case.kernels.tiles import Matrices, load_tile, matrices

L2_EPS = 1e-12  # as in torch.nn.functional.normalize


class Weights(NamedTuple):
    """(B, N, K): ``matrix``, or the plan exp(plan + u + v); what is not there is None."""

    matrix: Matrices | None
    plan: LogMatrix | None
    u: Matrices | None  # (B, N, 1)
    v: Matrices | None  # (B, 1, K)
    planned: tl.constexpr  # bool; the last, as ``last`` of LogMatrix


class Prototypes(NamedTuple):
    """z (B, K, D) in the dtype of the embeddings; ``exact`` before that rounding; sizes (B, K): masses or lengths."""

    z: Tensor
    exact: Tensor
    sizes: Tensor


def of_matrix(weights: Tensor) -> Weights:
    """Of a tensor (B, N, K); int64 counts units of ``WEIGHT_UNIT``."""
    return Weights(matrices(weights), None, None, None, tl.constexpr(False))


def of_plan(plan: LogMatrix, u: Tensor, v: Tensor) -> Weights:
    """Of L and potentials (B, N), (B, K)."""
    return Weights(None, plan, matrices(u.unsqueeze(2)), matrices(v.unsqueeze(1)), tl.constexpr(True))


def prototypes(embeddings: Tensor, weights: Weights, k: int, normalize: str) -> Prototypes:
    """Of embeddings (B, N, D) and weights with k columns; columns without weight give 0."""
    problems, _, d = embeddings.shape
    acc = accumulator(embeddings.dtype)
    dtype = torch_dtype(acc)
    z = embeddings.new_empty((problems, k, d))
    exact = z if z.dtype == dtype else torch.empty_like(z, dtype=dtype)
    sizes = torch.empty((problems, k), dtype=dtype, device=z.device)
    if z.numel() == 0:
        return Prototypes(z, exact, sizes)
    partial, masses = partial_sums(embeddings, weights, k, with_masses=normalize == "mean")
    # One program sees a whole prototype, whose length it needs: some 16 to 32 elements a thread at a time.
    block_d = next_power_of_2(d)
    _finish[(problems * k,)](
        partial, masses, z, None if exact is z else exact, sizes, k, d, partial.shape[1],
        NORMALIZE=normalize, EPS=L2_EPS, ACC=acc, BLOCK_S=max(1, 8192 // block_d), BLOCK_D=block_d, num_warps=8,
    )  # fmt: skip
    return Prototypes(z, exact, sizes)


def partial_sums(embeddings: Tensor, weights: Weights, k: int, *, with_masses: bool) -> tuple[Tensor, Tensor | None]:
    """(B, splits, K, D) sums over the rows of each split, and (B, splits, K) of the weights."""
    problems, n, d = embeddings.shape
    acc = accumulator(embeddings.dtype)
    options = {"dtype": torch_dtype(acc), "device": embeddings.device}
    launch = prototypes_launch(problems, n, k, d, embeddings.element_size(), device_of(embeddings))
    partial = torch.empty((problems, launch.splits, k, d), **options)
    masses = torch.empty((problems, launch.splits, k), **options) if with_masses else None
    programs = problems * launch.splits * triton.cdiv(k, launch.block_k) * triton.cdiv(d, launch.block_d)
    # Shared memory decides how many programs a multiprocessor holds, which ptxas does not know: it would rather spill a
    # register or two than go beyond 80 or 96.
    _partial_sums[(programs,)](
        matrices(embeddings), weights, partial, masses, n, k, d, launch.splits, launch.rows_per_split,
        ACC=acc, BLOCK_N=launch.block_n, BLOCK_K=launch.block_k, BLOCK_D=launch.block_d,
        num_warps=launch.num_warps, num_stages=launch.num_stages, maxnreg=MAX_REGISTERS,
    )  # fmt: skip
    return partial, masses


@triton.jit
def load_weights(weights, problem, rows, cols, n, k, ACC: tl.constexpr):
    """The tile W[problem, rows, cols], 0 outside: as stored if in half precision, else in ACC."""
    if weights.planned:
        u = load_tile(weights.u, problem, rows, tl.arange(0, 1), (rows < n)[:, None]).to(ACC)
        v = load_tile(weights.v, problem, tl.arange(0, 1), cols, (cols < k)[None, :]).to(ACC)
        return tl.exp(load_log_matrix(weights.plan, problem, rows, cols, n, k, ACC, None) + u + v)
    else:
        w = load_tile(weights.matrix, problem, rows, cols, (rows < n)[:, None] & (cols < k)[None, :])
        if w.dtype == tl.int64:
            w = weights_of_units(w, ACC)
        elif w.dtype.primitive_bitwidth > 16 or ACC.primitive_bitwidth > 32:
            w = w.to(ACC)
        return w


@triton.jit
def weighted_sum_tile(acc, w, e):
    """acc (K, D) + w^T e for w (N, K) in any precision and e (N, D)."""
    if e.dtype.primitive_bitwidth > 16:
        w = w.to(e.dtype)
    return full_dot(tl.trans(w), e, acc)


@triton.jit
def _partial_sums(
    e, weights, partial, masses, n, k, d, splits, rows_per_split,
    ACC: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    # Neighbouring programs share rows: their weights, and the embeddings under more than one block of columns, come
    # from the L2 cache.
    program = tl.program_id(0)
    blocks_d = tl.cdiv(d, BLOCK_D)
    blocks_k = tl.cdiv(k, BLOCK_K)
    at_d = row_indices(program % blocks_d * BLOCK_D, BLOCK_D)
    cols = row_indices(program // blocks_d % blocks_k * BLOCK_K, BLOCK_K)
    part = program // blocks_d // blocks_k  # problem * splits + split
    problem = (part // splits).to(tl.int64)
    first = (part % splits).to(tl.int64) * rows_per_split
    acc = tl.zeros((BLOCK_K, BLOCK_D), ACC)
    mass = tl.zeros((BLOCK_N, BLOCK_K), ACC)
    for start in range(0, tl.minimum(rows_per_split, n - first).to(tl.int32), BLOCK_N):
        rows = row_indices(first + start, BLOCK_N)
        w = load_weights(weights, problem, rows, cols, n, k, ACC)
        x = load_tile(e, problem, rows, at_d, (rows < n)[:, None] & (at_d < d)[None, :])
        acc = weighted_sum_tile(acc, w, x)
        if masses is not None:
            mass += w.to(ACC)
    at = (part.to(tl.int64) * k + cols[:, None]) * d + at_d[None, :]
    tl.store(partial + at, acc, mask=(cols < k)[:, None] & (at_d < d)[None, :])
    if masses is not None:
        # Every block of D writes the same masses.
        tl.store(masses + part.to(tl.int64) * k + cols, tl.sum(mass, axis=0), mask=cols < k)


@triton.jit
def _finish(
    partial, masses, z, exact, sizes, k, d, splits,
    NORMALIZE: tl.constexpr, EPS: tl.constexpr, ACC: tl.constexpr, BLOCK_S: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    at = tl.program_id(0).to(tl.int64)  # problem * k + column
    first = at // k * splits * k + at % k
    at_d = tl.arange(0, BLOCK_D)
    total = tl.zeros((BLOCK_S, BLOCK_D), ACC)
    mass = tl.zeros((BLOCK_S,), ACC)
    for start in range(0, splits, BLOCK_S):
        split_ = start + tl.arange(0, BLOCK_S)
        row = first + split_.to(tl.int64) * k
        inside = (split_ < splits)[:, None] & (at_d < d)[None, :]
        total += tl.load(partial + row[:, None] * d + at_d[None, :], mask=inside, other=0.0)
        if masses is not None:
            mass += tl.load(masses + row, mask=split_ < splits, other=0.0)
    found = tl.sum(total, axis=0)
    if NORMALIZE == "mean":
        size = tl.sum(mass, axis=0)
        found = tl.where(size != 0, found / tl.where(size != 0, size, 1.0), 0.0)
        tl.store(sizes + at, size)
    if NORMALIZE == "l2":
        size = tl.sqrt(tl.sum(found * found, axis=0))
        found = found / tl.where(size < EPS, EPS, size)  # a maximum would pass over NaN
        tl.store(sizes + at, size)
    tl.store(z + at * d + at_d, found.to(z.dtype.element_ty), mask=at_d < d)
    if exact is not None:
        tl.store(exact + at * d + at_d, found, mask=at_d < d)
