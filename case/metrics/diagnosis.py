"""What kinds of mistakes detections are, after Alwassel et al., Diagnosing Error in Temporal Action Detectors (ECCV
2018) and its code (github.com/HumamAlwassel/DETAD).

Looked at are, of each class with G instances, the 10 G detections of highest score ("10G"). With the IoU threshold t, a
lower one b = 0.1, and o the highest IoU of a detection with any instance of its video, of whatever class:

    true positive     it claims an instance of its class at t, as in mAP
    double detection  o >= t, with an instance of its class: that one (or every one at t) is claimed
    wrong label       o >= t, with an instance of another class
    localization      b <= o < t, with an instance of its class
    confusion         b <= o < t, with an instance of another class
    background        o < b, or no instance in its video

Where instances of several classes share the highest IoU (every CliffDiving of THUMOS14 is annotated as Diving too), the
detection's own class decides; DETAD takes whichever is first in the file.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from case.metrics.arrays import Bools, Instances, Ints, checked
from case.metrics.matching import match, places
from case.metrics.pairs import by_group, pairwise, ranges

ERRORS = ("true positive", "double detection", "wrong label", "localization", "confusion", "background")


@dataclass(frozen=True)
class Diagnosis:
    """counts (classes, 6): detections of each class by kind, in the order of ``ERRORS``; instances (classes,).

    kind (n,) int64: each detection's place in ``ERRORS``, -1 where it was not looked at. gain (6,): what mAP at the
    threshold over the looked-at detections gains when those of a kind are taken away; 0 for true positives.
    """

    tiou: float
    classes: tuple[str, ...]
    counts: Ints
    instances: Ints
    kind: Ints
    gain: tuple[float, ...]

    def to_json(self) -> dict[str, Any]:
        """``tiou``, ``counts`` over all classes, ``gain``, and ``per_class`` counts with ``instances``."""
        per_class = {
            name: {**dict(zip(ERRORS, row, strict=True)), "instances": n}
            for name, row, n in zip(self.classes, self.counts.tolist(), self.instances.tolist(), strict=True)
        }
        return {
            "tiou": self.tiou,
            "counts": dict(zip(ERRORS, self.counts.sum(0).tolist(), strict=True)),
            "gain": dict(zip(ERRORS, self.gain, strict=True)),
            "per_class": per_class,
        }


def diagnose(
    truth: Instances,
    found: Instances,
    class_names: Sequence[str],
    tiou: float = 0.5,
    *,
    background: float = 0.1,
    top: float | None = 10.0,
) -> Diagnosis:
    """Sort the detections of the classes that occur in ``truth`` into ``ERRORS``; labels index ``class_names``.

    tiou: t; background: b; top: how many detections a class are looked at, as a multiple of its instances (rounded
    down), None: all. Raises ``ValueError``, one line, unless 0 < background <= tiou <= 1 and top > 0, and where a time
    is not finite or a score is NaN.
    """
    truth, found = checked("truth", truth), checked("found", found)
    if not 0 < background <= tiou <= 1:
        raise ValueError(f"background and tiou must satisfy 0 < background <= tiou <= 1, got {background} and {tiou}")
    if top is not None and not top > 0:
        raise ValueError(f"top must be greater than 0 or None, got {top}")
    classes, instances = np.unique(truth.label, return_counts=True)
    column = places(classes, found.label)
    looked = _highest(column, found.score, instances, top)
    seen, column = found[looked], column[looked]
    _, claims = match(truth, seen, classes, (tiou,), claims=True)
    assert claims is not None
    claimed = claims[:, 0] >= 0
    kinds = _kinds(truth, seen, claimed, tiou, background)
    counts = np.zeros((len(classes), len(ERRORS)), dtype=np.int64)
    np.add.at(counts, (column, kinds), 1)
    # What claims nothing takes nothing from others: without it, precision alone changes.
    base = _mean_area(column, claimed, np.ones(len(column), dtype=bool), instances)
    without = [_mean_area(column, claimed, kinds != error, instances) for error in range(1, len(ERRORS))]
    gain = [0.0, *(area - base for area in without)]
    kind = np.full(len(found.score), -1, dtype=np.int64)
    kind[looked] = kinds
    return Diagnosis(tiou, tuple(class_names[c] for c in classes), counts, instances, kind, tuple(gain))


def _highest(column: Ints, score: np.ndarray, instances: Ints, top: float | None) -> Ints:
    """Which are looked at, by class and falling score; column: the place of each detection's class, -1 for none."""
    known = np.flatnonzero(column >= 0)
    ranked = known[by_group(column[known], score[known])]
    if top is None:
        return np.asarray(ranked)
    group = column[ranked]
    rank = np.arange(len(ranked)) - np.searchsorted(group, np.arange(len(instances)))[group]
    return np.asarray(ranked[rank < (instances * top).astype(np.int64)[group]])


def _mean_area(column: Ints, claimed: Bools, counts: Bools, instances: Ints) -> float:
    """mAP of detections by class and falling score of which those in ``counts`` are there; 0 without classes."""
    before = np.concatenate([[0], np.cumsum(counts)])
    starts = before[np.searchsorted(column, np.arange(len(instances)))]
    hits = np.flatnonzero(claimed)
    group = column[hits]
    first = np.searchsorted(group, np.arange(len(instances)))
    precision = (np.arange(len(hits)) - first[group] + 1) / (before[hits + 1] - starts[group])
    # The maximum from the right within each class: later classes are lifted below what precision can be.
    lifted = precision - 2.0 * group
    highest = np.maximum.accumulate(lifted[::-1])[::-1] + 2.0 * group
    return float((np.bincount(group, highest, len(instances)) / instances).mean()) if len(instances) else 0.0


def _kinds(truth: Instances, found: Instances, claimed: Bools, tiou: float, background: float) -> Ints:
    kind = np.where(claimed, ERRORS.index("true positive"), ERRORS.index("background"))
    order = np.argsort(truth.video, kind="stable")
    sorted_truth = truth[order]
    first, count = ranges(found.video, sorted_truth.video)
    asked = np.flatnonzero((count > 0) & ~claimed)
    for rows, begin, place, iou in pairwise(found.segment[asked], sorted_truth.segment, first[asked], count[asked]):
        mine = asked[rows]
        highest = np.maximum.reduceat(iou, begin)
        own = sorted_truth.label[place] == np.repeat(found.label[mine], count[mine])
        same = np.maximum.reduceat(np.where(own, iou, -1.0), begin) >= highest
        near = np.where(same, ERRORS.index("localization"), ERRORS.index("confusion"))
        at = np.where(same, ERRORS.index("double detection"), ERRORS.index("wrong label"))
        kind[mine] = np.select([highest >= tiou, highest >= background], [at, near], ERRORS.index("background"))
    return kind
