"""MIL pooling over time: public op ``topk_pool``."""

from __future__ import annotations

from typing import Any, Literal, overload

import torch
from torch import Tensor

from case.ops import _check as check
from case.ops._registration import call, register
from case.ops.reference import pooling as reference


@overload
def topk_pool(selector: Tensor, values: Tensor, k: int, *, return_indices: Literal[False] = False) -> Tensor: ...
@overload
def topk_pool(selector: Tensor, values: Tensor, k: int, *, return_indices: Literal[True]) -> tuple[Tensor, Tensor]: ...
def topk_pool(
    selector: Tensor, values: Tensor, k: int, *, return_indices: bool = False
) -> Tensor | tuple[Tensor, Tensor]:
    """Mean over time of ``values`` at the k largest of ``selector``, per class (METHOD.md, Video classification).

    Args:
        selector: (..., T, C) what is ranked; no gradient passes through it. Leading dimensions that values has and
            selector lacks share one ranking.
        values: (..., T, C) what is averaged; float32, bfloat16, float16 (accumulated in float32) or float64.
        k: 1 <= k <= T.
        return_indices: also return the int64 time indices, the shape of selector with k for T, in no particular order.

    Returns:
        (..., C) in the dtype of values. Differentiable in values.
    """
    op = "topk_pool"
    check.floating(op, "selector", selector, at_least=2)
    check.floating(op, "values", values, at_least=2)
    check.same_device(op, "values", values, "selector", selector)
    shared = values.dim() - selector.dim()
    check.shape(op, "values", values, (*values.shape[: max(shared, 0)], *selector.shape), "to match selector")
    check.whole(op, "k", k, 0)
    if not 1 <= k <= selector.shape[-2]:
        raise ValueError(f"{op}: k must lie in 1..T = {selector.shape[-2]}, got {k!r}")
    pooled, indices = call(op, selector.detach(), values, int(k))
    return (pooled, indices) if return_indices else pooled


def _fake(selector: Tensor, values: Tensor, k: int) -> tuple[Any, Any]:
    pooled = values.new_empty((*values.shape[:-2], values.shape[-1]))
    return pooled, selector.new_empty((*selector.shape[:-2], k, selector.shape[-1]), dtype=torch.int64)


register(
    "topk_pool", "Tensor selector, Tensor values, int k", "(Tensor pooled, Tensor indices)", reference.topk_pool, _fake,
    differentiable=("values",),
)  # fmt: skip

__all__ = ["topk_pool"]
