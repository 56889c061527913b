r"""Cross entropies of rows: the forward kernel holds whole rows, so it writes their unit gradients with their losses.

A backward is then one multiplication by the row's cotangent, and no kernel of its own. Rows are read once:

    soft         l_n = -sum_k t_nk log s_nk               dl_n/dx_nk = s_nk sum_j t_nj - t_nk    dl_n/dt_nk = -log s_nk
    generalized  l_n = sum_k t_nk f_nk / T_n              dl_n/dp_nk = -t_nk b_nk^(q-1) / T_n
                                                          dl_n/dt_nk = (f_nk - l_n) / T_n

with s = softmax(x), b = p + 1e-7, f = (1 - b^q) / q and T_n = sum_k t_nk + 1e-7. Entries with t = 0 take no part in the
soft one, whatever their logit. Its targets may be a transport plan t = exp(L + u + v), which is never written.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from case.kernels.config import device_of, row_tile
from case.kernels.matrix import accumulator, row_indices
from case.kernels.prototypes import Weights, load_weights
from case.kernels.tiles import load_tile, matrices

_EPS = tl.constexpr(1e-7)  # the reference's guard in the generalized cross entropy


def soft_cross_entropy(x: Tensor, targets: Weights, losses: Tensor, dx: Tensor | None, dt: Tensor | None) -> None:
    """Fill losses (B, N) and the unit gradients (B, N, K) that are wanted; x (B, N, K) of any strides.

    losses, in the accumulation dtype, dx and dt are contiguous; dt only where the targets are a matrix.
    """
    b, n, k = x.shape
    if b * n == 0:
        return
    tile = row_tile(b, n, k, device_of(x))
    _soft_cross_entropy[(triton.cdiv(n, tile.rows) * b,)](
        matrices(x), targets, losses, dx, dt, n, k,
        ACC=accumulator(x.dtype), BLOCK_N=tile.rows, BLOCK_K=tile.columns, num_warps=tile.num_warps,
    )  # fmt: skip


def generalized_cross_entropy(
    p: Tensor, target: Tensor, q: float, losses: Tensor, dp: Tensor | None, dt: Tensor | None
) -> None:
    """As ``soft_cross_entropy``, of p and target (B, N, K)."""
    b, n, k = p.shape
    if b * n == 0:
        return
    tile = row_tile(b, n, k, device_of(p))
    _generalized_cross_entropy[(triton.cdiv(n, tile.rows) * b,)](
        matrices(p), matrices(target), q, losses, dp, dt, n, k,
        ACC=accumulator(p.dtype), BLOCK_N=tile.rows, BLOCK_K=tile.columns, num_warps=tile.num_warps,
    )  # fmt: skip


@triton.jit
def _tile(n, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr):
    """(problem, rows, columns) of this program. One grid axis: the others end at 65535."""
    tiles = tl.cdiv(n, BLOCK_N)
    pid = tl.program_id(0)
    return (pid // tiles).to(tl.int64), row_indices(pid % tiles * BLOCK_N, BLOCK_N), tl.arange(0, BLOCK_K)


@triton.jit
def _store(losses, loss, d_first, first, d_second, second, problem, rows, cols, n, k, inside):
    """Loss of each row and the gradients that are wanted; what is not is never computed."""
    tl.store(losses + problem * n + rows, loss, mask=rows < n)
    at = (problem * n + rows)[:, None] * k + cols[None, :]
    if d_first is not None:
        tl.store(d_first + at, first.to(d_first.dtype.element_ty), mask=inside)
    if d_second is not None:
        tl.store(d_second + at, second.to(d_second.dtype.element_ty), mask=inside)


@triton.jit
def _soft_cross_entropy(
    logits, targets, losses, dx, dt, n, k, ACC: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr
):
    problem, rows, cols = _tile(n, BLOCK_N, BLOCK_K)
    inside = (rows < n)[:, None] & (cols < k)[None, :]
    x = tl.where(inside, load_tile(logits, problem, rows, cols, inside).to(ACC), float("-inf"))
    t = load_weights(targets, problem, rows, cols, n, k, ACC).to(ACC)
    peak = tl.max(x, axis=1)
    some = peak > float("-inf")  # else -inf - -inf below
    x -= tl.where(some, peak, 0.0)[:, None]
    e = tl.exp(x)
    # A row without targets takes no part, whatever its logits; one with targets and no finite logit has no softmax.
    wanted = tl.max((t != 0).to(tl.int32), axis=1) > 0
    total = tl.where(wanted, tl.where(some, tl.sum(e, axis=1), float("nan")), 1.0)
    surprise = tl.where(t != 0, tl.log(total)[:, None] - x, 0.0)  # -log softmax, where it counts
    loss = tl.sum(t * surprise, axis=1)
    gradient = tl.where(wanted[:, None], e * (tl.sum(t, axis=1) / total)[:, None] - t, 0.0)
    _store(losses, loss, dx, gradient, dt, surprise, problem, rows, cols, n, k, inside)


@triton.jit
def _generalized_cross_entropy(
    p, target, q, losses, dp, dt, n, k, ACC: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr
):
    problem, rows, cols = _tile(n, BLOCK_N, BLOCK_K)
    inside = (rows < n)[:, None] & (cols < k)[None, :]
    base = tl.where(inside, load_tile(p, problem, rows, cols, inside).to(ACC) + _EPS, 1.0)
    t = load_tile(target, problem, rows, cols, inside).to(ACC)
    power = tl.exp(q * tl.log(base))
    term = (1.0 - power) / q
    total = tl.sum(t, axis=1) + _EPS
    loss = tl.sum(t * term, axis=1) / total
    of_p = -t * power / (base * total[:, None])
    of_t = (term - loss[:, None]) / total[:, None]
    _store(losses, loss, dp, of_p, dt, of_t, problem, rows, cols, n, k, inside)
