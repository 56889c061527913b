"""Scaled cosine similarity and its softmax (METHOD.md, Network, CCC)."""

from torch import Tensor
from torch.linalg import vector_norm
from torch.nn.functional import normalize

from case.ops.reference._numerics import accumulation_dtype

EPS = 1e-12  # what torch's normalize guards a zero row with


def _cosine(x: Tensor, y: Tensor, scale: float, unit_y: bool) -> Tensor:
    dtype = accumulation_dtype(x)
    x = x.to(dtype)
    y = y.to(dtype) if unit_y else normalize(y.to(dtype), dim=-1, eps=EPS)
    # Dividing the (M, P) products by |x| rather than x itself spares passes over the wide matrix, forward and backward.
    return (x @ y.transpose(-1, -2)) * (scale / vector_norm(x, dim=-1, keepdim=True).clamp_min(EPS))


def cosine_logits(x: Tensor, y: Tensor, scale: float, unit_y: bool) -> Tensor:
    return _cosine(x, y, scale, unit_y).to(x.dtype)


def cosine_softmax(x: Tensor, y: Tensor, scale: float, unit_y: bool) -> Tensor:
    return _cosine(x, y, scale, unit_y).softmax(-1).to(x.dtype)
