"""The matching behind mAP in plain numpy: what ``csrc/map.cpp`` is measured by, and what runs where it is absent."""

from __future__ import annotations

import numpy as np

from case.metrics.arrays import Bools, Floats, Instances, Ints


def average_precision(
    truth: Instances,
    found: Instances,
    tiou: Floats,
    *,
    forgive: Bools | None = None,
    best_only: bool = False,
    interpolate: bool = True,
) -> tuple[Floats, Ints]:
    """AP (thresholds,) of one class, and the instance that each prediction claims, (n, thresholds), -1 for none."""
    order = np.argsort(-found.score, kind="stable")
    claims = np.full((len(order), len(tiou)), -1, dtype=np.int64)
    _claim(truth, found, order, tiou, best_only, claims)
    if len(truth.segment) == 0:
        return np.full(len(tiou), np.nan), claims
    if len(order) == 0:
        return np.zeros(len(tiou)), claims
    hit = claims[order].T >= 0
    counts = np.ones_like(hit) if forgive is None else hit | ~forgive[order]
    precision = hit.cumsum(1) / np.maximum(counts.cumsum(1), 1)
    if interpolate:
        precision = np.maximum.accumulate(precision[:, ::-1], axis=1)[:, ::-1]
    # Recall rises by 1 / (ground truths) at each hit: the area is the mean of the precision there.
    return np.where(hit, precision, 0.0).sum(1) / len(truth.segment), claims


def segment_iou(a: Floats, b: Floats) -> Floats:
    """(..., 2) segments that broadcast against one another -> (...), 0 where the union is empty."""
    inter = np.maximum(0.0, np.minimum(a[..., 1], b[..., 1]) - np.maximum(a[..., 0], b[..., 0]))
    union = (b[..., 1] - b[..., 0]) + (a[..., 1] - a[..., 0]) - inter
    return np.divide(inter, union, out=np.zeros_like(inter), where=union > 0)


def network_order(values: Floats) -> Ints:
    """Indices (n,) that sort values (n,) by a bitonic network in which only a strictly smaller value moves forward.

    It decides which of equal IoUs (a prediction that holds two instances of one length) is claimed first. The published
    evaluator leaves that to ``argsort()[::-1]``, and numpy's sort of float64, whatever ``kind`` it is asked for unless
    stable, is another one on each kind of CPU. Published figures were made where numpy has AVX2: there it is this
    network (of x86-simd-sort) up to 256 values; THUMOS14 has 218 at most. Here it is the same on every machine.
    """
    order = np.arange(len(values))

    def compare(low: Ints, high: Ints) -> None:
        low, high = low[high < len(values)], high[high < len(values)]
        wrong = values[order[high]] < values[order[low]]
        low, high = low[wrong], high[wrong]
        order[low], order[high] = order[high], order[low]

    place = np.arange(len(values))
    block = 2
    while block < 2 * len(values):
        first = place[place % block < block // 2]
        compare(first, first // block * block + block - 1 - first % block)
        distance = block // 4
        while distance:
            first = place[place & distance == 0]
            compare(first, first + distance)
            distance //= 2
        block *= 2
    return order


def _claim(truth: Instances, found: Instances, order: Ints, tiou: Floats, best_only: bool, claims: Ints) -> None:
    """Fills ``claims``. A claim concerns one video only, so videos are settled one after another."""
    if len(tiou) == 0:
        return
    video = found.video[order]
    for v in np.unique(truth.video):
        mine = order[video == v]
        instances = np.flatnonzero(truth.video == v)
        claimed = np.zeros((len(tiou), len(instances)), dtype=bool)
        overlaps = segment_iou(found.segment[mine][:, None], truth.segment[instances])
        for row in np.flatnonzero(overlaps.max(1, initial=0.0) >= tiou.min()):
            iou = overlaps[row]
            ranked = np.flatnonzero(iou >= tiou.min())
            ranked = ranked[np.argsort(-iou[ranked], kind="stable")]
            if (iou[ranked[1:]] == iou[ranked[:-1]]).any():
                ranked = network_order(iou)[::-1][: len(ranked)]
            for level, threshold in enumerate(tiou):
                asked = ranked[:1] if best_only else ranked
                taken = next((i for i in asked if iou[i] >= threshold and not claimed[level, i]), None)
                if taken is not None:
                    claimed[level, taken] = True
                    claims[mine[row], level] = instances[taken]
