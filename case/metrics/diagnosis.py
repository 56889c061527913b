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

What an evaluator's rules forgive is of no kind: it claims nothing, and does not count (``case.metrics.Rules``).
Where instances of several classes share the highest IoU (every CliffDiving of THUMOS14 is annotated as Diving too), the
detection's own class decides; DETAD takes whichever is first in the file.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from case.metrics.arrays import Bools, Floats, Instances, Ints, checked
from case.metrics.matching import match, places
from case.metrics.pairs import Overlaps, by_group, pairwise

ERRORS = ("true positive", "double detection", "wrong label", "localization", "confusion", "background")


@dataclass(frozen=True)
class Diagnosis:
    """counts (classes, 6): detections of each class by kind, in the order of ``ERRORS``; instances (classes,).

    kind (n,) int64: each detection's place in ``ERRORS``, -1 where it was not looked at or is forgiven. gain (6,): what
    mAP at the threshold over the looked-at detections gains when those of a kind are taken away; 0 for true positives.
    forgiven: how many of those looked at are.
    """

    tiou: float
    classes: tuple[str, ...]
    counts: Ints
    instances: Ints
    kind: Ints
    gain: tuple[float, ...]
    forgiven: int = 0

    def to_json(self) -> dict[str, Any]:
        """``tiou``, ``counts`` over all classes, ``forgiven``, ``gain``, ``per_class`` counts with ``instances``."""
        per_class = {
            name: {**dict(zip(ERRORS, row, strict=True)), "instances": n}
            for name, row, n in zip(self.classes, self.counts.tolist(), self.instances.tolist(), strict=True)
        }
        return {
            "tiou": self.tiou,
            "counts": dict(zip(ERRORS, self.counts.sum(0).tolist(), strict=True)),
            "forgiven": self.forgiven,
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
    forgive: Bools | None = None,
    best_only: bool = False,
    strict_iou: bool = False,
    interpolate: bool = True,
) -> Diagnosis:
    """Sort the detections of the classes that occur in ``truth`` into ``ERRORS``; labels index ``class_names``.

    tiou: t; background: b; top: how many detections a class are looked at, as a multiple of its instances (rounded
    down), None: all. forgive (n,): detections that do not count unless they claim an instance; best_only, strict_iou,
    interpolate: as ``Rules`` says. Raises ``ValueError``, one line, unless 0 < background <= tiou <= 1 and top > 0, and
    where a time is not finite or a score is NaN.
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
    least = float(np.nextafter(tiou, np.inf)) if strict_iou else tiou
    _, claims = match(truth, seen, classes, (least,), best_only=best_only, claims=True)
    assert claims is not None
    claimed = claims[:, 0] >= 0
    kinds = _kinds(truth, seen, claimed, least, background)
    if forgive is not None:
        kinds[forgive[looked] & ~claimed] = -1
    counted = kinds >= 0
    counts = np.zeros((len(classes), len(ERRORS)), dtype=np.int64)
    np.add.at(counts, (column[counted], kinds[counted]), 1)

    def area(counts: Bools) -> float:
        return _mean_area(column, claimed, counts, instances, interpolate)

    # What claims nothing takes nothing from others: without it, precision alone changes.
    base = area(counted)
    without = [area(counted & (kinds != error)) for error in range(1, len(ERRORS))]
    gain = [0.0, *(value - base for value in without)]
    kind = np.full(len(found.score), -1, dtype=np.int64)
    kind[looked] = kinds
    names, forgiven = tuple(class_names[c] for c in classes), int((~counted).sum())
    return Diagnosis(tiou, names, counts, instances, kind, tuple(gain), forgiven)


def _highest(column: Ints, score: np.ndarray, instances: Ints, top: float | None) -> Ints:
    """Which are looked at, by class and falling score; column: the place of each detection's class, -1 for none."""
    known = np.flatnonzero(column >= 0)
    ranked = known[by_group(column[known], score[known])]
    if top is None:
        return np.asarray(ranked)
    group = column[ranked]
    rank = np.arange(len(ranked)) - np.searchsorted(group, np.arange(len(instances)))[group]
    return np.asarray(ranked[rank < (instances * top).astype(np.int64)[group]])


def _mean_area(column: Ints, claimed: Bools, counts: Bools, instances: Ints, interpolate: bool) -> float:
    """mAP of detections by class and falling score of which those in ``counts`` are there; 0 without classes."""
    before = np.concatenate([[0], np.cumsum(counts)])
    starts = before[np.searchsorted(column, np.arange(len(instances)))]
    hits = np.flatnonzero(claimed)
    group = column[hits]
    first = np.searchsorted(group, np.arange(len(instances)))
    precision = (np.arange(len(hits)) - first[group] + 1) / (before[hits + 1] - starts[group])
    if interpolate:
        # The maximum from the right within each class: later classes are lifted below what precision can be.
        lifted = precision - 2.0 * group
        precision = np.maximum.accumulate(lifted[::-1])[::-1] + 2.0 * group
    return float((np.bincount(group, precision, len(instances)) / instances).mean()) if len(instances) else 0.0


def _kinds(truth: Instances, found: Instances, claimed: Bools, tiou: float, background: float) -> Ints:
    kind = np.where(claimed, ERRORS.index("true positive"), ERRORS.index("background"))
    asked = np.flatnonzero(~claimed)
    highest, own = _highest_ious(truth, found[asked])
    same = own >= highest
    near = np.where(same, ERRORS.index("localization"), ERRORS.index("confusion"))
    at = np.where(same, ERRORS.index("double detection"), ERRORS.index("wrong label"))
    kind[asked] = np.select([highest >= tiou, highest >= background], [at, near], ERRORS.index("background"))
    return kind


def _highest_ious(truth: Instances, found: Instances) -> tuple[Floats, Floats]:
    """Highest IoU of each detection with an instance of its video, and with one of its class; 0 without overlap."""
    highest, own = np.zeros((2, len(found.video)))
    # Instances of like length at a time, within a factor of 16: beside a long one, those that end long before a
    # detection begins would have to be looked at too.
    size = np.frexp(truth.segment[:, 1] - truth.segment[:, 0])[1] // 4
    for value in np.unique(size):
        alike = truth[size == value]
        overlaps = Overlaps(alike.video, alike.segment)
        others = alike[overlaps.order]
        first, count = overlaps.stretches(found.video, found.segment)
        met = np.flatnonzero(count)
        for rows, begin, place, iou in pairwise(found.segment[met], others.segment, first[met], count[met]):
            mine = met[rows]
            highest[mine] = np.maximum(highest[mine], np.maximum.reduceat(iou, begin))
            same = others.label[place] == np.repeat(found.label[mine], count[mine])
            own[mine] = np.maximum(own[mine], np.maximum.reduceat(np.where(same, iou, 0.0), begin))
    return highest, own
