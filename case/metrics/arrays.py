"""Segments of many videos as arrays, and what is asked of an evaluation: truth and detections side by side."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from case.data.annotations import GroundTruth
from case.data.detections import DetectionTable
from case.errors import CaseError

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]

AMBIGUOUS = "Ambiguous"
"""The label that THUMOS14 gives to stretches of which nobody could say whether they show an action."""


@dataclass(frozen=True)
class Instances:
    """Segments of many videos as arrays: video and label (n,) int64, segment (n, 2) in seconds, score (n,)."""

    video: Ints
    label: Ints
    segment: Floats
    score: Floats

    def __getitem__(self, chosen: NDArray[Any]) -> Instances:
        """Those that a mask or indices (n,) choose."""
        return Instances(self.video[chosen], self.label[chosen], self.segment[chosen], self.score[chosen])


@dataclass(frozen=True, eq=False)
class Problem:
    """What an evaluation is given, before any rule is applied.

    Labels of ``truth`` and ``found`` index ``labels``; from ``known`` on they are labels that the ground truth lacks.
    ``inside`` (videos,) bool: the video belongs to the subset. ``ambiguous``: stretches without a class, seconds.
    """

    labels: tuple[str, ...]
    known: int
    inside: Bools
    truth: Instances
    found: Instances
    ambiguous: Instances

    @property
    def unseen(self) -> list[str]:
        """Labels of detections that the ground truth lacks, sorted."""
        present = np.bincount(self.found.label, minlength=len(self.labels)) > 0
        return sorted(name for i, name in enumerate(self.labels) if i >= self.known and present[i])


def checked(name: str, given: Instances) -> Instances:
    """The same in the dtypes and memory order that matching takes.

    Raises ``ValueError``, one line, for columns of different lengths, a score that is NaN, and a time that is not a
    finite number.
    """
    video = np.ascontiguousarray(given.video, dtype=np.int64)
    label = np.ascontiguousarray(given.label, dtype=np.int64)
    segment = np.ascontiguousarray(given.segment, dtype=np.float64).reshape(-1, 2)
    score = np.ascontiguousarray(given.score, dtype=np.float64)
    if not len(video) == len(label) == len(segment) == len(score):
        sizes = f"{len(video)}, {len(label)}, {len(segment)}, {len(score)}"
        raise ValueError(f"{name} must have as many videos as labels, segments and scores, got {sizes}")
    if np.isnan(score).any():
        first = int(np.isnan(score).argmax())
        raise ValueError(f"{name}.score must not be NaN, got NaN at {first}; drop that entry or give it a number")
    if not np.isfinite(segment).all():
        first = int((~np.isfinite(segment)).any(1).argmax())
        raise ValueError(
            f"{name}.segment must hold finite seconds, got {segment[first].tolist()} at {first}; drop that entry"
        )
    return Instances(video, label, segment, score)


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


def pose(
    truth: GroundTruth,
    results: Mapping[str, Sequence[Mapping[str, Any]]],
    *,
    subset: str | None = None,
    ambiguous: Mapping[str, Sequence[tuple[float, float]]] | None = None,
) -> Problem:
    """An evaluation of detections in ActivityNet form against a subset (None: all) of the annotations.

    results: {video: [{"label", "score", "segment": [start, end]}]}, as ``load_detections`` reads it (fastest) or any
    such mapping. ambiguous: stretches (start, end) in seconds by video, beside those that the annotations label
    ``Ambiguous``. Raises ``CaseError`` for a subset without annotations and for a score or time that is no number.
    """
    table = results if isinstance(results, DetectionTable) else DetectionTable.from_results(results)
    ids = {video: i for i, video in enumerate(dict.fromkeys([*truth.videos, *table.videos]))}
    names = {name: i for i, name in enumerate(dict.fromkeys([*truth.classes, *table.labels]))}
    found = Instances(
        video=_renumbered(table.video, [ids[v] for v in table.videos]),
        label=_renumbered(table.label, [names[name] for name in table.labels]),
        segment=table.segment,
        score=table.score,
    )
    return pose_arrays(truth, ids, found, subset=subset, labels=tuple(names), ambiguous=ambiguous)


def pose_arrays(
    truth: GroundTruth,
    ids: Mapping[str, int],
    found: Instances,
    *,
    subset: str | None = None,
    labels: Sequence[str] | None = None,
    ambiguous: Mapping[str, Sequence[tuple[float, float]]] | None = None,
) -> Problem:
    """The same of detections as arrays: videos numbered by ``ids`` 0, 1, ..., which names all of ``truth`` too.

    labels: names that ``found.label`` indexes, beginning with the classes of ``truth``; None: those classes.
    """
    instances = truth_instances(truth, ids, subset)
    inside = np.zeros(len(ids), dtype=bool)
    inside[[ids[v] for v, t in truth.videos.items() if subset is None or t.subset == subset]] = True
    given = [(ids[v], s, e) for v, pairs in (ambiguous or {}).items() if v in ids for s, e in pairs]
    stretches = np.array([(s, e) for _, s, e in given], dtype=np.float64).reshape(-1, 2)
    video = np.array([v for v, _, _ in given], dtype=np.int64)
    if AMBIGUOUS in truth.classes:
        labelled = instances[instances.label == truth.classes.index(AMBIGUOUS)]
        video, stretches = np.concatenate([video, labelled.video]), np.concatenate([stretches, labelled.segment])
    none = np.zeros(len(video), dtype=np.int64)
    return Problem(
        labels=tuple(labels if labels is not None else truth.classes),
        known=len(truth.classes),
        inside=inside,
        truth=instances,
        found=found,
        ambiguous=Instances(video, none, stretches, none.astype(np.float64)),
    )


def _renumbered(column: Ints, numbers: Sequence[int]) -> Ints:
    return np.array(numbers, dtype=np.int64)[column]
