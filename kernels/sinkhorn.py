r"""Sinkhorn-Knopp in the log domain: one read of the matrix per iteration, nothing of its size but the result written.

With L = scale * logits + log prior, row marginal r and column marginal c, iteration t is

    v^t_k = log c_k - log sum_n exp(L_nk + a^{t-1}_n) r_n          a^t_n = -log sum_k exp(L_nk + v^t_k)

(the first column step has a = 0 and no r). Once v^t is known, a row's a^t and its share in the next column step are
functions of that row alone. With P^t_nk = exp(L_nk + a^t_n + v^t_k), the rows' softmax,

    v^{t+1}_k = v^t_k + log c_k - log S^t_k          S^t_k = sum_n P^t_nk r_n

so T iterations are T + 1 reads of L with one exponential each: the first finds column totals, each further one updates
v and sums up P^t r, the last writes exp(L + a + v) = P^T. S cannot underflow where there is mass: a column that has
just been scaled to c_k loses at most the factor r_n of its rows. Each read is a launch; its programs leave partial
column sums, which every program of the next launch adds up in the same order.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from case.kernels.config import device_of, sinkhorn_launch
from case.kernels.matrix import (
    NOT_A_NUMBER,
    WEIGHT_UNIT,
    LogMatrix,
    load_log_matrix,
    row_indices,
    softmax_rows,
    torch_dtype,
)
from case.kernels.ranks import SortedChunks, ranks_of

_LEAST = tl.constexpr(-3.0e38)  # below every finite logit; -inf - -inf would be NaN


class Marginals(NamedTuple):
    """Row marginal (B, N) and column marginal (B, K), None where uniform; strides may be 0."""

    rows: Tensor | None
    rows_stride_b: int
    rows_stride_n: int
    columns: Tensor | None
    columns_stride_b: int
    columns_stride_k: int


class Trace(NamedTuple):
    """What T iterations leave behind, narrow: all that a backward needs beside the problem itself."""

    v: Tensor  # (T, B, K): v^1 .. v^T
    totals: Tensor  # (T, B, K): log column totals of L, then S^1 .. S^{T-1}
    ran: Tensor | None  # (T, B) int32: iterations that ran up to here; None without tol


class Output(NamedTuple):
    """What the last read writes; None for what is not wanted."""

    plan: Tensor | None  # (B, N, K) contiguous
    u: Tensor | None  # (B, N)
    v: Tensor | None  # (B, K)
    weights: Tensor | None  # (L, columns) int64, zeroed: see ``add_to_rows``
    columns: int
    foreground: Tensor | None  # (N,)


def marginals(rows: Tensor | None, columns: Tensor | None) -> Marginals:
    def strides(x: Tensor | None) -> tuple[int, int]:
        return (0, 0) if x is None else (x.stride(0), x.stride(1))

    return Marginals(rows, *strides(rows), columns, *strides(columns))


def solve(
    m: LogMatrix, sizes: tuple[int, int, int], given: Marginals, out: Output, n_iters: int, tol: float | None,
    acc: Any, sorted_: SortedChunks | None = None,
) -> Trace:  # fmt: skip
    """Run ``n_iters`` iterations on B problems of N x K (``sizes``) and write ``out``.

    acc: Triton's accumulation type. sorted_: the rank prior's scores, whose positions the first read then fills in.
    Launches: 1 where a problem fits a program, else n_iters + 1.
    """
    problems, n, k = sizes
    dtype, device = torch_dtype(acc), m.logits.device
    ranked = sorted_ is not None
    launch = sinkhorn_launch(problems, n, k, device_of(m.logits), ranked=ranked, with_prior=m.prior is not None)
    trace = Trace(
        torch.empty((n_iters, problems, k), dtype=dtype, device=device),
        torch.empty((n_iters, problems, k), dtype=dtype, device=device),
        None if tol is None else torch.empty((n_iters, problems), dtype=torch.int32, device=device),
    )
    fixed = {"ACC": acc, "BLOCK_N": launch.block_n, "BLOCK_K": launch.block_k, **launch.options()}
    tol = 0.0 if tol is None else tol
    if launch.whole:
        _whole[(problems,)](m, given, trace, out, problems, n, k, n_iters, tol, **fixed)
        return trace
    parts = torch.empty((3, problems, launch.parts, k), dtype=dtype, device=device)
    grid = (problems, launch.parts)  # only the first axis goes beyond 65535
    _first_columns[grid](
        m, parts, sorted_, problems, n, k, launch.rows_per_part,
        RANKED=ranked, STAGES=1 if ranked else launch.stages, **fixed,
    )  # fmt: skip
    for t in range(1, n_iters + 1):
        # The first read leaves its peaks in parts[2]; sums alternate between the other two.
        _iterate[grid](
            m, given, trace, out, parts, t, tol, problems, n, k, launch.rows_per_part,
            FIRST=t == 1, LAST=t == n_iters, STAGES=launch.stages, BLOCK_PARTS=launch.block_parts, **fixed,
        )  # fmt: skip
    return trace


@triton.jit
def load_log_columns(given, problem, cols, k, ACC: tl.constexpr):
    """log c, -inf where c is 0; 0 for a uniform marginal, since only ratios matter."""
    log_c = tl.zeros_like(cols).to(ACC)
    if given.columns is not None:
        at = given.columns + problem * given.columns_stride_b + cols.to(tl.int64) * given.columns_stride_k
        c = tl.load(at, mask=cols < k, other=1.0).to(ACC)
        log_c = tl.where(c == 0, float("-inf"), tl.log(tl.where(c == 0, 1.0, c)))
    return log_c


@triton.jit
def load_rows(given, problem, rows, n, ACC: tl.constexpr):
    """r, or 1; NaN where it is negative, as its logarithm would be."""
    r = tl.full(rows.shape, 1.0, ACC)
    if given.rows is not None:
        at = given.rows + problem * given.rows_stride_b + rows * given.rows_stride_n
        r = tl.load(at, mask=rows < n, other=0.0).to(ACC)
        r = tl.where(r < 0, float("nan"), r)
    return r


@triton.jit
def first_potential(log_total, log_c):
    """v^1; 0 for a column without mass, which takes no part."""
    empty = log_total == float("-inf")  # in such questions NaN has to count as mass, or it would be lost
    return tl.where(empty, 0.0, log_c - tl.where(empty, 0.0, log_total))


@triton.jit
def next_potential(v, s, log_c):
    """v^{t+1} from v^t and S^t. A column of marginal 0 stays at -inf."""
    wanted = log_c != float("-inf")
    empty = s == 0
    moved = tl.where(wanted, v, 0.0) + tl.where(wanted, log_c, 0.0) - tl.log(tl.where(empty, 1.0, s))
    return tl.where(wanted, tl.where(empty, 0.0, moved), v)


@triton.jit
def deviation(s, log_c, cols, k):
    """Largest distance of a column's share of the mass from its marginal's share."""
    c = tl.where(cols < k, tl.exp(log_c - tl.max(tl.where(cols < k, log_c, _LEAST), axis=0)), 0.0)
    total = tl.sum(s, axis=0)
    return tl.max(tl.abs(s / tl.where(total > 0, total, 1.0) - c / tl.sum(c, axis=0)), axis=0)


@triton.jit
def _store_trace(trace, t, problem, problems, cols, k, v, total):
    at = ((t - 1) * problems + problem) * k + cols
    tl.store(trace.v + at, v, mask=cols < k)
    tl.store(trace.totals + at, total, mask=cols < k)


@triton.jit
def _add_in_units(at, x, inside):
    """Add x, in units of ``WEIGHT_UNIT``, to int64 at ``at``; NaN leaves what ``weights_of_units`` reads as NaN."""
    known = x == x
    units = tl.floor(tl.where(known, x, 0.0) * (1.0 / WEIGHT_UNIT) + 0.5).to(tl.int64)
    tl.atomic_add(at, units, mask=inside, sem="relaxed")
    tl.atomic_min(at, tl.full(x.shape, NOT_A_NUMBER, tl.int64), mask=inside & ~known, sem="relaxed")


@triton.jit
def add_to_rows(out, index, rows, cols, p, n, k):
    """Add each sample's plan row, g and 1 - g to its distinct row, in units of ``WEIGHT_UNIT``.

    Integer sums do not depend on the order in which they are made, so the atomics are deterministic.
    """
    inside = rows < n
    row = rows
    if index is not None:
        row = tl.load(index + rows, mask=inside, other=0)
    at = out.weights + row * out.columns
    g = tl.load(out.foreground + rows, mask=inside, other=0.0).to(p.dtype)
    inside_both = inside[:, None] & (cols < k)[None, :]
    _add_in_units(at[:, None] + cols[None, :], p, inside_both)
    _add_in_units(at + k, g, inside)
    _add_in_units(at + k + 1, 1.0 - g, inside)


@triton.jit
def _write(m, out, problem, rows, cols, p, total, n, k):
    inside = (rows < n)[:, None] & (cols < k)[None, :]
    if out.plan is not None:
        at = out.plan + (problem * n + rows)[:, None] * k + cols[None, :]
        tl.store(at, p.to(out.plan.dtype.element_ty), mask=inside)
    if out.u is not None:
        tl.store(out.u + problem * n + rows, tl.where(total == float("-inf"), 0.0, -total), mask=rows < n)
    if out.weights is not None:
        add_to_rows(out, m.index, rows, cols, p, n, k)


@triton.jit
def _write_columns(out, problem, cols, v, k):
    if out.v is not None:
        tl.store(out.v + problem * k + cols, v, mask=cols < k)


@triton.jit
def _first_columns(
    m, parts, sorted_, problems, n, k, rows_per_part, RANKED: tl.constexpr, STAGES: tl.constexpr, ACC: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """Partial column totals of exp(L): peak and sum of exp(L - peak), one exponential an element."""
    part, problem, count = tl.program_id(1), tl.program_id(0).to(tl.int64), tl.num_programs(1)
    cols = tl.arange(0, BLOCK_K)
    peak = tl.full((BLOCK_N, BLOCK_K), _LEAST, ACC)
    total = tl.zeros((BLOCK_N, BLOCK_K), ACC)
    begin = part * rows_per_part
    for first in tl.range(begin, min(begin + rows_per_part, n), BLOCK_N, num_stages=STAGES):
        rows = row_indices(first, BLOCK_N)
        if RANKED:
            position = (ranks_of(sorted_, problem, rows, n) + 1).to(ACC) / n
            tl.store(m.ranks.positions + problem * n + rows, position, mask=rows < n)
            x = load_log_matrix(m, problem, rows, cols, n, k, ACC, position)
        else:
            x = load_log_matrix(m, problem, rows, cols, n, k, ACC, None)
        rise = x - peak
        e = tl.exp(-tl.abs(rise))
        total = tl.where(rise > 0, total * e + 1.0, total + e)
        peak = tl.maximum(peak, x)
    highest = tl.max(peak, axis=0)
    total = tl.sum(total * tl.exp(peak - highest[None, :]), axis=0)
    size = count.to(tl.int64) * problems * k
    at = parts + (problem * count + part) * k + cols
    tl.store(at + size, total, mask=cols < k)
    tl.store(at + 2 * size, highest, mask=cols < k)


@triton.jit
def sum_parts(parts, count, cols, k, BLOCK_PARTS: tl.constexpr, BLOCK_K: tl.constexpr, ACC: tl.constexpr):
    """Sum over (count, k) partial columns, in a fixed order."""
    total = tl.zeros((BLOCK_PARTS, BLOCK_K), ACC)
    for first in range(0, count, BLOCK_PARTS):
        part = first + tl.arange(0, BLOCK_PARTS)
        inside = (part < count)[:, None] & (cols < k)[None, :]
        total += tl.load(parts + part[:, None] * k + cols[None, :], mask=inside, other=0.0)
    return tl.sum(total, axis=0)


@triton.jit
def log_sum_parts(peaks, sums, count, cols, k, BLOCK_PARTS: tl.constexpr, BLOCK_K: tl.constexpr, ACC: tl.constexpr):
    """log of the columns' totals from partial (peak, sum); -inf without mass."""
    peak = tl.full((BLOCK_PARTS, BLOCK_K), _LEAST, ACC)
    for first in range(0, count, BLOCK_PARTS):
        part = first + tl.arange(0, BLOCK_PARTS)
        inside = (part < count)[:, None] & (cols < k)[None, :]
        peak = tl.maximum(peak, tl.load(peaks + part[:, None] * k + cols[None, :], mask=inside, other=_LEAST))
    highest = tl.max(peak, axis=0)
    total = tl.zeros((BLOCK_PARTS, BLOCK_K), ACC)
    for first in range(0, count, BLOCK_PARTS):
        part = first + tl.arange(0, BLOCK_PARTS)
        inside = (part < count)[:, None] & (cols < k)[None, :]
        at = part[:, None] * k + cols[None, :]
        shift = tl.load(peaks + at, mask=inside, other=_LEAST) - highest[None, :]
        total += tl.load(sums + at, mask=inside, other=0.0) * tl.exp(shift)
    s = tl.sum(total, axis=0)
    return tl.where(s == 0, float("-inf"), highest + tl.log(tl.where(s == 0, 1.0, s)))


