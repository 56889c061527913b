"""``temporal_iou`` by ``csrc/iou.cpp`` and ``csrc/iou.cu``."""

from __future__ import annotations

import torch
from torch import Tensor

from case.ops._native_ops import _common
from case.ops._native_ops._common import DTYPES, address
from case.ops.reference import nms as reference


def temporal_iou(a: Tensor, b: Tensor, length_offset: float) -> Tensor:
    wants_gradient = torch.is_grad_enabled() and (a.requires_grad or b.requires_grad)
    if wants_gradient or a.dtype not in DTYPES:
        return reference.temporal_iou(a, b, length_offset)
    a, b = a.contiguous(), b.contiguous()
    out = torch.empty((*a.shape[:-1], b.shape[-2]), dtype=a.dtype, device=a.device)
    m, p = a.shape[-2], b.shape[-2]
    problems = a.shape[:-2].numel()
    args = (address(a), address(b), address(out), problems, m, p, DTYPES[a.dtype], length_offset)
    if a.is_cuda:
        with torch.cuda.device(a.device):
            _common.module().iou_cuda(*args, torch.cuda.current_stream().cuda_stream)
    else:
        _common.module().iou_cpu(*args, torch.get_num_threads())
    return out
