"""The compiled implementations of ops, put in place where ``case._C`` is there. Addresses, sizes and a stream go in."""

from __future__ import annotations

import torch
from torch import Tensor

from case import _native
from case.ops import _backend
from case.ops.reference import nms as reference

_DTYPES = {torch.float32: "float32", torch.float64: "float64"}


def _temporal_iou(a: Tensor, b: Tensor, length_offset: float) -> Tensor:
    wants_gradient = torch.is_grad_enabled() and (a.requires_grad or b.requires_grad)
    module = _native.load()
    if wants_gradient or a.dtype not in _DTYPES or module is None:
        return reference.temporal_iou(a, b, length_offset)
    a, b = a.contiguous(), b.contiguous()
    out = torch.empty((*a.shape[:-1], b.shape[-2]), dtype=a.dtype, device=a.device)
    m, p = a.shape[-2], b.shape[-2]
    problems = a.shape[:-2].numel()
    args = (a.data_ptr(), b.data_ptr(), out.data_ptr(), problems, m, p, _DTYPES[a.dtype], length_offset)
    if a.is_cuda:
        with torch.cuda.device(a.device):
            module.iou_cuda(*args, torch.cuda.current_stream().cuda_stream)
    else:
        module.iou_cpu(*args, torch.get_num_threads())
    return out


if _native.load() is not None:
    _backend.add("temporal_iou", "native", "cpu", _temporal_iou)
    if _native.has_cuda():
        _backend.add("temporal_iou", "native", "cuda", _temporal_iou)
