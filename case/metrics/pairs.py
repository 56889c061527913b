"""IoUs of segments with the segments of their own video, without a matrix of all with all."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from case.metrics.arrays import Floats, Ints
from case.metrics.matching import places
from case.metrics.reference import segment_iou

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


class Overlaps:
    """Segments of many videos, laid out so that those which share more than a moment with another are found together.

    ``order`` (k,): which of the segments given, all of positive length, by video and start.
    """

    def __init__(self, video: Ints, segment: Floats) -> None:
        kept = np.flatnonzero(segment[:, 1] > segment[:, 0])
        self.order = kept[np.lexsort((segment[kept, 0], video[kept]))]
        self._videos, of = np.unique(video[self.order], return_inverse=True)
        # Times become their ranks, since (video, rank) fits one integer, which searches and maxima can take exactly.
        self._starts, start = np.unique(segment[self.order, 0], return_inverse=True)
        self._ends, end = np.unique(segment[self.order, 1], return_inverse=True)
        self._by_start = of * (len(self._starts) + 1) + start
        self._by_end = np.maximum.accumulate(of * (len(self._ends) + 1) + end)  # the latest so far in its video

    def stretches(self, video: Ints, segment: Floats) -> tuple[Ints, Ints]:
        """Where in ``order`` those stand that overlap each segment (n, 2): first place and count, (n,) each.

        Others may stand among them, but where none overlaps the count is 0.
        """
        of = places(self._videos, video)
        start, end = segment[:, 0], segment[:, 1]
        before = of * (len(self._starts) + 1) + np.searchsorted(self._starts, end, side="left")
        after = of * (len(self._ends) + 1) + np.searchsorted(self._ends, start, side="right")
        first = np.searchsorted(self._by_end, after)
        count = np.searchsorted(self._by_start, before) - first
        return first, np.where((of >= 0) & (end > start), np.maximum(count, 0), 0)


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
        yield slice(start, stop), begin, place, segment_iou(np.repeat(segment[start:stop], n, axis=0), others[place])
        start = stop
