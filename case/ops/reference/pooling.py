"""MIL pooling: the mean of values at the top-k of a selector over time (METHOD.md, Video classification)."""

from torch import Tensor

from case.ops.reference._numerics import accumulation_dtype


def topk_pool(selector: Tensor, values: Tensor, k: int) -> tuple[Tensor, Tensor]:
    indices = selector.topk(k, dim=-2).indices
    everywhere = indices.expand(*values.shape[:-2], *indices.shape[-2:])
    picked = values.to(accumulation_dtype(values)).gather(-2, everywhere)
    return picked.mean(-2).to(values.dtype), indices
