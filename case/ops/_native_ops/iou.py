"""``temporal_iou`` by ``csrc/iou.cpp`` and ``csrc/iou.cu``; its gradient on the CPU by ``csrc/iou_backward.cpp``."""

from __future__ import annotations

import torch
from torch import Tensor

from case.ops._native_ops import _common
from case.ops._native_ops._common import DTYPES, address
from case.ops._registration import gradients_with_graph, kernels_cannot
from case.ops.reference import nms as reference


def temporal_iou(a: Tensor, b: Tensor, length_offset: float) -> Tensor:
    wants_gradient = torch.is_grad_enabled() and (a.requires_grad or b.requires_grad)
    alike = a.dtype == b.dtype and a.shape[:-2] == b.shape[:-2]  # else the rules of torch
    if a.dtype not in DTYPES or not alike or (wants_gradient and a.is_cuda):
        return reference.temporal_iou(a, b, length_offset)
    if wants_gradient:
        return _TemporalIoU.apply(a, b, length_offset)
    return _fill(a.contiguous(), b.contiguous(), length_offset)


def _fill(a: Tensor, b: Tensor, length_offset: float) -> Tensor:
    out = torch.empty((*a.shape[:-1], b.shape[-2]), dtype=a.dtype, device=a.device)
    args = (address(a), address(b), address(out), *_sizes(a, b), DTYPES[a.dtype], length_offset)
    if a.is_cuda:
        with torch.cuda.device(a.device):
            _common.module().iou_cuda(*args, torch.cuda.current_stream().cuda_stream)
    else:
        _common.module().iou_cpu(*args, torch.get_num_threads())
    return out


def _sizes(a: Tensor, b: Tensor) -> tuple[int, int, int]:
    """(problems, M, P)."""
    return a.shape[:-2].numel(), a.shape[-2], b.shape[-2]


class _TemporalIoU(torch.autograd.Function):
    @staticmethod
    def forward(ctx, a: Tensor, b: Tensor, length_offset: float) -> Tensor:  # type: ignore[no-untyped-def]
        ctx.save_for_backward(a, b)
        ctx.length_offset = length_offset
        return _fill(a.contiguous(), b.contiguous(), length_offset)

    @staticmethod
    def backward(ctx, cotangent: Tensor) -> tuple[Tensor | None, Tensor | None, None]:  # type: ignore[no-untyped-def]
        a, b = ctx.saved_tensors
        if kernels_cannot(cotangent):
            da, db = gradients_with_graph(
                lambda one, other: reference.temporal_iou(one, other, ctx.length_offset),
                (a, b),
                ctx.needs_input_grad[:2],
                cotangent,
            )
            return da, db, None
        a, b, cotangent = a.contiguous(), b.contiguous(), cotangent.contiguous()
        da, db = torch.empty_like(a), torch.empty_like(b)
        _common.module().iou_backward_cpu(
            address(a), address(b), address(cotangent), (address(da), address(db)), *_sizes(a, b), DTYPES[a.dtype],
            ctx.length_offset, torch.get_num_threads(),
        )  # fmt: skip
        return da, db, None
