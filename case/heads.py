"""What follows the network's wide products (METHOD.md, Network), in torch, forward and backward.

``case.heads_native`` has the same two functions as one pass over the hidden rows each; these are their oracle.
Shapes have M modalities in front, and R behind M where R runs are stacked.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.linalg import vector_norm

from case.ops import cosine_logits

_EPS = 1e-12  # of the length of an embedding, as in ``cosine_logits``


class HeadWeights(NamedTuple):
    """Of all modalities, contiguous; also their gradients."""

    hidden_bias: Tensor  # (M, 2H): of the layer under the class logits, then of the embedding
    cas: Tensor  # (M, C, H)
    cas_bias: Tensor  # (M, C)
    directions: Tensor  # (M, K + 1, H): prototypes of length 1, then the attention's weights
    attention_bias: Tensor  # (M, 1)


class Kept(NamedTuple):
    """What forward leaves for backward."""

    hidden: Tensor  # (M, L, 2H), both hidden layers
    attention: Tensor  # (M, L)
    logits: Tensor  # (M, L, K)
    lengths: Tensor | None  # (M, L), of the embeddings; None: to be made again


class HeadCotangents(NamedTuple):
    """Without cluster logits or a use of the embedding of its own, as in the baseline, their terms are left out."""

    cas: Tensor
    embedding: Tensor | None
    attention: Tensor
    logits: Tensor | None


def forward(hidden: Tensor, weights: HeadWeights, scale: float) -> tuple[Tensor, Kept]:
    """Class logits (M, L, C), and the rest. hidden (M, L, 2H) has its bias; relu is done in place."""
    hidden.relu_()
    width, dtype, of_rows = weights.cas.shape[-1], weights.cas.dtype, hidden.dtype
    cas_hidden, embedding = hidden[..., :width], hidden[..., width:].to(dtype)
    # In bfloat16 this product is as well: its inputs have lost their digits.
    cas = each(cas_hidden, weights.cas.to(of_rows).mT, weights.cas_bias.to(of_rows))
    units, direction = weights.directions[..., :-1, :], weights.directions[..., -1:, :]
    attention = each(embedding, direction.mT, weights.attention_bias).squeeze(-1).sigmoid_()
    logits = cosine_logits(embedding, units, scale=scale, unit_y=True)
    return cas.to(dtype), Kept(hidden, attention, logits, None)


def backward(kept: Kept, weights: HeadWeights, scale: float, given: HeadCotangents, of_hidden: Tensor) -> HeadWeights:
    """Gradients of the weights; of_hidden (M, L, 2H) is filled with that of the hidden layers before their relu.

    Without ``given.logits`` the gradient of the directions is that of the attention's weights alone, (M, 1, H).
    """
    hidden, attention = kept.hidden, kept.attention
    width, dtype = weights.cas.shape[-1], weights.cas.dtype
    cas_hidden, embedding = hidden[..., :width], hidden[..., width:].to(dtype)
    # Attention and cluster logits are products of the embedding with H numbers each: their gradients are one.
    of_attention = (given.attention * attention * (1 - attention)).unsqueeze(-1)
    of_products, directions = of_attention, weights.directions
    if given.logits is None:
        directions = directions[..., -1:, :]
    else:
        lengths = vector_norm(embedding, dim=-1, keepdim=True).clamp_min_(_EPS)
        of_products = torch.cat([given.logits * (scale / lengths), of_attention], -1)
    found = of_hidden[..., width:] if hidden.dtype == dtype else torch.empty_like(embedding)
    each(of_products, directions, given.embedding, found)
    if given.logits is not None:
        along = (given.logits * kept.logits).sum(-1, keepdim=True)
        found.addcmul_(embedding, along.div_(lengths.square_()), value=-1)
    if hidden.dtype != dtype:
        of_hidden[..., width:] = found
    of_cas = given.cas.to(hidden.dtype)
    each(of_cas, weights.cas.to(hidden.dtype), None, of_hidden[..., :width])
    torch.ops.aten.threshold_backward.grad_input(of_hidden, hidden, 0, grad_input=of_hidden)
    return HeadWeights(
        of_hidden.sum(-2, dtype=dtype), each(of_cas.mT, cas_hidden).to(dtype), of_cas.sum(-2, dtype=dtype),
        each(of_products.mT, embedding), of_attention.sum(-2),
    )  # fmt: skip


def product(x: Tensor, y: Tensor, plus: Tensor | None = None, out: Tensor | None = None) -> Tensor:
    """out = x @ y + plus of matrices, or of R at once; plus a matrix or a row."""
    if out is None:
        out = x.new_empty(*x.shape[:-1], y.shape[-1])
    if plus is not None and plus.dim() < x.dim():
        plus = plus.unsqueeze(-2)
    if x.dtype == torch.bfloat16 and x.is_cpu and not multiplies_bfloat16():
        out.copy_(product(x.float(), y.float(), None if plus is None else plus.float()))
    elif x.dim() == 2:
        torch.mm(x, y, out=out) if plus is None else torch.addmm(plus, x, y, out=out)
    elif x.is_cuda:
        torch.bmm(x, y, out=out) if plus is None else torch.baddbmm(plus, x, y, out=out)
    else:  # one by one: batches of matrices with gaps between their rows are copied first
        for r, mine in enumerate(out):
            product(x[r], y[r], None if plus is None else plus[r], mine)
    return out


def multiplies_bfloat16() -> bool:
    """Whether this CPU does, or torch at least tries: on one with AVX2 alone its loops take up to ten times as long as
    a product in float32 of the same numbers, whose sums are no coarser."""
    return torch.backends.cpu.get_cpu_capability() != "AVX2"


def each(x: Tensor, y: Tensor, plus: Tensor | None = None, out: Tensor | None = None) -> Tensor:
    """``product`` of each modality."""
    if out is None:
        out = x.new_empty(*x.shape[:-1], y.shape[-1])
    for m, mine in enumerate(out):
        product(x[m], y[m], None if plus is None else plus[m], mine)
    return out
