"""Weighted averages of embeddings: one prototype per weight column (METHOD.md, CCC)."""

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import normalize as l2_normalize

from case.ops.reference._numerics import accumulation_dtype
from case.ops.reference.sinkhorn import dense_plan


def prototypes(embeddings: Tensor, weights: Tensor, normalize: str) -> Tensor:
    dtype = accumulation_dtype(embeddings)
    w = weights.to(dtype)
    sums = w.transpose(-1, -2) @ embeddings.to(dtype)
    if normalize == "l2":
        sums = l2_normalize(sums, dim=-1)
    elif normalize == "mean":
        mass = w.sum(-2).unsqueeze(-1)
        # A cluster without weight has no mean; its prototype is 0 rather than NaN.
        sums = torch.where(
            mass != 0, sums / torch.where(mass != 0, mass, torch.ones_like(mass)), torch.zeros_like(sums)
        )
    return sums.to(embeddings.dtype)


def prototypes_of_plan(embeddings: Tensor, *plan_and_normalize: Any) -> Tensor:
    *plan, normalize = plan_and_normalize
    return prototypes(embeddings, dense_plan(*plan), normalize)
