"""All layers of the network as one node of the autograd graph (METHOD.md, Network).

The two layers that read the features are one product in each direction, and what has the width of the hidden layers is
written once in each direction: gradients are added up where they end, instead of one by one in passes of their own.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.linalg import vector_norm

from case.ops import cosine_logits
from case.scratch import Scratch, empty

_EPS = 1e-12  # of the length of an embedding, as in ``cosine_logits``


class Heads(NamedTuple):
    """Outputs at L rows, stacked over M modalities.

    cas (M, L, C) class logits; embedding (M, L, H) >= 0; attention (M, L) in (0, 1); cluster_logits (M, L, K) in
    [-cosine_scale, cosine_scale].
    """

    cas: Tensor
    embedding: Tensor
    attention: Tensor
    cluster_logits: Tensor


class Weights(NamedTuple):
    """Of one modality, or of all with M in front; of R stacked runs with R in front of a layer's own dimensions."""

    cas_hidden: Tensor  # (H, width)
    cas_hidden_bias: Tensor
    base: Tensor  # (H, width)
    base_bias: Tensor
    cas: Tensor  # (C, H)
    cas_bias: Tensor
    attention: Tensor  # (1, H)
    attention_bias: Tensor
    prototypes: Tensor  # (K, H), rows of length 1


def network(
    rows: Sequence[Tensor], weights: Sequence[Weights], cosine_scale: float, scratch: Scratch | None = None
) -> Heads:
    """rows (L, width) and weights of each modality; rows (R, L, width) and R networks give (M, R, L, ...).

    The wide products are in the dtype of the rows, all that follows and all results in that of the weights. With
    ``scratch`` the embeddings are overwritten by the next call with it, which is an error before ``backward``.
    """
    return Heads(*_Network.apply(cosine_scale, scratch, len(rows), *rows, *(x for each in weights for x in each)))


