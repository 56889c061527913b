"""Temporal IoU and non-maximum suppression: ``temporal_iou``, ``nms``, ``batched_nms``, ``batched_nms_padded``."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

from case.ops import _check as check
from case.ops._registration import call, register
from case.ops.reference import nms as reference

METHODS = ("hard", "linear", "gaussian", "decay_once")


class NMSResult(NamedTuple):
    """keep (m,) int64 indices into the input, scores (m,) after decay."""

    keep: Tensor
    scores: Tensor


class VotedNMSResult(NamedTuple):
    """As ``NMSResult``, with segments (m, 2) after score voting."""

    keep: Tensor
    scores: Tensor
    segments: Tensor


class PaddedNMSResult(NamedTuple):
    """``NMSResult`` of a fixed number, the capacity; ``total`` (no dimensions, int64) is how many are kept.

    Entries from ``total`` on are keep -1, scores -inf. A total above the capacity says that those past it were left
    out.
    """

    keep: Tensor
    scores: Tensor
    total: Tensor


def temporal_iou(a: Tensor, b: Tensor, *, length_offset: float = 0.0) -> Tensor:
    """Intersection over union of all pairs of segments (METHOD.md, Inference 4).

    Args:
        a: (..., M, 2) rows (start, end) in seconds or any other unit; float32, bfloat16, float16 or float64.
        b: (..., P, 2), same leading dimensions and dtype.
        length_offset: added to lengths and intersections, in the unit of the segments; 1 is the pixel convention.

    Returns:
        (..., M, P) in the dtype of a; 0 where the union is not positive. Differentiable in both.
    """
    op = "temporal_iou"
    check.floating(op, "a", a, at_least=2)
    check.floating(op, "b", b, at_least=2)
    check.same_device(op, "b", b, "a", a)
    check.shape(op, "a", a, (*a.shape[:-1], 2), "(start, end)")
    check.shape(op, "b", b, (*a.shape[:-2], b.shape[-2], 2), "to match a")
    if a.dtype != b.dtype:
        raise TypeError(f"{op}: b must have the dtype of a, {a.dtype}, got {b.dtype}; convert it with b.to(a.dtype)")
    check.finite(op, "length_offset", length_offset)
    return call(op, a, b, float(length_offset))


def nms(
    segments: Tensor,
    scores: Tensor,
    iou_threshold: float,
    *,
    method: str = "hard",
    sigma: float = 0.5,
    min_score: float = -math.inf,
    max_num: int | None = None,
    length_offset: float = 0.0,
) -> NMSResult:
    """Non-maximum suppression of one group of segments: ``batched_nms`` with a single group, whose limits hold here."""
    check.floating("nms", "segments", segments, 2)
    groups = torch.zeros(segments.shape[0], dtype=torch.int64, device=segments.device)
    args = _arguments("nms", segments, scores, groups, iou_threshold, method, sigma, min_score, max_num, length_offset)
    return NMSResult(*call("batched_nms", *args))


def batched_nms(
    segments: Tensor,
    scores: Tensor,
    groups: Tensor,
    iou_threshold: float,
    *,
    method: str = "hard",
    sigma: float = 0.5,
    min_score: float = -math.inf,
    max_num: int | None = None,
    length_offset: float = 0.0,
    vote: float | None = None,
) -> NMSResult | VotedNMSResult:
    """Non-maximum suppression within each group, any number of ragged groups (video x class) in one call.

    The best-scored remaining segment is taken; what it overlaps with an IoU of at least ``iou_threshold`` is

    - "hard": dropped;
    - "decay_once": taken out of the queue and appended after the kept ones, its score times exp(-IoU^2 / sigma); it
      is decayed by its first suppressor only (METHOD.md, Inference 4);
    - "linear": kept in the queue with its score times 1 - IoU (soft-NMS);
    - "gaussian": as linear but every remaining segment is multiplied by exp(-IoU^2 / sigma), whatever the threshold.

    Equal scores: first in, first out.

    Args:
        segments: (n, 2) rows (start, end) in seconds or any other unit, finite; float32 or float64. From the least to
            the largest time, plus |length_offset|, is less than half of what the dtype can.
        scores: (n,), finite, same dtype.
        groups: (n,) int64; only segments of equal number meet. Any numbers, any order.
        iou_threshold: in [0, 1].
        sigma: width of the decay, > 0.
        min_score: segments whose final score is below are not returned (nor do they suppress, under soft-NMS).
        max_num: at most so many per group, the best-scored; None: all.
        length_offset: added to lengths and intersections, in the unit of the segments; 1 is the pixel convention.
        vote: replace each kept segment by the average of all segments of its group with IoU >= vote, weighted by
            score * IoU (score voting); the result then has a third part, the new segments.

    Returns:
        (keep, scores): int64 indices and scores after decay, by rising group, within a group in the order above.

    Raises:
        TypeError, ValueError: one line. What segments and scores hold is not looked at under ``torch.compile``.
    """
    op = "batched_nms"
    args = _arguments(op, segments, scores, groups, iou_threshold, method, sigma, min_score, max_num, length_offset)
    keep, kept_scores = call("batched_nms", *args)
    if vote is None:
        return NMSResult(keep, kept_scores)
    check.finite(op, "vote", vote)
    moved = call("score_vote", keep, segments.detach(), scores.detach(), groups, float(vote), float(length_offset))
    return VotedNMSResult(keep, kept_scores, moved)


def batched_nms_padded(
    segments: Tensor,
    scores: Tensor,
    groups: Tensor,
    iou_threshold: float,
    *,
    capacity: int | None = None,
    method: str = "hard",
    sigma: float = 0.5,
    min_score: float = -math.inf,
    max_num: int | None = None,
    length_offset: float = 0.0,
) -> PaddedNMSResult:
    """``batched_nms`` with a result of fixed size, which on a GPU does not make the host wait.

    So it can be captured in a CUDA graph.

    Args:
        capacity: how many segments there is room for, >= 1; None: as many as there are.
        others: as for ``batched_nms``.

    Returns:
        ``PaddedNMSResult``. No gradient.

    Raises:
        TypeError, ValueError: as ``batched_nms``, but on a GPU nobody looks for NaN, infinity and times too far apart;
        what comes of them is not defined.
    """
    op = "batched_nms_padded"
    if capacity is not None:
        check.whole(op, "capacity", capacity)
    args = _arguments(
        op, segments, scores, groups, iou_threshold, method, sigma, min_score, max_num, length_offset,
        finite=not getattr(segments, "is_cuda", False),
    )  # fmt: skip
    return PaddedNMSResult(*call(op, *args, segments.shape[0] if capacity is None else int(capacity)))


def _arguments(
    op: str,
    segments: Tensor,
    scores: Tensor,
    groups: Tensor,
    iou_threshold: float,
    method: str,
    sigma: float,
    min_score: float,
    max_num: int | None,
    length_offset: float,
    *,
    finite: bool = True,
) -> tuple[Any, ...]:
    """Checked and as the registered ops take them; ``finite``: look at what segments and scores hold, which waits."""
    check.floating(op, "segments", segments, 2)
    n = segments.shape[0]
    check.shape(op, "segments", segments, (n, 2), "(start, end)")
    check.floating(op, "scores", scores, 1)
    check.shape(op, "scores", scores, (n,), "to match segments")
    for name, value in (("segments", segments), ("scores", scores)):
        if value.dtype not in (torch.float32, torch.float64):
            raise TypeError(f"{op}: {name} must be float32 or float64, got {value.dtype}; convert it with .float()")
    if scores.dtype != segments.dtype:
        raise TypeError(
            f"{op}: scores must have the dtype of segments, {segments.dtype}, got {scores.dtype}; "
            "convert them with scores.to(segments.dtype)"
        )
    check.kind(op, "groups", groups, torch.int64, ".long")
    check.shape(op, "groups", groups, (n,), "to match segments")
    check.same_device(op, "scores", scores, "segments", segments)
    check.same_device(op, "groups", groups, "segments", segments)
    check.choice(op, "method", method, METHODS)
    check.positive(op, "sigma", sigma)
    check.finite(op, "length_offset", length_offset)
    if not 0 <= iou_threshold <= 1:
        raise ValueError(f"{op}: iou_threshold must lie in [0, 1], got {iou_threshold!r}")
    if math.isnan(min_score):
        raise ValueError(f"{op}: min_score must be a number, got {min_score!r}")
    if max_num is not None and (max_num < 1 or int(max_num) != max_num):
        raise ValueError(f"{op}: max_num must be at least 1 or None, got {max_num!r}")
    if finite:
        check.each_finite(op, segments=segments, scores=scores)
        check.narrow(op, "segments", segments, length_offset)
    return (
        segments.detach(), scores.detach(), groups, float(iou_threshold), method, float(sigma), float(min_score),
        int(max_num or 0), float(length_offset),
    )  # fmt: skip


def _fake_iou(a: Tensor, b: Tensor, length_offset: float) -> Tensor:
    return a.new_empty((*a.shape[:-1], b.shape[-2]))


def _fake_nms(segments: Tensor, scores: Tensor, groups: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
    kept = torch.library.get_ctx().new_dynamic_size()
    return groups.new_empty(kept), scores.new_empty(kept)


def _padded_fake(segments: Tensor, scores: Tensor, groups: Tensor, *args: Any) -> tuple[Tensor, Tensor, Tensor]:
    return *reference.padding(scores, args[-1]), groups.new_empty(())


_ARGUMENTS = (
    "Tensor segments, Tensor scores, Tensor groups, float iou_threshold, str method, float sigma, float min_score, "
    "int max_num, float length_offset"
)
register(
    "temporal_iou", "Tensor a, Tensor b, float length_offset", "Tensor", reference.temporal_iou, _fake_iou,
    differentiable=("a", "b"),
)  # fmt: skip
register(
    "batched_nms", _ARGUMENTS, "(Tensor keep, Tensor kept_scores)", reference.batched_nms, _fake_nms,
)  # fmt: skip
register(
    "batched_nms_padded", f"{_ARGUMENTS}, int capacity", "(Tensor keep, Tensor kept_scores, Tensor total)",
    reference.batched_nms_padded, _padded_fake,
)  # fmt: skip
register(
    "score_vote",
    "Tensor keep, Tensor segments, Tensor scores, Tensor groups, float iou_threshold, float length_offset",
    "Tensor", reference.vote, lambda keep, segments, *_: segments.new_empty((keep.shape[0], 2)),
)  # fmt: skip

__all__ = [
    "NMSResult",
    "PaddedNMSResult",
    "VotedNMSResult",
    "batched_nms",
    "batched_nms_padded",
    "nms",
    "temporal_iou",
]
