"""A CASE training step as WTAL code usually writes it: numpy sampling, Conv1d over all samples, eager Sinkhorn.

Formulas as in METHOD.md, so that its losses are those of ``case.engine.Learner`` on the same samples and weights. What
differs is how the work is laid out: every sample goes through the network, repeats included, in the (B, width, T)
layout of convolutions; samples are drawn video by video in numpy and stacked, as a Dataset and its DataLoader do.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from benchmarks.peers import eager_sinkhorn
from case.config import Settings
from case.model import CASE, Branch


class UsualBranch(nn.Module):
    """One modality, with the weights of a ``Branch``."""

    def __init__(self, branch: Branch, cosine_scale: float) -> None:
        super().__init__()
        self.cas_hidden, self.cas = _convolution(branch.cas_hidden), _convolution(branch.cas)
        self.base, self.attention = _convolution(branch.base), _convolution(branch.attention)
        self.prototypes = nn.Parameter(branch.prototypes.detach().clone())
        self.cosine_scale = cosine_scale

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """(B, T, width) -> class logits (B, T, C), embeddings (B, T, H), attention (B, T), cluster logits (B, T, K)."""
        x = x.permute(0, 2, 1)
        cas = self.cas(self.cas_hidden(x).relu()).permute(0, 2, 1)
        embedding = self.base(x).relu()
        attention = self.attention(embedding).squeeze(1).sigmoid()
        embedding = embedding.permute(0, 2, 1)
        with torch.no_grad():
            self.prototypes.copy_(normalize(self.prototypes, dim=-1))
        return cas, embedding, attention, self.cosine_scale * normalize(embedding, dim=-1) @ self.prototypes.T


class UsualStep:
    """Networks, optimizer and cluster labels; ``step`` is one update."""

    def __init__(self, model: CASE, labels: Tensor, settings: Settings) -> None:
        self.settings, self.labels = settings, labels.clone()
        branches = [b for b in model.branches.values() if isinstance(b, Branch)]
        self.branches = nn.ModuleList(UsualBranch(b, model.cosine_scale) for b in branches)
        self.optimizer = torch.optim.Adam(
            self.branches.parameters(), lr=settings.lr, betas=settings.betas, weight_decay=settings.weight_decay
        )

    def step(self, samples: Sequence[Tensor], labels: Tensor) -> Tensor:
        """samples: (B, T, width) per modality; labels (B, C) -> the loss before the update."""
        loss, found = self.losses(samples, labels)
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        self.labels = found
        return loss

    def losses(self, samples: Sequence[Tensor], labels: Tensor) -> tuple[Tensor, Tensor]:
        s = self.settings
        parts = [branch(x) for branch, x in zip(self.branches, samples, strict=True)]
        cas, embedding, attention, similarity = (torch.stack(part) for part in zip(*parts, strict=True))
        modalities, batch, segments = attention.shape

        # Video classification: a full sort, its first T / 8 rows.
        fused = (cas.softmax(-1).mean(0) + attention.sum(0).unsqueeze(-1)).detach() / (1 + modalities)
        top = fused.sort(dim=1, descending=True).indices[:, : max(1, segments // s.topk_divisor)]
        pooled = cas.gather(2, top.expand(modalities, -1, -1, -1)).mean(2)
        target = labels / labels.sum(1, keepdim=True) + 1e-10
        video = -(target * pooled.log_softmax(-1)).sum(-1).mean()

        # Attention against the pseudo-labels.
        g = (torch.zeros_like(fused).scatter_(1, top, 1.0) * labels.unsqueeze(1)).amax(-1)

        def robust(p: Tensor, weight: Tensor) -> Tensor:
            loss = (1 - (p + 1e-7) ** s.gce_q) / s.gce_q
            return ((weight * loss).sum(-1) / (weight.sum(-1) + 1e-7)).mean(-1).sum()

        attending = robust(attention, g) + robust(1 - attention, 1 - g)

        # Clustering of all samples, and classification of the clusters.
        similarity, embedding = similarity.flatten(1, 2), embedding.flatten(1, 2)
        n, both = batch * segments, torch.stack([g.flatten(), 1 - g.flatten()], dim=1)
        with torch.no_grad():
            order = attention.mean(0).flatten().argsort(descending=True, stable=True)
            ranks = order.argsort() if s.prior_ranks == "true" else order
            gap = ((ranks + 1) / n).unsqueeze(1) - (1 - self.labels[:, 0])
            q = eager_sinkhorn(similarity.mean(0), torch.exp(-gap.square() / (2 * s.prior_sigma**2)))
        scc = -(q * similarity.log_softmax(-1)).sum(-1).mean(1).sum()
        between = s.cosine_scale * normalize(q.T @ embedding, dim=-1) @ normalize(both.T @ embedding, dim=-1).mT
        with torch.no_grad():
            found = torch.exp(s.ot_scale * between.mean(0))
            for _ in range(s.ot_iters):
                found = found * (both.mean(0) / found.sum(0))
                found = found / found.sum(1, keepdim=True) / len(found)
            found = found * len(found)
        ccc = -(found * between.log_softmax(-1)).sum(-1).mean(1).sum()
        return video + attending + s.w_clu * scc + s.w_cls * ccc, found


def numpy_samples(
    features: Sequence[np.ndarray], offsets: np.ndarray, videos: Sequence[int], segments: int, rng: np.random.Generator
) -> tuple[Tensor, ...]:
    """(B, T, width) per modality: per video a random row out of each of T stretches, then stacked."""
    items = []
    for video in videos:
        begin, end = int(offsets[video]), int(offsets[video + 1])
        low = np.arange(segments) * (end - begin) // segments
        high = np.append(low[1:], end - begin - 1)
        positions = low if end - begin == segments else rng.integers(low, high + 1)
        items.append([f[begin + positions] for f in features])
    return tuple(torch.from_numpy(np.stack(part)).float() for part in zip(*items, strict=True))


def _convolution(layer: nn.Linear) -> nn.Conv1d:
    convolution = nn.Conv1d(layer.in_features, layer.out_features, 1)
    with torch.no_grad():
        convolution.weight.copy_(layer.weight.unsqueeze(-1))
        convolution.bias.copy_(layer.bias)  # type: ignore[union-attr]
    return convolution
