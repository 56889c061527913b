"""``topk_pool`` by ``csrc/pooling.cpp``."""

from __future__ import annotations

import math
from functools import partial

import torch
from torch import Tensor

from case.ops._native_ops import _common
from case.ops._native_ops._common import DTYPES, address
from case.ops._registration import gradients_with_graph, kernels_cannot
from case.ops.reference import pooling as reference
from case.ops.reference._numerics import accumulation_dtype


def topk_pool(selector: Tensor, values: Tensor, k: int, index: Tensor | None) -> tuple[Tensor, Tensor]:
    if index is None:
        fits = values.shape[-selector.dim() :] == selector.shape
    else:
        alike = index.shape == selector.shape[:-1] and values.shape[-1] == selector.shape[-1]
        fits = alike and index.dtype == torch.int64 and values.shape[-2] > 0
    if not fits:  # torch's result, or an error in its words
        return reference.topk_pool(selector, values, k, index)
    indices = _largest(selector, k)
    rows, shared = (indices, False) if index is None else (reference.rows_at(index, indices), True)
    if torch.is_grad_enabled() and values.requires_grad:
        return _Mean.apply(values, rows, shared), indices
    return _mean(values, rows, shared), indices


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


def _mean(values: Tensor, rows: Tensor, shared: bool) -> Tensor:
    dtype = accumulation_dtype(values)
    given, rows = values.to(dtype).contiguous(), rows.contiguous()
    form, sizes, shape = _described(values.shape, rows, shared)
    pooled = given.new_empty(shape)
    _common.module().pool_cpu(
        address(given), address(rows), form, sizes, address(pooled), DTYPES[dtype], torch.get_num_threads()
    )
    return pooled.to(values.dtype)


def _described(
    shape: torch.Size, rows: Tensor, shared: bool
) -> tuple[tuple[int, bool], tuple[int, int, int, int], tuple[int, ...]]:
    """What ``case._C`` is told of values of that shape and of rows (..., k, C), and the shape of their means."""
    *lead, k, classes = rows.shape
    copies = shape[:-2] if shared else shape[: len(shape) - rows.dim()]
    return (copies.numel(), shared), (math.prod(lead), shape[-2], classes, k), (*copies, *lead, classes)


class _Mean(torch.autograd.Function):
    @staticmethod
    def forward(ctx, values: Tensor, rows: Tensor, shared: bool) -> Tensor:  # type: ignore[no-untyped-def]
        ctx.save_for_backward(rows)
        ctx.shape, ctx.dtype, ctx.shared = values.shape, values.dtype, shared
        return _mean(values, rows, shared)

    @staticmethod
    def backward(ctx, cotangent: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[no-untyped-def]
        (rows,) = ctx.saved_tensors
        if kernels_cannot(cotangent):  # linear, so that the gradient hangs on the cotangent alone
            nothing = torch.zeros(ctx.shape, dtype=ctx.dtype, requires_grad=True)
            mean = partial(reference.mean_at, rows=rows, shared=ctx.shared)
            return *gradients_with_graph(mean, (nothing,), (True,), cotangent), None, None
        cotangent, rows = cotangent.to(accumulation_dtype(cotangent)).contiguous(), rows.contiguous()
        gradient = cotangent.new_empty(ctx.shape)
        form, sizes, _ = _described(ctx.shape, rows, ctx.shared)
        _common.module().pool_backward_cpu(
            address(cotangent), address(rows), form, sizes, address(gradient), DTYPES[gradient.dtype],
            torch.get_num_threads(),
        )  # fmt: skip
        return gradient.to(ctx.dtype), None, None
