"""Training losses (METHOD.md): video classification, attention, and the two clustering losses."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from case.config import Settings
from case.network import Heads
from case.ops import ClusteringLosses, clustering_losses, generalized_cross_entropy, soft_cross_entropy, topk_pool


class Losses(NamedTuple):
    """total = video + attention + w_clu scc + w_cls ccc, scalars; cluster_labels (K, 2): R of this batch."""

    total: Tensor
    video: Tensor
    attention: Tensor
    scc: Tensor
    ccc: Tensor
    cluster_labels: Tensor


def initial_cluster_labels(settings: Settings, device: torch.device | None = None) -> Tensor:
    """R (K, 2) before the first step: 1/K in both columns as released, or 1/2 (rows summing to 1)."""
    share = 1 / settings.num_clusters if settings.label_init == "clusters" else 1 / 2
    return torch.full((settings.num_clusters, 2), share, device=device)


def fuse(cas: Tensor, attention: Tensor, cluster_foreground: Tensor | None = None) -> Tensor:
    """F: the mean over modalities of softmax(CAS), averaged with every attention (and cluster foreground) curve.

    cas (M, ..., T, C), attention and cluster_foreground (M, ..., T) -> (..., T, C).
    """
    curves = attention if cluster_foreground is None else torch.cat([attention, cluster_foreground])
    total = cas.softmax(-1).mean(0) + curves.sum(0).unsqueeze(-1)
    return total / (1 + curves.shape[0])


def pseudo_labels(indices: Tensor, labels: Tensor, segments: int) -> Tensor:
    """g (..., T): 1 at the top-k positions (..., k, C) of any class present in labels (..., C), else 0."""
    nowhere = segments  # the place of what other classes picked
    places = indices.masked_fill(~(labels > 0).unsqueeze(-2), nowhere).flatten(-2)
    hits = torch.zeros(*indices.shape[:-2], segments + 1, device=indices.device)
    return hits.scatter_(-1, places, 1.0)[..., :segments]


def video_loss(
    cas: Tensor, attention: Tensor, index: Tensor, labels: Tensor, settings: Settings, batch: int
) -> tuple[Tensor, Tensor]:
    """L_V on the top-k snippets of each class, a mean over ``batch`` videos; the same top-k's pseudo-labels.

    cas (M, L, C), attention (M, L), index (..., B, T) into L, labels (..., B, C) -> L_V (...) and g (..., B, T).
    """
    segments = index.shape[-1]
    selector = fuse(cas.detach(), attention.detach())[index]
    k = max(1, segments // settings.topk_divisor)
    pooled, indices = topk_pool(selector, cas, k, index=index, return_indices=True)
    target = labels / labels.sum(-1, keepdim=True) + 1e-10
    losses = soft_cross_entropy(pooled, target.expand_as(pooled), reduction="none")
    return losses.sum((0, -1)) / (cas.shape[0] * batch), pseudo_labels(indices, labels, segments)


def attention_loss(attention: Tensor, foreground: Tensor, q: float, batch: int) -> Tensor:
    """L_A (...): generalized cross entropies of attention (M, ..., B, T) against g (..., B, T), and of 1 - both."""
    g = foreground.expand_as(attention)
    per_video = generalized_cross_entropy(attention, g, q=q, reduction="none")
    per_video = per_video + generalized_cross_entropy(1 - attention, 1 - g, q=q, reduction="none")
    return per_video.sum((0, -1)) / batch


def training_losses(
    heads: Heads,
    index: Tensor,
    labels: Tensor,
    cluster_labels: Tensor,
    settings: Settings,
    *,
    batch: int | None = None,
    clustering: Callable[..., ClusteringLosses] = clustering_losses,
) -> Losses:
    """Losses of one batch.

    Args:
        heads: the network's outputs at L distinct rows.
        index: (B, T) int64, the row behind each sample.
        labels: (B, C) video labels, 0 or 1.
        cluster_labels: (K, 2), R of the previous step.
        batch: number of videos that the losses are means over; default B. Where the B videos are a part of them, the
            losses are this part's share: the sum over the parts is the loss.
        clustering: what computes the clustering losses, or a part's share of them, from the arguments of the op.

    Returns:
        ``Losses``; without ``settings.clustering`` the clustering losses are 0 and the cluster labels those given.
    """
    batch = index.shape[0] if batch is None else batch
    video, foreground = video_loss(heads.cas, heads.attention, index, labels, settings, batch)
    attending = attention_loss(heads.attention[:, index], foreground, settings.gce_q, batch)
    total = video + attending
    if not settings.clustering:
        zero = torch.zeros_like(video)
        return Losses(total, video, attending, zero, zero, cluster_labels)
    scc, ccc, new_labels = clustering_of(
        heads.cluster_logits, heads.embedding, heads.attention, index, foreground, cluster_labels, settings, clustering
    )
    total = total + settings.w_clu * scc + settings.w_cls * ccc
    return Losses(total, video, attending, scc, ccc, new_labels)


def clustering_of(
    logits: Tensor, embedding: Tensor, attention: Tensor, index: Tensor, foreground: Tensor, cluster_labels: Tensor,
    settings: Settings, compute: Callable[..., ClusteringLosses] = clustering_losses,
) -> ClusteringLosses:  # fmt: skip
    """L_C, L_R and R of the heads (M, L, ...) of one batch, its snippets as one set; index and foreground (B, T)."""
    return compute(
        logits,
        embedding,
        attention.detach().mean(0),
        foreground.flatten(),
        cluster_labels,
        index=index.flatten(),
        sigma=settings.prior_sigma,
        ranks=settings.prior_ranks,
        ot_scale=settings.ot_scale,
        cosine_scale=settings.cosine_scale,
        n_iters=settings.ot_iters,
    )
