r"""The chain of CASE's clustering losses: OT over samples, prototypes, OT over clusters, both losses, all gradients.

All that is wide lives at the L distinct rows. With Q the plan over the N samples, W_lk = sum over the samples n of row
l of Q_nk (and two more columns, the sums of g and 1 - g) holds everything the rest needs:

    L_C = 1/N sum_m sum_l sum_k W_lk (log sum_j exp S_mlj - S_mlk)      dL_C/dS_ml = (|W_l| softmax(S_ml) - W_l) / N
    s_m = W^T E_m, the unnormalised prototypes z (K rows) and f (2 rows)

U_ki = rho z_k . f_i / (|z_k| |f_i|) needs nothing of s but its lengths and the K x 2 products. L_R and dU follow in one
small program, and ds is a linear combination of the rows of s, whose K x 2 + K + 2 coefficients that program leaves:

    ds_k = sum_i b_ki f_i + d_k z_k,   ds_{K+i} = sum_k b_ki z_k + d_{K+i} f_i,   b_ki = rho dU_ki / (|z_k| |f_i|),
    d_k = -sum_i dU_ki U_ki / |z_k|^2,   d_{K+i} = -sum_k dU_ki U_ki / |f_i|^2;   dE_m = W ds_m.

So E is read once forward and its gradient written once backward.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from case.kernels.config import MAX_REGISTERS, chain_launch, device_of
from case.kernels.matrix import LogMatrix, RankTerm, accumulator, row_indices, softmax_rows, torch_dtype
from case.kernels.prototypes import L2_EPS, Weights, load_weights, of_matrix, partial_sums
from case.kernels.ranks import SortedChunks
from case.kernels.sinkhorn import Output, iterate_tile, marginals, solve, sum_parts


class Chain(NamedTuple):
    """Results and what the backward needs. K2 = K + 2."""

    scc: Tensor  # scalars
    ccc: Tensor
    labels: Tensor  # (K, 2)
    weights: Tensor  # W (L, K2) int64, in units of WEIGHT_UNIT
    sums: Tensor  # s (M, K2, H)
    factors: Tensor  # (M, 3, K2): b_k0, b_k1 (0 beyond K), d


class Settings(NamedTuple):
    """Of the chain: see ``case.ops.clustering_losses``."""

    ot_scale: float
    cosine_scale: float
    n_iters: int


def forward(
    logits: Tensor, embeddings: Tensor, weights: Tensor, foreground: Tensor, index: Tensor | None, ranks: RankTerm,
    sorted_: SortedChunks | None, settings: Settings,
) -> Chain:  # fmt: skip
    """Of logits (M, L, K), embeddings (M, L, H), g (N,), index (N,) and the rank prior of the samples.

    weights: (L, K2) int64 zeros, to be filled. With the sort that ``sorted_`` comes from, eight launches: sort, the
    n_iters + 1 reads of the transport over samples (here 4), sums of E, products and L_C, the transport over clusters.
    """
    streams, rows, k = logits.shape
    width, n = embeddings.shape[2], foreground.shape[0]
    acc = accumulator(logits.dtype)
    options = {"dtype": torch_dtype(acc), "device": logits.device}

    m = LogMatrix(
        logits, (0, logits.stride(1), logits.stride(2)), settings.ot_scale / streams, tl.constexpr(streams),
        logits.stride(0), index, None, (0, 0, 0), None, (0, 0, 0), ranks,
    )  # fmt: skip
    out = Output(None, None, None, weights, k + 2, foreground)
    solve(m, (1, n, k), marginals(None, None), out, settings.n_iters, None, acc, sorted_)

    partial, masses = partial_sums(embeddings, _shared(weights, streams), k + 2, with_masses=True)
    splits = partial.shape[1]
    launch = chain_launch(streams, rows, k, width, device_of(logits))
    sums = torch.empty((streams, k + 2, width), **options)
    products = torch.empty((streams, launch.blocks_h, 3, k + 2), **options)
    losses = torch.empty((streams * launch.row_tiles,), **options)
    _products_and_scc[(streams * (launch.blocks_h + launch.row_tiles),)](
        partial, sums, products, logits, logits.stride(), _shared(weights, streams), losses, rows, k, width, splits,
        launch.blocks_h, launch.row_tiles,
        ACC=acc, BLOCK_H=launch.block_h, BLOCK_C=launch.block_c, BLOCK_N=launch.block_n, BLOCK_K=launch.block_k,
        num_warps=4, maxnreg=MAX_REGISTERS,
    )  # fmt: skip
    scc, ccc = torch.empty((), **options), torch.empty((), **options)
    labels = torch.empty((k, 2), **options)
    factors = torch.empty((streams, 3, k + 2), **options)
    _cluster_classification[(1,)](
        products, masses, losses, scc, ccc, labels, factors, streams, n, k, splits, launch.blocks_h, losses.numel(),
        settings.ot_scale / streams, settings.cosine_scale, settings.n_iters,
        EPS=L2_EPS, ACC=acc, BLOCK_C=launch.block_c, num_warps=4, maxnreg=MAX_REGISTERS,
    )  # fmt: skip
    return Chain(scc, ccc, labels, weights, sums, factors)


def backward(
    logits: Tensor, width: int, chain: Chain, samples: int, of_scc: Tensor, of_ccc: Tensor
) -> tuple[Tensor, Tensor]:
    """(dlogits, dembeddings (M, L, width)) for the cotangents of the two losses, in one launch."""
    streams, rows, k = logits.shape
    launch = chain_launch(streams, rows, k, width, device_of(logits))
    found = logits.new_empty(logits.shape), logits.new_empty((streams, rows, width))
    _gradients[(launch.parts * launch.blocks_e, streams)](
        logits, logits.stride(), _shared(chain.weights, streams), chain.sums, chain.factors, of_scc, of_ccc, *found,
        samples, rows, k, width, launch.rows_per_part, launch.blocks_e,
        ACC=accumulator(logits.dtype), BLOCK_C=launch.block_e_c, ONE_BLOCK=launch.block_e_c >= k + 2,
        BLOCK_N=launch.block_e_n, BLOCK_K=launch.block_k,
        BLOCK_H=launch.block_e, num_warps=launch.num_warps, maxnreg=MAX_REGISTERS,
    )  # fmt: skip
    return found


def _shared(weights: Tensor, streams: int) -> Weights:
    """W of every stream, since both are pulled by the same plan."""
    return of_matrix(weights.expand(streams, *weights.shape))


@triton.jit
def _load_scc_tile(logits, strides, weights, stream, rows, cols, count, k, ACC: tl.constexpr):
    """(softmax of S, its log total, S with 0 for what is not there, W) for a tile of distinct rows.

    A row that nobody sampled has no part in the losses, whatever it holds.
    """
    inside = (rows < count)[:, None] & (cols < k)[None, :]
    at = logits + stream * strides[0] + rows[:, None] * strides[1] + cols.to(tl.int64)[None, :] * strides[2]
    x = tl.load(at, mask=inside, other=float("-inf")).to(ACC)
    w = load_weights(weights, stream, rows, cols, count, k, ACC)
    x = tl.where((tl.sum(w, axis=1) == 0)[:, None], 0.0, x)
    p, total = softmax_rows(x)
    return p, tl.where(total == float("-inf"), 0.0, total), tl.where(x == float("-inf"), 0.0, x), w


@triton.jit
def _products_and_scc(
    partial, sums, products, logits, strides, weights, losses, count, k, width, splits, blocks_h, row_tiles,
    ACC: tl.constexpr, BLOCK_H: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """Two kinds of programs that depend on W alone: s and its products for a block of H; L_C of a tile of rows."""
    program = tl.program_id(0)
    per_stream = blocks_h + row_tiles
    stream = (program // per_stream).to(tl.int64)
    place = program % per_stream
    if place < blocks_h:
        columns = tl.arange(0, BLOCK_C)
        h = place * BLOCK_H + tl.arange(0, BLOCK_H)
        c = k + 2
        inside = (columns < c)[:, None] & (h < width)[None, :]
        s = tl.zeros((BLOCK_C, BLOCK_H), ACC)
        fg = tl.zeros((BLOCK_H,), ACC)
        bg = tl.zeros((BLOCK_H,), ACC)
        for split in range(0, splits):
            base = partial + (stream * splits + split) * c * width
            s += tl.load(base + columns[:, None] * width + h[None, :], mask=inside, other=0.0)
            fg += tl.load(base + k * width + h, mask=h < width, other=0.0)
            bg += tl.load(base + (k + 1) * width + h, mask=h < width, other=0.0)
        tl.store(sums + stream * c * width + columns[:, None] * width + h[None, :], s, mask=inside)
        at = products + (stream * blocks_h + place) * 3 * c + columns
        tl.store(at, tl.sum(s * fg[None, :], axis=1), mask=columns < c)
        tl.store(at + c, tl.sum(s * bg[None, :], axis=1), mask=columns < c)
        tl.store(at + 2 * c, tl.sum(s * s, axis=1), mask=columns < c)
    else:
        rows = row_indices((place - blocks_h) * BLOCK_N, BLOCK_N)
        cols = tl.arange(0, BLOCK_K)
        _, total, x, w = _load_scc_tile(logits, strides, weights, stream, rows, cols, count, k, ACC)
        loss = tl.sum(tl.sum(w * (total[:, None] - x), axis=1), axis=0)
        tl.store(losses + stream * row_tiles + place - blocks_h, loss)


@triton.jit
def _at_column(x, columns, wanted):
    """x[wanted] of a vector."""
    return tl.sum(tl.where(columns == wanted, x, 0.0), axis=0)


@triton.jit
def _cosines(products, stream, columns, c, k, blocks_h, scale, EPS: tl.constexpr, ACC: tl.constexpr):
    """(U_m (BLOCK_C, 2), 1/|z_k| and the two 1/|f_i|, 0 for what has no length)."""
    fg = tl.zeros_like(columns).to(ACC)
    bg = tl.zeros_like(columns).to(ACC)
    square = tl.zeros_like(columns).to(ACC)
    for block in range(0, blocks_h):
        at = products + (stream * blocks_h + block) * 3 * c + columns
        fg += tl.load(at, mask=columns < c, other=0.0)
        bg += tl.load(at + c, mask=columns < c, other=0.0)
        square += tl.load(at + 2 * c, mask=columns < c, other=0.0)
    length = tl.sqrt(square)
    inverse = tl.where(length > EPS, 1.0 / tl.where(length > EPS, length, 1.0), 0.0)
    inverse_fg, inverse_bg = _at_column(inverse, columns, k), _at_column(inverse, columns, k + 1)
    side = tl.arange(0, 2)[None, :]
    u = tl.where(side == 0, (fg * inverse_fg)[:, None], (bg * inverse_bg)[:, None]) * (scale * inverse)[:, None]
    return u, inverse, inverse_fg, inverse_bg


@triton.jit
def _cluster_classification(
    products, masses, losses, of_rows, of_clusters, labels, factors, streams, n, k, splits, blocks_h, loss_count,
    ot_scale, cosine_scale, n_iters, EPS: tl.constexpr, ACC: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """U, R = OT(mean U, mean g), L_R, the factors of ds, and the total of L_C: one program."""
    columns = tl.arange(0, BLOCK_C)
    sides = tl.arange(0, 2)
    c = k + 2
    mean = tl.zeros((BLOCK_C, 2), ACC)
    for stream in range(0, streams):
        u, _, _, _ = _cosines(products, stream, columns, c, k, blocks_h, cosine_scale, EPS, ACC)
        mean += u
    x = tl.where((columns < k)[:, None], mean * ot_scale, float("-inf"))
    # Every stream has the same masses: those of the first are read.
    mass = sum_parts(masses, splits, columns, c, 16, BLOCK_C, ACC)
    beta = tl.where(sides == 0, _at_column(mass, columns, k), _at_column(mass, columns, k + 1))
    log_beta = tl.where(beta == 0, float("-inf"), tl.log(tl.where(beta == 0, 1.0, beta)))
    ones = tl.full((BLOCK_C,), 1.0, ACC)
    v = iterate_tile(x, ones, log_beta, None, 0, 1, n_iters, 0.0, sides, 2, False)
    r, _ = softmax_rows(x + v[None, :])
    tl.store(labels + columns[:, None] * 2 + sides[None, :], r, mask=(columns < k)[:, None])

    ccc = tl.zeros((BLOCK_C,), ACC)
    for stream in range(0, streams):
        u, inverse, inverse_fg, inverse_bg = _cosines(products, stream, columns, c, k, blocks_h, cosine_scale, EPS, ACC)
        p, total = softmax_rows(u)
        ccc += tl.where(columns < k, tl.sum(r * (total[:, None] - u), axis=1), 0.0)
        mass_of_r = tl.sum(r, axis=1)
        of_u = tl.where((columns < k)[:, None], (p * mass_of_r[:, None] - r) / k, 0.0)
        along = of_u * u
        of_fg = tl.sum(tl.where(sides[None, :] == 0, of_u, 0.0), axis=1)
        of_bg = tl.sum(tl.where(sides[None, :] == 1, of_u, 0.0), axis=1)
        across = tl.sum(along, axis=0)
        across_fg = tl.sum(tl.where(sides == 0, across, 0.0), axis=0)
        across_bg = tl.sum(tl.where(sides == 1, across, 0.0), axis=0)
        d = -tl.sum(along, axis=1) * inverse * inverse
        d = tl.where(columns == k, -across_fg * inverse_fg * inverse_fg, d)
        d = tl.where(columns == k + 1, -across_bg * inverse_bg * inverse_bg, d)
        at = factors + stream * 3 * c + columns
        tl.store(at, of_fg * (cosine_scale * inverse_fg) * inverse, mask=columns < c)
        tl.store(at + c, of_bg * (cosine_scale * inverse_bg) * inverse, mask=columns < c)
        tl.store(at + 2 * c, d, mask=columns < c)

    scc = tl.zeros((BLOCK_C,), ACC)
    for first in range(0, loss_count, BLOCK_C):
        at = first + columns
        scc += tl.load(losses + at, mask=at < loss_count, other=0.0)
    tl.store(of_rows, tl.sum(scc, axis=0) / n)
    tl.store(of_clusters, tl.sum(ccc, axis=0) / k)


@triton.jit
def _of_sums(sums, factors, stream, columns, h, k, width, of_fg, of_bg):
    """ds of some columns and a block of H, where of_fg and of_bg (BLOCK_H,) are sum_k b_ki z_k."""
    c = k + 2
    s_at = sums + stream * c * width
    inside = (columns < c)[:, None] & (h < width)[None, :]
    s = tl.load(s_at + columns[:, None] * width + h[None, :], mask=inside, other=0.0)
    fg = tl.load(s_at + k * width + h, mask=h < width, other=0.0)
    bg = tl.load(s_at + (k + 1) * width + h, mask=h < width, other=0.0)
    at = factors + stream * 3 * c + columns
    b_fg = tl.load(at, mask=columns < c, other=0.0)
    b_bg = tl.load(at + c, mask=columns < c, other=0.0)
    d = tl.load(at + 2 * c, mask=columns < c, other=0.0)
    ds = d[:, None] * s + b_fg[:, None] * fg[None, :] + b_bg[:, None] * bg[None, :]
    ds += tl.where((columns == k)[:, None], of_fg[None, :], 0.0)
    return ds + tl.where((columns == k + 1)[:, None], of_bg[None, :], 0.0)


@triton.jit
def _gradients(
    logits, strides, weights, sums, factors, of_scc, of_ccc, of_logits, of_embeddings, samples, count, k, width,
    rows_per_part, blocks_h, ACC: tl.constexpr, BLOCK_C: tl.constexpr, ONE_BLOCK: tl.constexpr, BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr, BLOCK_H: tl.constexpr,
):  # fmt: skip
    """dE for rows of a block of H; the programs of the first block also write dS for their rows."""
    stream = tl.program_id(1).to(tl.int64)
    block, part = tl.program_id(0) % blocks_h, tl.program_id(0) // blocks_h
    c = k + 2
    cols = tl.arange(0, BLOCK_K)
    h = block * BLOCK_H + tl.arange(0, BLOCK_H)
    of_fg = tl.zeros((BLOCK_H,), ACC)
    of_bg = tl.zeros((BLOCK_H,), ACC)
    for first_c in range(0, c, BLOCK_C):
        columns = first_c + tl.arange(0, BLOCK_C)
        inside = (columns < c)[:, None] & (h < width)[None, :]
        s = tl.load(sums + (stream * c + columns)[:, None] * width + h[None, :], mask=inside, other=0.0)
        at = factors + stream * 3 * c + columns
        of_fg += tl.sum(tl.load(at, mask=columns < c, other=0.0)[:, None] * s, axis=0)
        of_bg += tl.sum(tl.load(at + c, mask=columns < c, other=0.0)[:, None] * s, axis=0)
    scale = tl.load(of_ccc).to(ACC)
    share = tl.load(of_scc).to(ACC) / samples
    if ONE_BLOCK:
        ds = _of_sums(sums, factors, stream, tl.arange(0, BLOCK_C), h, k, width, of_fg, of_bg) * scale
    begin = part * rows_per_part
    for first in range(begin, min(begin + rows_per_part, count), BLOCK_N):
        rows = row_indices(first, BLOCK_N)
        if ONE_BLOCK:
            w = load_weights(weights, stream, rows, tl.arange(0, BLOCK_C), count, c, ACC)
            de = tl.dot(w, ds, input_precision="tf32x3", out_dtype=ACC)
        else:
            de = tl.zeros((BLOCK_N, BLOCK_H), ACC)
            for first_c in range(0, c, BLOCK_C):
                columns = first_c + tl.arange(0, BLOCK_C)
                w = load_weights(weights, stream, rows, columns, count, c, ACC)
                of_block = _of_sums(sums, factors, stream, columns, h, k, width, of_fg, of_bg) * scale
                de = tl.dot(w, of_block, de, input_precision="tf32x3", out_dtype=ACC)
        at_h = of_embeddings + (stream * count + rows)[:, None] * width + h[None, :]
        tl.store(at_h, de.to(of_embeddings.dtype.element_ty), mask=(rows < count)[:, None] & (h < width)[None, :])
        if block == 0:
            p, _, _, q = _load_scc_tile(logits, strides, weights, stream, rows, cols, count, k, ACC)
            dx = (p * tl.sum(q, axis=1)[:, None] - q) * share
            at_k = of_logits + (stream * count + rows)[:, None] * k + cols[None, :]
            tl.store(at_k, dx.to(of_logits.dtype.element_ty), mask=(rows < count)[:, None] & (cols < k)[None, :])