class _Network(torch.autograd.Function):
    """Keeps rows, both hidden layers, and what is narrow; lengths of embeddings are computed again."""

    @staticmethod
    def forward(
        ctx: Any, cosine_scale: float, scratch: Scratch | None, modalities: int, *tensors: Tensor
    ) -> tuple[Tensor, ...]:
        ctx.set_materialize_grads(False)
        rows, weights = _grouped(tensors, modalities)
        width, dtype = weights[0].base.shape[-2], weights[0].base.dtype
        hidden = empty(scratch, "hidden", (modalities, *rows[0].shape[:-1], 2 * width), rows[0])
        for x, w, out in zip(rows, weights, hidden, strict=True):
            bias = torch.cat([w.cas_hidden_bias, w.base_bias], -1)
            _product(x, _wide(w, x).mT, bias.to(x.dtype), out)
        hidden.relu_()
        of_rows = rows[0].dtype
        cas_hidden, embedding = hidden[..., :width], hidden[..., width:].to(dtype)
        # In bfloat16 this product is as well: its inputs have lost their digits.
        cas = _each(cas_hidden, [w.cas.to(of_rows).mT for w in weights], [w.cas_bias.to(of_rows) for w in weights])
        attention = _each(embedding, [w.attention.mT for w in weights], [w.attention_bias for w in weights])
        attention = attention.squeeze(-1).sigmoid_()
        units = torch.stack([w.prototypes for w in weights])
        logits = cosine_logits(embedding, units, scale=cosine_scale, unit_y=True)
        ctx.save_for_backward(hidden, attention, logits, units, *tensors)
        ctx.given = cosine_scale, scratch, modalities
        return cas.to(dtype), embedding, attention, logits

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any, of_cas: Tensor | None, of_embedding: Tensor | None, of_attention: Tensor | None,
        of_logits: Tensor | None,
    ) -> tuple[Tensor | None, ...]:  # fmt: skip
        """Without cluster logits or a use of the embedding of its own, as in the baseline, their terms are left out."""
        hidden, attention, logits, units, *tensors = ctx.saved_tensors
        scale, scratch, modalities = ctx.given
        rows, weights = _grouped(tensors, modalities)
        width, dtype = weights[0].base.shape[-2], weights[0].base.dtype
        cas_hidden, embedding = hidden[..., :width], hidden[..., width:].to(dtype)
        # Every loss of CASE uses these two, so that leaving their terms out is not worth its lines.
        if of_cas is None:
            of_cas = hidden.new_zeros(*hidden.shape[:-1], weights[0].cas.shape[-2])
        if of_attention is None:
            of_attention = torch.zeros_like(attention)
        # Attention and cluster logits are products of the embedding with H numbers each: their gradients are one.
        of_attention = (of_attention * attention * (1 - attention)).unsqueeze(-1)
        of_products, directions = of_attention, torch.stack([w.attention for w in weights])
        if of_logits is not None:
            lengths = vector_norm(embedding, dim=-1, keepdim=True).clamp_min_(_EPS)
            of_products = torch.cat([of_logits * (scale / lengths), of_attention], -1)
            directions = torch.cat([units, directions], -2)
        of_hidden = empty(scratch, "gradient", hidden.shape, hidden)
        found = of_hidden[..., width:] if hidden.dtype == dtype else torch.empty_like(embedding)
        _each(of_products, directions, of_embedding, found)
        if of_logits is not None:
            found.addcmul_(embedding, (of_logits * logits).sum(-1, keepdim=True).div_(lengths.square_()), value=-1)
        if hidden.dtype != dtype:
            of_hidden[..., width:] = found
        of_cas = of_cas.to(hidden.dtype)
        _each(of_cas, [w.cas.to(hidden.dtype) for w in weights], None, of_hidden[..., :width])
        torch.ops.aten.threshold_backward.grad_input(of_hidden, hidden, 0, grad_input=of_hidden)

        of_directions, bias = _each(of_products.mT, embedding), of_hidden.sum(-2, dtype=dtype)
        small = (
            _each(of_cas.mT, cas_hidden).to(dtype), of_cas.sum(-2, dtype=dtype), of_directions[..., -1:, :],
            of_attention.sum(-2), None if of_logits is None else of_directions[..., :-1, :],
        )  # fmt: skip
        grads: list[Tensor | None] = []
        for m, x in enumerate(rows):
            of_wide = _product(of_hidden[m].mT, x).to(dtype)
            grads += of_wide[..., :width, :], bias[m, ..., :width], of_wide[..., width:, :], bias[m, ..., width:]
            grads += [None if g is None else g[m] for g in small]
        of_rows = (
            _product(of_hidden[m], _wide(w, x)) if wanted else None
            for m, (x, w, wanted) in enumerate(zip(rows, weights, ctx.needs_input_grad[3:]))
        )
        return None, None, None, *of_rows, *grads


def _grouped(tensors: Sequence[Tensor], modalities: int) -> tuple[Sequence[Tensor], list[Weights]]:
    """(rows, weights), by modality."""
    rest, each = tensors[modalities:], len(Weights._fields)
    return tensors[:modalities], [Weights(*rest[i : i + each]) for i in range(0, len(rest), each)]


def _wide(w: Weights, x: Tensor) -> Tensor:
    """The weights of both layers that read the features, in their dtype."""
    return torch.cat([w.cas_hidden, w.base], -2).to(x.dtype)


def _product(x: Tensor, y: Tensor, plus: Tensor | None = None, out: Tensor | None = None) -> Tensor:
    """out = x @ y + plus of matrices, or of R at once; plus a matrix or a row."""
    if out is None:
        out = x.new_empty(*x.shape[:-1], y.shape[-1])
    if plus is not None and plus.dim() < x.dim():
        plus = plus.unsqueeze(-2)
    if x.dim() == 2:
        torch.mm(x, y, out=out) if plus is None else torch.addmm(plus, x, y, out=out)
    elif x.is_cuda:
        torch.bmm(x, y, out=out) if plus is None else torch.baddbmm(plus, x, y, out=out)
    else:  # one by one: batches of matrices with gaps between their rows are copied first
        for r, mine in enumerate(out):
            _product(x[r], y[r], None if plus is None else plus[r], mine)
    return out


def _each(
    x: Tensor, y: Sequence[Tensor] | Tensor, plus: Sequence[Tensor] | Tensor | None = None, out: Tensor | None = None
) -> Tensor:
    """``_product`` of each modality."""
    if out is None:
        out = x.new_empty(*x.shape[:-1], y[0].shape[-1])
    for m, mine in enumerate(out):
        _product(x[m], y[m], None if plus is None else plus[m], mine)
    return out
