"""A batch split over processes: each one's share of the losses and gradients, which add up to those of one process.

What is a mean over videos or samples is divided by their number in the whole batch. What has to see the whole batch
does: ranks of the attention and the foreground share (gathered), column sums of the transport (``sinkhorn(group=...)``)
and prototypes (summed, with their gradient). R comes out the same everywhere, so every process computes L_R, and its
share of it is L_R over their number.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.distributed import ProcessGroup, all_gather, all_reduce, get_rank
from torch.nn.functional import normalize

from case.config import Settings
from case.errors import CaseError
from case.network import Heads
from case.objective import Losses, training_losses
from case.ops import cosine_logits, prototypes, sinkhorn, soft_cross_entropy
from case.ops.losses import ClusteringLosses
from case.ops.reference._numerics import accumulation_dtype
from case.ops.reference.sinkhorn import log_position_prior, rank_positions


class RankLost(CaseError):
    """Another process ended, or answered no more."""


@contextmanager
def contact() -> Iterator[None]:
    """Around collectives: whatever torch says of a failed one becomes ``RankLost``."""
    try:
        yield
    except RuntimeError as error:  # gloo's own; torch.distributed.DistError is one too
        # One line of what may be many: without the place in torch's source, and before its advice.
        text = re.sub(r"^\[[^\]]*\] ", "", " ".join(str(error).split())).split(". ")[0]
        raise RankLost(text[:200]) from error


class GroupSum(torch.autograd.Function):
    """The sum over processes. The loss is the sum of theirs, so their gradients are summed likewise."""

    @staticmethod
    def forward(ctx, local: Tensor, group: ProcessGroup) -> Tensor:  # type: ignore[no-untyped-def]
        ctx.group = group
        return _summed(local, group)

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor, None]:  # type: ignore[no-untyped-def]
        return _summed(grad, ctx.group), None


@dataclass(frozen=True)
class Share:
    """This process's part of a batch of which each process holds neighbouring videos, in the order of their ranks."""

    group: ProcessGroup
    videos: tuple[int, ...]
    """How many each process holds, by rank."""
    segments: int
    """T, the samples of a video."""

    @property
    def batch(self) -> int:
        """Videos of the whole batch."""
        return sum(self.videos)

    def training_losses(
        self, heads: Heads, index: Tensor, labels: Tensor, cluster_labels: Tensor, settings: Settings
    ) -> Losses:
        """This process's share of the losses (see ``case.objective``), and the whole batch's cluster labels."""
        return training_losses(
            heads, index, labels, cluster_labels, settings, batch=self.batch, clustering=self.clustering_losses
        )

    def clustering_losses(
        self,
        logits: Tensor,
        embeddings: Tensor,
        attention: Tensor,
        foreground: Tensor,
        cluster_labels: Tensor,
        *,
        index: Tensor,
        sigma: float,
        ranks: str,
        ot_scale: float,
        cosine_scale: float,
        n_iters: int,
    ) -> ClusteringLosses:
        """``case.ops.clustering_losses`` of the whole batch from this process's rows: shares of L_C and L_R, and R.

        Arguments as there; a process may have no samples at all.
        """
        dtype = accumulation_dtype(logits)
        logits, fg = logits.to(dtype), foreground.to(dtype)
        with torch.no_grad(), contact():
            scores, everywhere = self._gathered(torch.stack([attention.to(dtype)[index], fg], dim=1)).unbind(1)
            positions = rank_positions(scores, ranks)[self._mine()]
            # A prior as a matrix could underflow; its logarithm is a term of the logits.
            log_prior = log_position_prior(positions, 1 - cluster_labels[:, 0], sigma)
            q = sinkhorn(ot_scale * logits.mean(0)[index] + log_prior, n_iters=n_iters, group=self.group)
        streams, rows, k = logits.shape
        columns = torch.cat([q, fg.unsqueeze(1), (1 - fg).unsqueeze(1)], dim=1)
        weights = torch.zeros(rows, k + 2, dtype=dtype, device=q.device).index_add_(0, index, columns)
        scc = soft_cross_entropy(logits, weights[:, :k].expand_as(logits), reduction="sum") / scores.shape[0]

        local = prototypes(embeddings.to(dtype), weights.expand(streams, -1, -1), normalize="sum")
        z = normalize(GroupSum.apply(local, self.group), dim=-1)
        u = cosine_logits(z[:, :k], z[:, k:], scale=cosine_scale)
        with torch.no_grad():
            beta = torch.stack([everywhere.mean(), 1 - everywhere.mean()])
            labels = sinkhorn(u.mean(0), col_marginal=beta, scale=ot_scale, n_iters=n_iters)
        ccc = soft_cross_entropy(u, labels.expand_as(u), reduction="sum") / (k * len(self.videos))
        return ClusteringLosses(scc, ccc, labels)

    def reduce(self, losses: Losses, parameters: Iterable[nn.Parameter]) -> Losses:
        """Make the parameters' gradients those of the whole batch, and return its losses: one collective for all."""
        grads = [p.grad for p in parameters if p.grad is not None]
        values = torch.stack([value.detach() for value in losses[:-1]])
        sizes = [grad.numel() for grad in grads]
        flat = _summed(torch.cat([*(grad.flatten() for grad in grads), values]), self.group)
        *summed, totals = flat.split([*sizes, len(values)])
        torch._foreach_copy_(grads, [part.view_as(grad) for part, grad in zip(summed, grads, strict=True)])
        total, video, attention, scc, ccc = totals
        return Losses(total, video, attention, scc, ccc, losses.cluster_labels)

    def _gathered(self, local: Tensor) -> Tensor:
        """(N, ...) rows of all processes' samples, in their order, from this one's."""
        counts = [videos * self.segments for videos in self.videos]
        padded = local.new_zeros(max(counts), *local.shape[1:])  # collectives want equal sizes
        padded[: local.shape[0]] = local
        parts = [torch.empty_like(padded) for _ in counts]
        all_gather(parts, padded, group=self.group)
        return torch.cat([part[:count] for part, count in zip(parts, counts, strict=True)])

    def _mine(self) -> slice:
        """Where this process's samples are among all."""
        rank = get_rank(self.group)
        return slice(sum(self.videos[:rank]) * self.segments, sum(self.videos[: rank + 1]) * self.segments)


def _summed(local: Tensor, group: ProcessGroup) -> Tensor:
    total = local.clone(memory_format=torch.contiguous_format)
    with contact():
        all_reduce(total, group=group)
    return total
