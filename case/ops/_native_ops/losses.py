"""Cross entropies by ``csrc/losses.cpp``, and ``clustering_losses`` on the CPU.

The chain: C++ for both transports, both cross entropies, the prototypes and their similarity; torch between them.
"""

from __future__ import annotations

import math
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from case.ops._native_ops import _common
from case.ops._native_ops._common import DTYPES, address
from case.ops._native_ops.cosine import cosine_logits
from case.ops._native_ops.prototypes import prototypes
from case.ops._native_ops.sinkhorn import sinkhorn
from case.ops._registration import gradients_with_graph, kernels_cannot
from case.ops.reference import losses as reference
from case.ops.reference._numerics import accumulation_dtype
from case.ops.reference.sinkhorn import dense_plan


def soft_cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    return _run("soft_cross_entropy", (), logits, targets.expand_as(logits))


def soft_cross_entropy_of_plan(logits: Tensor, *plan: Any) -> Tensor:
    return soft_cross_entropy(logits, dense_plan(*plan))


def generalized_cross_entropy(p: Tensor, target: Tensor, q: float) -> Tensor:
    p, target = (p, target) if p.shape == target.shape else torch.broadcast_tensors(p, target)
    return _run("generalized_cross_entropy", (q,), p, target)


clustering_losses = partial(
    reference.clustering_losses, transport=sinkhorn, cross_entropy=soft_cross_entropy, prototypes=prototypes,
    similarity=cosine_logits,
)  # fmt: skip


def _run(name: str, settings: tuple[float, ...], x: Tensor, t: Tensor) -> Tensor:
    if torch.is_grad_enabled() and (x.requires_grad or t.requires_grad):
        return _RowLoss.apply(name, settings, x, t)
    return _losses(name, settings, _laid_out(x, t), x.shape[:-1])


class _Rows(NamedTuple):
    """x and t as ``case._C`` takes them: in one dtype, columns contiguous, rows (batch, n) by strides."""

    x: Tensor
    t: Tensor
    lead: tuple[int, int]
    strides: tuple[tuple[int, int], tuple[int, int]]

    def description(self) -> tuple[Any, ...]:
        (of_x, of_t), k = self.strides, self.x.shape[-1]
        return DTYPES[self.x.dtype], (*self.lead, k), (address(self.x), *of_x), (address(self.t), *of_t)


def _laid_out(x: Tensor, t: Tensor) -> _Rows:
    """Copies only where the dtype is another or strides cannot say it."""
    dtype = accumulation_dtype(x)
    x, t = (y if y.dtype == dtype else y.to(dtype) for y in (x, t))
    *lead, k = x.shape
    if len(lead) < 2 or (x.is_contiguous() and t.is_contiguous()):
        sizes = (1, math.prod(lead))
    else:
        sizes = (math.prod(lead[:-1]), lead[-1])
    (x, of_x), (t, of_t) = _common.placed(x, sizes, k), _common.placed(t, sizes, k)
    return _Rows(x, t, sizes, (of_x, of_t))


def _losses(name: str, settings: tuple[float, ...], rows: _Rows, shape: torch.Size) -> Tensor:
    out = rows.x.new_empty(shape)
    run = getattr(_common.module(), f"{name}_cpu")
    run(rows.description(), *settings, address(out), torch.get_num_threads())
    return out


class _RowLoss(torch.autograd.Function):
    @staticmethod
    def forward(ctx, name: str, settings: tuple[float, ...], x: Tensor, t: Tensor) -> Tensor:  # type: ignore[no-untyped-def]
        ctx.save_for_backward(x, t)
        ctx.rest = name, settings
        return _losses(name, settings, _laid_out(x, t), x.shape[:-1])

    @staticmethod
    def backward(ctx, cotangent: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[no-untyped-def]
        name, settings = ctx.rest
        x, t = ctx.saved_tensors
        needed = ctx.needs_input_grad[2:]
        if kernels_cannot(cotangent):
            return (
                None,
                None,
                *gradients_with_graph(
                    lambda *given: getattr(reference, name)(*given, *settings), (x, t), needed, cotangent
                ),
            )
        rows = _laid_out(x, t)
        found = [rows.x.new_empty(x.shape) if want else None for want in needed]
        step = (0, 0)
        if any(cotangent.stride()):  # else one number for all rows, as of a mean
            cotangent, step = cotangent.contiguous(), (rows.lead[1], 1)
        run = getattr(_common.module(), f"{name}_backward_cpu")
        to = (address(found[0]), address(found[1]))
        run(rows.description(), *settings, (address(cotangent), *step), to, torch.get_num_threads())
        return None, None, *(g if g is None or g.dtype == y.dtype else g.to(y.dtype) for g, y in zip(found, (x, t)))
