r"""Sinkhorn-Knopp in the log domain (METHOD.md, OT).

With L = scale * logits + log prior (-inf where masked), row marginal r and column marginal c, each iteration sets

    v_k = log c_k - log sum_n exp(L_nk + a_n) r_n        columns first
    a_n =         - log sum_k exp(L_nk + v_k)            then rows

and the plan divided by its row marginal is Q_nk = exp(L_nk + a_n + v_k), whose rows sum to 1. Only ratios within r
and within c matter: a constant factor on either is undone by the next row step. The start is M itself, as in the
released code: the first column step has a_n + log r_n = 0, and at three iterations a per-row shift of the logits
changes the result.
"""

from typing import Any

import torch
from torch import Tensor
from torch.distributed import ProcessGroup

from case.ops.reference._numerics import accumulation_dtype, logsumexp


def rank_positions(scores: Tensor, ranks: str, valid: Tensor | None = None) -> Tensor:
    """p_n = (rank_n + 1) / N in (0, 1], rank 0 the highest score; ``argsort`` uses the n-th sorted index instead.

    Ties rank in order of appearance. Rows that are not ``valid`` rank last and do not count in N.
    """
    dtype = accumulation_dtype(scores)
    if valid is not None:
        scores = scores.masked_fill(~valid, -torch.inf)
    order = scores.argsort(dim=-1, descending=True, stable=True)
    if ranks == "true":
        counting = torch.arange(scores.shape[-1], device=scores.device).expand_as(order)
        order = torch.empty_like(order).scatter_(-1, order, counting)
    count = scores.shape[-1] if valid is None else valid.sum(-1, keepdim=True).clamp(min=1)
    return (order + 1).to(dtype) / count


def log_rank_prior(scores: Tensor, centers: Tensor, sigma: float, ranks: str, valid: Tensor | None = None) -> Tensor:
    """-(p_n - c_k)^2 / (2 sigma^2), (..., N, K), not normalised."""
    return log_position_prior(rank_positions(scores, ranks, valid), centers, sigma)


def log_position_prior(positions: Tensor, centers: Tensor, sigma: float) -> Tensor:
    """``log_rank_prior`` of rows (..., N) whose p_n is known."""
    gap = positions.unsqueeze(-1) - centers.to(positions.dtype).unsqueeze(-2)
    return -gap.square() / (2 * sigma**2)


def rank_prior(scores: Tensor, centers: Tensor, sigma: float, ranks: str) -> Tensor:
    log_prior = log_rank_prior(scores, centers, sigma, ranks)
    if log_prior.numel() == 0:
        return log_prior.to(scores.dtype)
    total = logsumexp(log_prior.flatten(-2), -1)
    return (log_prior - total[..., None, None]).exp().to(scores.dtype)


def log_matrix(
    logits: Tensor,
    prior: Tensor | None,
    rank_scores: Tensor | None,
    rank_centers: Tensor | None,
    rank_sigma: float,
    ranks: str,
    mask: Tensor | None,
    scale: float,
) -> Tensor:
    """L = scale * logits + log prior, -inf where masked: (..., N, K) in the accumulation dtype."""
    dtype = accumulation_dtype(logits)
    log_m = scale * logits.to(dtype)
    if prior is not None:
        prior = prior.to(dtype)
        log_m = log_m + _log_weight(prior)
    if rank_scores is not None and rank_centers is not None:
        valid = None if mask is None else mask.any(-1)
        log_m = log_m + log_rank_prior(rank_scores.to(dtype), rank_centers, rank_sigma, ranks, valid)
    if mask is not None:
        log_m = log_m.masked_fill(~mask, -torch.inf)
    return log_m


def dense_plan(logits: Tensor, u: Tensor, v: Tensor, *problem: Any) -> Tensor:
    """Q = exp(L + u + v) in the accumulation dtype; ``problem`` as ``log_matrix`` takes it after the logits."""
    return (log_matrix(logits, *problem) + u.unsqueeze(-1) + v.unsqueeze(-2)).exp()


