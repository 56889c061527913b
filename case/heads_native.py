"""``case.heads`` by ``csrc/heads*.cpp``: one pass over the hidden rows forward, one backward."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from case import _native
from case.heads import HeadCotangents, HeadWeights, Kept
from case.ops import _backend
from case.ops._native_ops import _common
from case.ops._native_ops._common import DTYPES, address


def serves(rows: Tensor, weights: HeadWeights) -> bool:
    """Whether the C++ can take over after wide products in the dtype and on the device of ``rows``."""
    alike = all(x.dtype == rows.dtype and x.is_cpu for x in (rows, *weights))
    return alike and rows.dtype in DTYPES and _native.load() is not None and _backend.allows("native")


def forward(hidden: Tensor, weights: HeadWeights, scale: float) -> tuple[Tensor, Kept]:
    """As ``case.heads.forward``, but hidden (M, L, 2H) has no bias yet; it is contiguous."""
    shape, classes = hidden.shape[:-1], weights.cas.shape[-2]
    cas, logits = hidden.new_empty(*shape, classes), hidden.new_empty(*shape, weights.directions.shape[-2] - 1)
    kept = Kept(hidden, hidden.new_empty(shape), logits, hidden.new_empty(shape))
    _common.module().heads_cpu(_problem(cas, kept, weights, scale), torch.get_num_threads())
    return cas, kept


def backward(kept: Kept, weights: HeadWeights, scale: float, given: HeadCotangents, of_hidden: Tensor) -> HeadWeights:
    """As ``case.heads.backward``; of_hidden contiguous."""
    # As they were made, unless somebody's hook for saved tensors gave them other strides.
    kept = Kept(*(None if x is None else x.contiguous() for x in kept))  # type: ignore[arg-type]
    weights = HeadWeights(*(x.contiguous() for x in weights))
    if given.logits is None:
        weights = weights._replace(directions=weights.directions[..., -1:, :].contiguous())
    given = HeadCotangents(*(None if x is None else x.contiguous() for x in given))  # type: ignore[arg-type]
    results = HeadWeights(*(torch.empty_like(x) for x in weights))
    _common.module().heads_backward_cpu(
        _problem(None, kept, weights, scale),
        tuple(address(x) for x in given),
        tuple(address(x) for x in (of_hidden, *results)),
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
