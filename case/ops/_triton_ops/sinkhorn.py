"""``sinkhorn``, ``sinkhorn_potentials``, ``rank_prior`` on Triton: registered arguments around ``case.kernels``."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from case.kernels import sinkhorn as kernels
from case.kernels import sinkhorn_backward as backward_kernels
from case.kernels.config import MAX_COLUMNS
from case.kernels.matrix import LogMatrix, accumulator, log_matrix
from case.kernels.ranks import SortedChunks
from case.ops import _backend
from case.ops._registration import gradients_with_graph, kernels_cannot
from case.ops._triton_ops._common import batch, needs_gradient
from case.ops._triton_ops._ranks import rank_positions, rank_term
from case.ops.reference._numerics import accumulation_dtype


def sinkhorn(*problem: Any) -> Tensor:
    if problem[0].shape[-1] > MAX_COLUMNS:
        return _backend.reference("sinkhorn")(*problem)
    return _Sinkhorn.apply(True, *problem) if needs_gradient(*problem) else _run(problem, plan=True)[0]


def sinkhorn_potentials(*problem: Any) -> tuple[Tensor, Tensor]:
    if problem[0].shape[-1] > MAX_COLUMNS:
        return _backend.reference("sinkhorn_potentials")(*problem)
    return _Sinkhorn.apply(False, *problem) if needs_gradient(*problem) else _run(problem, plan=False)[0]


def rank_prior(scores: Tensor, centers: Tensor, sigma: float, ranks: str) -> Tensor:
    if scores.numel() == 0:
        return _backend.reference("rank_prior")(scores, centers, sigma, ranks)
    dtype = accumulation_dtype(scores)
    positions = rank_positions(batch(scores, 1), ranks, None).view(*scores.shape, 1)
    log_prior = -(positions - centers.to(dtype).unsqueeze(-2)).square() / (2 * sigma**2)
    return log_prior.flatten(-2).softmax(-1).view(log_prior.shape).to(scores.dtype)


class _Problem:
    """The registered ops' arguments as kernels take them."""

    def __init__(self, problem: tuple[Any, ...]) -> None:
        logits, prior, scores, centers, sigma, ranks, rows, columns, mask, scale, self.n_iters, self.tol = problem
        self.shape = logits.shape
        x = batch(logits, 2)
        self.sizes: tuple[int, int, int] = (x.shape[0], x.shape[1], x.shape[2])
        self.acc = accumulator(logits.dtype)
        self.mask = None if mask is None else batch(mask, 2)
        self.sorted: SortedChunks | None = None
        term = None
        if scores is not None:
            scores, self.centers = batch(scores.to(accumulation_dtype(logits)), 1), batch(centers, 1)
            term, self.sorted = rank_term(scores, self.centers, sigma, ranks, mask=self.mask)
        self.matrix: LogMatrix = log_matrix(
            x, scale, prior=None if prior is None else batch(prior, 2), mask=self.mask, ranks=term
        )
        self.rows, self.columns = (None if x is None else batch(x, 1) for x in (rows, columns))
        self.marginals = kernels.marginals(self.rows, self.columns)


def _run(problem: tuple[Any, ...], *, plan: bool) -> tuple[Any, _Problem, kernels.Trace | None]:
    """(result, the problem, its trace)."""
    p = _Problem(problem)
    logits = problem[0]
    dtype = accumulation_dtype(logits)
    problems, n, k = p.sizes
    q = torch.empty(p.shape, dtype=logits.dtype, device=logits.device) if plan else None
    u = None if plan else torch.empty(p.shape[:-1], dtype=dtype, device=logits.device)
    v = None if plan else torch.zeros((*p.shape[:-2], k), dtype=dtype, device=logits.device)
    trace = None
    if problems * n > 0:
        out = kernels.Output(q, u, v, None, 0, None)
        trace = kernels.solve(p.matrix, p.sizes, p.marginals, out, p.n_iters, p.tol, p.acc, p.sorted)
    return (q if plan else (u, v)), p, trace