def potentials(
    log_m: Tensor,
    row_marginal: Tensor | None,
    col_marginal: Tensor | None,
    n_iters: int,
    tol: float | None,
    group: ProcessGroup | None = None,
) -> tuple[Tensor, Tensor]:
    """(a, v) of the module's docstring after ``n_iters`` iterations, or after fewer where ``tol`` was met.

    ``tol`` freezes a problem once no column is further than tol from its marginal (as a share of the whole mass);
    it never asks the host, so the remaining iterations still run, without effect.
    """
    n, k = log_m.shape[-2:]
    log_r = _log_marginal(row_marginal, log_m)
    log_c = _log_marginal(col_marginal, log_m)
    log_rm = log_m if log_r is None else log_m + log_r.unsqueeze(-1)
    a = log_m.new_zeros((*log_m.shape[:-2], n))
    v = log_m.new_zeros((*log_m.shape[:-2], k))
    done = torch.zeros((*log_m.shape[:-2], 1), dtype=torch.bool, device=log_m.device)
    for iteration in range(n_iters):
        column = logsumexp(log_m if iteration == 0 else log_rm + a.unsqueeze(-1), -2)
        if group is not None:
            column = GroupLogSumExp.apply(column, group)
        target = torch.zeros_like(column) if log_c is None else log_c.expand_as(column)
        # A column or row without any mass keeps potential 0: it takes no part, and 0 * inf never arises. NaN is mass.
        next_v = torch.where(column.isneginf(), torch.zeros_like(column), target - column)
        if tol is not None and iteration > 0:
            share = (column + v).softmax(-1) - target.softmax(-1)
            done = done | (share.abs().amax(-1, keepdim=True) < tol)
            next_v = torch.where(done, v, next_v)
        v = next_v
        row = logsumexp(log_m + v.unsqueeze(-2), -1)
        next_a = torch.where(row.isneginf(), torch.zeros_like(row), -row)
        a = next_a if tol is None else torch.where(done, a, next_a)
    return a, v


def solve(
    logits: Tensor,
    prior: Tensor | None,
    rank_scores: Tensor | None,
    rank_centers: Tensor | None,
    rank_sigma: float,
    ranks: str,
    row_marginal: Tensor | None,
    col_marginal: Tensor | None,
    mask: Tensor | None,
    scale: float,
    n_iters: int,
    tol: float | None,
    group: ProcessGroup | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """(L, a, v) of the problem that the registered ops' arguments describe."""
    log_m = log_matrix(logits, prior, rank_scores, rank_centers, rank_sigma, ranks, mask, scale)
    return log_m, *potentials(log_m, row_marginal, col_marginal, n_iters, tol, group)


def sinkhorn_potentials(*problem: Any) -> tuple[Tensor, Tensor]:
    _, a, v = solve(*problem)
    return a, v


def sinkhorn(*problem: Any) -> Tensor:
    log_m, a, v = solve(*problem)
    return (log_m + a.unsqueeze(-1) + v.unsqueeze(-2)).exp().to(problem[0].dtype)


class GroupLogSumExp(torch.autograd.Function):
    """log sum over ranks of exp: one collective of K numbers, and one in backward (the loss is the ranks' sum)."""

    @staticmethod
    def forward(ctx, local: Tensor, group: ProcessGroup) -> Tensor:  # type: ignore[no-untyped-def]
        parts = [torch.empty_like(local) for _ in range(torch.distributed.get_world_size(group))]
        torch.distributed.all_gather(parts, local.contiguous(), group=group)
        total = logsumexp(torch.stack(parts), 0)
        ctx.save_for_backward(local, total)
        ctx.group = group
        return total

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor, None]:  # type: ignore[no-untyped-def]
        local, total = ctx.saved_tensors
        grad = grad.contiguous().clone()
        torch.distributed.all_reduce(grad, group=ctx.group)
        share = torch.where(total.isneginf(), torch.zeros_like(total), (local - total).exp())
        return grad * share, None


def _log_marginal(marginal: Tensor | None, log_m: Tensor) -> Tensor | None:
    if marginal is None:
        return None
    return _log_weight(marginal.to(log_m.dtype))


def _log_weight(weight: Tensor) -> Tensor:
    """log, -inf with gradient 0 where the weight is 0; NaN where it is NaN or negative."""
    none = weight == 0
    return weight.masked_fill(none, 1).log().masked_fill(none, -torch.inf)
