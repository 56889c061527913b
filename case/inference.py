"""Localization (METHOD.md, Inference): from the network's outputs at test time to detections in seconds."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from case.config import Settings
from case.network import Heads
from case.objective import fuse
from case.ops import batched_nms, propose, topk_pool


class Activations(NamedTuple):
    """What a video's T positions say.

    fused (V, T, C): F; video_scores (V, C), softmax averaged over modalities; kept (V, C) bool, the classes to
    localize; attention (V, T), mean over modalities; foreground (V, T), mean cluster foreground h (0 for the
    attention-only baseline); clusters (V, T) int64, most likely cluster of the mean cluster logits.
    """

    fused: Tensor
    video_scores: Tensor
    kept: Tensor
    attention: Tensor
    foreground: Tensor
    clusters: Tensor


class Detections(NamedTuple):
    """Ragged detections by video, then class, then in the order of the NMS.

    video, label (n,) int64; score (n,) and segment (n, 2) in seconds, float64.
    """

    video: Tensor
    label: Tensor
    score: Tensor
    segment: Tensor


def activate(heads: Heads, index: Tensor, cluster_labels: Tensor, settings: Settings) -> Activations:
    """Fused activations and video scores of V videos.

    Args:
        heads: the network's outputs at L distinct rows of all V videos.
        index: (V, T) int64, the row behind each position.
        cluster_labels: (K, 2), R of training.
    """
    assignment = heads.cluster_logits.softmax(-1)
    h = (assignment @ cluster_labels[:, :1].to(assignment.dtype)).squeeze(-1)
    # Everything is pointwise in time: computed once a row, then gathered.
    fused = fuse(heads.cas, heads.attention, h if settings.clustering else None)[index]
    k = max(1, index.shape[1] // settings.topk_divisor)
    pooled = topk_pool(fused, heads.cas, k, index=index)
    scores = pooled.softmax(-1).mean(0)
    kept = scores >= settings.class_threshold
    best = torch.zeros_like(kept).scatter_(1, scores.argmax(1, keepdim=True), True)
    kept = torch.where(kept.any(1, keepdim=True), kept, best)
    clusters = heads.cluster_logits.mean(0).argmax(-1)[index]
    attention = heads.attention.mean(0)
    foreground = h.mean(0) if settings.clustering else torch.zeros_like(attention)
    return Activations(fused, scores, kept, attention[index], foreground[index], clusters)


def localize(activations: Activations, rows: Tensor, settings: Settings) -> Detections:
    """Proposals of the kept classes over all thresholds, then NMS within each (video, class).

    rows: (V,) feature rows of each video, which with the settings' snippet length give its duration.
    """
    segments = activations.fused.shape[1]
    found = propose(
        activations.fused,
        settings.act_thresholds,
        upsample=settings.upsample,
        outer_ratio=settings.outer_ratio,
        score_weight=settings.score_weight,
        video_scores=activations.video_scores,
        seconds_per_row=rows.double() * settings.seconds_per_snippet / segments,
        class_mask=activations.kept,
        keep_first_sample=settings.keep_first_sample,
    )
    group = found.video * settings.num_classes + found.classes
    keep, score, *_ = batched_nms(
        found.segments,
        found.scores,
        group,
        settings.nms_threshold,
        method=settings.nms_method,
        sigma=settings.nms_sigma,
        length_offset=settings.nms_length_offset,
    )
    return Detections(found.video[keep], found.classes[keep], score, found.segments[keep])


def video_accuracy(kept: Tensor, labels: Tensor) -> float:
    """Share of videos whose kept classes (V, C) equal the label set (V, C)."""
    if kept.shape[0] == 0:
        return 0.0
    return (kept == (labels > 0)).all(1).double().mean().item()


def to_results(detections: Detections, videos: list[str], labels: tuple[str, ...]) -> dict[str, Any]:
    """ActivityNet form: {"results": {video: [{"label", "score", "segment": [start s, end s]}]}}, every video named."""
    results: dict[str, list[dict[str, Any]]] = {video: [] for video in videos}
    columns = (column.tolist() for column in detections)
    for video, label, score, segment in zip(*columns, strict=True):
        results[videos[video]].append({"label": labels[label], "score": score, "segment": segment})
    return {"version": "case", "results": results, "external_data": {}}
