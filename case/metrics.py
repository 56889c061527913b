"""ActivityNet detection mAP (METHOD.md, mAP), in numpy.

Per class and IoU threshold, predictions by falling score claim the unclaimed ground truth of their video with the
highest IoU that reaches the threshold; AP is the area under the precision made monotone from the right. Equal scores
keep their order: first in, first out.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from case.data.annotations import GroundTruth
from case.errors import CaseError

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


@dataclass(frozen=True)
class Instances:
    """Segments of many videos as arrays: video and label (n,) int64, segment (n, 2) in seconds, score (n,)."""

    video: Ints
    label: Ints
    segment: Floats
    score: Floats


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
    count = int(np.floor((parts[2] - parts[0]) / parts[1] + 1e-6)) + 1
    return tuple(round(parts[0] + parts[1] * i, 6) for i in range(count))


def average_precision(truth: Instances, found: Instances, tiou: Sequence[float]) -> Floats:
    """AP (thresholds,) of one class; 0 without predictions."""
    thresholds = np.asarray(tiou, dtype=np.float64)
    if len(found.score) == 0:
        return np.zeros(len(thresholds))
    order = np.argsort(-found.score, kind="stable")
    hit = _match(truth, found, order, thresholds)
    true_positives = hit.cumsum(1)
    precision = true_positives / np.arange(1, hit.shape[1] + 1)
    envelope = np.maximum.accumulate(precision[:, ::-1], axis=1)[:, ::-1]
    # Recall rises by 1 / (ground truths) at each hit: the area is the mean of the envelope there.
    return np.where(hit, envelope, 0.0).sum(1) / len(truth.segment)


def mean_ap(truth: Instances, found: Instances, class_names: Sequence[str], tiou: Sequence[float]) -> MeanAP:
    """mAP over the classes that occur in ``truth``; labels index ``class_names``."""
    classes = np.unique(truth.label)
    columns = [average_precision(_of_class(truth, c), _of_class(found, c), tiou) for c in classes]
    ap = np.stack(columns, axis=1) if columns else np.zeros((len(tiou), 0))
    return MeanAP(tuple(tiou), tuple(class_names[c] for c in classes), ap)


def truth_instances(truth: GroundTruth, ids: Mapping[str, int], subset: str | None) -> Instances:
    """The annotations of a subset (None: all) as arrays, videos numbered by ``ids``.

    Raises ``CaseError`` when there are none.
    """
    wanted = [v for v, t in truth.videos.items() if subset is None or t.subset == subset]
    if not any(len(truth.videos[v].labels) for v in wanted):
        subsets = ", ".join(sorted({t.subset for t in truth.videos.values()}))
        raise CaseError(f"the ground truth has no annotation in subset '{subset}'; its subsets: {subsets}")
    known = [truth.videos[v] for v in wanted]
    counts = [len(t.labels) for t in known]
    return Instances(
        video=np.repeat([ids[v] for v in wanted], counts),
        label=np.concatenate([t.labels for t in known]),
        segment=np.concatenate([t.segments for t in known]),
        score=np.zeros(sum(counts)),
    )


def evaluate(
    truth: GroundTruth,
    results: Mapping[str, Sequence[Mapping[str, Any]]],
    tiou: Sequence[float],
    *,
    subset: str | None = None,
) -> MeanAP:
    """mAP of detections in ActivityNet form ({video: [{"label", "score", "segment"}]}) against a subset.

    Detections in videos outside the subset are false positives, as in the ActivityNet evaluator. Raises ``CaseError``
    for a subset without annotations and for labels that the ground truth lacks.
    """
    ids = {video: i for i, video in enumerate(dict.fromkeys([*truth.videos, *results]))}
    labelled = truth_instances(truth, ids, subset)
    names = {name: i for i, name in enumerate(truth.classes)}
    unknown = sorted({str(d["label"]) for rows in results.values() for d in rows if d["label"] not in names})
    if unknown:
        raise CaseError(
            f"detections have labels that the ground truth lacks: {', '.join(unknown)}; rename or drop them"
        )
    flat = [(ids[v], names[d["label"]], d["score"], *d["segment"]) for v, rows in results.items() for d in rows]
    table = np.asarray(flat, dtype=np.float64).reshape(-1, 5)
    found = Instances(table[:, 0].astype(np.int64), table[:, 1].astype(np.int64), table[:, 3:], table[:, 2])
    return mean_ap(labelled, found, truth.classes, tiou)


def _of_class(instances: Instances, label: int) -> Instances:
    mine = instances.label == label
    return Instances(instances.video[mine], instances.label[mine], instances.segment[mine], instances.score[mine])


def _match(truth: Instances, found: Instances, order: Ints, thresholds: Floats) -> NDArray[np.bool_]:
    """(thresholds, predictions in ``order``): which predictions claim a ground truth.

    A claim concerns one video only, so videos are settled one after another.
    """
    hit = np.zeros((len(thresholds), len(order)), dtype=bool)
    video = found.video[order]
    for v in np.unique(truth.video):
        positions = np.flatnonzero(video == v)
        instances = truth.segment[truth.video == v]
        claimed = np.zeros((len(thresholds), len(instances)), dtype=bool)
        overlaps = _iou(found.segment[order[positions]], instances)
        for row in np.flatnonzero(overlaps.max(1, initial=0.0) >= thresholds.min()):
            iou = overlaps[row]
            # Equal IoUs (a prediction that holds two instances of one length) go in the order of a reversed heapsort:
            # the published evaluator's own reversed argsort leaves it undefined, this reproduces its published
            # figures, and it is the same on every machine, which numpy's default sort is not.
            ranked = [int(i) for i in np.argsort(iou, kind="heapsort")[::-1] if iou[i] >= thresholds.min()]
            for level, threshold in enumerate(thresholds):
                claim = next((i for i in ranked if iou[i] >= threshold and not claimed[level, i]), None)
                if claim is not None:
                    claimed[level, claim] = True
                    hit[level, positions[row]] = True
    return hit


def _iou(a: Floats, b: Floats) -> Floats:
    """(P, 2) and (G, 2) segments -> (P, G), 0 where the union is empty."""
    inter = np.maximum(0.0, np.minimum(a[:, None, 1], b[:, 1]) - np.maximum(a[:, None, 0], b[:, 0]))
    union = (b[:, 1] - b[:, 0]) + (a[:, None, 1] - a[:, None, 0]) - inter
    return np.divide(inter, union, out=np.zeros_like(inter), where=union > 0)
