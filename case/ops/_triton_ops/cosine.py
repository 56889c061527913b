"""``cosine_logits`` and ``cosine_softmax`` on kernels/cosine.py."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from case.kernels import cosine as kernels
from case.kernels.config import MAX_COSINE_COLUMNS
from case.ops import _backend
from case.ops._registration import gradients_with_graph, kernels_cannot
from case.ops._triton_ops._common import batch, needs_gradient
from case.ops.reference._numerics import accumulation_dtype


def cosine_logits(x: Tensor, y: Tensor, scale: float, unit_y: bool) -> Tensor:
    return _cosine(x, y, scale, unit_y, softmax=False, dtype=x.dtype)


def cosine_softmax(x: Tensor, y: Tensor, scale: float, unit_y: bool) -> Tensor:
    if y.shape[-2] <= MAX_COSINE_COLUMNS:
        return _cosine(x, y, scale, unit_y, softmax=True, dtype=x.dtype)
    # No program sees a whole row.
    logits = _cosine(x, y, scale, unit_y, softmax=False, dtype=accumulation_dtype(x))
    return logits.softmax(-1).to(x.dtype)


def _cosine(x: Tensor, y: Tensor, scale: float, unit_y: bool, *, softmax: bool, dtype: torch.dtype) -> Tensor:
    if needs_gradient(x, y):
        return _Cosine.apply(x, y, scale, unit_y, softmax, dtype)
    out = x.new_empty((*x.shape[:-1], y.shape[-2]), dtype=dtype)
    kernels.forward(batch(x, 2), batch(y, 2), scale, batch(out, 2), None, None, unit_y=unit_y, softmax=softmax)
    return out


class _Cosine(torch.autograd.Function):
    """Keeps x, y, their lengths and the logits; the softmax is made again from those."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, y: Tensor, scale: float, unit_y: bool, softmax: bool, dtype: torch.dtype
    ) -> Tensor:
        wide_x, wide_y = batch(x, 2), batch(y, 2)
        out = x.new_empty((*x.shape[:-1], y.shape[-2]), dtype=dtype)
        narrow = accumulation_dtype(x)
        logits = torch.empty_like(out, dtype=narrow) if softmax else None
        norms = wide_x.new_empty(wide_x.shape[:-1], dtype=narrow), wide_y.new_empty(wide_y.shape[:-1], dtype=narrow)
        kernels.forward(
            wide_x, wide_y, scale, batch(out, 2), None if logits is None else batch(logits, 2), norms,
            unit_y=unit_y, softmax=softmax,
        )  # fmt: skip
        ctx.save_for_backward(x, y, out if logits is None else logits, *norms)
        ctx.settings = scale, unit_y, softmax, dtype
        return out

    @staticmethod
    def backward(ctx: Any, cotangent: Tensor) -> tuple[Tensor | None, ...]:
        x, y, logits, *norms = ctx.saved_tensors
        scale, unit_y, softmax, dtype = ctx.settings
        need_x, need_y = ctx.needs_input_grad[:2]
        if kernels_cannot(cotangent):
            function = _backend.reference("cosine_softmax" if softmax else "cosine_logits")
            of_each = gradients_with_graph(
                lambda x, y: function(x.to(dtype), y.to(dtype), scale, unit_y), (x, y), (need_x, need_y), cotangent
            )
            return *of_each, None, None, None, None
        dx = torch.empty(x.shape, dtype=x.dtype, device=x.device) if need_x else None
        dy = torch.empty(y.shape, dtype=y.dtype, device=y.device) if need_y else None
        kernels.backward(
            batch(x, 2), batch(y, 2), scale, batch(cotangent, 2), batch(logits, 2), tuple(norms),
            None if dx is None else batch(dx, 2), None if dy is None else batch(dy, 2),
            unit_y=unit_y, softmax=softmax,
        )  # fmt: skip
        return dx, dy, None, None, None, None
