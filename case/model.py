"""The network (METHOD.md, Network): per modality, class activations, attention and cluster logits of each snippet.

Every layer is pointwise in time, so the network sees rows, not videos: each distinct snippet once, as (L, width)
matrices, whatever the number of samples drawn from them. What training and testing need at sampled positions is
gathered afterwards, and only what is narrow (see ``objective``).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from case.config import Settings
from case.network import Heads, Weights, network
from case.scratch import Scratch


class Branch(nn.Module):
    """One modality: CAS = W2 relu(W1 x + b1) + b2, E = relu(Wb x + bb), A = sigmoid(wa . E + ba), S = 10 cos(E, P)."""

    def __init__(self, width: int, num_classes: int, num_clusters: int, hidden: int) -> None:
        super().__init__()
        self.cas_hidden = nn.Linear(width, hidden)
        self.cas = nn.Linear(hidden, num_classes)
        self.base = nn.Linear(width, hidden)
        self.attention = nn.Linear(hidden, 1)
        self.prototypes = nn.Parameter(nn.Linear(hidden, num_clusters, bias=False).weight.detach().clone())

    def weights(self) -> Weights:
        return Weights(
            self.cas_hidden.weight, self.cas_hidden.bias, self.base.weight, self.base.bias, self.cas.weight,
            self.cas.bias, self.attention.weight, self.attention.bias, self._unit_prototypes(),
        )  # fmt: skip

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
        sizes = (settings.num_classes, settings.num_clusters, settings.hidden)
        self.cosine_scale = settings.cosine_scale
        self.branches = nn.ModuleDict({m: Branch(w, *sizes) for m, w in zip(settings.modalities, widths, strict=True)})

    @property
    def widths(self) -> tuple[int, ...]:
        return tuple(branch.base.in_features for branch in self.branches.values())  # type: ignore[union-attr, misc]

    def forward(self, rows: Sequence[Tensor], scratch: Scratch | None = None) -> Heads:
        """rows: one (L, width) matrix per modality, all of the same L, in the weights' dtype or a narrower one.

        The products of width H are in the dtype of the rows; all that follows, and all results, in the weights'. With
        ``scratch`` the embeddings last until the next call with it.
        """
        weights = [branch.weights() for branch in self.branches.values()]  # type: ignore[operator]
        return network(rows, weights, self.cosine_scale, scratch)
