"""Features alone: a folder with one folder of ``.npy`` files per stream, no annotations and no splits."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from case.data.features import read_features
from case.data.files import PathLike
from case.data.folder import LoadedSplit, too_different
from case.errors import CaseError


def load_features(
    path: PathLike,
    modalities: Sequence[str],
    *,
    num_classes: int,
    allow_pickle: bool = False,
    part: Callable[[int], slice] = slice,
    progress: Callable[[int, int], object] | None = None,
) -> LoadedSplit:
    """Every video of ``<path>/<modality>/<video>.npy``, by name, as an unlabelled split (labels all 0).

    ``part`` says which of so many videos are read, as one of several processes does; it may be none of them.
    Streams of different lengths are cut to the shortest, which ``notes`` says. Raises ``CaseError`` in one line:
    a folder or stream that is missing or empty, a video that one stream lacks, an unusable file, widths that differ.
    """
    root = Path(path)
    if not root.is_dir():
        raise CaseError(f"{path}: feature folder not found; check the path")
    names: list[set[str]] = []
    for modality in modalities:
        if not (root / modality).is_dir():
            raise CaseError(f"{root / modality}: stream not found; the checkpoint needs {', '.join(modalities)}")
        names.append({file.stem for file in (root / modality).glob("*.npy")})
    videos = sorted(set.union(*names))
    if not videos:
        raise CaseError(f"{path}: no .npy file in {', '.join(modalities)}")
    for modality, present in zip(modalities, names, strict=True):
        for video in videos:
            if video not in present:
                raise CaseError(f"{root / modality / video}.npy: file not found, but another stream has this video")
    chosen = videos[part(len(videos))]
    per_stream: list[list[np.ndarray]] = [[] for _ in modalities]
    notes = []
    for done, video in enumerate(chosen or videos[:1], start=1):  # of no video at all, the widths are still asked for
        arrays = [
            read_features(root / m / f"{video}.npy", name=f"{m}/{video}.npy", allow_pickle=allow_pickle)
            for m in modalities
        ]
        rows = min(len(a) for a in arrays)
        if too_different([len(a) for a in arrays]):
            raise CaseError(f"{video}: streams have {[len(a) for a in arrays]} rows; too far apart, extract them again")
        if rows < max(len(a) for a in arrays):
            notes.append(f"{video}: streams differ in length; using the first {rows} rows")
        for stream, array in zip(per_stream, arrays, strict=True):
            if stream and stream[0].shape[1] != array.shape[1]:
                raise CaseError(f"{video}: {array.shape[1]} numbers per row, other videos have {stream[0].shape[1]}")
            stream.append(array[:rows])
        if progress is not None:
            progress(done, len(chosen))
    if not chosen:
        per_stream = [[array[:0] for array in stream] for stream in per_stream]
    offsets = np.concatenate(([0], np.cumsum([len(a) for a in per_stream[0]]))).astype(np.int64)[: len(chosen) + 1]
    labels = np.zeros((len(chosen), num_classes), dtype=np.float32)
    return LoadedSplit(tuple(chosen), tuple(np.concatenate(s) for s in per_stream), offsets, labels, tuple(notes))
