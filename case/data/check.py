"""Check of a feature folder: names everything that is wrong with it instead of stopping at the first."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from case.data.annotations import load_database, misplaced, parse_annotation, parse_entry
from case.data.check_report import Report, Severity, SplitSummary
from case.data.features import FeatureError, read_features
from case.data.files import PathLike
from case.data.folder import feature_name, lengths_text, too_different
from case.data.layout import SPLITS, checked_field, find_modalities, is_file_name, read_description, read_split_lines
from case.errors import CaseError


@dataclass
class _Annotated:
    """Usable annotations of one video."""

    subset: str
    duration: float | None
    instances: list[tuple[str, float, float]] = field(default_factory=list)


def check_folder(
    folder_path: PathLike,
    *,
    fps: float | None = None,
    snippet_stride: int | None = None,
    modalities: Sequence[str] | None = None,
    allow_pickle: bool = False,
    progress: Callable[[int, int], object] | None = None,
) -> Report:
    """Read everything in a feature folder and report all that is wrong, odd or merely worth knowing.

    The overrides mean what they mean to ``open_folder``; ``progress`` is called with (videos checked, videos in all).
    Nothing found in the folder raises; ``CaseError`` is for overrides out of range only.
    """
    folder = Path(folder_path)
    report = Report(folder)
    overrides = {
        name: checked_field(name, value)
        for name, value in (("fps", fps), ("snippet_stride", snippet_stride), ("modalities", modalities))
        if value is not None
    }
    if not folder.is_dir():
        report.add("error", "folder missing", "", "", f"{folder}: feature folder not found; check the path")
        return report
    described, problems, remarks = read_description(folder)
    for text in problems:
        report.add("error", "dataset.json", "", "", text)
    for text in remarks:
        report.add("warning", "dataset.json", "", "", text)
    report.name = described.name
    report.seconds_per_row = overrides.get("snippet_stride", described.snippet_stride) / overrides.get(
        "fps", described.fps
    )
    report.modalities = overrides.get("modalities") or described.modalities or find_modalities(folder)
    if not report.modalities:
        text = f"{folder}: no features; expected folders such as features/train/rgb with one .npy file a video"
        report.add("error", "no features", "", "", text)

    annotated = _read_annotations(folder, described.classes, report)
    listed: dict[str, list[str]] = {split: _read_split(folder, split, report) for split in SPLITS}
    for video in listed["train"]:
        if video in listed["test"]:
            text = f"video '{video}' is in split_train.txt and in split_test.txt; test on videos not trained on"
            report.add("error", "in both splits", "", video, text)
    rows = _read_all_features(folder, listed, report, allow_pickle, progress)
    for split, subset in zip(SPLITS, (described.train_subset, described.test_subset), strict=True):
        report.splits[split] = SplitSummary(videos=len(listed[split]), rows=list(rows[split].values()))
        for video in listed[split]:
            _check_truth(split, subset, video, annotated.get(video), rows[split].get(video), report)
    _check_leftovers(folder, listed, annotated, report)
    return report


def _read_annotations(folder: Path, classes: tuple[str, ...] | None, report: Report) -> dict[str, _Annotated]:
    """Annotations of every video, of each the part that can be used; sets the classes of the report."""
    annotated: dict[str, _Annotated] = {}
    try:
        database = load_database(folder / "gt.json")
    except CaseError as error:
        report.add("error", "gt.json", "", "", str(error))
        database = {}
    for video, entry in database.items():
        where = f"gt.json: video '{video}'"
        try:
            subset, duration, items = parse_entry(entry, where)
        except CaseError as error:
            report.add("error", "ill-formed annotation", "", video, str(error))
            continue
        annotated[video] = _Annotated(subset, duration)
        for position, item in enumerate(items):
            try:
                label, start, end = parse_annotation(item, position, where)
            except CaseError as error:
                report.add("error", "ill-formed annotation", "", video, str(error))
                continue
            if classes is not None and label not in classes:
                text = f"{where}: annotation {position} has the label '{label}', which dataset.json does not list"
                report.add("error", "unknown label", "", video, text)
                continue
            annotated[video].instances.append((label, start, end))
    labels = {label for entry in annotated.values() for label, _, _ in entry.instances}
    report.classes = tuple(sorted(labels)) if classes is None else classes
    return annotated


def _read_split(folder: Path, split: str, report: Report) -> list[str]:
    """Videos of a split, each once."""
    try:
        lines = read_split_lines(folder, split)
    except CaseError as error:
        report.add("error", "split file", split, "", str(error))
        return []
    file = f"split_{split}.txt"
    if not lines:
        report.add("error", "split file", split, "", f"{file}: names no video; write one video name a line")
    first: dict[str, int] = {}
    for number, video in lines:
        if not is_file_name(video):
            text = f"{file}: line {number} must be a video's file name without folders, got '{video}'"
            report.add("error", "split file", split, video, text)
        elif video in first:
            text = f"{file}: names '{video}' twice (lines {first[video]} and {number}); remove one"
            report.add("error", "duplicate in split", split, video, text)
        else:
            first[video] = number
    return list(first)


def _read_all_features(
    folder: Path,
    listed: dict[str, list[str]],
    report: Report,
    allow_pickle: bool,
    progress: Callable[[int, int], object] | None,
) -> dict[str, dict[str, int]]:
    """Split -> video -> rows, of videos with at least one readable stream; reports what is wrong with the files."""
    rows: dict[str, dict[str, int]] = {split: {} for split in listed}
    widths: dict[str, list[tuple[str, str, int]]] = {stream: [] for stream in report.modalities}
    dtypes: dict[str, set[str]] = {stream: set() for stream in report.modalities}
    videos = [(split, video) for split in listed for video in listed[split]]
    for done, (split, video) in enumerate(videos, start=1):
        lengths: dict[str, int] = {}
        for stream in report.modalities:
            name = feature_name(split, stream, video)
            try:
                array = read_features(folder / name, name=name, allow_pickle=allow_pickle)
            except FeatureError as error:
                report.add("error", f"{error.kind} features", split, video, str(error))
                continue
            lengths[stream] = len(array)
            widths[stream].append((split, video, array.shape[1]))
            dtypes[stream].add(str(array.dtype))
        if len(set(lengths.values())) > 1:
            text = lengths_text(split, video, tuple(lengths), tuple(lengths.values()))
            severity: Severity = "error" if too_different(tuple(lengths.values())) else "warning"
            report.add(severity, "streams differ in length", split, video, text)
        if lengths:
            rows[split][video] = min(lengths.values())
        if progress is not None:
            progress(done, len(videos))
    for stream, found in widths.items():
        if not found:
            continue
        usual = Counter(width for _, _, width in found).most_common(1)[0][0]
        report.widths[stream] = usual
        report.dtypes[stream] = "/".join(sorted(dtypes[stream]))
        for split, video, width in found:
            if width != usual:
                text = f"{feature_name(split, stream, video)}: {width} numbers per row, most files have {usual}"
                report.add("error", "wrong width features", split, video, f"{text}; extract it the same way")
    return rows


def _check_truth(
    split: str, subset: str, video: str, known: _Annotated | None, rows: int | None, report: Report
) -> None:
    """Compare a video's annotations with its split and its features, and add them to the split's numbers."""
    if known is None or not known.instances:
        need = "a training video needs a label" if split == "train" else "a test video needs ground truth"
        found = "is not in gt.json" if known is None else "has no usable annotation in gt.json"
        text = f"{split} video '{video}' {found}; {need}: annotate it or drop it from the split"
        report.add("error", "no label" if split == "train" else "no ground truth", split, video, text)
    if known is not None and known.subset != subset:
        text = (
            f"{split} video '{video}' belongs to the subset '{known.subset}' of gt.json, not to '{subset}'; "
            f"correct it, or {split}_subset in dataset.json"
        )
        report.add("error", "other subset", split, video, text)
    covered = None if rows is None else rows * report.seconds_per_row
    duration = covered if known is None or known.duration is None else known.duration
    if known is None:
        report.splits[split].seconds += duration or 0.0
        return
    if (
        known.duration is not None
        and covered is not None
        and abs(covered - known.duration) > max(2 * report.seconds_per_row, 0.1 * known.duration)
    ):
        text = (
            f"{split} video '{video}': {rows} rows cover {covered:.1f} s, gt.json says {known.duration:.1f} s; "
            "check fps and snippet_stride"
        )
        report.add("warning", "duration differs from features", split, video, text)
    for label, start, end in known.instances:
        problem = misplaced(start, end, known.duration, rows, report.seconds_per_row)
        if problem is not None:
            text = f"{split} video '{video}': the segment [{start:g}, {end:g}] of '{label}' {problem}; correct it"
            report.add("error", "segment out of place", split, video, text)
    _count(report.splits[split], known, duration or 0.0)


def _count(numbers: SplitSummary, known: _Annotated, seconds: float) -> None:
    numbers.seconds += seconds
    for label, _, _ in known.instances:
        numbers.instances[label] = numbers.instances.get(label, 0) + 1
    for label in {label for label, _, _ in known.instances}:
        numbers.class_videos[label] = numbers.class_videos.get(label, 0) + 1
    reached = 0.0
    for _, start, end in sorted(known.instances, key=lambda instance: instance[1]):
        start, end = max(start, reached), min(end, seconds)
        numbers.action_seconds += max(0.0, end - start)
        reached = max(reached, end)


def _check_leftovers(
    folder: Path, listed: dict[str, list[str]], annotated: dict[str, _Annotated], report: Report
) -> None:
    for split in SPLITS:
        files = {p.stem for stream in report.modalities for p in (folder / "features" / split / stream).glob("*.npy")}
        for video in sorted(files.difference(listed[split])):
            text = f"features/{split}: '{video}' has features, split_{split}.txt does not name it"
            report.add("info", "features outside the split", split, video, text)
    named = {video for videos in listed.values() for video in videos}
    for video in sorted(annotated.keys() - named):
        text = f"gt.json: video '{video}' is annotated but in no split"
        report.add("info", "annotated video outside the splits", "", video, text)
    if report.splits["train"].videos:
        for label in report.classes:
            if label not in report.splits["train"].class_videos:
                text = f"class '{label}' has no training video; it cannot be learned"
                report.add("warning", "class without training video", "train", "", text)
