r"""Gradients of weighted sums in one pass over E: dE = W dS and dW = E dS^T + dm, with S = W^T E and its masses m.

dS and dm come from the gradient of the prototypes z through their normalisation, which is (K, D) and small:

    sum     dS = dz
    mean    dS = dz / m, dm = -(z . dz) / m, both 0 where m = 0
    l2      dS = (dz - z (z . dz)) / |S|; dz / eps where |S| < eps, as torch.nn.functional.normalize has it
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from case.kernels.config import MAX_REGISTERS, device_of, next_power_of_2, prototypes_backward_launch
from case.kernels.dots import full_dot, half_dot
from case.kernels.matrix import accumulator, row_indices
from case.kernels.prototypes import L2_EPS, Weights, load_weights
from case.kernels.tiles import load_tile, matrices


def gradients(
    embeddings: Tensor, weights: Weights, z: Tensor, sizes: Tensor, of_z: Tensor, normalize: str,
    of_embeddings: Tensor | None, of_weights: Tensor | None,
) -> None:  # fmt: skip
    """Write the gradients that are given: of_embeddings (B, N, D), of_weights (B, N, K), both contiguous.

    z (B, K, D) and sizes (B, K) are ``exact`` and ``sizes`` of ``Prototypes``, of_z (B, K, D) the gradient of z. Only
    the weights are read where only the gradient of the embeddings is wanted, and the other way round.
    """
    (problems, n, d), k = embeddings.shape, z.shape[1]
    of_sums = torch.empty_like(z)
    of_masses = torch.empty_like(sizes) if normalize == "mean" and of_weights is not None else None
    acc = accumulator(embeddings.dtype)
    if problems * k:
        _sum_gradients[(problems * k,)](
            matrices(of_z), z, sizes, of_sums, of_masses, k, d,
            NORMALIZE=normalize, EPS=L2_EPS, ACC=acc, BLOCK_D=next_power_of_2(d), num_warps=8,
        )  # fmt: skip
    launch = prototypes_backward_launch(k, d, embeddings.element_size(), device_of(embeddings))
    blocks_k = max(1, triton.cdiv(k, launch.block_k))
    programs = problems * triton.cdiv(n, launch.block_n) * blocks_k
    if programs:
        # As in the forward, registers are not what decides how many programs a multiprocessor holds.
        _input_gradients[(programs,)](
            matrices(embeddings), weights, of_sums, of_masses, of_embeddings, of_weights, n, k, d,
            ACC=acc, ONE_BLOCK=blocks_k == 1, BLOCK_N=launch.block_n, BLOCK_K=launch.block_k, BLOCK_D=launch.block_d,
            num_warps=launch.num_warps, num_stages=launch.num_stages, maxnreg=MAX_REGISTERS,
        )  # fmt: skip


@triton.jit
def _sum_gradients(
    of_z, z, sizes, of_sums, of_masses, k, d,
    NORMALIZE: tl.constexpr, EPS: tl.constexpr, ACC: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    at = tl.program_id(0).to(tl.int64)  # problem * k + column
    at_d = tl.arange(0, BLOCK_D)
    source = of_z.base + at // k * of_z.strides[0] + at % k * of_z.strides[1] + at_d * of_z.strides[2]
    g = tl.load(source, mask=at_d < d, other=0.0).to(ACC)
    if NORMALIZE != "sum":
        size = tl.load(sizes + at)
        x = tl.load(z + at * d + at_d, mask=at_d < d, other=0.0)
        along = tl.sum(x * g, axis=0)
        if NORMALIZE == "mean":
            some = size != 0
            divisor = tl.where(some, size, 1.0)
            g = tl.where(some, g / divisor, 0.0)
            if of_masses is not None:
                tl.store(of_masses + at, tl.where(some, -along / divisor, 0.0))
        else:
            g = (g - x * tl.where(size >= EPS, along, 0.0)) / tl.where(size < EPS, EPS, size)
    tl.store(of_sums + at * d + at_d, g, mask=at_d < d)


@triton.jit
def _input_gradients(
    e, weights, of_sums, of_masses, of_e, of_w, n, k, d,
    ACC: tl.constexpr, ONE_BLOCK: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    # Beyond one block of columns, each has a program for its dW, and the first also adds up dE over all of them.
    program = tl.program_id(0)
    blocks_k = tl.cdiv(k, BLOCK_K)
    block_k = 0
    if not ONE_BLOCK:
        block_k = program % blocks_k
        program = program // blocks_k
    blocks_n = tl.cdiv(n, BLOCK_N)
    problem = (program // blocks_n).to(tl.int64)
    rows = row_indices((program % blocks_n).to(tl.int64) * BLOCK_N, BLOCK_N)
    cols = row_indices(block_k * BLOCK_K, BLOCK_K)
    of_sums += problem * k * d
    if of_e is not None and ONE_BLOCK:
        w = load_weights(weights, problem, rows, cols, n, k, ACC)
    of_w_tile = tl.zeros((BLOCK_N, BLOCK_K), ACC)
    for start in range(0, d, BLOCK_D):
        at_d = row_indices(start, BLOCK_D)
        inside = (rows < n)[:, None] & (at_d < d)[None, :]
        g = _load_rows(of_sums, cols, at_d, k, d)
        if of_w is not None:
            x = load_tile(e, problem, rows, at_d, inside)
            of_w_tile = full_dot(x, tl.trans(g), of_w_tile)
        if of_e is not None:
            y = tl.zeros((BLOCK_N, BLOCK_D), ACC)
            if ONE_BLOCK:
                y = _product(w, g, y, of_e.dtype.element_ty)
            else:
                inside &= block_k == 0
                for first in range(0, tl.where(block_k == 0, k, 0), BLOCK_K):
                    others = row_indices(first, BLOCK_K)
                    w = load_weights(weights, problem, rows, others, n, k, ACC)
                    y = _product(w, _load_rows(of_sums, others, at_d, k, d), y, of_e.dtype.element_ty)
            at = (problem * n + rows)[:, None] * d + at_d[None, :]
            tl.store(of_e + at, y.to(of_e.dtype.element_ty), mask=inside)
    if of_w is not None:
        if of_masses is not None:
            of_w_tile += tl.load(of_masses + problem * k + cols, mask=cols < k, other=0.0)[None, :]
        at = (problem * n + rows)[:, None] * k + cols[None, :]
        inside = (rows < n)[:, None] & (cols < k)[None, :]
        tl.store(of_w + at, of_w_tile.to(of_w.dtype.element_ty), mask=inside)


@triton.jit
def _load_rows(x, rows, cols, n, k):
    inside = (rows < n)[:, None] & (cols < k)[None, :]
    return tl.load(x + rows[:, None] * k + cols[None, :], mask=inside, other=0.0)


@triton.jit
def _product(w, g, acc, RESULT: tl.constexpr):
    if RESULT.primitive_bitwidth == 16:
        return half_dot(w, g, acc)
    else:
        return full_dot(w.to(g.dtype), g, acc)
