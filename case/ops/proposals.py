"""From class activations to scored temporal proposals: public ops ``propose`` and ``propose_padded``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from case.ops import _check as check
from case.ops._registration import call, register
from case.ops.reference import proposals as reference


class Proposals(NamedTuple):
    """Ragged proposals of all videos, ordered by video, threshold, class and start.

    segments (n, 2) seconds, float64; scores (n,) float64; classes, video and threshold (n,) int64 indices.
    """

    segments: Tensor
    scores: Tensor
    classes: Tensor
    video: Tensor
    threshold: Tensor


class PaddedProposals(NamedTuple):
    """``Proposals`` of a fixed number, the capacity; ``total`` (no dimensions, int64) is how many there are.

    Entries from ``total`` on hold no proposal: segments 0, scores -inf, classes, video and threshold -1. A total above
    the capacity says that those past it were left out.
    """

    segments: Tensor
    scores: Tensor
    classes: Tensor
    video: Tensor
    threshold: Tensor
    total: Tensor


def propose(
    cas: Tensor,
    thresholds: Tensor | Sequence[float],
    *,
    upsample: int = 24,
    outer_ratio: float = 0.25,
    score_weight: float = 0.2,
    video_scores: Tensor,
    seconds_per_row: float | Tensor,
    class_mask: Tensor | None = None,
    keep_first_sample: bool = True,
) -> Proposals:
    """Maximal runs of the upsampled CAS above each threshold, scored by outer-inner contrast (METHOD.md, Inference).

    Score = mean inside - mean of the margins (outer_ratio times the run's length on each side, cut at the ends)
    + score_weight * video score. Computed in float64: which samples reach a threshold decides what a proposal is.

    Args:
        cas: (V, T, C) or (T, C) fused class activations; float32, bfloat16, float16 or float64.
        thresholds: activations at which runs are cut; values <= 0 never hold by themselves, a run is above 0 too.
        upsample: samples per row of cas, by linear interpolation, extrapolated past the last row.
        outer_ratio: lambda, >= 0; whatever its size, margins end where the video does.
        score_weight: gamma.
        video_scores: (V, C), or (C,) for a single video.
        seconds_per_row: duration of one row of cas in seconds: a number, or (V,).
        class_mask: bool (V, C) or (C,), the classes to localize; default all.
        keep_first_sample: False drops a class's proposals at a threshold that sample 0 alone reaches (released code).

    Returns:
        ``Proposals``. No gradient.

    Raises:
        TypeError, ValueError: one line. cas, thresholds, video_scores and seconds_per_row must be finite, which is not
        checked under ``torch.compile``; rows * upsample must stay below 2**31.
    """
    args = _arguments(
        "propose", cas, thresholds, upsample, outer_ratio, score_weight, video_scores, seconds_per_row, class_mask,
        keep_first_sample, finite=True,
    )  # fmt: skip
    return Proposals(*call("propose", *args))


def propose_padded(
    cas: Tensor,
    thresholds: Tensor | Sequence[float],
    *,
    capacity: int,
    upsample: int = 24,
    outer_ratio: float = 0.25,
    score_weight: float = 0.2,
    video_scores: Tensor,
    seconds_per_row: float | Tensor,
    class_mask: Tensor | None = None,
    keep_first_sample: bool = True,
) -> PaddedProposals:
    """``propose`` with a result of fixed size, which on a GPU does not make the host wait.

    In a captured CUDA graph give thresholds and seconds_per_row as float64 tensors on the device: numbers are copied
    there, which a capture refuses.

    Args:
        capacity: how many proposals there is room for, >= 1.
        others: as for ``propose``.

    Returns:
        ``PaddedProposals``. No gradient.

    Raises:
        TypeError, ValueError: as ``propose``, but on a GPU nobody looks for NaN and infinity; what comes of them is
        not defined.
    """
    op = "propose_padded"
    check.whole(op, "capacity", capacity)
    args = _arguments(
        op, cas, thresholds, upsample, outer_ratio, score_weight, video_scores, seconds_per_row, class_mask,
        keep_first_sample, finite=not getattr(cas, "is_cuda", False),
    )  # fmt: skip
    return PaddedProposals(*call(op, *args, int(capacity)))


def _arguments(
    op: str,
    cas: Tensor,
    thresholds: Tensor | Sequence[float],
    upsample: int,
    outer_ratio: float,
    score_weight: float,
    video_scores: Tensor,
    seconds_per_row: float | Tensor,
    class_mask: Tensor | None,
    keep_first_sample: bool,
    *,
    finite: bool,
) -> tuple[Any, ...]:
    """Checked and as the registered ops take them; ``finite``: look for NaN and infinity too, which waits."""
    check.floating(op, "cas", cas, at_least=2)
    check.floating(op, "video_scores", video_scores)
    if class_mask is not None:
        check.kind(op, "class_mask", class_mask, torch.bool, ".bool")
    if cas.dim() == 2:
        cas, video_scores = cas[None], video_scores[None]
        class_mask = class_mask if class_mask is None else class_mask[None]
    check.floating(op, "cas", cas, 3)
    videos, rows, classes = cas.shape
    check.shape(op, "video_scores", video_scores, (videos, classes), "to match cas")
    check.same_device(op, "video_scores", video_scores, "cas", cas)
    if class_mask is None:
        class_mask = torch.ones(videos, classes, dtype=torch.bool, device=cas.device)
    check.shape(op, "class_mask", class_mask, (videos, classes), "to match cas")
    check.same_device(op, "class_mask", class_mask, "cas", cas)
    thresholds = torch.as_tensor(thresholds, dtype=torch.float64, device=cas.device)
    if thresholds.dim() != 1 or thresholds.shape[0] == 0:
        raise ValueError(
            f"{op}: thresholds must be a non-empty list of numbers, got shape {check.show(thresholds.shape)}"
        )
    if rows == 0:
        raise ValueError(f"{op}: cas must have at least one row of time, got shape {check.show(cas.shape)}")
    check.whole(op, "upsample", upsample)
    if rows * int(upsample) >= 2**31:
        raise ValueError(
            f"{op}: upsample must keep the number of samples, rows * upsample, below 2**31, got {upsample!r} for "
            f"{rows} rows; cut the videos"
        )
    check.at_least(op, "outer_ratio", outer_ratio, 0)
    check.finite(op, "score_weight", score_weight)
    seconds = torch.as_tensor(seconds_per_row, dtype=torch.float64, device=cas.device)
    seconds = check.broadcast(op, "seconds_per_row", seconds, (videos,), "to match cas")
    if finite:
        check.each_finite(op, cas=cas, thresholds=thresholds, video_scores=video_scores, seconds_per_row=seconds)
    return (
        cas.detach(), thresholds, int(upsample), float(outer_ratio), float(score_weight),
        video_scores.detach(), class_mask, seconds, bool(keep_first_sample),
    )  # fmt: skip


def _fake(cas: Tensor, *_: Any) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    found = torch.library.get_ctx().new_dynamic_size()
    index = torch.int64
    return (
        cas.new_empty((found, 2), dtype=torch.float64),
        cas.new_empty(found, dtype=torch.float64),
        cas.new_empty(found, dtype=index),
        cas.new_empty(found, dtype=index),
        cas.new_empty(found, dtype=index),
    )


def _padded_fake(cas: Tensor, *args: Any) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    return *reference.padding(cas, args[-1]), cas.new_empty((), dtype=torch.int64)


_ARGUMENTS = (
    "Tensor cas, Tensor thresholds, int upsample, float outer_ratio, float score_weight, Tensor video_scores, "
    "Tensor class_mask, Tensor seconds_per_row, bool keep_first_sample"
)
_RETURNS = "Tensor segments, Tensor scores, Tensor classes, Tensor video, Tensor threshold"
register("propose", _ARGUMENTS, f"({_RETURNS})", reference.propose, _fake)
register(
    "propose_padded",
    f"{_ARGUMENTS}, int capacity",
    f"({_RETURNS}, Tensor total)",
    reference.propose_padded,
    _padded_fake,
)

__all__ = ["PaddedProposals", "Proposals", "propose", "propose_padded"]
