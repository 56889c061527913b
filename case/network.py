"""All layers of the network as one node of the autograd graph (METHOD.md, Network).

The two layers that read the features are one product forward, and what has the width of the hidden layers is written
once in each direction: gradients are added up where they end, instead of one by one in passes of their own.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from case import heads, heads_native
from case.heads import HeadCotangents, HeadWeights, Kept, Wide
from case.scratch import Scratch, empty


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
    """Keeps rows, both hidden layers, and what is narrow."""

    @staticmethod
    def forward(
        ctx: Any, cosine_scale: float, scratch: Scratch | None, modalities: int, *tensors: Tensor
    ) -> tuple[Tensor, ...]:
        ctx.set_materialize_grads(False)
        rows, weights = _grouped(tensors, modalities)
        small, wide, width = _small(weights), _wide(rows, weights), weights[0].base.shape[-2]
        hidden = empty(scratch, "hidden", (modalities, *rows[0].shape[:-1], 2 * width), rows[0])
        fused = heads_native.serves(rows[0], small)
        cas, kept = (heads_native if fused else heads).forward(wide, hidden, small, cosine_scale)
        ctx.save_for_backward(*kept, *small, *tensors)
        ctx.given = cosine_scale, scratch, modalities, fused
        return cas, hidden[..., width:].to(cas.dtype), kept.attention, kept.logits

    @staticmethod
    def backward(
        ctx: Any, of_cas: Tensor | None, of_embedding: Tensor | None, of_attention: Tensor | None,
        of_logits: Tensor | None,
    ) -> tuple[Tensor | None, ...]:  # fmt: skip
        if torch.is_grad_enabled():
            raise RuntimeError("network: its gradient has no graph; call backward or grad without create_graph=True")
        scale, scratch, modalities, fused = ctx.given
        saved = ctx.saved_tensors
        kept, small = Kept(*saved[:4]), HeadWeights(*saved[4:9])
        rows, weights = _grouped(saved[9:], modalities)
        # Every loss of CASE uses these two, so that leaving their terms out is not worth its lines.
        if of_cas is None:
            of_cas = kept.attention.new_zeros(*kept.attention.shape, small.cas.shape[-2])
        if of_attention is None:
            of_attention = torch.zeros_like(kept.attention)
        given = HeadCotangents(of_cas, of_embedding, of_attention, of_logits)
        of_rows = ctx.needs_input_grad[3 : 3 + modalities]
        arguments = _wide(rows, weights), of_rows, kept, small, scale, given, scratch
        if kept.hidden.is_cpu:
            passes = heads_native if fused else heads
            of_small, of_wide = heads.backward_by_rows(*arguments, passes.embedding_backward)
        else:  # a graph has fixed shapes
            of_small, of_wide = heads.backward(*arguments)
        width = small.cas.shape[-1]
        of_units = None if of_logits is None else of_small.directions[..., :-1, :]
        of_attention_weights = of_small.directions[..., -1:, :]
        of_each = (of_small.cas, of_small.cas_bias, of_attention_weights, of_small.attention_bias, of_units)
        grads: list[Tensor | None] = []
        for m, (wide, bias) in enumerate(zip(of_wide, of_small.hidden_bias, strict=True)):
            grads += wide.cas_hidden, bias[..., :width], wide.base, bias[..., width:]
            grads += [None if g is None else g[m] for g in of_each]
        return None, None, None, *(wide.rows for wide in of_wide), *grads


def _grouped(tensors: Sequence[Tensor], modalities: int) -> tuple[Sequence[Tensor], list[Weights]]:
    """(rows, weights), by modality."""
    rest, each = tensors[modalities:], len(Weights._fields)
    return tensors[:modalities], [Weights(*rest[i : i + each]) for i in range(0, len(rest), each)]


def _wide(rows: Sequence[Tensor], weights: Sequence[Weights]) -> list[Wide]:
    return [Wide(x, w.cas_hidden, w.base) for x, w in zip(rows, weights, strict=True)]


def _small(weights: Sequence[Weights]) -> HeadWeights:
    """Biases of the wide layers and weights of the narrow ones, stacked over modalities."""
    return HeadWeights(
        torch.stack([torch.cat([w.cas_hidden_bias, w.base_bias], -1) for w in weights]),
        torch.stack([w.cas for w in weights]),
        torch.stack([w.cas_bias for w in weights]),
        torch.stack([torch.cat([w.prototypes, w.attention], -2) for w in weights]),
        torch.stack([w.attention_bias for w in weights]),
    )