@triton.jit(do_not_specialize=["t"])
def _iterate(
    m, given, trace, out, parts, t, tol, problems, n, k, rows_per_part, FIRST: tl.constexpr, LAST: tl.constexpr,
    STAGES: tl.constexpr, BLOCK_PARTS: tl.constexpr, ACC: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """v^t from the last launch's partial sums, then one read of the rows: S^t in parts, or the result."""
    part, problem, count = tl.program_id(1), tl.program_id(0).to(tl.int64), tl.num_programs(1)
    cols = tl.arange(0, BLOCK_K)
    size = count.to(tl.int64) * problems * k
    mine = parts + problem * count * k
    log_c = load_log_columns(given, problem, cols, k, ACC)
    ran = t
    if FIRST:
        total = log_sum_parts(mine + 2 * size, mine + size, count, cols, k, BLOCK_PARTS, BLOCK_K, ACC)
        v = first_potential(total, log_c)
    else:
        total = sum_parts(mine + (t % 2) * size, count, cols, k, BLOCK_PARTS, BLOCK_K, ACC)
        before = tl.load(trace.v + ((t - 2) * problems + problem) * k + cols, mask=cols < k, other=0.0)
        v = next_potential(before, total, log_c)
        if trace.ran is not None:
            ran = tl.load(trace.ran + (t - 2) * problems + problem)
            # Stopped earlier, or balanced now: v stays, and so does all that follows from it.
            if (ran < t - 1) | (deviation(total, log_c, cols, k) < tol):
                v = before
            else:
                ran = t
    if part == 0:
        _store_trace(trace, t, problem, problems, cols, k, v, total)
        if trace.ran is not None:
            tl.store(trace.ran + (t - 1) * problems + problem, ran)
        if LAST:
            _write_columns(out, problem, cols, v, k)
    shares = tl.zeros((BLOCK_N, BLOCK_K), ACC)
    begin = part * rows_per_part
    for first in tl.range(begin, min(begin + rows_per_part, n), BLOCK_N, num_stages=STAGES):
        rows = row_indices(first, BLOCK_N)
        p, log_total = softmax_rows(load_log_matrix(m, problem, rows, cols, n, k, ACC, None) + v[None, :])
        if LAST:
            _write(m, out, problem, rows, cols, p, log_total, n, k)
        else:
            shares += p * load_rows(given, problem, rows, n, ACC)[:, None]
    if not LAST:
        at = mine + ((t + 1) % 2) * size + part * k + cols
        tl.store(at, tl.sum(shares, axis=0), mask=cols < k)


@triton.jit
def iterate_tile(x, r, log_c, trace, problem, problems, n_iters, tol, cols, k, TRACED: tl.constexpr):
    """v^T of a problem whose L is the tile ``x``; fills the trace, if it is ``TRACED``."""
    peak = tl.maximum(tl.max(x, axis=0), _LEAST)
    s = tl.sum(tl.exp(x - peak[None, :]), axis=0)
    log_total = tl.where(s == 0, float("-inf"), peak + tl.log(tl.where(s == 0, 1.0, s)))
    v = first_potential(log_total, log_c)
    if TRACED:
        _store_trace(trace, 1, problem, problems, cols, k, v, log_total)
        if trace.ran is not None:
            tl.store(trace.ran + problem, 1)
    ran = tl.full((), 1, tl.int32)
    for t in range(2, n_iters + 1):
        p, _ = softmax_rows(x + v[None, :])
        s = tl.sum(p * r[:, None], axis=0)
        moved = next_potential(v, s, log_c)
        if TRACED:
            if trace.ran is not None:
                stop = (ran < t - 1) | (deviation(s, log_c, cols, k) < tol)
                moved = tl.where(stop, v, moved)
                ran = tl.where(stop, ran, t)
                tl.store(trace.ran + (t - 1) * problems + problem, ran)
            _store_trace(trace, t, problem, problems, cols, k, moved, s)
        v = moved
    return v


@triton.jit
def _whole(
    m, given, trace, out, problems, n, k, n_iters, tol, ACC: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr
):  # fmt: skip
    """All iterations of a problem that fits one program."""
    problem = tl.program_id(0).to(tl.int64)
    cols, rows = tl.arange(0, BLOCK_K), row_indices(0, BLOCK_N)
    x = load_log_matrix(m, problem, rows, cols, n, k, ACC, None)
    r = load_rows(given, problem, rows, n, ACC)
    log_c = load_log_columns(given, problem, cols, k, ACC)
    v = iterate_tile(x, r, log_c, trace, problem, problems, n_iters, tol, cols, k, True)
    p, log_total = softmax_rows(x + v[None, :])
    _write(m, out, problem, rows, cols, p, log_total, n, k)
    _write_columns(out, problem, cols, v, k)
