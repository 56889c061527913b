"""The network (METHOD.md, Network): per modality, class activations, attention and cluster logits of each snippet.

Every layer is pointwise in time, so the network sees rows, not videos: each distinct snippet once, as (L, width)
matrices, whatever the number of samples drawn from them. What training and testing need at sampled positions is
gathered afterwards, and only what is narrow (see ``objective``).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import linear, normalize

from case.config import Settings
from case.ops import cosine_logits


class Heads(NamedTuple):
    """Outputs at L rows, stacked over M modalities.

    cas (M, L, C) class logits; embedding (M, L, H) >= 0; attention (M, L) in (0, 1); cluster_logits (M, L, K) in
    [-cosine_scale, cosine_scale].
    """

    cas: Tensor
    embedding: Tensor
    attention: Tensor
    cluster_logits: Tensor


class Product(nn.Linear):
    """A linear layer in the dtype of its input: what is wide is multiplied in it, weights stay as they are."""

    def forward(self, x: Tensor) -> Tensor:
        return linear(x, self.weight.to(x.dtype), self.bias.to(x.dtype))


class Branch(nn.Module):
    """One modality: CAS = W2 relu(W1 x + b1) + b2, E = relu(Wb x + bb), A = sigmoid(wa . E + ba), S = 10 cos(E, P)."""

    def __init__(self, width: int, num_classes: int, num_clusters: int, hidden: int, cosine_scale: float) -> None:
        super().__init__()
        self.cas_hidden = Product(width, hidden)
        self.cas = Product(hidden, num_classes)
        self.base = Product(width, hidden)
        self.attention = Product(hidden, 1)
        self.prototypes = nn.Parameter(nn.Linear(hidden, num_clusters, bias=False).weight.detach().clone())
        self.cosine_scale = cosine_scale

    def forward(self, rows: Tensor) -> Heads:
        # In place: the products' outputs are not needed again.
        embedding = self.base(rows).relu_().to(self.base.weight.dtype)
        return Heads(
            cas=self.cas(self.cas_hidden(rows).relu_()).to(self.cas.weight.dtype),
            embedding=embedding,
            attention=self.attention(embedding).squeeze(-1).sigmoid(),
            cluster_logits=cosine_logits(embedding, self._unit_prototypes(), scale=self.cosine_scale, unit_y=True),
        )

    def _unit_prototypes(self) -> Tensor:
        """P with rows of length 1. No gradient flows through this normalisation (hence ``unit_y``).

        In training the parameter itself is replaced, as in the released code. In evaluation it is left alone: a second
        normalisation moves the last bit, and whether a run was evaluated must not change its training.
        """
        with torch.no_grad():
            unit = normalize(self.prototypes, dim=-1)
            if not self.training:
                return unit
            self.prototypes.copy_(unit)
        return self.prototypes


class CASE(nn.Module):
    """One ``Branch`` per modality. Weights start as torch's defaults for linear layers, as in the released code.

    Args:
        widths: feature width of each modality.
        settings: num_classes, num_clusters, hidden, cosine_scale and the modalities' names are read.
    """

    def __init__(self, widths: Sequence[int], settings: Settings) -> None:
        super().__init__()
        if len(widths) != len(settings.modalities):
            raise ValueError(f"widths must hold one width for each of {settings.modalities}, got {tuple(widths)}")
        sizes = (settings.num_classes, settings.num_clusters, settings.hidden, settings.cosine_scale)
        self.branches = nn.ModuleDict({m: Branch(w, *sizes) for m, w in zip(settings.modalities, widths, strict=True)})

    @property
    def widths(self) -> tuple[int, ...]:
        return tuple(branch.base.in_features for branch in self.branches.values())  # type: ignore[union-attr, misc]

    def forward(self, rows: Sequence[Tensor]) -> Heads:
        """rows: one (L, width) matrix per modality, all of the same L, in the weights' dtype or a narrower one.

        The products of width H are in the dtype of the rows; all that follows, and all results, in the weights'.
        """
        parts = [branch(x) for branch, x in zip(self.branches.values(), rows, strict=True)]
        return Heads(*(torch.stack(part) for part in zip(*parts, strict=True)))
