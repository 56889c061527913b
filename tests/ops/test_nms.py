"""Temporal IoU and non-maximum suppression against the quadratic textbook loop."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from case import ops

Segment = tuple[float, float]
SOFT = ("linear", "gaussian")
SIGMA = 0.35


def iou(a: Segment, b: Segment, offset: float = 0.0) -> float:
    inter = max(0.0, min(a[1], b[1]) - max(a[0], b[0]) + offset)
    union = (a[1] - a[0] + offset) + (b[1] - b[0] + offset) - inter
    return inter / union if union > 0 else 0.0


def textbook(
    segments: list[Segment],
    scores: list[float],
    threshold: float,
    method: str,
    min_score: float,
    max_num: int | None,
    offset: float,
) -> tuple[list[int], list[float]]:
    """hard and decay_once: kept ones by falling score, then (decay_once) the decayed as they left the queue."""
    queue = sorted(range(len(scores)), key=lambda i: -scores[i])  # stable: first in, first out
    kept, decayed = [], []
    while queue:
        best, *rest = queue
        kept.append((best, scores[best]))
        queue = []
        for other in rest:
            overlap = iou(segments[best], segments[other], offset)
            if overlap < threshold:
                queue.append(other)
            elif method == "decay_once":
                decayed.append((other, scores[other] * math.exp(-(overlap**2) / SIGMA)))
    result = [(i, s) for i, s in kept + decayed if s >= min_score]
    if max_num is not None:
        best_places = sorted(range(len(result)), key=lambda place: -result[place][1])[:max_num]
        result = [result[place] for place in sorted(best_places)]
    return [i for i, _ in result], [s for _, s in result]


def follow_soft(
    keep: list[int],
    found: list[float],
    segments: list[Segment],
    scores: list[float],
    threshold: float,
    method: str,
    min_score: float,
    max_num: int | None,
    offset: float,
    eps: float,
) -> None:
    """linear and gaussian: every pick must be the best of what remains, up to rounding, and carry the decayed score."""
    current, left = list(scores), [i for i, s in enumerate(scores) if s >= min_score]
    for pick, score in zip(keep, found, strict=True):
        assert pick in left
        best = max(current[i] for i in left)
        assert current[pick] >= best - eps
        assert abs(score - current[pick]) <= eps
        equals = [i for i in left if scores[i] == current[i] == current[pick] == scores[pick]]
        assert pick == min(equals, default=pick)  # untouched and equal: first in, first out
        left.remove(pick)
        for i in left:
            overlap = iou(segments[pick], segments[i], offset)
            linear = 1 - overlap if overlap >= threshold else 1.0
            current[i] *= linear if method == "linear" else math.exp(-(overlap**2) / SIGMA)
        # A score that decays to min_score itself is rounded to either side of it.
        left = [i for i in left if current[i] >= min_score - eps]
    assert len(keep) == max_num or all(current[i] < min_score + eps for i in left)
    assert max_num is None or len(keep) <= max_num


# Ends are multiples of 1/4 and thresholds of 1/4: an IoU on the threshold is there exactly, in float32 too.
ENDS = st.integers(-12, 24).map(lambda i: i / 4)
LENGTHS = st.sampled_from([0.0, 0.25, 1.0, 1.0, 2.0, 3.0, 6.0])
ROWS = st.tuples(ENDS, LENGTHS, st.integers(0, 16).map(lambda i: i / 16))
THRESHOLDS = st.sampled_from([0.0, 0.25, 0.5, 0.5, 0.75, 1.0])


@pytest.mark.op("batched_nms")
@pytest.mark.parametrize("method", ["hard", "decay_once", "linear", "gaussian"])
@settings(max_examples=50, deadline=None, database=None, suppress_health_check=list(HealthCheck))
@given(
    rows=st.lists(ROWS, max_size=14),
    threshold=THRESHOLDS,
    offset=st.sampled_from([0.0, 0.0, 1.0]),
    min_score=st.sampled_from([-math.inf, -math.inf, 0.25, 0.5]),
    max_num=st.sampled_from([None, None, 1, 3]),
    dtype=st.sampled_from([torch.float32, torch.float64]),
)
def test_one_group(device, method, rows, threshold, offset, min_score, max_num, dtype):
    segments = [(start, start + length) for start, length, _ in rows]
    scores = [score for *_, score in rows]
    keep, kept_scores = ops.nms(
        torch.tensor(segments, dtype=dtype, device=device).reshape(-1, 2),
        torch.tensor(scores, dtype=dtype, device=device),
        threshold,
        method=method,
        sigma=SIGMA,
        min_score=min_score,
        max_num=max_num,
        length_offset=offset,
    )
    assert keep.dtype == torch.int64
    assert kept_scores.dtype == dtype
    eps = 1e-12 if dtype == torch.float64 else 2e-6
    options = (segments, scores, threshold, method, min_score, max_num, offset)
    if method in SOFT:
        follow_soft(keep.tolist(), kept_scores.tolist(), *options, eps=eps)
    else:
        wanted, wanted_scores = textbook(*options)
        assert keep.tolist() == wanted
        np.testing.assert_allclose(kept_scores.numpy(force=True), wanted_scores, rtol=eps, atol=0)


def random_groups(draw: Any, n: int, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """Segments, distinct scores, and groups with unsorted, negative and missing numbers; one of a single segment."""
    start = draw.uniform(n, low=-20.0, high=60.0)
    segments = torch.stack([start, start + draw.uniform(n, high=15.0)], dim=1)
    groups = torch.tensor([7, -3, 10**12, 0])[draw.integers(0, 4, n)]
    groups[n // 2] = 5
    return segments.to(device), draw.uniform(n).to(device), groups.to(device)


@pytest.mark.op("batched_nms")
@pytest.mark.parametrize("method", ["hard", "decay_once", "linear", "gaussian"])
def test_groups_are_independent_and_come_by_rising_number(draw, device, method):
    segments, scores, groups = random_groups(draw, 80, device)
    options = {"method": method, "sigma": SIGMA, "min_score": 0.05, "max_num": 9, "length_offset": 0.5}
    found = ops.batched_nms(segments, scores, groups, 0.3, **options)
    keep, kept_scores = [], []
    for group in groups.unique():
        members = (groups == group).nonzero()[:, 0]
        alone = ops.nms(segments[members], scores[members], 0.3, **options)
        keep += members[alone.keep].tolist()
        kept_scores += alone.scores.tolist()
    assert found.keep.tolist() == keep
    np.testing.assert_allclose(found.scores.numpy(force=True), kept_scores, rtol=1e-12)


@pytest.mark.op("batched_nms")
@pytest.mark.parametrize("method", ["hard", "decay_once", "linear", "gaussian"])
def test_order_of_input_does_not_matter(draw, device, method):
    segments, scores, groups = random_groups(draw, 60, device)
    shuffle = torch.from_numpy(draw.generator.permutation(60)).to(device)
    keep, kept = ops.batched_nms(segments, scores, groups, 0.4, method=method)
    other_keep, other = ops.batched_nms(segments[shuffle], scores[shuffle], groups[shuffle], 0.4, method=method)
    assert shuffle[other_keep].tolist() == keep.tolist()
    np.testing.assert_allclose(other.numpy(force=True), kept.numpy(force=True), rtol=1e-12)


@pytest.mark.op("batched_nms")
def test_methods_differ_and_nothing_is_just_returned(draw, device):
    start = draw.uniform(50, high=10.0)
    segments = torch.stack([start, start + 4.0], dim=1).to(device)
    scores = draw.uniform(50, low=0.1).to(device)
    sizes = {m: ops.nms(segments, scores, 0.4, method=m) for m in ("hard", "decay_once", "linear", "gaussian")}
    assert len(sizes["hard"].keep) < 50
    assert all(len(sizes[m].keep) == 50 for m in ("decay_once", *SOFT))
    sums = {m: sizes[m].scores.sum().item() for m in sizes}
    assert len({round(s, 9) for s in sums.values()}) == 4


@pytest.mark.op("batched_nms", "score_vote")
def test_voting(draw, close, device):
    segments, scores, groups = random_groups(draw, 60, device)
    found = ops.batched_nms(segments, scores, groups, 0.4, length_offset=1.0, vote=0.3)
    plain = ops.batched_nms(segments, scores, groups, 0.4, length_offset=1.0)
    assert found.keep.tolist() == plain.keep.tolist()
    rows, weights, labels = segments.tolist(), scores.tolist(), groups.tolist()
    for place, i in enumerate(found.keep.tolist()):
        total, moved = 0.0, [0.0, 0.0]
        for j in range(60):
            overlap = iou(tuple(rows[i]), tuple(rows[j]), 1.0)
            if labels[j] == labels[i] and overlap >= 0.3:
                total += weights[j] * overlap
                moved = [m + weights[j] * overlap * end for m, end in zip(moved, rows[j], strict=True)]
        close(found.segments[place], [m / total for m in moved])
    assert (found.segments - segments[found.keep]).abs().max() > 1e-3
    empty = ops.batched_nms(segments[:0], scores[:0], groups[:0], 0.4, vote=0.3)
    assert [len(part) for part in empty] == [0, 0, 0]


@pytest.mark.op("temporal_iou")
@pytest.mark.parametrize("sizes", [(0, 3), (1, 1), (2, 5), (33, 97)], ids=str)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_temporal_iou(draw, close, device, dtype, sizes):
    # Quarters below 16 are exact in every dtype; segments of no length and of negative length are among them.
    a, b = (draw.integers(-16, 32, 2, n, 2) / 4.0 for n in sizes)
    for offset in (0.0, 1.0):
        found = ops.temporal_iou(a.to(device, dtype), b.to(device, dtype), length_offset=offset)
        assert found.dtype == dtype
        for lead in range(2):
            wanted = [[iou(tuple(x), tuple(y), offset) for y in b[lead].tolist()] for x in a[lead].tolist()]
            close(found[lead], np.reshape(wanted, sizes))


@pytest.mark.op("temporal_iou")
def test_temporal_iou_layouts_and_gradients(draw, close, check_gradients, lay_out, device):
    a, b = (
        torch.stack([s, s + draw.uniform(3, n, low=1.0, high=4.0)], dim=-1)
        for n, s in ((n, draw.uniform(3, n, high=3.0)) for n in (4, 5))
    )
    laid_a, laid_b = lay_out(a.to(device)), lay_out(b.to(device))
    close(ops.temporal_iou(laid_a, laid_b), ops.temporal_iou(laid_a.contiguous(), laid_b.contiguous()))
    check_gradients(ops.temporal_iou, a[0], b[0])
    check_gradients(lambda x, y: ops.temporal_iou(x, y, length_offset=1.0), a[0], b[0])


@pytest.mark.op("temporal_iou")
def test_temporal_iou_compiles(draw, check_compiles, device):
    segments, *_ = random_groups(draw, 20, device)
    check_compiles(ops.temporal_iou, segments[:4].clone().requires_grad_(), segments[4:].clone().requires_grad_())


@pytest.mark.op("batched_nms")
def test_compiles(draw, check_compiles, device):
    segments, scores, groups = random_groups(draw, 20, device)
    check_compiles(lambda x, s: ops.nms(x, s, 0.4, method="decay_once"), segments, scores)
    check_compiles(lambda x, s, g: ops.batched_nms(x, s, g, 0.4, method="linear"), segments, scores, groups)


@pytest.mark.op("batched_nms_padded")
@pytest.mark.parametrize("method", ["hard", "decay_once", "linear", "gaussian"])
@pytest.mark.parametrize("capacity", [1, 10, None, 100])
def test_padded(draw, device, method, capacity):
    segments, scores, groups = random_groups(draw, 80, device)
    options = {"method": method, "sigma": SIGMA, "min_score": 0.2, "max_num": 9, "length_offset": 0.5}
    with ops.backend("reference"):
        plain = ops.batched_nms(segments, scores, groups, 0.3, **options)
    found = ops.batched_nms_padded(segments, scores, groups, 0.3, capacity=capacity, **options)
    total = len(plain.keep)
    assert found.total.shape == ()
    assert found.total.dtype == torch.int64
    assert int(found.total) == total
    capacity = 80 if capacity is None else capacity
    held = min(total, capacity)
    assert found.keep.shape == found.scores.shape == (capacity,)
    assert torch.equal(found.keep[:held], plain.keep[:held])
    np.testing.assert_allclose(found.scores[:held].numpy(force=True), plain.scores[:held].numpy(force=True), rtol=1e-12)
    assert (found.keep[held:] == -1).all()
    assert (found.scores[held:] == -math.inf).all()


@pytest.mark.op("batched_nms_padded")
def test_padded_compiles(draw, device):
    given = random_groups(draw, 20, device)

    def run(*given: Tensor) -> ops.PaddedNMSResult:
        return ops.batched_nms_padded(*given, 0.4, capacity=30, method="decay_once")

    for one, other in zip(torch.compile(run, fullgraph=True, backend="aot_eager")(*given), run(*given)):
        assert torch.equal(one, other)


@pytest.mark.op("batched_nms", "score_vote")
def test_voting_compiles(draw, check_compiles, device):
    check_compiles(lambda x, s, g: ops.batched_nms(x, s, g, 0.4, vote=0.3), *random_groups(draw, 20, device))
