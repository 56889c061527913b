"""Proposals: runs of the upsampled CAS above each threshold, scored by outer-inner contrast (METHOD.md, Inference)."""

from typing import Any

import torch
from torch import Tensor


def upsample(cas: Tensor, factor: int) -> Tensor:
    """Linear interpolation of (..., T, C) at i / factor, i < factor * T, extrapolated past the last row; float64."""
    cas = cas.double()
    t = cas.shape[-2]
    if t < 2:
        return cas.repeat_interleave(factor, dim=-2)
    at = torch.arange(factor * t, device=cas.device, dtype=torch.float64) / factor
    low = at.floor().long().clamp(max=t - 2)
    left, right = cas[..., low, :], cas[..., low + 1, :]
    return left + (right - left) * (at - low)[:, None]


def propose(
    cas: Tensor,
    thresholds: Tensor,
    upsampling: int,
    outer_ratio: float,
    score_weight: float,
    video_scores: Tensor,
    class_mask: Tensor,
    seconds_per_row: Tensor,
    keep_first_sample: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """(segments, scores, classes, video, threshold index), by video, threshold, class, start.

    Arguments as ``case.ops.propose`` gives them: cas (V, T, C), all others with their leading V.
    """
    video, label = class_mask.nonzero(as_tuple=True)
    signal = upsample(cas, upsampling).transpose(1, 2)[video, label]  # (P, S): one row a kept (video, class)
    before = torch.nn.functional.pad(signal.cumsum(1), (1, 0))  # prefix sums: [i, j) sums to before[j] - before[i]
    samples = signal.shape[1]
    found = []
    for number, threshold in enumerate(thresholds.double().unbind()):
        above = (signal >= threshold) & (signal > 0)
        if not keep_first_sample:
            # The released code asks `any(indices)`, false where index 0 stands alone.
            above[:, 0] &= above[:, 1:].any(1)
        edges = torch.nn.functional.pad(above, (1, 1)).diff(dim=1)
        row, first = (edges & ~torch.nn.functional.pad(above, (1, 0))).nonzero(as_tuple=True)
        last = (edges & torch.nn.functional.pad(above, (1, 0))).nonzero(as_tuple=True)[1] - 1
        length = last - first + 1
        margin = outer_ratio * length.double()  # in float32, 17 - 0.3 * 50 is not 2
        left = (first - margin).clamp(min=0).to(torch.long)
        right = (last + margin).clamp(max=samples - 1).to(torch.long)
        inner = (before[row, last + 1] - before[row, first]) / length
        outer_count = (first - left) + (right - last)
        outer_sum = before[row, first] - before[row, left] + before[row, right + 1] - before[row, last + 1]
        outer = torch.where(outer_count > 0, outer_sum / outer_count.clamp(min=1), torch.zeros_like(outer_sum))
        score = inner - outer + score_weight * video_scores.double()[video[row], label[row]]
        step = seconds_per_row.double()[video[row]] / upsampling
        segment = torch.stack([first * step, (last + 1) * step], dim=1)
        found.append((segment, score, label[row], video[row], torch.full_like(row, number)))
    segments, scores, classes, videos, numbers = (torch.cat(parts) for parts in zip(*found, strict=True))
    order = videos.argsort(stable=True)
    return segments[order], scores[order], classes[order], videos[order], numbers[order]


def propose_padded(*args: Any) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """The arguments of ``propose`` and a capacity: its first ``capacity`` proposals, then padding; and their number."""
    *given, capacity = args
    found = propose(*given)
    padded = padding(given[0], capacity)
    for to, column in zip(padded, found, strict=True):
        to[: len(column)] = column[:capacity]
    return *padded, torch.tensor(len(found[1]), device=given[0].device)


def padding(like: Tensor, capacity: int) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """What stands where no proposal does: segments 0, scores -inf, classes, video and threshold -1."""
    segments = torch.zeros(capacity, 2, dtype=torch.float64, device=like.device)
    scores = torch.full_like(segments[:, 0], -torch.inf)
    classes, video, threshold = (torch.full_like(scores, -1, dtype=torch.int64) for _ in range(3))
    return segments, scores, classes, video, threshold
