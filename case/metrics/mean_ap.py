"""ActivityNet detection mAP (METHOD.md, mAP).

Per class and IoU threshold, predictions by falling score claim the unclaimed ground truth of their video with the
highest IoU that reaches the threshold; AP is the area under the precision made monotone from the right. Equal scores
keep their order: first in, first out.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from case.data.annotations import GroundTruth
from case.errors import CaseError
from case.metrics.arrays import Bools, Floats, Instances, Problem, pose
from case.metrics.matching import match
from case.metrics.rules import Rules, apply


@dataclass(frozen=True)
class MeanAP:
    """ap (thresholds, classes): average precision of each class that occurs in the ground truth, 0 to 1."""

    tiou: tuple[float, ...]
    classes: tuple[str, ...]
    ap: Floats

    @property
    def per_tiou(self) -> Floats:
        return self.ap.mean(1)

    @property
    def per_class(self) -> Floats:
        return self.ap.mean(0)

    @property
    def mean(self) -> float:
        return float(self.ap.mean())

    def to_json(self) -> dict[str, Any]:
        """``mAP``, ``tiou``, ``ap_per_tiou``, ``ap_per_class`` and the whole table ``ap`` by class."""
        return {
            "mAP": self.mean,
            "tiou": list(self.tiou),
            "ap_per_tiou": self.per_tiou.tolist(),
            "ap_per_class": dict(zip(self.classes, self.per_class.tolist(), strict=True)),
            "ap": {name: column.tolist() for name, column in zip(self.classes, self.ap.T, strict=True)},
        }


def parse_tiou(text: str) -> tuple[float, ...]:
    """``START:STEP:STOP``, both ends included (0.1:0.1:0.7), or one number, as thresholds in (0, 1]."""
    try:
        parts = [float(part) for part in text.split(":")]
    except ValueError:
        parts = []
    if len(parts) == 1:
        parts = [parts[0], 1.0, parts[0]]
    if len(parts) != 3 or not parts[1] > 0 or not 0 < parts[0] <= parts[2] <= 1:
        raise CaseError(f"tiou must read START:STEP:STOP within (0, 1], for example 0.1:0.1:0.7, got '{text}'")
    if min(parts[0], parts[1]) < 1e-6:
        raise CaseError(f"tiou must start at 0.000001 or above and go in steps of that or more, got '{text}'")
    count = int(np.floor((parts[2] - parts[0]) / parts[1] + 1e-6)) + 1
    if count > 1000:
        raise CaseError(f"tiou must hold at most 1000 thresholds, got '{text}', which are {count}; take a larger step")
    return tuple(round(parts[0] + parts[1] * i, 6) for i in range(count))


def average_precision(truth: Instances, found: Instances, tiou: Sequence[float]) -> Floats:
    """AP (thresholds,) of one class, whatever the labels say; 0 without predictions, NaN without ground truth.

    Raises ``ValueError``, one line, where a time is not finite or a score is NaN.
    """
    alone = [Instances(x.video, np.zeros(len(x.video), np.int64), x.segment, x.score) for x in (truth, found)]
    ap, _ = match(alone[0], alone[1], np.zeros(1, np.int64), tiou)
    return ap[:, 0]


def mean_ap(
    truth: Instances,
    found: Instances,
    class_names: Sequence[str],
    tiou: Sequence[float],
    *,
    forgive: Bools | None = None,
    best_only: bool = False,
    interpolate: bool = True,
) -> MeanAP:
    """mAP over the classes that occur in ``truth``; labels index ``class_names``.

    forgive (n,) bool: detections that do not count unless they claim an instance. best_only, interpolate: see
    ``Rules``. Raises ``ValueError``, one line, where a time is not finite or a score is NaN.
    """
    classes = np.unique(np.asarray(truth.label, dtype=np.int64))
    ap, _ = match(truth, found, classes, tiou, forgive=forgive, best_only=best_only, interpolate=interpolate)
    return MeanAP(tuple(tiou), tuple(class_names[c] for c in classes), ap)


def score(problem: Problem, tiou: Sequence[float], rules: Rules | None = None) -> MeanAP:
    """mAP of a problem under rules (default: the ActivityNet evaluator's). Raises ``CaseError`` as ``rules`` says."""
    rules = rules or Rules()
    truth, found, forgive = apply(problem, rules)
    # The next number above: what reaches it is what exceeds the threshold.
    asked = np.nextafter(np.asarray(tiou, dtype=np.float64), np.inf) if rules.strict_iou else tiou
    result = mean_ap(
        truth,
        found,
        problem.labels,
        tuple(asked),
        forgive=forgive,
        best_only=rules.best_only,
        interpolate=rules.interpolate,
    )
    return MeanAP(tuple(tiou), result.classes, result.ap)


def evaluate(
    truth: GroundTruth,
    results: Mapping[str, Sequence[Mapping[str, Any]]],
    tiou: Sequence[float],
    *,
    subset: str | None = None,
    rules: Rules | None = None,
    ambiguous: Mapping[str, Sequence[tuple[float, float]]] | None = None,
) -> MeanAP:
    """mAP of detections in ActivityNet form ({video: [{"label", "score", "segment"}]}) against a subset.

    Unless ``rules`` say otherwise, detections in videos outside the subset are false positives, as in the ActivityNet
    evaluator. ambiguous: stretches (start, end) in seconds by video, for the rules about them. Raises ``CaseError``
    for a subset without annotations, for labels that the ground truth lacks, and for a score or time that is no number.
    """
    return score(pose(truth, results, subset=subset, ambiguous=ambiguous), tiou, rules)
