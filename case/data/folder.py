"""Feature folders: one row of numbers per video snippet, per stream, with splits and annotations beside them.

::

    features/{train,test}/{rgb,flow}/<video>.npy    (rows, width), float16 or float32
    split_train.txt  split_test.txt                 one video a line
    gt.json                                         annotations, ActivityNet's form
    dataset.json                                    optional: name, fps, snippet_stride, modalities, subsets, classes

Row i covers the seconds [i * snippet_stride / fps, (i + 1) * snippet_stride / fps). Any number of streams of any
width, any classes.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from tempfile import TemporaryFile

import numpy as np

from case.data.annotations import GroundTruth, load_ground_truth, misplaced
from case.data.features import FeatureError, FeatureHeader, read_features, read_header
from case.data.files import PathLike, make_folder, reason
from case.data.layout import SPLITS, checked_field, find_modalities, is_file_name, read_description, read_split_lines
from case.errors import CaseError


@dataclass(frozen=True, eq=False)
class FeatureFolder:
    """An opened feature folder; see :func:`open_folder`. Features are read when asked for."""

    path: Path
    name: str
    fps: float
    snippet_stride: int
    modalities: tuple[str, ...]
    train_subset: str
    test_subset: str
    ground_truth: GroundTruth
    allow_pickle: bool = False
    notes: list[str] = field(default_factory=list)
    """Remarks that the user should see (streams trimmed, settings ignored); each once, in order of appearance."""

    @property
    def classes(self) -> tuple[str, ...]:
        """Class names in index order."""
        return self.ground_truth.classes

    @property
    def seconds_per_row(self) -> float:
        """Time covered by one feature row."""
        return self.snippet_stride / self.fps

    @cached_property
    def widths(self) -> tuple[int, ...]:
        """Numbers per row of each stream, from the first video that is listed."""
        return tuple(header.width for header in self._headers(*self._first))

    def split(self, split: str) -> list[str]:
        """Videos of ``"train"`` or ``"test"``, in the order of the split file.

        Raises ``CaseError``: an unknown split, a missing or empty file, a video named twice.
        """
        if split not in SPLITS:
            raise CaseError(f"unknown split '{split}'; one of: {', '.join(SPLITS)}")
        lines: dict[str, int] = {}
        file = self.path / f"split_{split}.txt"
        for number, video in read_split_lines(self.path, split):
            if not is_file_name(video):
                raise CaseError(f"{file}: line {number} must be a video's file name without folders, got '{video}'")
            if video in lines:
                raise CaseError(f"{file}: names '{video}' twice (lines {lines[video]} and {number}); remove one")
            lines[video] = number
        if not lines:
            raise CaseError(f"{file}: names no video; write one video name a line")
        return list(lines)

    def load(self, split: str, video: str) -> tuple[np.ndarray, ...]:
        """Features of one video: per stream a (rows, width) array, float16 or float32 as stored, all equally long.

        Streams of different lengths are cut to the shortest, which ``notes`` then says. Raises ``CaseError`` in one
        line for a file that is missing, corrupt, truncated, pickled, empty, of another form or width than the other
        videos', or holds NaN or infinity.
        """
        arrays = []
        for modality, width in zip(self.modalities, self.widths, strict=True):
            name = feature_name(split, modality, video)
            array = read_features(self.path / name, name=name, allow_pickle=self.allow_pickle)
            self._check_width(name, array.shape[1], width)
            arrays.append(array)
        rows = self._common_rows(split, video, [len(array) for array in arrays])
        return tuple(array[:rows] for array in arrays)

    def labels(self, video: str) -> np.ndarray:
        """(C,) float32: 1 for every class that is annotated in the video, else 0. All 0 for an unknown video."""
        present = np.zeros(len(self.classes), dtype=np.float32)
        if video in self.ground_truth.videos:
            present[self.ground_truth.videos[video].labels] = 1
        return present

    def lengths(self, split: str, video: str) -> tuple[int, tuple[FeatureHeader, ...]]:
        """Rows of a video after trimming, and the header of each stream; reads only the first bytes of the files."""
        headers = self._headers(split, video)
        for modality, header, width in zip(self.modalities, headers, self.widths, strict=True):
            self._check_width(feature_name(split, modality, video), header.width, width)
        return self._common_rows(split, video, [header.rows for header in headers]), headers

    def check_segments(self, split: str, video: str, rows: int) -> None:
        """Raise ``CaseError`` for an annotated segment that cannot lie in a video of so many rows."""
        truth = self.ground_truth.videos.get(video)
        if truth is None:
            return
        for label, (start, end) in zip(truth.labels, truth.segments, strict=True):
            problem = misplaced(start, end, truth.duration, rows, self.seconds_per_row)
            if problem is not None:
                raise CaseError(
                    f"{split} video '{video}': the segment [{start:g}, {end:g}] of '{self.classes[label]}' {problem}; "
                    "correct gt.json, or fps and snippet_stride"
                )

    @cached_property
    def _first(self) -> tuple[str, str]:
        for split in SPLITS:
            if (self.path / f"split_{split}.txt").exists():
                return split, self.split(split)[0]
        raise CaseError(f"{self.path}: neither split_train.txt nor split_test.txt; write one video name a line")

    def _headers(self, split: str, video: str) -> tuple[FeatureHeader, ...]:
        names = (feature_name(split, modality, video) for modality in self.modalities)
        return tuple(read_header(self.path / name, name=name, allow_pickle=self.allow_pickle) for name in names)

    def _check_width(self, name: str, found: int, expected: int) -> None:
        if found != expected:
            message = f"{name}: {found} numbers per row, {self._first[1]} has {expected}; extract both the same way"
            raise FeatureError("wrong width", message)

    def _common_rows(self, split: str, video: str, rows: Sequence[int]) -> int:
        if len(set(rows)) > 1:
            note = lengths_text(split, video, self.modalities, rows)
            if too_different(rows):
                raise FeatureError("streams differ in length", note)
            if note not in self.notes:
                self.notes.append(note)
        return min(rows)


def feature_name(split: str, modality: str, video: str) -> str:
    """Where in the folder the features of a video are."""
    return f"features/{split}/{modality}/{video}.npy"


def too_different(rows: Sequence[int]) -> bool:
    """Whether streams of these lengths can be one video: extractors disagree by a row or a few, not by a tenth."""
    return max(rows) - min(rows) > max(8, max(rows) // 10)


def lengths_text(split: str, video: str, modalities: Sequence[str], rows: Sequence[int]) -> str:
    """What is said of streams that differ in length."""
    lengths = ", ".join(f"{modality} {n}" for modality, n in zip(modalities, rows, strict=True))
    what = "too far apart to trim, extract them again" if too_different(rows) else f"using the first {min(rows)}"
    return f"{split} video {video}: streams differ in length ({lengths} rows); {what}"


def open_folder(
    path: PathLike,
    *,
    fps: float | None = None,
    snippet_stride: int | None = None,
    modalities: Sequence[str] | None = None,
    allow_pickle: bool = False,
) -> FeatureFolder:
    """Open a feature folder and read its description and annotations.

    ``fps`` (frames per second), ``snippet_stride`` (frames per row) and ``modalities`` (streams, in order) replace
    what ``dataset.json`` says; where neither says anything they are 25, 16 and the streams that exist. ``allow_pickle``
    accepts pickled feature files, which can run code of whoever made them.

    Raises ``CaseError`` in one line when the folder, a stream or ``gt.json`` is missing or a description is wrong.
    """
    folder = Path(path)
    if not folder.is_dir():
        raise CaseError(f"{path}: feature folder not found; check the path")
    described, problems, remarks = read_description(folder)
    if problems:
        raise CaseError(problems[0])
    streams = described.modalities if modalities is None else checked_field("modalities", modalities)
    found = find_modalities(folder)
    if not found:
        raise CaseError(f"{path}: no features; expected folders such as features/train/rgb with one .npy file a video")
    for stream in streams:
        if stream not in found:
            message = f"{path}: no features of the stream '{stream}'; found: {', '.join(found)}; choose with modalities"
            raise CaseError(message)
    return FeatureFolder(
        path=folder,
        name=described.name,
        fps=described.fps if fps is None else checked_field("fps", fps),
        snippet_stride=(
            described.snippet_stride if snippet_stride is None else checked_field("snippet_stride", snippet_stride)
        ),
        modalities=streams or found,
        train_subset=described.train_subset,
        test_subset=described.test_subset,
        ground_truth=load_ground_truth(folder / "gt.json", classes=described.classes),
        allow_pickle=allow_pickle,
        notes=remarks,
    )


@dataclass(frozen=True, eq=False)
class LoadedSplit:
    """A split in memory: per stream the rows of all videos in one flat array, video after video."""

    videos: tuple[str, ...]
    features: tuple[np.ndarray, ...]
    """Per stream (R, width), R = rows of all videos; float16 if every file is, else float32."""
    offsets: np.ndarray
    """(V + 1,) int64: video v has the rows offsets[v] to offsets[v + 1] of every stream."""
    labels: np.ndarray
    """(V, C) float32, 1 for every class that is annotated in the video."""
    notes: tuple[str, ...] = ()
    """Remarks that the user should see."""


def split_bytes(folder: FeatureFolder, split: str) -> int:
    """What ``load_split`` takes for features, from the files' headers alone."""
    sizes = [folder.lengths(split, video) for video in folder.split(split)]
    item = max((header.dtype.itemsize for _, headers in sizes for header in headers), default=0)
    return sum(rows for rows, _ in sizes) * sum(folder.widths) * item


