"""Scaled cosine similarity and its softmax (spec: cluster logits S, and U in CCC)."""

from torch import Tensor
from torch.nn.functional import normalize

from case.ops.reference._numerics import accumulation_dtype


def _cosine(x: Tensor, y: Tensor, scale: float, unit_y: bool) -> Tensor:
    dtype = accumulation_dtype(x)
    y = y.to(dtype) if unit_y else normalize(y.to(dtype), dim=-1)
    return scale * (normalize(x.to(dtype), dim=-1) @ y.transpose(-1, -2))


def cosine_logits(x: Tensor, y: Tensor, scale: float, unit_y: bool) -> Tensor:
    return _cosine(x, y, scale, unit_y).to(x.dtype)


def cosine_softmax(x: Tensor, y: Tensor, scale: float, unit_y: bool) -> Tensor:
    return _cosine(x, y, scale, unit_y).softmax(-1).to(x.dtype)
