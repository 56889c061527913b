r"""Gradient of ``kernels.sinkhorn`` through the iterations that ran, from their column potentials alone.

A row's P^t = exp(L + a^t + v^t) is the softmax of L_n + v^t, so no plan and no row potential needs saving. With the
cotangents G of the plan and (ga, gv) of the potentials, the last row step gives

    D^T = P^T (G - sum_k G P^T - ga)          gv^T = gv + sum_n D^T

and, since column step t + 1 is a softmax over rows whose entries are P^t r / S^t, each earlier iteration

    h_k = gv^{t+1}_k / S^t_k      w_n = r_n sum_k h_k P^t_nk      D^t = P^t (w - r h)      gv^t = sum_n w_n P^t

until the first column step: gL = sum_t D^t - gv^1 exp(L - log total). Each gv needs a sum over all rows, so T
iterations are T reads of L for the sums and one that adds everything up and writes gL: T + 1, as forward.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from case.kernels.config import device_of, sinkhorn_launch
from case.kernels.matrix import LogMatrix, load_log_matrix, row_indices, softmax_rows
from case.kernels.sinkhorn import Marginals, Trace, load_rows, sum_parts


class Cotangents(NamedTuple):
    """Of the plan (B, N, K), u (B, N) and v (B, K), None where absent; strides may be 0."""

    plan: Tensor | None
    stride_b: int  # of the plan
    stride_n: int
    stride_k: int
    u: Tensor | None
    v: Tensor | None


class Gradients(NamedTuple):
    """log_matrix (B, N, K) times ``factor``; log_rows (B, N) or None: of log r where r > 0."""

    log_matrix: Tensor
    factor: float
    log_rows: Tensor | None


def differentiate(
    m: LogMatrix, sizes: tuple[int, int, int], given: Marginals, trace: Trace, cotangents: Cotangents,
    gradients: Gradients, acc: Any,
) -> Tensor:  # fmt: skip
    """Write ``gradients``; return gv^1 .. gv^T (T, B, K), those after the last iteration that ran being copies."""
    problems, n, k = sizes
    n_iters = trace.v.shape[0]
    launch = sinkhorn_launch(problems, n, k, device_of(m.logits), with_prior=m.prior is not None)
    gv = torch.empty_like(trace.v)
    fixed = {"ACC": acc, "BLOCK_N": launch.block_n, "BLOCK_K": launch.block_k, **launch.options()}
    if launch.whole:
        _whole[(problems,)](m, given, trace, cotangents, gradients, gv, problems, n, k, n_iters, **fixed)
        return gv
    parts = torch.empty((2, problems, launch.parts, k), dtype=trace.v.dtype, device=trace.v.device)
    grid = (problems, launch.parts)
    for t in range(n_iters, -1, -1):
        _step[grid](
            m, given, trace, cotangents, gradients, gv, parts, t, problems, n, k, n_iters, launch.rows_per_part,
            LAST=t == n_iters, SUM=t == 0, STAGES=launch.stages, BLOCK_PARTS=launch.block_parts, **fixed,
        )  # fmt: skip
    return gv


@triton.jit
def _load_state(state, t, problem, problems, cols, k):
    return tl.load(state + ((t - 1) * problems + problem) * k + cols, mask=cols < k, other=0.0)


@triton.jit
def _last_step(cotangents, x, v, problem, rows, cols, n, k, ACC: tl.constexpr):
    """D^T of a tile of rows."""
    p, _ = softmax_rows(x + v[None, :])
    along = tl.zeros_like(rows).to(ACC)
    if cotangents.u is not None:
        along += tl.load(cotangents.u + problem * n + rows, mask=rows < n, other=0.0)
    g = tl.zeros_like(p)
    if cotangents.plan is not None:
        at = cotangents.plan + problem * cotangents.stride_b + rows[:, None] * cotangents.stride_n
        inside = (rows < n)[:, None] & (cols < k)[None, :]
        g += tl.load(at + cols.to(tl.int64)[None, :] * cotangents.stride_k, mask=inside, other=0.0).to(ACC)
        along += tl.sum(g * p, axis=1)
    return p * (g - along[:, None])


@triton.jit
def _quotient(gv, s):
    """h; 0 for columns without mass."""
    return tl.where(s == 0, 0.0, gv / tl.where(s == 0, 1.0, s))


@triton.jit
def _earlier_step(x, r, v, h):
    """(D^t, w P^t, sum_k h P^t) of a tile of rows."""
    p, _ = softmax_rows(x + v[None, :])
    along = tl.sum(p * h[None, :], axis=1)
    return p * (r[:, None] * (along[:, None] - h[None, :])), p * (r * along)[:, None], along


@triton.jit
def _first_column_step(x, log_total, gv):
    """-gv^1 exp(L - log total)."""
    empty = log_total == float("-inf")
    share = tl.exp(x - tl.where(empty, 0.0, log_total)[None, :])
    return -tl.where(empty, 0.0, gv)[None, :] * share


@triton.jit
def _store_rows(gradients, d, along, r, problem, rows, cols, n, k):
    inside = (rows < n)[:, None] & (cols < k)[None, :]
    at = gradients.log_matrix + (problem * n + rows)[:, None] * k + cols[None, :]
    tl.store(at, (d * gradients.factor).to(gradients.log_matrix.dtype.element_ty), mask=inside)
    if gradients.log_rows is not None:
        tl.store(gradients.log_rows + problem * n + rows, -along * r, mask=rows < n)


@triton.jit(do_not_specialize=["t"])
def _step(
    m, given, trace, cotangents, gradients, gv, parts, t, problems, n, k, n_iters, rows_per_part, LAST: tl.constexpr,
    SUM: tl.constexpr, STAGES: tl.constexpr, BLOCK_PARTS: tl.constexpr, ACC: tl.constexpr, BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):  # fmt: skip
    """gv^{t+1} from the last launch's partial sums, then one read of the rows: gv^t in parts, or gL where t = 0."""
    part, problem, count = tl.program_id(1), tl.program_id(0).to(tl.int64), tl.num_programs(1)
    cols = tl.arange(0, BLOCK_K)
    size = count.to(tl.int64) * problems * k
    mine = parts + problem * count * k
    ran = n_iters
    if trace.ran is not None:
        ran = tl.load(trace.ran + (n_iters - 1) * problems + problem)
    if not LAST:
        above = sum_parts(mine + ((t + 1) % 2) * size, count, cols, k, BLOCK_PARTS, BLOCK_K, ACC)
        # Two conditions: the first is known to the compiler, the second only to the launch.
        if cotangents.v is not None:  # noqa: SIM102
            if t == n_iters - 1:
                above += tl.load(cotangents.v + problem * k + cols, mask=cols < k, other=0.0)
        if part == 0:
            tl.store(gv + (t * problems + problem) * k + cols, above, mask=cols < k)
    v_last = _load_state(trace.v, n_iters, problem, problems, cols, k)
    if not LAST and not SUM:
        v = _load_state(trace.v, t, problem, problems, cols, k)
        h = _quotient(above, _load_state(trace.totals, t + 1, problem, problems, cols, k))
    sums = tl.zeros((BLOCK_N, BLOCK_K), ACC)
    begin = part * rows_per_part
    for first in tl.range(begin, min(begin + rows_per_part, n), BLOCK_N, num_stages=STAGES):
        rows = row_indices(first, BLOCK_N)
        x = load_log_matrix(m, problem, rows, cols, n, k, ACC, None)
        if LAST:
            sums += _last_step(cotangents, x, v_last, problem, rows, cols, n, k, ACC)
        else:
            r = load_rows(given, problem, rows, n, ACC)
            if SUM:
                d = _last_step(cotangents, x, v_last, problem, rows, cols, n, k, ACC)
                log_rows = tl.zeros_like(r)
                for s in range(1, ran):
                    # The last launch's sum, gv^1, is in registers; the others have been stored by earlier launches.
                    h = _quotient(
                        _load_state(gv, s + 1, problem, problems, cols, k),
                        _load_state(trace.totals, s + 1, problem, problems, cols, k),
                    )
                    step, _, along = _earlier_step(x, r, _load_state(trace.v, s, problem, problems, cols, k), h)
                    d += step
                    log_rows += along
                d += _first_column_step(x, _load_state(trace.totals, 1, problem, problems, cols, k), above)
                _store_rows(gradients, d, log_rows, r, problem, rows, cols, n, k)
            else:
                _, down, _ = _earlier_step(x, r, v, h)
                sums += down
    if not SUM:
        total = tl.sum(sums, axis=0)
        if not LAST:
            # Of an iteration that did not run, nothing but its gv passes on.
            total = tl.where(t < ran, total, tl.where(part == 0, above, 0.0))
        tl.store(mine + (t % 2) * size + part * k + cols, total, mask=cols < k)