class _Sinkhorn(torch.autograd.Function):
    """Backward through the iterations that ran, from the column potentials of each."""

    @staticmethod
    def forward(ctx: Any, plan: bool, *problem: Any) -> Any:
        result, ctx.problem, ctx.trace = _run(problem, plan=plan)
        ctx.plan = plan
        # Kept for autograd's check that nothing has been changed in place; kernels read them through ctx.problem.
        ctx.save_for_backward(*(x for x in problem if isinstance(x, Tensor)))
        ctx.arguments = problem
        return result

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Any, ...]:
        _ = ctx.saved_tensors
        if kernels_cannot(*grads):
            function = _backend.reference("sinkhorn" if ctx.plan else "sinkhorn_potentials")
            return None, *gradients_with_graph(function, ctx.arguments, ctx.needs_input_grad[1:], *grads)
        p: _Problem = ctx.problem
        logits, prior, _, centers, _, _, rows, columns, _, scale, _, _ = ctx.arguments
        wants = dict(zip(("logits", "prior", "scores", "centers"), ctx.needs_input_grad[1:5], strict=True))
        wants_rows, wants_columns = ctx.needs_input_grad[7:9]
        if ctx.trace is None:
            return (None, *(torch.zeros_like(x) if isinstance(x, Tensor) else None for x in ctx.arguments))
        dtype = accumulation_dtype(logits)
        # With a gradient beyond that of the logits, the one of L is kept unscaled, in full precision.
        alone = not (wants["prior"] or wants["centers"])
        of_matrix = torch.empty(logits.shape, dtype=logits.dtype if alone else dtype, device=logits.device)
        of_log_rows = torch.empty(logits.shape[:-1], dtype=dtype, device=logits.device) if wants_rows else None
        result = backward_kernels.Gradients(of_matrix, scale if alone else 1.0, of_log_rows)
        of_v = backward_kernels.differentiate(
            p.matrix, p.sizes, p.marginals, ctx.trace, _cotangents(ctx.plan, grads), result, p.acc
        )
        found: list[Tensor | None] = [None] * len(ctx.arguments)
        if wants["logits"]:
            found[0] = of_matrix if alone else (of_matrix * scale).to(logits.dtype)
        if wants["prior"]:
            found[1] = torch.where(prior == 0, 0, of_matrix / prior).to(prior.dtype)
        if wants["centers"]:
            term = p.matrix.ranks
            assert term is not None
            gap = term.positions.unsqueeze(-1) - p.centers.unsqueeze(-2)
            of_centers = (of_matrix.view(p.sizes) * gap).sum(-2) * (2 * term.factor)
            found[3] = of_centers.view(centers.shape).to(centers.dtype)
        if of_log_rows is not None:
            found[6] = torch.where(rows == 0, 0, of_log_rows / rows).to(rows.dtype)
        if wants_columns:
            found[7] = _column_gradient(ctx.trace, of_v, columns)
        return (None, *found)


def _cotangents(plan: bool, grads: tuple[Tensor | None, ...]) -> backward_kernels.Cotangents:
    if plan:
        assert grads[0] is not None
        g = batch(grads[0], 2)
        return backward_kernels.Cotangents(g, *g.stride(), None, None)
    u, v = (None if g is None else g.contiguous() for g in grads)
    return backward_kernels.Cotangents(None, 0, 0, 0, u, v)


def _column_gradient(trace: kernels.Trace, of_v: Tensor, columns: Tensor) -> Tensor:
    """dv^t/dlog c = 1 in every iteration that ran, for columns with mass."""
    mass = trace.totals != 0
    mass[0] = trace.totals[0] != -torch.inf
    if trace.ran is not None:
        iterations = torch.arange(1, of_v.shape[0] + 1, device=of_v.device)
        mass &= (iterations.view(-1, 1) <= trace.ran[-1]).unsqueeze(-1)
    total = torch.where(mass, of_v, 0).sum(0).view(columns.shape)
    return torch.where(columns == 0, 0, total / columns).to(columns.dtype)
