"""IoUs of segments with the segments of their own video, without a matrix of all with all."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from case.metrics.arrays import Floats, Ints

# Pairs at a time: bounds memory to some tens of megabytes.
CHUNK = 1 << 19


def by_group(group: Ints, score: Floats) -> Ints:
    """Order by group (n,), within it by falling score; equal ones keep their order."""
    order = np.argsort(-score, kind="stable")
    # numpy sorts 16 bits by radix, some twenty times as fast.
    small = len(group) == 0 or (group.min() >= 0 and group.max() < 1 << 16)
    ranked = group[order].astype(np.uint16) if small else group[order]
    return order[np.argsort(ranked, kind="stable")]


def ranges(video: Ints, others: Ints) -> tuple[Ints, Ints]:
    """Where in the sorted ``others`` each ``video`` (n,) stands: first place and count, (n,) each."""
    first = np.searchsorted(others, video, side="left")
    return first, np.searchsorted(others, video, side="right") - first


def pairwise(segment: Floats, others: Floats, first: Ints, count: Ints) -> Iterator[tuple[slice, Ints, Ints, Floats]]:
    """IoU of segment i (n, 2) with each of others[first[i] : first[i] + count[i]] (m, 2); every count is at least 1.

    Yields a slice of the rows, where each row's pairs begin, and each pair's place in ``others`` and IoU: as many rows
    at a time as have ``CHUNK`` pairs, one at least. IoU is 0 where the union is empty.
    """
    done = np.cumsum(count)
    start = 0
    while start < len(count):
        before = done[start] - count[start]
        stop = max(start + 1, int(np.searchsorted(done, before + CHUNK, side="right")))
        n = count[start:stop]
        begin = np.cumsum(n) - n
        place = np.arange(int(n.sum())) - np.repeat(begin - first[start:stop], n)
        a, b = np.repeat(segment[start:stop], n, axis=0), others[place]
        inter = np.maximum(0.0, np.minimum(a[:, 1], b[:, 1]) - np.maximum(a[:, 0], b[:, 0]))
        union = (b[:, 1] - b[:, 0]) + (a[:, 1] - a[:, 0]) - inter
        iou = np.divide(inter, union, out=np.zeros_like(inter), where=union > 0)
        yield slice(start, stop), begin, place, iou
        start = stop
