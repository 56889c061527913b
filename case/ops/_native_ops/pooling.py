"""``topk_pool`` by ``csrc/pooling.cpp``."""

from __future__ import annotations

import torch
from torch import Tensor

from case.ops._native_ops import _common
from case.ops._native_ops._common import DTYPES, address
from case.ops._registration import kernels_cannot
from case.ops.reference import pooling as reference
from case.ops.reference._numerics import accumulation_dtype


def topk_pool(selector: Tensor, values: Tensor, k: int) -> tuple[Tensor, Tensor]:
    if values.shape[-selector.dim() :] != selector.shape:  # an error, in torch's words
        return reference.topk_pool(selector, values, k)
    indices = _largest(selector, k)
    if torch.is_grad_enabled() and values.requires_grad:
        return _Mean.apply(values, indices), indices
    return _mean(values, indices), indices


def _largest(selector: Tensor, k: int) -> Tensor:
    """Time indices (..., k, C) of the k largest of each column."""
    *lead, t, c = selector.shape
    batch = selector.shape[:-2].numel()
    selector = selector.detach().to(accumulation_dtype(selector)).reshape(batch, t, c)
    indices = torch.empty((*lead, k, c), dtype=torch.int64, device=selector.device)
    _common.module().topk_cpu(
        address(selector), selector.stride(), (batch, t, c, k), address(indices), DTYPES[selector.dtype],
        torch.get_num_threads(),
    )  # fmt: skip
    return indices


def _mean(values: Tensor, indices: Tensor) -> Tensor:
    dtype = accumulation_dtype(values)
    given = values.to(dtype).contiguous()
    pooled = given.new_empty((*values.shape[:-2], values.shape[-1]))
    sizes = _sizes(values.shape, indices)
    _common.module().pool_cpu(
        address(given), address(indices), *sizes, address(pooled), DTYPES[dtype], torch.get_num_threads()
    )
    return pooled.to(values.dtype)


def _sizes(shape: torch.Size, indices: Tensor) -> tuple[int, tuple[int, int, int, int]]:
    """How many leading problems share one ranking, and (batch, t, c, k) of the ranking."""
    shared = len(shape) - indices.dim()
    return shape[:shared].numel(), (indices.shape[:-2].numel(), shape[-2], shape[-1], indices.shape[-2])


class _Mean(torch.autograd.Function):
    @staticmethod
    def forward(ctx, values: Tensor, indices: Tensor) -> Tensor:  # type: ignore[no-untyped-def]
        ctx.save_for_backward(indices)
        ctx.shape, ctx.dtype = values.shape, values.dtype
        return _mean(values, indices)

    @staticmethod
    def backward(ctx, cotangent: Tensor) -> tuple[Tensor, None]:  # type: ignore[no-untyped-def]
        (indices,) = ctx.saved_tensors
        if kernels_cannot(cotangent):  # linear, so that the gradient hangs on the cotangent alone
            k, everywhere = indices.shape[-2], (*ctx.shape[:-2], *indices.shape[-2:])
            shares = (cotangent / k).unsqueeze(-2).expand(everywhere)
            return cotangent.new_zeros(ctx.shape).scatter(-2, indices.expand(everywhere), shares), None
        cotangent = cotangent.to(accumulation_dtype(cotangent)).contiguous()
        gradient = cotangent.new_empty(ctx.shape)
        indices = indices.contiguous()
        sizes = _sizes(ctx.shape, indices)
        _common.module().pool_backward_cpu(
            address(cotangent), address(indices), *sizes, address(gradient), DTYPES[gradient.dtype],
            torch.get_num_threads(),
        )  # fmt: skip
        return gradient.to(ctx.dtype), None
