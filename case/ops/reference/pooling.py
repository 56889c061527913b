"""MIL pooling: the mean of values at the top-k of a selector over time (METHOD.md, Video classification)."""

import torch
from torch import Tensor

from case.ops.reference._numerics import accumulation_dtype


def topk_pool(selector: Tensor, values: Tensor, k: int, index: Tensor | None) -> tuple[Tensor, Tensor]:
    indices = selector.topk(k, dim=-2).indices
    rows = indices if index is None else rows_at(index, indices)
    return mean_at(values, rows, index is not None), indices


def rows_at(index: Tensor, indices: Tensor) -> Tensor:
    """The rows (..., k, C) behind time indices (..., k, C), by index (..., T)."""
    return index.gather(-1, indices.flatten(-2)).view(indices.shape)


def mean_at(values: Tensor, rows: Tensor, shared: bool) -> Tensor:
    """Means at rows (..., k, C) of values (..., T, C), with more leading dimensions or as many.

    shared: of values (..., L, C), which all leading dimensions of the rows share.
    """
    given = values.to(accumulation_dtype(values))
    if shared:
        picked = given[..., rows, torch.arange(rows.shape[-1], device=rows.device)]
    else:
        picked = given.gather(-2, rows.expand(*values.shape[:-2], *rows.shape[-2:]))
    return picked.mean(-2).to(values.dtype)
