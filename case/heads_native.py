"""What is narrow in ``case.heads`` in C++: one pass over the hidden rows forward, one over the embeddings backward."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from case import _native
from case.heads import EmbeddingGradients, HeadCotangents, HeadWeights, Kept, Wide, multiply
from case.ops import _backend
from case.ops._native_ops import _common
from case.ops._native_ops._common import DTYPES, address


def serves(rows: Tensor, weights: HeadWeights) -> bool:
    """Whether the C++ can take over after wide products in the dtype and on the device of ``rows``."""
    alike = all(x.dtype == rows.dtype and x.is_cpu for x in (rows, *weights))
    return alike and rows.dtype in DTYPES and _native.load() is not None and _backend.allows("native")


def forward(wide: Sequence[Wide], hidden: Tensor, weights: HeadWeights, scale: float) -> tuple[Tensor, Kept]:
    """As ``case.heads.forward``; hidden is contiguous."""
    multiply(wide, None, hidden)
    shape, classes = hidden.shape[:-1], weights.cas.shape[-2]
    cas, logits = hidden.new_empty(*shape, classes), hidden.new_empty(*shape, weights.directions.shape[-2] - 1)
    kept = Kept(hidden, hidden.new_empty(shape), logits, hidden.new_empty(shape))
    _common.module().heads_cpu(_problem(cas, kept, weights, scale), torch.get_num_threads())
    return cas, kept


def embedding_backward(
    kept: Kept, weights: HeadWeights, scale: float, given: HeadCotangents, gradient: Tensor
) -> EmbeddingGradients:
    """As ``case.heads.embedding_backward``; gradient contiguous."""
    # As they were made, unless somebody's hook for saved tensors gave them other strides.
    kept = Kept(*(None if x is None else x.contiguous() for x in kept))  # type: ignore[arg-type]
    weights = HeadWeights(*(x.contiguous() for x in weights))
    if given.logits is None:
        weights = weights._replace(directions=weights.directions[..., -1:, :].contiguous())
    bias = weights.attention_bias.new_empty(*weights.hidden_bias.shape[:-1], gradient.shape[-1])
    results = EmbeddingGradients(bias, torch.empty_like(weights.directions), torch.empty_like(weights.attention_bias))
    cotangents = [None if x is None else x.contiguous() for x in (given.embedding, given.attention, given.logits)]
    _common.module().heads_backward_cpu(
        _problem(None, kept, weights, scale),
        tuple(address(x) for x in cotangents),
        tuple(address(x) for x in (gradient, *results)),
        torch.get_num_threads(),
    )
    return results


def _problem(cas: Tensor | None, kept: Kept, weights: HeadWeights, scale: float) -> tuple[Any, ...]:
    *groups, rows, both = kept.hidden.shape
    classes, clusters = weights.cas.shape[-2], weights.directions.shape[-2] - 1
    return (
        DTYPES[weights.cas.dtype],
        (torch.Size(groups).numel(), rows, both // 2, classes, clusters),
        tuple(address(x) for x in weights),
        scale,
        (address(kept.hidden), address(cas), *(address(x) for x in kept[1:])),
    )
