"""Ground truth in ActivityNet's JSON form.

``{"database": {video: {"subset", "duration", "annotations": [{"label", "segment": [s, e]}]}}}`` with the duration
optional. Times are in seconds; numbers may be strings, as in the THUMOS14 annotations that are in circulation.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from case.data.files import PathLike, load_json
from case.errors import CaseError

# Seconds by which a segment may pass the end of its video: annotations are rounded.
TIME_TOLERANCE = 1e-3


@dataclass(frozen=True, eq=False)
class VideoTruth:
    """What is known about one video."""

    subset: str
    """The part of the data set that it belongs to, as the annotations name it."""
    duration: float | None
    """Length in seconds, None where the annotations do not say."""
    segments: np.ndarray
    """(n, 2) float64: start and end of each instance in seconds, in the order of the file."""
    labels: np.ndarray
    """(n,) int64: class of each instance, an index into ``GroundTruth.classes``."""


@dataclass(frozen=True, eq=False)
class GroundTruth:
    """Annotations of a data set: classes in index order, and the instances of every video."""

    classes: tuple[str, ...]
    videos: dict[str, VideoTruth]


def load_ground_truth(path: PathLike, *, classes: Sequence[str] | None = None) -> GroundTruth:
    """Read ``gt.json``.

    ``classes`` gives class names in index order; without it they are the labels that occur, sorted.
    Raises ``CaseError``, one line naming the file, the video and what was found: a file that is missing or not JSON,
    a part of the wrong form, a time that is not a finite number, an end before its start, a label outside ``classes``.
    """
    database = load_database(path)
    parsed = {}
    for video, entry in database.items():
        where = f"{path}: video '{video}'"
        subset, duration, items = parse_entry(entry, where)
        parsed[video] = subset, duration, [parse_annotation(item, i, where) for i, item in enumerate(items)]
    if classes is None:
        classes = sorted({label for _, _, instances in parsed.values() for label, _, _ in instances})
    index = {name: i for i, name in enumerate(classes)}
    videos = {}
    for video, (subset, duration, instances) in parsed.items():
        for label, _, _ in instances:
            if label not in index:
                raise CaseError(
                    f"{path}: video '{video}' has the label '{label}', which is not one of the {len(index)} classes; "
                    "add it to the class list or correct the label"
                )
        videos[video] = video_truth(subset, duration, [(index[label], s, e) for label, s, e in instances])
    return GroundTruth(tuple(classes), videos)


def video_truth(subset: str, duration: float | None, instances: Sequence[tuple[int, float, float]]) -> VideoTruth:
    """``VideoTruth`` from (class index, start, end) per instance."""
    segments = np.array([(s, e) for _, s, e in instances], dtype=np.float64).reshape(-1, 2)
    return VideoTruth(subset, duration, segments, np.array([c for c, _, _ in instances], dtype=np.int64))


def misplaced(start: float, end: float, duration: float | None, rows: int | None, row_seconds: float) -> str | None:
    """What is wrong with where a segment lies, in words, or None.

    Its end may lie past the annotated ``duration`` (seconds) by rounding; where that is unknown, past what the feature
    rows cover by one row, since a video may go on for a part of a snippet after its last.
    """
    if start < 0:
        return "starts before 0"
    if end <= start:
        return "has no length"
    limit = math.inf if rows is None else (rows + 1) * row_seconds
    if duration is not None:
        limit = duration + TIME_TOLERANCE
    if end > limit:
        shown = duration if duration is not None else (rows or 0) * row_seconds
        return f"ends past the video ({shown:.2f} s)"
    return None


def to_json(truth: GroundTruth) -> dict[str, Any]:
    """The JSON form of annotations; ``load_ground_truth`` with the same classes restores them exactly."""
    database: dict[str, Any] = {}
    for video, known in truth.videos.items():
        entry: dict[str, Any] = {"subset": known.subset}
        if known.duration is not None:
            entry["duration"] = known.duration
        entry["annotations"] = [
            {"label": truth.classes[c], "segment": [float(s), float(e)]}
            for c, (s, e) in zip(known.labels, known.segments, strict=True)
        ]
        database[video] = entry
    return {"database": database}


def load_database(path: PathLike) -> dict[str, Any]:
    """The unparsed entry of every video in ``gt.json``. Raises ``CaseError`` where there is no such table."""
    return member(load_json(path), "database", path)


def parse_entry(entry: Any, where: str) -> tuple[str, float | None, list[Any]]:
    """Subset, duration and unparsed annotations of one video. Raises ``CaseError`` beginning with ``where``."""
    if not isinstance(entry, dict):
        raise CaseError(f"{where}: its entry must be an object with subset and annotations, got {shown(entry)}")
    subset = entry.get("subset")
    if not isinstance(subset, str):
        raise CaseError(f'{where}: subset must be a text such as "train", got {shown(subset)}')
    duration = None
    if entry.get("duration") is not None:
        duration = number(entry["duration"], f"{where}: duration")
        if duration <= 0:
            raise CaseError(f"{where}: duration must be greater than 0 seconds, got {shown(entry['duration'])}")
    items = entry.get("annotations", [])
    if not isinstance(items, list):
        raise CaseError(f"{where}: annotations must be a list, got {shown(items)}")
    return subset, duration, items


def parse_annotation(item: Any, position: int, where: str) -> tuple[str, float, float]:
    """Label, start and end of one annotation. Raises ``CaseError`` beginning with ``where``."""
    return labelled_segment(item, f"{where}: annotation {position}")


def labelled_segment(item: Any, where: str) -> tuple[str, float, float]:
    """Label, start and end of what has these. Raises ``CaseError`` beginning with ``where``."""
    if not isinstance(item, dict):
        raise CaseError(f"{where} must be an object with label and segment, got {shown(item)}")
    for key in ("label", "segment"):
        if key not in item:
            raise CaseError(f"{where} has no {key}; give label and segment")
    label, segment = item["label"], item["segment"]
    if not isinstance(label, str):
        raise CaseError(f"{where}: label must be a text, got {shown(label)}")
    if not isinstance(segment, list) or len(segment) != 2:
        raise CaseError(f"{where}: segment must be [start, end] in seconds, got {shown(segment)}")
    start, end = (number(value, f"{where}: segment") for value in segment)
    if end < start:
        raise CaseError(f"{where}: segment ends before it starts, got [{start:g}, {end:g}]")
    return label, start, end


def number(value: Any, what: str) -> float:
    """A finite number, which may be a string. Raises ``CaseError`` beginning with ``what``."""
    result = math.nan
    if isinstance(value, int | float | str) and not isinstance(value, bool):
        try:
            result = float(value)
        except (ValueError, OverflowError):
            result = math.nan
    if not math.isfinite(result):
        raise CaseError(f"{what} must be a finite number, got {shown(value)}")
    return result


def member(obj: Any, key: str, path: PathLike) -> dict[str, Any]:
    """The table of videos under ``key`` of a file's content. Raises ``CaseError`` where there is none."""
    if not isinstance(obj, dict) or key not in obj:
        found = "an object without it" if isinstance(obj, dict) else shown(obj)
        raise CaseError(f'{path}: must be a JSON object with the key "{key}", got {found}')
    if not isinstance(obj[key], dict):
        raise CaseError(f'{path}: "{key}" must map video names to entries, got {shown(obj[key])}')
    table: dict[str, Any] = obj[key]
    return table


def shown(value: Any) -> str:
    """The value as it goes into a one-line message: short, and without line breaks."""
    text = " ".join(repr(value).split())
    return text if len(text) <= 60 else text[:57] + "..."
