"""``soft_cross_entropy``, of a matrix and of a plan, and ``generalized_cross_entropy`` on kernels/losses.py."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from case.kernels import losses as kernels
from case.kernels.config import MAX_ROW
from case.kernels.prototypes import of_matrix
from case.ops import _backend
from case.ops._registration import gradients_with_graph, kernels_cannot
from case.ops._triton_ops._common import batch, needs_gradient
from case.ops._triton_ops._plan import plan_weights
from case.ops.reference._numerics import accumulation_dtype

# Fills (losses, gradient of first or None, gradient of second or None).
Launch = Callable[[Tensor, Tensor | None, Tensor | None], None]


def soft_cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    if logits.shape[-1] > MAX_ROW:
        return _backend.reference("soft_cross_entropy")(logits, targets)
    x, t = batch(logits, 2), of_matrix(batch(targets, 2))
    return _run(
        lambda *results: kernels.soft_cross_entropy(x, t, *results), _backend.reference("soft_cross_entropy"), logits,
        targets,
    )  # fmt: skip


def soft_cross_entropy_of_plan(logits: Tensor, *plan: Any) -> Tensor:
    """A plan with a gradient takes the reference: the gradient is as large as the plan, which may then be written."""
    if needs_gradient(*plan) or logits.shape[-1] > MAX_ROW:
        return _backend.reference("soft_cross_entropy_of_plan")(logits, *plan)
    x, t = batch(logits, 2), plan_weights(logits, *plan)
    return _run(
        lambda *results: kernels.soft_cross_entropy(x, t, *results),
        lambda logits, _: _backend.reference("soft_cross_entropy_of_plan")(logits, *plan), logits, None,
    )  # fmt: skip


def generalized_cross_entropy(p: Tensor, target: Tensor, q: float) -> Tensor:
    if p.shape[-1] > MAX_ROW:
        return _backend.reference("generalized_cross_entropy")(p, target, q)
    x, t = batch(p, 2), batch(target, 2)
    return _run(
        lambda *results: kernels.generalized_cross_entropy(x, t, q, *results),
        lambda p, target: _backend.reference("generalized_cross_entropy")(p, target, q), p, target,
    )  # fmt: skip


def _run(launch: Launch, reference: Callable[..., Tensor], first: Tensor, second: Tensor | None) -> Tensor:
    if needs_gradient(first, second):
        return _RowLoss.apply(launch, reference, first, second)
    losses = first.new_empty(first.shape[:-1], dtype=accumulation_dtype(first))
    launch(losses, None, None)
    return losses


class _RowLoss(torch.autograd.Function):
    """Losses of rows whose unit gradients the forward kernel has written; the inputs are for second derivatives."""

    @staticmethod
    def forward(
        ctx: Any, launch: Launch, reference: Callable[..., Tensor], first: Tensor, second: Tensor | None
    ) -> Tensor:
        losses = first.new_empty(first.shape[:-1], dtype=accumulation_dtype(first))
        units = [_unit(x, needed) for x, needed in zip((first, second), ctx.needs_input_grad[2:], strict=True)]
        launch(losses, *units)
        ctx.save_for_backward(*units, first, second)
        ctx.reference = reference
        return losses

    @staticmethod
    def backward(ctx: Any, cotangent: Tensor) -> tuple[Tensor | None, ...]:
        *units, first, second = ctx.saved_tensors
        if kernels_cannot(cotangent):
            needed = ctx.needs_input_grad[2:]
            return None, None, *gradients_with_graph(ctx.reference, (first, second), needed, cotangent)
        gradients: list[Tensor | None] = [None, None]
        for unit, x in zip(units, (first, second), strict=True):
            if unit is None:
                gradients.append(None)
                continue
            # Into a result of the input's dtype: one pass, and the cotangent (1 / N of a mean) is not rounded to half.
            out = torch.empty_like(unit, dtype=x.dtype)
            gradients.append(torch.mul(unit, cotangent.unsqueeze(-1), out=out))
        return tuple(gradients)


def _unit(x: Tensor | None, needed: bool) -> Tensor | None:
    if x is None or not needed:
        return None
    # A unit gradient may lie outside float16 where its product with the cotangent does not.
    dtype = torch.float32 if x.dtype == torch.float16 else x.dtype
    return torch.empty(x.shape, dtype=dtype, device=x.device)
