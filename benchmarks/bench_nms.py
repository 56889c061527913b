"""Non-maximum suppression of one video's worth of proposals: 20 classes of 500."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from case import ops

GROUPS, PER_GROUP, THRESHOLD, SIGMA = 20, 500, 0.4, 0.35
N, PAIRS = GROUPS * PER_GROUP, 2_000
MOVED = N * (2 * 8 + 8 + 8) + N * 16


def as_wtal_code_does(segments: Tensor, scores: Tensor, groups: Tensor) -> tuple[Tensor, Tensor]:
    """The usual numpy loop, class by class: the best one against all that remain."""
    ends, weights, labels = (x.numpy(force=True) for x in (segments, scores, groups))
    keep, found = [], []
    for label in np.unique(labels):
        members = np.flatnonzero(labels == label)
        queue = members[np.argsort(-weights[members], kind="stable")]
        decayed, decayed_scores = [], []
        while len(queue) > 0:
            best, rest = queue[0], queue[1:]
            keep.append(best)
            found.append(weights[best])
            low = np.maximum(ends[best, 0], ends[rest, 0])
            inter = np.maximum(0.0, np.minimum(ends[best, 1], ends[rest, 1]) - low)
            iou = inter / (ends[best, 1] - ends[best, 0] + ends[rest, 1] - ends[rest, 0] - inter)
            beaten = iou >= THRESHOLD
            decayed += rest[beaten].tolist()
            decayed_scores += (weights[rest[beaten]] * np.exp(-np.square(iou[beaten]) / SIGMA)).tolist()
            queue = rest[~beaten]
        keep += decayed
        found += decayed_scores
    return torch.tensor(np.array(keep, np.int64)), torch.tensor(np.array(found))


def inputs() -> dict[str, Tensor]:
    torch.manual_seed(0)
    start = 200 * torch.rand(N, dtype=torch.float64)
    segments = torch.stack([start, start + 0.5 + 20 * torch.rand(N, dtype=torch.float64) ** 2], dim=1)
    scores = torch.rand(N, dtype=torch.float64)
    return {"segments": segments, "scores": scores, "groups": torch.arange(N) % GROUPS}


@pytest.mark.bench("batched_nms", peers=("numpy loop",))
def test_decay_once(measure: Callable[..., None]) -> None:
    measure(
        lambda segments, scores, groups: ops.batched_nms(
            segments, scores, groups, THRESHOLD, method="decay_once", sigma=SIGMA
        ),
        inputs(),
        peers={"numpy loop": as_wtal_code_does},
        moved=MOVED,
        tolerance=1e-12,
        groups=GROUPS,
        per_group=PER_GROUP,
    )


def measure_one_group(measure: Callable[..., None], method: str, n: int) -> None:
    """Ten segments of 0.5 to 20 seconds start each second."""
    torch.manual_seed(0)
    start = n / 10 * torch.rand(n, dtype=torch.float64)
    segments = torch.stack([start, start + 0.5 + 20 * torch.rand(n, dtype=torch.float64) ** 2], dim=1)
    measure(
        lambda segments, scores: ops.nms(segments, scores, THRESHOLD, method=method, sigma=SIGMA),
        {"segments": segments, "scores": torch.rand(n, dtype=torch.float64)},
        moved=n * (2 * 8 + 8),
        tolerance=1e-9,
        n=n,
    )


@pytest.mark.bench("batched_nms")
def test_hard_in_one_group(measure: Callable[..., None]) -> None:
    measure_one_group(measure, "hard", 10_000)


@pytest.mark.bench("batched_nms")
def test_gaussian_in_one_group(measure: Callable[..., None]) -> None:
    measure_one_group(measure, "gaussian", 1_000)


@pytest.mark.bench("temporal_iou", backward=True)
def test_temporal_iou(measure: Callable[..., None]) -> None:
    segments = inputs()["segments"].float()
    given = {"a": segments[:PAIRS].clone(), "b": segments[-PAIRS:].clone()}
    moved = 4 * (2 * PAIRS * 2 + PAIRS**2)
    measure(ops.temporal_iou, given, leaves=("a", "b"), moved=moved, tolerance=1e-4, m=PAIRS, p=PAIRS)
