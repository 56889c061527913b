"""Proposals against a loop over samples in float64."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from case import ops

Array = NDArray[np.float64]
Row = tuple[int, int, int, float, float, float]  # video, threshold, class, start, end, score


def upsampled(x: Array, factor: int) -> Array:
    """x (T,) at i / factor by linear interpolation, extrapolated past the last row."""
    out = np.zeros(factor * len(x))
    for i in range(len(out)):
        low = min(i // factor, len(x) - 2)
        out[i] = x[0] if len(x) == 1 else x[low] + (x[low + 1] - x[low]) * (i / factor - low)
    return out


def runs(above: list[bool]) -> list[tuple[int, int]]:
    """(first, last) of every maximal run of True."""
    found: list[tuple[int, int]] = []
    for i, on in enumerate(above):
        if on and i > 0 and above[i - 1]:
            found[-1] = (found[-1][0], i)
        elif on:
            found.append((i, i))
    return found


def by_loops(
    cas: Array,
    thresholds: list[float],
    factor: int,
    ratio: float,
    weight: float,
    scores: Array,
    mask: Any,
    seconds: Any,
    keep_first: bool,
) -> list[Row]:
    rows: list[Row] = []
    for video in range(cas.shape[0]):
        for number, threshold in enumerate(thresholds):
            for label in range(cas.shape[2]):
                if not mask[video, label]:
                    continue
                signal = upsampled(cas[video, :, label], factor)
                above = [bool(v >= threshold and v > 0) for v in signal]
                if not keep_first and not any(above[1:]):
                    above[0] = False
                for first, last in runs(above):
                    margin = ratio * (last - first + 1)
                    left, right = int(max(0.0, first - margin)), int(min(len(signal) - 1.0, last + margin))
                    outside = np.concatenate([signal[left:first], signal[last + 1 : right + 1]])
                    contrast = np.mean(signal[first : last + 1]) - (np.mean(outside) if len(outside) else 0.0)
                    step = seconds[video] / factor
                    score = contrast + weight * scores[video, label]
                    rows.append((video, number, label, first * step, (last + 1) * step, score))
    return rows


def check(close: Any, found: ops.Proposals, expected: list[Row]) -> None:
    table = np.array(expected, np.float64).reshape(-1, 6)
    for column, part in enumerate((found.video, found.threshold, found.classes)):
        assert part.dtype == torch.int64
        assert part.tolist() == table[:, column].astype(int).tolist()
    assert found.segments.dtype == found.scores.dtype == torch.float64
    close(found.segments, table[:, 3:5])
    close(found.scores, table[:, 5], 1e-11)


def signal(draw: Any, videos: int, rows: int, classes: int) -> Tensor:
    """Mostly inside [0, 1], some below 0 and, after extrapolation, outside at the end."""
    return draw.uniform(videos, rows, classes, low=-0.1, high=0.9)


@pytest.mark.op("propose")
@pytest.mark.parametrize("keep_first", [True, False])
@pytest.mark.parametrize("upsample", [1, 2, 24])
@pytest.mark.parametrize("sizes", [(1, 1, 1), (2, 2, 3), (3, 13, 4), (0, 5, 2), (2, 5, 0)], ids=str)
def test_values(draw, close, device, sizes, upsample, keep_first):
    videos, _, classes = sizes
    thresholds = [0.5, 0.1, -0.2, 0.0, 0.95]
    for dtype in (torch.float64, torch.float32, torch.bfloat16, torch.float16):
        cas = signal(draw, *sizes).to(dtype)
        scores, mask = draw.uniform(videos, classes).to(dtype), draw.keep(0.7, videos, classes)
        seconds = draw.uniform(videos, low=0.1, high=2.0)
        found = ops.propose(
            cas.to(device),
            thresholds,
            upsample=upsample,
            outer_ratio=0.3,
            score_weight=0.7,
            video_scores=scores.to(device),
            seconds_per_row=seconds.to(device),
            class_mask=mask.to(device),
            keep_first_sample=keep_first,
        )
        exact, weights = cas.double().numpy(), scores.double().numpy()
        check(
            close,
            found,
            by_loops(exact, thresholds, upsample, 0.3, 0.7, weights, mask.numpy(), seconds.numpy(), keep_first),
        )


@pytest.mark.op("propose")
@pytest.mark.parametrize("ratio", [0.0, 0.15, 1.0, 50.0, 1e300])
def test_margins(draw, close, device, ratio):
    cas, scores = signal(draw, 2, 20, 2), draw.uniform(2, 2)
    found = ops.propose(
        cas.to(device), [0.3, 0.6], upsample=8, outer_ratio=ratio, video_scores=scores.to(device), seconds_per_row=0.64
    )
    full, seconds = np.ones((2, 2), bool), [0.64, 0.64]
    check(close, found, by_loops(cas.numpy(), [0.3, 0.6], 8, ratio, 0.2, scores.numpy(), full, seconds, True))


@pytest.mark.op("propose")
@pytest.mark.parametrize("ratio, first", [(0.15, 17), (0.3, 17), (0.3, 40)])
def test_margins_that_end_on_a_sample(draw, close, device, ratio, first):
    """ratio * length is a whole number for some lengths, but not quite so in float32 or in float64."""
    lengths = [10, 20, 50, 90, 100]
    cas = draw.uniform(len(lengths), 200, 1, high=0.4)
    for video, length in enumerate(lengths):
        cas[video, first : first + length] += 0.5
    scores, full = torch.zeros(len(lengths), 1, dtype=torch.float64), np.ones((len(lengths), 1), bool)
    found = ops.propose(
        cas.to(device), [0.5], upsample=1, outer_ratio=ratio, video_scores=scores.to(device), seconds_per_row=1.0
    )
    check(close, found, by_loops(cas.numpy(), [0.5], 1, ratio, 0.2, scores.numpy(), full, np.ones(len(lengths)), True))


@pytest.mark.op("propose")
def test_first_sample_alone(draw, close, device):
    cas = torch.tensor([0.9, 0.1, 0.1, 0.0], dtype=torch.float64, device=device)[:, None]
    options = {"upsample": 1, "video_scores": torch.tensor([0.5], device=device), "seconds_per_row": 2.0}
    kept = ops.propose(cas, [0.5, 0.1], **options)
    dropped = ops.propose(cas, [0.5, 0.1], keep_first_sample=False, **options)
    assert kept.segments.tolist() == [[0.0, 2.0], [0.0, 6.0]]
    assert dropped.segments.tolist() == [[0.0, 6.0]]
    assert dropped.threshold.tolist() == [1]


@pytest.mark.op("propose")
def test_one_video_without_leading_dimension(draw, close, device):
    cas, scores, mask = signal(draw, 1, 9, 3).to(device), draw.uniform(1, 3).to(device), draw.keep(0.8, 1, 3).to(device)
    options = {"seconds_per_row": 0.5, "thresholds": torch.tensor([0.2, 0.4])}
    batch = ops.propose(cas, video_scores=scores, class_mask=mask, **options)
    single = ops.propose(cas[0], video_scores=scores[0], class_mask=mask[0], **options)
    for one, other in zip(single, batch, strict=True):
        assert torch.equal(one, other)


@pytest.mark.op("propose")
def test_memory_layouts_and_no_gradient(draw, device, lay_out):
    cas = lay_out(signal(draw, 3, 9, 5).to(device)).detach().requires_grad_()
    scores = draw.uniform(3, 1).to(device).expand(3, 5)
    found = ops.propose(cas, [0.2, 0.4], video_scores=scores, seconds_per_row=0.5)
    plain = ops.propose(cas.detach().contiguous(), [0.2, 0.4], video_scores=scores.contiguous(), seconds_per_row=0.5)
    assert len(found.scores) > 0
    for one, other in zip(found, plain, strict=True):
        assert not one.requires_grad
        assert torch.equal(one, other)


@pytest.mark.op("propose")
def test_compiles(draw, check_compiles, device):
    cas, scores = signal(draw, 2, 9, 3).to(device), draw.uniform(2, 3).to(device)
    check_compiles(
        lambda c, s: ops.propose(c, [0.2, 0.4], video_scores=s, seconds_per_row=0.5, class_mask=s > 0.3), cas, scores
    )


CAS, SCORES = torch.zeros(2, 4, 3), torch.zeros(2, 3)
WRONG: list[tuple[dict[str, Any], type[Exception], str, str]] = [
    ({"cas": [[0.0]]}, TypeError, "cas", "list"),
    ({"cas": CAS.int()}, TypeError, "cas", "torch.int32"),
    ({"cas": torch.zeros(4)}, ValueError, "cas", "(4,)"),
    ({"cas": torch.zeros(1, 2, 4, 3)}, ValueError, "cas", "(1, 2, 4, 3)"),
    ({"cas": torch.zeros(2, 0, 3)}, ValueError, "cas", "(2, 0, 3)"),
    ({"thresholds": []}, ValueError, "thresholds", "(0,)"),
    ({"thresholds": torch.zeros(2, 2)}, ValueError, "thresholds", "(2, 2)"),
    ({"upsample": 0}, ValueError, "upsample", "0"),
    ({"outer_ratio": -0.1}, ValueError, "outer_ratio", "-0.1"),
    ({"upsample": 2**30}, ValueError, "upsample", "1073741824"),
    ({"score_weight": float("nan")}, ValueError, "score_weight", "nan"),
    ({"cas": torch.tensor([0.5, -math.inf])[:, None].expand(2, 2, 3)}, ValueError, "cas", "-inf"),
    ({"thresholds": [0.5, float("nan")]}, ValueError, "thresholds", "nan"),
    ({"video_scores": torch.tensor([[0.0, 0.0, 0.0], [0.0, math.inf, 0.0]])}, ValueError, "video_scores", "inf"),
    ({"seconds_per_row": float("inf")}, ValueError, "seconds_per_row", "inf"),
    ({"video_scores": torch.zeros(3)}, ValueError, "video_scores", "(3,)"),
    ({"video_scores": SCORES.long()}, TypeError, "video_scores", "torch.int64"),
    ({"video_scores": SCORES.to("meta")}, ValueError, "video_scores", "meta"),
    ({"seconds_per_row": torch.zeros(3)}, ValueError, "seconds_per_row", "(3,)"),
    ({"class_mask": SCORES}, TypeError, "class_mask", "torch.float32"),
    ({"class_mask": [True, False]}, TypeError, "class_mask", "list"),
    ({"class_mask": torch.ones(3, 2).bool()}, ValueError, "class_mask", "(3, 2)"),
    ({"cas": CAS[0], "video_scores": [0.0, 0.0, 0.0]}, TypeError, "video_scores", "list"),
    ({"cas": CAS[0], "video_scores": SCORES[0], "class_mask": [True] * 3}, TypeError, "class_mask", "list"),
]


@pytest.mark.parametrize("given, kind, argument, got", WRONG, ids=[f"{a}-{g}" for _, _, a, g in WRONG])
def test_refuses(fails, given, kind, argument, got):
    good = {"cas": CAS, "thresholds": [0.5], "video_scores": SCORES, "seconds_per_row": 0.5}
    with fails(kind, "propose", argument, got):
        ops.propose(**{**good, **given})


@pytest.mark.op("propose_padded")
@pytest.mark.parametrize("capacity", [1, 10, 1000])
def test_padded(draw, device, capacity):
    cas, scores = signal(draw, 2, 30, 3).to(device), draw.uniform(2, 3).to(device)
    options = {"thresholds": [0.5, 0.1], "video_scores": scores, "seconds_per_row": 0.5, "outer_ratio": 0.3}
    with ops.backend("reference"):
        plain = ops.propose(cas, class_mask=scores > 0.2, **options)
    found = ops.propose_padded(cas, class_mask=scores > 0.2, capacity=capacity, **options)
    total = len(plain.scores)
    assert found.total.shape == ()
    assert int(found.total) == total
    for column, (one, other) in enumerate(zip(found[:5], plain, strict=True)):
        held = min(total, capacity)
        assert one.shape == (capacity, *other.shape[1:])
        assert one.dtype == other.dtype
        torch.testing.assert_close(one[:held], other[:held], rtol=1e-11, atol=1e-11)
        assert (one[held:] == (0.0, -math.inf, -1, -1, -1)[column]).all()


@pytest.mark.op("propose_padded")
def test_padded_compiles(draw, device):
    cas, scores = signal(draw, 2, 9, 3).to(device), draw.uniform(2, 3).to(device)

    def run(cas: Tensor, scores: Tensor) -> ops.PaddedProposals:
        return ops.propose_padded(cas, [0.2, 0.4], capacity=50, video_scores=scores, seconds_per_row=0.5)

    for one, other in zip(torch.compile(run, fullgraph=True, backend="aot_eager")(cas, scores), run(cas, scores)):
        assert torch.equal(one, other)


@pytest.mark.parametrize("given, kind, argument, got", WRONG, ids=[f"{a}-{g}" for _, _, a, g in WRONG])
def test_padded_refuses(fails, given, kind, argument, got):
    good = {"cas": CAS, "thresholds": [0.5], "video_scores": SCORES, "seconds_per_row": 0.5, "capacity": 5}
    with fails(kind, "propose_padded", argument, got):
        ops.propose_padded(**{**good, **given})


def test_padded_refuses_no_capacity(fails):
    with fails(ValueError, "propose_padded", "capacity", "0"):
        ops.propose_padded(CAS, [0.5], capacity=0, video_scores=SCORES, seconds_per_row=0.5)