@triton.jit
def _whole(
    m, given, trace, cotangents, gradients, gv, problems, n, k, n_iters, ACC: tl.constexpr, BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):  # fmt: skip
    """All of it for a problem that fits one program."""
    problem = tl.program_id(0).to(tl.int64)
    cols, rows = tl.arange(0, BLOCK_K), row_indices(0, BLOCK_N)
    x = load_log_matrix(m, problem, rows, cols, n, k, ACC, None)
    r = load_rows(given, problem, rows, n, ACC)
    ran = n_iters
    if trace.ran is not None:
        ran = tl.load(trace.ran + (n_iters - 1) * problems + problem)
    v = _load_state(trace.v, n_iters, problem, problems, cols, k)
    d = _last_step(cotangents, x, v, problem, rows, cols, n, k, ACC)
    here = tl.sum(d, axis=0)
    if cotangents.v is not None:
        here += tl.load(cotangents.v + problem * k + cols, mask=cols < k, other=0.0)
    for t in range(ran, n_iters + 1):
        tl.store(gv + ((t - 1) * problems + problem) * k + cols, here, mask=cols < k)
    log_rows = tl.zeros_like(r)
    for back in range(1, ran):
        t = ran - back
        h = _quotient(here, _load_state(trace.totals, t + 1, problem, problems, cols, k))
        step, down, along = _earlier_step(x, r, _load_state(trace.v, t, problem, problems, cols, k), h)
        d += step
        log_rows += along
        here = tl.sum(down, axis=0)
        tl.store(gv + ((t - 1) * problems + problem) * k + cols, here, mask=cols < k)
    d += _first_column_step(x, _load_state(trace.totals, 1, problem, problems, cols, k), here)
    _store_rows(gradients, d, log_rows, r, problem, rows, cols, n, k)
