"""``cosine_logits`` and ``cosine_softmax`` by ``csrc/cosine.cpp``: x is read once forward and once backward."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from case.ops._native_ops import _common
from case.ops._native_ops._common import DTYPES, address, placed
from case.ops._registration import gradients_with_graph, kernels_cannot
from case.ops.reference import cosine as reference
from case.ops.reference._numerics import accumulation_dtype

# Rows of y beyond which there is little to gain over torch, and the sums that make dy take more memory than x.
MOST_COLUMNS = 256


def cosine_logits(x: Tensor, y: Tensor, scale: float, unit_y: bool) -> Tensor:
    return _run(x, y, scale, unit_y, False)


def cosine_softmax(x: Tensor, y: Tensor, scale: float, unit_y: bool) -> Tensor:
    return _run(x, y, scale, unit_y, True)


def _reference(softmax: bool) -> Any:
    return reference.cosine_softmax if softmax else reference.cosine_logits


def _run(x: Tensor, y: Tensor, scale: float, unit_y: bool, softmax: bool) -> Tensor:
    alike = x.shape[:-2] == y.shape[:-2] and x.shape[-1:] == y.shape[-1:]  # else the rules of torch
    if not alike or x.dim() < 2 or y.dim() < 2 or y.shape[-2] > MOST_COLUMNS:
        return _reference(softmax)(x, y, scale, unit_y)
    dtype = accumulation_dtype(x)
    if x.dtype != dtype or y.dtype != dtype:
        return _run(x.to(dtype), y.to(dtype), scale, unit_y, softmax).to(x.dtype)
    if torch.is_grad_enabled() and (x.requires_grad or y.requires_grad):
        return _Cosine.apply(x, y, scale, unit_y, softmax)
    return _fill(_Problem(x, y, scale, unit_y, softmax), x.shape, None)


class _Problem:
    """As ``case._C`` takes it; keeps alive what it points to."""

    def __init__(self, x: Tensor, y: Tensor, scale: float, unit_y: bool, softmax: bool) -> None:
        rows, width = x.shape[-2:]
        groups = x.shape[:-2].numel()
        self.x, strides = placed(x, (groups, rows), width)
        self.y = y.contiguous()
        self.description = (
            DTYPES[x.dtype],
            (groups, rows, y.shape[-2], width),
            (address(self.x), *strides),
            address(self.y),
            scale,
            unit_y,
            softmax,
        )


def _fill(problem: _Problem, shape: torch.Size, lengths: Tensor | None) -> Tensor:
    out = problem.x.new_empty((*shape[:-1], problem.y.shape[-2]))
    _common.module().cosine_cpu(problem.description, (address(out), address(lengths)), torch.get_num_threads())
    return out


class _Cosine(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor, y: Tensor, *settings: Any) -> Tensor:  # type: ignore[no-untyped-def]
        lengths = x.new_empty(x.shape[:-1])
        out = _fill(_Problem(x, y, *settings), x.shape, lengths)
        # Logits are narrow, and may be masked in place as those of plain torch may; a softmax may not there either.
        *_, softmax = settings
        ctx.save_for_backward(x, y, out if softmax else out.clone(), lengths)
        ctx.settings = settings
        return out

    @staticmethod
    def backward(ctx, cotangent: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[no-untyped-def]
        x, y, out, lengths = ctx.saved_tensors
        scale, unit_y, softmax = ctx.settings
        needed = ctx.needs_input_grad[:2]
        if kernels_cannot(cotangent):
            found: Any = gradients_with_graph(
                lambda *given: _reference(softmax)(*given, scale, unit_y), (x, y), needed, cotangent
            )
            return (*found, None, None, None)
        problem = _Problem(x, y, scale, unit_y, softmax)
        found = [a.new_empty(a.shape) if want else None for a, want in zip((x, y), needed)]
        out, lengths, cotangent = out.contiguous(), lengths.contiguous(), cotangent.contiguous()
        _common.module().cosine_backward_cpu(
            problem.description, (address(out), address(lengths)), address(cotangent),
            (address(found[0]), address(found[1])), torch.get_num_threads(),
        )  # fmt: skip
        return (*found, None, None, None)
