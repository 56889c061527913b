"""MIL pooling over time: public op ``topk_pool``."""

from __future__ import annotations

from typing import Any, Literal, overload

import torch
from torch import Tensor

from case.ops import _check as check
from case.ops._registration import call, register
from case.ops.reference import pooling as reference


@overload
def topk_pool(
    selector: Tensor, values: Tensor, k: int, *, index: Tensor | None = None, return_indices: Literal[False] = False
) -> Tensor: ...
@overload
def topk_pool(
    selector: Tensor, values: Tensor, k: int, *, index: Tensor | None = None, return_indices: Literal[True]
) -> tuple[Tensor, Tensor]: ...
def topk_pool(
    selector: Tensor, values: Tensor, k: int, *, index: Tensor | None = None, return_indices: bool = False
) -> Tensor | tuple[Tensor, Tensor]:
    """Mean over time of ``values`` at the k largest of ``selector``, per class (METHOD.md, Video classification).

    Args:
        selector: (..., T, C) what is ranked; no gradient passes through it. Leading dimensions that values has and
            selector lacks share one ranking.
        values: (..., T, C) what is averaged; float32, bfloat16, float16 (accumulated in float32) or float64. With
            ``index`` (..., L, C): rows that all of selector's leading dimensions pick from.
        k: 1 <= k <= T.
        index: (..., T) int64 from 0 to L - 1, the row of values behind each of selector's time steps, so that values of
            repeated samples need not be written out. Others are an IndexError on a CPU, where they are picked; plain
            torch counts negative ones from the end.
        return_indices: also return the int64 time indices, the shape of selector with k for T, in no particular order.

    Returns:
        (..., C) in the dtype of values; with ``index`` the leading dimensions are those of values, then of selector.
        Differentiable in values.
    """
    op = "topk_pool"
    check.floating(op, "selector", selector, at_least=2)
    check.floating(op, "values", values, at_least=2)
    check.same_device(op, "values", values, "selector", selector)
    if index is None:
        shared = values.dim() - selector.dim()
        check.shape(op, "values", values, (*values.shape[: max(shared, 0)], *selector.shape), "to match selector")
    else:
        check.kind(op, "index", index, torch.int64, ".long")
        check.shape(op, "index", index, tuple(selector.shape[:-1]), "to match selector")
        check.same_device(op, "index", index, "values", values)
        check.shape(op, "values", values, (*values.shape[:-1], selector.shape[-1]), "to match selector")
        if values.shape[-2] == 0 and index.numel() > 0:
            raise ValueError(f"{op}: values must have at least one row for index, got shape {check.show(values.shape)}")
    check.whole(op, "k", k, 0)
    if not 1 <= k <= selector.shape[-2]:
        raise ValueError(f"{op}: k must lie in 1..T = {selector.shape[-2]}, got {k!r}")
    pooled, indices = call(op, selector.detach(), values, int(k), index)
    return (pooled, indices) if return_indices else pooled


def _fake(selector: Tensor, values: Tensor, k: int, index: Tensor | None) -> tuple[Any, Any]:
    shape = values.shape[:-2] if index is None else (*values.shape[:-2], *selector.shape[:-2])
    indices = selector.new_empty((*selector.shape[:-2], k, selector.shape[-1]), dtype=torch.int64)
    return values.new_empty((*shape, values.shape[-1])), indices


register(
    "topk_pool", "Tensor selector, Tensor values, int k, Tensor? index", "(Tensor pooled, Tensor indices)",
    reference.topk_pool, _fake, differentiable=("values",),
)  # fmt: skip

__all__ = ["topk_pool"]
