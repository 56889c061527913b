"""AR@AN, the ActivityNet proposal metric: average recall against the average number of proposals per video.

After ``Evaluation/eval_proposal.py`` of github.com/activitynet/ActivityNet. Labels play no part. With V videos that
have an instance, N proposals in all, n_v of them in video v by falling score, and a largest average number A:

    kept_v = min(n_v, floor(n_v A V / N)),  M = sum_v kept_v
    AN_j = A j / J,  taken_vj = min(kept_v, floor(kept_v A V / M * j / J)),  j = 1..J, J = 100
    recall(t, j) = share of all instances that one of the first taken_vj proposals of their video meets with IoU >= t
    AR_j = mean_t recall(t, j);  AUC = area under AR over AN (trapezoids, from AN_1 on) / A

A proposal may meet several instances and an instance several proposals. Videos take the same share of their proposals,
not the same number. Equal scores: first in, first out (there: undefined).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from case.metrics.arrays import Floats, Instances, Ints, checked
from case.metrics.matching import places
from case.metrics.pairs import by_group, pairwise, ranges

TIOU = tuple(round(0.5 + 0.05 * i, 2) for i in range(10))
"""ActivityNet's IoU thresholds."""


@dataclass(frozen=True)
class AverageRecall:
    """recall (thresholds, J) at the average numbers of proposals per video ``number`` (J,); both rise."""

    tiou: tuple[float, ...]
    number: Floats
    recall: Floats

    @property
    def average(self) -> Floats:
        """AR (J,)."""
        return self.recall.mean(0)

    @property
    def auc(self) -> float:
        """Area under AR over the number of proposals, as a share of the largest number."""
        return float(np.trapezoid(self.average, self.number) / self.number[-1])

    def at(self, number: float) -> float:
        """AR at an average number of proposals per video, linear between the computed ones; 0 at none."""
        return float(np.interp(number, np.append(0.0, self.number), np.append(0.0, self.average)))

    def to_json(self) -> dict[str, Any]:
        """``AUC``, ``tiou``, ``AN``, ``AR`` and ``recall`` (thresholds x AN)."""
        return {
            "AUC": self.auc,
            "tiou": list(self.tiou),
            "AN": self.number.tolist(),
            "AR": self.average.tolist(),
            "recall": self.recall.tolist(),
        }


def average_recall(
    truth: Instances,
    found: Instances,
    tiou: Sequence[float] = TIOU,
    *,
    largest: float = 100.0,
    points: int = 100,
) -> AverageRecall:
    """AR@AN of detections taken as proposals; labels are not looked at.

    largest: A, the largest average number of proposals per video; points: J. Raises ``ValueError``, one line, without
    an instance, for ``largest`` or ``points`` below 1, a time that is not finite and a score that is NaN.
    """
    truth, found = checked("truth", truth), checked("found", found)
    if not largest >= 1 or points < 1:
        raise ValueError(f"largest and points must be at least 1, got {largest} and {points}")
    if len(truth.video) == 0:
        raise ValueError("truth must hold at least one instance, got none; recall has no meaning without")
    number = np.arange(1, points + 1) / points
    recall = np.zeros((len(tiou), points))
    numbers = np.unique(truth.video)
    videos, place = len(numbers), places(numbers, found.video)
    mine = np.flatnonzero(place >= 0)
    if len(mine):
        ranked = mine[by_group(place[mine], found.score[mine])]
        first, count = ranges(places(numbers, truth.video), place[ranked])
        kept = np.minimum(count, (count * (largest * videos / len(found.video))).astype(np.int64))
        # Each video once: its proposals are counted for every instance of it.
        _, once = np.unique(truth.video, return_index=True)
        total = int(kept[once].sum())
        if total:
            share = number * (largest * videos / total)
            rank = _first_hits(truth.segment, found.segment[ranked], first, kept, np.asarray(tiou, dtype=np.float64))
            for j in range(points):
                taken = np.minimum((kept * share[j]).astype(np.int64), kept)
                recall[:, j] = (rank < taken[:, None]).sum(0) / len(truth.video)
    return AverageRecall(tuple(tiou), number * largest, recall)


def _first_hits(segment: Floats, proposals: Floats, first: Ints, count: Ints, tiou: Floats) -> Ints:
    """(n, thresholds): how many proposals come before the first that meets an instance; the largest int64 for none."""
    never = np.iinfo(np.int64).max
    rank = np.full((len(segment), len(tiou)), never)
    asked = np.flatnonzero(count)
    for rows, begin, place, iou in pairwise(segment[asked], proposals, first[asked], count[asked]):
        mine = asked[rows]
        before = place - np.repeat(first[mine], count[mine])
        for level, threshold in enumerate(tiou):
            rank[mine, level] = np.minimum.reduceat(np.where(iou >= threshold, before, never), begin)
    return rank
