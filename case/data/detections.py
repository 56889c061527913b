"""Detections in ActivityNet's JSON form, as columns.

``{"results": {video: [{"label", "score", "segment": [start, end]}]}}``, times in seconds; numbers may be strings.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from case import _native
from case.data.annotations import labelled_segment, member, number, shown
from case.data.files import PathLike, load_json
from case.errors import CaseError

Row = tuple[str, float, float, float]
"""Label, score, start and end."""


@dataclass(frozen=True, eq=False)
class DetectionTable(Mapping[str, list[dict[str, Any]]]):
    """Detections of many videos: columns, and a mapping from video to ``[{"label", "score", "segment"}]``.

    As a mapping it makes the objects of a video when asked for them.
    """

    videos: tuple[str, ...]
    labels: tuple[str, ...]
    video: np.ndarray
    """(n,) int64, non-decreasing: index into ``videos``."""
    label: np.ndarray
    """(n,) int64: index into ``labels``."""
    segment: np.ndarray
    """(n, 2) float64: start and end in seconds."""
    score: np.ndarray
    """(n,) float64."""

    @classmethod
    def from_results(cls, results: Mapping[str, Sequence[Mapping[str, Any]]]) -> DetectionTable:
        """Columns of such a mapping. Raises ``CaseError``, one line naming the video and the detection, where a key
        is missing or a score or time is not a finite number."""
        rows = [row for items in results.values() for row in items]
        try:
            segment = np.array([row["segment"] for row in rows], dtype=np.float64).reshape(len(rows), 2)
            score = np.array([row["score"] for row in rows], dtype=np.float64).reshape(len(rows))
            names = [row["label"] for row in rows]
            index = {name: i for i, name in enumerate(dict.fromkeys(names))}
            usual = all(type(name) is str for name in index)
        except (KeyError, TypeError, ValueError, OverflowError):
            usual = False
        counts = [len(items) for items in results.values()]
        if not usual or not (np.isfinite(segment).all() and np.isfinite(score).all()):
            return cls.from_rows({video: parse_rows(items, f"video '{video}'") for video, items in results.items()})
        video = np.repeat(np.arange(len(counts)), counts)
        label = np.array([index[name] for name in names], dtype=np.int64)
        return cls(tuple(results), tuple(index), video, label, segment, score)

    @classmethod
    def from_rows(cls, rows: Mapping[str, Sequence[Row]]) -> DetectionTable:
        """Columns of (label, score, start, end) of each video."""
        flat = [row for items in rows.values() for row in items]
        index = {name: i for i, name in enumerate(dict.fromkeys(row[0] for row in flat))}
        numbers = np.array([row[1:] for row in flat], dtype=np.float64).reshape(-1, 3)
        video = np.repeat(np.arange(len(rows)), [len(items) for items in rows.values()])
        label = np.array([index[row[0]] for row in flat], dtype=np.int64)
        return cls(tuple(rows), tuple(index), video, label, numbers[:, 1:].copy(), numbers[:, 0].copy())

    def __getitem__(self, video: str) -> list[dict[str, Any]]:
        place = self._places[video]
        first, last = np.searchsorted(self.video, [place, place + 1])
        columns = (c[first:last].tolist() for c in (self.label, self.score, self.segment))
        return [{"label": self.labels[c], "score": s, "segment": t} for c, s, t in zip(*columns, strict=True)]

    def __iter__(self) -> Iterator[str]:
        return iter(self.videos)

    def __len__(self) -> int:
        return len(self.videos)

    @functools.cached_property
    def _places(self) -> dict[str, int]:
        return {video: place for place, video in enumerate(self.videos)}


def load_detections(path: PathLike) -> DetectionTable:
    """Read detections: for every video a list of ``{"label": str, "score": float, "segment": [start, end]}``.

    Raises ``CaseError``, one line naming the file, the video and the detection: a missing key, a score or time that
    is not a finite number, an end before its start.
    """
    table = _read_columns(Path(path))
    if table is not None:
        return table
    results = member(load_json(path), "results", path)
    return DetectionTable.from_rows(
        {video: parse_rows(items, f"{path}: video '{video}'") for video, items in results.items()}
    )


def parse_rows(items: Any, where: str) -> list[Row]:
    """Label, score, start and end of each detection of a video. Raises ``CaseError`` beginning with ``where``."""
    if not isinstance(items, list | tuple):
        raise CaseError(f"{where}: its detections must be a list, got {shown(items)}")
    return [_parse_row(item, f"{where}: detection {i}") for i, item in enumerate(items)]


def _parse_row(item: Any, where: str) -> Row:
    label, start, end = labelled_segment(item, where)
    if "score" not in item:
        raise CaseError(f"{where} has no score; give a number")
    return label, number(item["score"], f"{where}: score"), start, end


def _read_columns(path: Path) -> DetectionTable | None:
    """By ``csrc/detections_json.cpp``; None where it is absent or the file is unusual or wrong: then the slow way,
    which says what is wrong, has to read it."""
    module = _native.load()
    if module is None:
        return None
    try:
        text = path.read_bytes().removeprefix(b"\xef\xbb\xbf")
        if not text.isascii():
            text.decode("utf-8")
    except (OSError, UnicodeDecodeError):
        return None
    read = module.read_detections(text)
    if read is None:
        return None
    videos, labels, video, label, segment, score = read
    return DetectionTable(
        tuple(videos),
        tuple(labels),
        video=np.frombuffer(video, dtype=np.int64),
        label=np.frombuffer(label, dtype=np.int64),
        segment=np.frombuffer(segment, dtype=np.float64).reshape(-1, 2),
        score=np.frombuffer(score, dtype=np.float64),
    )
