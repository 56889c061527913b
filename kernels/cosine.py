r"""Scaled cosine s_mp = scale * xh_m . yh_p and its softmax over p, with xh = x / |x|: x is read once each way.

The forward adds up |x|^2 and |y|^2 beside the product, so no normalised copy is written. With G the gradient in s,

    dx_m = (scale sum_p G_mp yh_p - xh_m sum_p G_mp s_mp) / |x_m|
    dy_p = (scale sum_m G_mp xh_m - yh_p sum_m G_mp s_mp) / |y_p|

of which the second terms, the projections, are 0 where a length is below EPS and was raised to it; with unit rows
yh = y, and dy is its first term without 1 / |y|. In the backward lengths divide G, which is float32, so that rows in
half precision enter products as they are. Its programs take ranges of rows and blocks of D; dy comes out as one partial
sum a range.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from case.kernels.config import MAX_REGISTERS, cosine_backward_launch, cosine_forward_launch, device_of
from case.kernels.dots import full_dot
from case.kernels.matrix import accumulator, row_indices, softmax_rows
from case.kernels.tiles import load_tile, matrices

_EPS = tl.constexpr(1e-12)  # torch.nn.functional.normalize's guard of a row of zeros


def forward(
    x: Tensor, y: Tensor, scale: float, out: Tensor, logits: Tensor | None, norms: tuple[Tensor, Tensor] | None, *,
    unit_y: bool, softmax: bool,
) -> None:  # fmt: skip
    """Fill out (B, M, P) with logits or their softmax, and what the backward needs, where given.

    x (B, M, D), y (B, P, D) of any strides; logits (B, M, P), norms ((B, M), (B, P)) in the accumulation dtype.
    softmax only for P <= MAX_COSINE_COLUMNS. All results contiguous.
    """
    b, m, d = x.shape
    p = y.shape[1]
    if out.numel() == 0:
        return
    launch = cosine_forward_launch(b, m, p, d, x.element_size(), device_of(x))
    norm_x, norm_y = norms or (None, None)
    _cosine_forward[(triton.cdiv(m, launch.block_m) * b, triton.cdiv(p, launch.block_p))](
        matrices(x), matrices(y), out, logits, norm_x, norm_y, scale, m, p, d,
        UNIT_Y=unit_y, SOFTMAX=softmax, ACC=accumulator(x.dtype), BLOCK_M=launch.block_m, BLOCK_P=launch.block_p,
        BLOCK_D=launch.block_d, num_warps=launch.num_warps, num_stages=launch.num_stages, maxnreg=MAX_REGISTERS,
    )  # fmt: skip


def backward(
    x: Tensor, y: Tensor, scale: float, cotangent: Tensor, logits: Tensor, norms: tuple[Tensor, Tensor],
    dx: Tensor | None, dy: Tensor | None, *, unit_y: bool, softmax: bool,
) -> None:  # fmt: skip
    """Fill dx (B, M, D) and dy (B, P, D), contiguous; cotangent and logits (B, M, P) of any strides.

    Each launch reads x for a block of columns of the cotangent. Where there are several, they add to dx, and the
    softmax is differentiated beforehand, since no program sees a whole row.
    """
    b, m, d = x.shape
    p = y.shape[1]
    if b * m * p * d == 0:
        for gradient in (dx, dy):
            if gradient is not None:
                gradient.zero_()
        return
    launch = cosine_backward_launch(b, m, p, d, x.element_size(), device_of(x))
    norm_x, norm_y = norms
    several = p > launch.block_p
    if several and softmax:
        weights = logits.softmax(-1)
        cotangent = weights * (cotangent - (weights * cotangent).sum(-1, keepdim=True))
    # Added up in half precision dx would lose a bit with each block.
    sum_x = torch.empty_like(dx, dtype=norm_x.dtype) if dx is not None and several else dx
    splits = triton.cdiv(m, launch.rows_per_split)
    for first in range(0, p, launch.block_p):
        part = slice(first, first + launch.block_p)
        width = min(launch.block_p, p - first)
        partial = None if dy is None else torch.empty((splits, b, width, d), dtype=norm_x.dtype, device=x.device)
        _cosine_backward[(triton.cdiv(d, launch.block_d) * splits * b,)](
            matrices(x), matrices(y[:, part]), matrices(cotangent[..., part]), matrices(logits[..., part]),
            norm_x, norm_y[:, part], norm_y.stride(0), sum_x, partial, scale, b, m, width, d, launch.rows_per_split,
            UNIT_Y=unit_y, SOFTMAX=softmax and not several, ADD=first > 0, ACC=accumulator(x.dtype),
            BLOCK_M=launch.block_m, BLOCK_P=launch.block_p, BLOCK_D=launch.block_d,
            num_warps=launch.num_warps, num_stages=launch.num_stages, maxnreg=MAX_REGISTERS,
        )  # fmt: skip
        if dy is not None:
            dy[:, part] = partial.sum(0)
    if dx is not None and several:
        dx.copy_(sum_x)


@triton.jit
def _inverse(norm):
    """1 / max(norm, EPS): 0 where the sum of squares overflowed, as in the reference."""
    return 1.0 / tl.where(norm < _EPS, _EPS, norm)  # a maximum would pass over NaN


@triton.jit
def _cosine_forward(
    x, y, out, logits, norm_x, norm_y, scale, m, p, d,
    UNIT_Y: tl.constexpr, SOFTMAX: tl.constexpr, ACC: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    tiles = tl.cdiv(m, BLOCK_M)
    problem = (tl.program_id(0) // tiles).to(tl.int64)
    rows = row_indices(tl.program_id(0) % tiles * BLOCK_M, BLOCK_M)
    cols = row_indices(tl.program_id(1) * BLOCK_P, BLOCK_P)
    acc = tl.zeros((BLOCK_M, BLOCK_P), ACC)
    # Squares are added up in place and reduced over D once, after the loop.
    xx = tl.zeros((BLOCK_M, BLOCK_D), ACC)
    yy = tl.zeros((BLOCK_P, BLOCK_D), ACC)
    for start in range(0, d, BLOCK_D):
        at_d = start + tl.arange(0, BLOCK_D)
        a = load_tile(x, problem, rows, at_d, (rows < m)[:, None] & (at_d < d)[None, :])
        b = load_tile(y, problem, cols, at_d, (cols < p)[:, None] & (at_d < d)[None, :])
        acc = full_dot(a, tl.trans(b), acc)
        xx += a.to(ACC) * a.to(ACC)
        if not UNIT_Y:
            yy += b.to(ACC) * b.to(ACC)
    length_x = tl.sqrt(tl.sum(xx, axis=1))
    inverse_x = _inverse(length_x)
    s = acc * (scale * inverse_x)[:, None]
    lost = (inverse_x == 0)[:, None]
    if not UNIT_Y:
        length_y = tl.sqrt(tl.sum(yy, axis=1))
        inverse_y = _inverse(length_y)
        s *= inverse_y[None, :]
        lost |= (inverse_y == 0)[None, :]
        if norm_y is not None:
            tl.store(norm_y + problem * p + cols, length_y, mask=(cols < p) & (tl.program_id(0) % tiles == 0))
    s = tl.where(lost, 0.0, s)  # by Cauchy-Schwarz a product overflows only where a length does: inf * 0
    if norm_x is not None:
        tl.store(norm_x + problem * m + rows, length_x, mask=(rows < m) & (tl.program_id(1) == 0))
    at = (problem * m + rows)[:, None] * p + cols[None, :]
    inside = (rows < m)[:, None] & (cols < p)[None, :]
    if logits is not None:
        tl.store(logits + at, s, mask=inside)
    if SOFTMAX:
        s, _ = softmax_rows(tl.where((cols < p)[None, :], s, float("-inf")))
    tl.store(out + at, s.to(out.dtype.element_ty), mask=inside)


@triton.jit
def _cosine_backward(
    x, y, cotangent, logits, norm_x, norm_y, stride_norm_y, dx, dy, scale, problems, m, p, d, rows_per_split,
    UNIT_Y: tl.constexpr, SOFTMAX: tl.constexpr, ADD: tl.constexpr, ACC: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    # Neighbouring programs share their rows of the narrow matrices and read neighbouring parts of rows of x.
    blocks = tl.cdiv(d, BLOCK_D)
    at_d = tl.program_id(0) % blocks * BLOCK_D + tl.arange(0, BLOCK_D)
    split = (tl.program_id(0) // blocks // problems).to(tl.int64)
    problem = (tl.program_id(0) // blocks % problems).to(tl.int64)
    cols = row_indices(0, BLOCK_P)
    y_inside = (cols < p)[:, None] & (at_d < d)[None, :]
    y_tile = load_tile(y, problem, cols, at_d, y_inside)
    if not UNIT_Y:
        length_y = tl.load(norm_y + problem * stride_norm_y + cols, mask=cols < p, other=1.0)
    sums = tl.zeros((BLOCK_P, BLOCK_D), ACC)
    shares = tl.zeros((BLOCK_M, BLOCK_P), ACC)
    first = split * rows_per_split
    last = tl.minimum(first + rows_per_split, m)
    for start in range(0, (last - first).to(tl.int32), BLOCK_M):
        rows = row_indices(first + start, BLOCK_M)
        inside = (rows < last)[:, None] & (cols < p)[None, :]
        g = load_tile(cotangent, problem, rows, cols, inside).to(ACC)
        s = load_tile(logits, problem, rows, cols, inside).to(ACC)
        if SOFTMAX:
            weight, _ = softmax_rows(tl.where((cols < p)[None, :], s, float("-inf")))
            g = weight * (g - tl.sum(weight * g, axis=1)[:, None])
        x_inside = (rows < last)[:, None] & (at_d < d)[None, :]
        x_tile = load_tile(x, problem, rows, at_d, x_inside)
        length_x = tl.load(norm_x + problem * m + rows, mask=rows < last, other=1.0)
        inverse_x = _inverse(length_x)
        if dx is not None:
            along = tl.where(length_x < _EPS, 0.0, tl.sum(g * s, axis=1)) * inverse_x
            share = g
            if not UNIT_Y:
                share *= _inverse(length_y)[None, :]
            moved = full_dot(share, y_tile, tl.zeros((BLOCK_M, BLOCK_D), ACC))
            moved = (scale * moved - x_tile.to(ACC) * along[:, None]) * inverse_x[:, None]
            at = dx + (problem * m + rows)[:, None] * d + at_d[None, :]
            if ADD:
                moved += tl.load(at, mask=x_inside, other=0.0)
            tl.store(at, moved.to(dx.dtype.element_ty), mask=x_inside)
        if dy is not None:
            sums = full_dot(tl.trans(g * inverse_x[:, None]), x_tile, sums)
            if not UNIT_Y:
                shares += g * s
    if dy is not None:
        moved = scale * sums
        if not UNIT_Y:
            # y and its lengths are read again rather than kept through the loop: registers are what is scarce there.
            length_y = tl.load(norm_y + problem * stride_norm_y + cols, mask=cols < p, other=1.0)
            along = tl.where(length_y < _EPS, 0.0, tl.sum(shares, axis=0)) * _inverse(length_y)
            moved -= load_tile(y, problem, cols, at_d, y_inside).to(ACC) * along[:, None]
            moved *= _inverse(length_y)[:, None]
        at = dy + ((split * problems + problem) * p + cols)[:, None] * d + at_d[None, :]
        tl.store(at, moved, mask=y_inside)
