"""The oracle of the engine: a training step in straight-line torch, formula by formula (METHOD.md).

Every sampled row goes through the network, repeats included, and nothing of ``case.ops`` is used. Weights, optimizer
and samples are the engine's own, so that a run differs from ``--engine fast`` by rounding alone.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import normalize

from case.engine.learner import Learner
from case.engine.share import Share
from case.model import Branch
from case.network import Heads
from case.objective import Losses


class PlainLearner(Learner):
    """A ``Learner`` whose network and losses are written out."""

    def losses(self, rows: Sequence[Tensor], index: Tensor, labels: Tensor, share: Share | None = None) -> Losses:
        assert share is None, "the oracle is one process"
        s = self.settings
        batch, segments = index.shape
        branches = [branch for branch in self.model.branches.values() if isinstance(branch, Branch)]
        parts = [_network(branch, x[index], s.cosine_scale) for branch, x in zip(branches, rows, strict=True)]
        cas, embedding, attention, similarity = (torch.stack(part) for part in zip(*parts, strict=True))
        modalities = len(cas)

        with torch.no_grad():
            fused = (cas.softmax(-1).mean(0) + attention.sum(0).unsqueeze(-1)) / (1 + modalities)
            top = fused.topk(max(1, segments // s.topk_divisor), dim=1).indices
            g = (torch.zeros_like(fused).scatter_(1, top, 1.0) * labels.unsqueeze(1)).amax(-1)
        pooled = cas.gather(2, top.expand(modalities, -1, -1, -1)).mean(2)
        target = labels / labels.sum(1, keepdim=True) + 1e-10
        video = -(target * pooled.log_softmax(-1)).sum(-1).mean()

        def robust(p: Tensor, weight: Tensor) -> Tensor:
            loss = (1 - (p + 1e-7) ** s.gce_q) / s.gce_q
            return ((weight * loss).sum(-1) / (weight.sum(-1) + 1e-7)).mean(-1).sum()

        attending = robust(attention, g) + robust(1 - attention, 1 - g)
        total = video + attending
        if not s.clustering:
            zero = torch.zeros_like(video)
            return Losses(total, video, attending, zero, zero, self.labels)

        n = batch * segments
        similarity, embedding = similarity.flatten(1, 2), embedding.flatten(1, 2)
        with torch.no_grad():
            order = attention.mean(0).flatten().argsort(descending=True, stable=True)
            ranks = order.argsort() if s.prior_ranks == "true" else order
            gap = ((ranks + 1) / n).unsqueeze(1) - (1 - self.labels[:, 0])
            prior = (-(gap**2) / (2 * s.prior_sigma**2)).exp()
            q = transport((s.ot_scale * similarity.mean(0)).exp() * prior / prior.sum(), None, s.ot_iters)
            both = torch.stack([g.flatten(), 1 - g.flatten()], dim=1)
        scc = -(q * similarity.log_softmax(-1)).sum(-1).mean(1).sum()
        between = s.cosine_scale * normalize(q.T @ embedding, dim=-1) @ normalize(both.T @ embedding, dim=-1).mT
        with torch.no_grad():
            found = transport((s.ot_scale * between.mean(0)).exp(), both.mean(0), s.ot_iters)
        ccc = -(found * between.log_softmax(-1)).sum(-1).mean(1).sum()
        return Losses(total + s.w_clu * scc + s.w_cls * ccc, video, attending, scc, ccc, found)


def _network(branch: Branch, x: Tensor, cosine_scale: float) -> Heads:
    """Of samples (B, T, D)."""
    with torch.no_grad():
        branch.prototypes.copy_(normalize(branch.prototypes, dim=-1))
    x = x.to(branch.base.weight.dtype)  # narrower rows have lost their own digits alone
    embedding = branch.base(x).relu()
    return Heads(
        cas=branch.cas(branch.cas_hidden(x).relu()),
        embedding=embedding,
        attention=branch.attention(embedding).squeeze(-1).sigmoid(),
        cluster_logits=cosine_scale * normalize(embedding, dim=-1) @ branch.prototypes.T,
    )


def transport(m: Tensor, columns: Tensor | None, iterations: int) -> Tensor:
    """METHOD.md, OT, on the matrix M itself: columns to their marginal, then rows; rows of the result sum to 1."""
    columns = torch.full_like(m[0], 1 / m.shape[1]) if columns is None else columns
    m = m / m.sum()
    for _ in range(iterations):
        m = m * (columns / m.sum(0))
        m = m / m.sum(1, keepdim=True) / m.shape[0]
    return m * m.shape[0]
