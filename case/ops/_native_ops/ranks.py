"""Relative ranks and ``rank_prior`` by ``csrc/rank.cpp`` and ``csrc/rank_prior.cpp``."""

from __future__ import annotations

import torch
from torch import Tensor

from case.ops._native_ops import _common
from case.ops._native_ops._common import DTYPES, address
from case.ops._registration import gradients_with_graph, kernels_cannot
from case.ops.reference import sinkhorn as reference
from case.ops.reference._numerics import accumulation_dtype


def rank_positions(scores: Tensor, valid: Tensor | None, ranks: str) -> Tensor:
    """The p_n of ``rank_prior``; scores (batch, N) and bool valid contiguous, the first float32 or float64."""
    positions = torch.empty_like(scores)
    args = (address(scores), address(valid), address(positions), *scores.shape, DTYPES[scores.dtype])
    _common.module().rank_positions_cpu(*args, ranks == "argsort", torch.get_num_threads())
    return positions


def rank_prior(scores: Tensor, centers: Tensor, sigma: float, ranks: str) -> Tensor:
    if torch.is_grad_enabled() and centers.requires_grad:
        return _RankPrior.apply(scores, centers, sigma, ranks)
    return _fill(scores, centers, sigma, ranks)[0].to(scores.dtype)


def _fill(scores: Tensor, centers: Tensor, sigma: float, ranks: str) -> tuple[Tensor, Tensor]:
    """The prior and the p_n (..., N), in the accumulation dtype."""
    dtype = accumulation_dtype(scores)
    lead, n, k = scores.shape[:-1], scores.shape[-1], centers.shape[-1]
    batch = lead.numel()
    positions = rank_positions(scores.detach().to(dtype).reshape(batch, n).contiguous(), None, ranks)
    centers = centers.detach().to(dtype).reshape(batch, k).contiguous()
    prior = positions.new_empty((*lead, n, k))
    args = (address(positions), address(centers), sigma, address(prior), batch, n, k, DTYPES[dtype])
    _common.module().rank_prior_cpu(*args, torch.get_num_threads())
    return prior, positions.view(*lead, n)


class _RankPrior(torch.autograd.Function):
    @staticmethod
    def forward(ctx, scores: Tensor, centers: Tensor, sigma: float, ranks: str) -> Tensor:  # type: ignore[no-untyped-def]
        prior, positions = _fill(scores, centers, sigma, ranks)
        ctx.save_for_backward(prior, positions, scores, centers)
        ctx.settings = sigma, ranks
        return prior.to(scores.dtype)

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[None, Tensor | None, None, None]:  # type: ignore[no-untyped-def]
        prior, positions, scores, centers = ctx.saved_tensors
        sigma, ranks = ctx.settings
        if kernels_cannot(grad):
            _, of_centers = gradients_with_graph(
                lambda s, c: reference.rank_prior(s, c, sigma, ranks), (scores, centers), (False, True), grad
            )
            return None, of_centers, None, None
        weighted = prior * grad.to(prior.dtype)
        logs = weighted - prior * weighted.sum((-2, -1), keepdim=True)
        gradient = (positions.unsqueeze(-2) @ logs).squeeze(-2) - logs.sum(-2) * centers.to(prior.dtype)
        return None, (gradient / sigma**2).to(centers.dtype), None, None