def load_split(
    folder: FeatureFolder,
    split: str,
    *,
    directory: Path | None = None,
    progress: Callable[[int, int], object] | None = None,
) -> LoadedSplit:
    """Read the features of ``"train"`` or ``"test"`` into one array per stream, allocated once.

    With ``directory`` the arrays are unnamed files in it that map into memory, so they may be larger than it; they go
    when the process does, however it ends. ``progress`` is called with (videos read, videos in all) after each video.
    Raises ``CaseError`` in one line as ``FeatureFolder.load`` does, for a training video without a label, for a segment
    outside its video, and where the disk has no room.
    """
    videos = folder.split(split)
    labels = np.stack([folder.labels(video) for video in videos])
    if split == "train":
        for video, present in zip(videos, labels, strict=True):
            if not present.any():
                raise CaseError(
                    f"training video '{video}' has no label in gt.json; annotate it or drop it from the split"
                )
    sizes = [folder.lengths(split, video) for video in videos]
    offsets = np.concatenate(([0], np.cumsum([rows for rows, _ in sizes]))).astype(np.int64)
    dtype = np.result_type(*(header.dtype for _, headers in sizes for header in headers))
    for video, (rows, _) in zip(videos, sizes, strict=True):
        folder.check_segments(split, video, rows)
    flat = tuple(_allocate((int(offsets[-1]), width), dtype, directory) for width in folder.widths)
    for v, video in enumerate(videos):
        for stream, array in zip(flat, folder.load(split, video), strict=True):
            stream[offsets[v] : offsets[v + 1]] = array
        if progress is not None:
            progress(v + 1, len(videos))
    return LoadedSplit(tuple(videos), flat, offsets, labels, tuple(folder.notes))


def _allocate(shape: tuple[int, int], dtype: np.dtype, directory: Path | None) -> np.ndarray:
    if directory is None:
        return np.empty(shape, dtype)
    size = shape[0] * shape[1] * dtype.itemsize
    try:
        make_folder(directory)
        with TemporaryFile(dir=directory) as file:
            os.posix_fallocate(file.fileno(), 0, size)  # or a full disk would be found out by a signal
            return np.memmap(file, dtype, "r+", shape=shape)
    except OSError as error:
        raise CaseError(f"{directory}: cannot make a file of {size:,} bytes: {reason(error)}") from error
