"""W-TALC style annotation folders, as many public WTAL code bases ship them (``Thumos14reduced-Annotations``).

One NumPy file per column, row i of each describing video i: ``videoname``, ``subset``, ``segments``, ``labels`` (or
``labels_all``), ``duration`` (optional), with ``classlist`` naming the classes and ``Ambiguous_test.txt`` (optional)
the stretches that evaluation leaves out. The ragged columns are pickled Python objects.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from case.data.annotations import GroundTruth, video_truth
from case.data.files import PathLike, reason
from case.errors import CaseError

Ambiguous = dict[str, list[tuple[float, float]]]


def load_wtalc(folder: PathLike, *, allow_pickle: bool = False) -> tuple[GroundTruth, Ambiguous]:
    """Ground truth of a W-TALC style folder, and its ambiguous stretches: video -> (start, end) in seconds.

    Classes keep the order of ``classlist``, subsets their names there (THUMOS14: ``validation`` and ``test``).
    ``save_json(path, to_json(truth))`` turns the result into ``gt.json``.

    Raises ``CaseError`` in one line: a missing or corrupt file, columns of different lengths, an unknown class, a
    segment that is not two finite numbers in order; and, unless ``allow_pickle``, for the pickled columns, since
    unpickling can run code of whoever wrote them.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise CaseError(f"{folder}: annotation folder not found; check the path")
    labels_file = next((n for n in ("labels.npy", "labels_all.npy") if (folder / n).exists()), "labels.npy")
    names = _column(folder, "videoname.npy", allow_pickle)
    columns = {n: _column(folder, n, allow_pickle) for n in ("subset.npy", "segments.npy", labels_file)}
    if (folder / "duration.npy").exists():
        columns["duration.npy"] = _column(folder, "duration.npy", allow_pickle)
    for file, column in columns.items():
        if len(column) != len(names):
            raise CaseError(f"{folder / file}: {len(column)} rows for the {len(names)} videos of videoname.npy")
    classes = tuple(_text(name) for name in _column(folder, "classlist.npy", allow_pickle))
    index = {name: i for i, name in enumerate(classes)}

    videos = {}
    for row, name in enumerate(names):
        video = _text(name)
        where = f"{folder}: video '{video}'"
        if video in videos:
            raise CaseError(f"{where} occurs twice in videoname.npy; keep one of the rows")
        segments = _segments(columns["segments.npy"][row], where)
        labels = [_text(label) for label in np.ravel(np.array(columns[labels_file][row], dtype=object))]
        if len(set(labels)) == 1:
            # labels_all names the classes of a video, not of each instance; with one class that is the same.
            labels = labels[:1] * len(segments)
        if len(labels) != len(segments):
            raise CaseError(f"{where}: {len(labels)} labels for {len(segments)} segments; give one label per segment")
        for label in labels:
            if label not in index:
                raise CaseError(f"{where} has the label '{label}', which classlist.npy does not name")
        duration = float(np.ravel(columns["duration.npy"][row])[0]) if "duration.npy" in columns else None
        instances = [(index[label], s, e) for label, (s, e) in zip(labels, segments, strict=True)]
        videos[video] = video_truth(_text(columns["subset.npy"][row]), duration, instances)
    ambiguous = folder / "Ambiguous_test.txt"
    return GroundTruth(classes, videos), load_ambiguous(ambiguous) if ambiguous.exists() else {}


def _column(folder: Path, name: str, allow_pickle: bool) -> Any:
    path = folder / name
    try:
        # latin1: some of these files were pickled by Python 2.
        return np.load(path, allow_pickle=allow_pickle, encoding="latin1")
    except FileNotFoundError as error:
        raise CaseError(f"{path}: file not found; a W-TALC style folder needs it") from error
    except OSError as error:
        raise CaseError(f"{path}: cannot read it: {reason(error)}") from error
    except Exception as error:  # unpickling can raise anything
        if not allow_pickle and "allow_pickle" in str(error):
            raise CaseError(
                f"{path}: holds pickled Python objects, which can run code when loaded; "
                "pass allow_pickle=True if you trust whoever made it"
            ) from error
        raise CaseError(f"{path}: corrupt .npy file ({type(error).__name__}); get it again") from error


def _text(value: Any) -> str:
    return value.decode("utf-8") if isinstance(value, bytes) else str(value)


def _segments(value: Any, where: str) -> list[tuple[float, float]]:
    try:
        segments = np.array(list(value), dtype=np.float64).reshape(len(value), 2)
    except (TypeError, ValueError) as error:
        raise CaseError(f"{where}: its segments must be pairs of numbers in seconds, got {str(value)[:60]}") from error
    for start, end in segments:
        if not (np.isfinite(start) and np.isfinite(end) and start <= end):
            raise CaseError(f"{where}: a segment must be finite and end after it starts, got [{start:g}, {end:g}]")
    return [(float(s), float(e)) for s, e in segments]


def load_ambiguous(path: PathLike) -> Ambiguous:
    """Ambiguous stretches by video, (start, end) in seconds, from lines of a video, a start and an end, as in
    THUMOS14's ``Ambiguous_test.txt``.

    Raises ``CaseError``, one line: a file that is missing or no text, a line of another form, a time that is not a
    finite number.
    """
    ambiguous: Ambiguous = {}
    try:
        lines = Path(path).read_text(encoding="utf-8-sig").splitlines()
    except FileNotFoundError as error:
        raise CaseError(f"{path}: file not found; check the path") from error
    except OSError as error:
        raise CaseError(f"{path}: cannot read it: {reason(error)}") from error
    except UnicodeDecodeError as error:
        raise CaseError(
            f"{path}: byte {error.start} is not UTF-8 text; give lines of a video, a start and an end"
        ) from error
    for number, line in enumerate(lines, start=1):
        fields = line.split()
        if not fields:
            continue
        try:
            video, start, end = fields[0], float(fields[1]), float(fields[2])
            if not (np.isfinite(start) and np.isfinite(end)):
                raise ValueError
        except (IndexError, ValueError) as error:
            raise CaseError(f"{path}: line {number} must be a video, a start and an end, got '{line[:60]}'") from error
        ambiguous.setdefault(video, []).append((start, end))
    return ambiguous
