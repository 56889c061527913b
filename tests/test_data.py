"""Feature folders, annotations and their check: what is read, and what is said about each kind of bad input."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from case.data import (
    FeatureError,
    Report,
    check_folder,
    load_detections,
    load_ground_truth,
    load_split,
    load_wtalc,
    open_folder,
    save_json,
)

Message = Callable[[Callable[[], object]], str]
WIDTHS = {"rgb": 6, "flow": 4}
ROWS = {"a": 20, "b": 31, "c": 25}
SPLITS = {"train": ["a", "b"], "test": ["c"]}


def features(video: str, stream: str, dtype: str = "float16") -> np.ndarray:
    rng = np.random.default_rng([ord(video), len(stream)])
    return rng.random((ROWS[video], WIDTHS[stream])).astype(dtype)


def annotation(label: Any, start: Any, end: Any) -> dict[str, Any]:
    return {"label": label, "segment": [start, end]}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A correct feature folder without dataset.json: two training videos, one test video, two classes."""
    root = tmp_path / "mine"
    for split, videos in SPLITS.items():
        for stream in WIDTHS:
            (root / "features" / split / stream).mkdir(parents=True)
            for video in videos:
                np.save(root / "features" / split / stream / f"{video}.npy", features(video, stream))
        (root / f"split_{split}.txt").write_text("# made by hand\n\n" + "\n".join(videos) + "\n")
    write_truth(root, {})
    return root


def write_truth(root: Path, changes: dict[str, Any]) -> None:
    database = {
        "a": {"subset": "train", "annotations": [annotation("swim", "1.0", "3.5"), annotation("dive", 4, 6)]},
        "b": {"subset": "train", "duration": 19.84, "annotations": [annotation("dive", 0.5, 2)]},
        "c": {"subset": "test", "annotations": [annotation("swim", 0, 16.0)]},
    }
    (root / "gt.json").write_text(json.dumps({"database": {**database, **changes}}))


def path_of(root: Path, video: str = "a", stream: str = "rgb") -> Path:
    split = "test" if video == "c" else "train"
    return root / "features" / split / stream / f"{video}.npy"


def test_ground_truth(folder: Path) -> None:
    truth = load_ground_truth(folder / "gt.json")
    assert truth.classes == ("dive", "swim")
    a = truth.videos["a"]
    assert (a.subset, a.duration) == ("train", None)
    np.testing.assert_array_equal(a.segments, [[1.0, 3.5], [4, 6]])
    np.testing.assert_array_equal(a.labels, [1, 0])
    assert (a.segments.dtype, a.labels.dtype) == (np.float64, np.int64)
    assert truth.videos["b"].duration == 19.84


def test_classes_as_given(folder: Path, message: Message) -> None:
    truth = load_ground_truth(folder / "gt.json", classes=["swim", "run", "dive"])
    assert truth.classes == ("swim", "run", "dive")
    np.testing.assert_array_equal(truth.videos["a"].labels, [0, 2])
    text = message(lambda: load_ground_truth(folder / "gt.json", classes=["swim"]))
    assert "video 'a' has the label 'dive', which is not one of the 1 classes" in text


BAD_ENTRIES = [
    ([], "video 'a': its entry must be an object with subset and annotations, got []"),
    ({"annotations": []}, "video 'a': subset must be a text such as \"train\", got None"),
    ({"subset": "train", "duration": -1}, "video 'a': duration must be greater than 0 seconds, got -1"),
    ({"subset": "train", "duration": "long"}, "video 'a': duration must be a finite number, got 'long'"),
    ({"subset": "train", "annotations": {}}, "video 'a': annotations must be a list, got {}"),
]
BAD_ANNOTATIONS = [
    (7, "annotation 0 must be an object with label and segment, got 7"),
    ({"segment": [0, 1]}, "annotation 0 has no label; give label and segment"),
    ({"label": "swim"}, "annotation 0 has no segment; give label and segment"),
    (annotation(3, 0, 1), "annotation 0: label must be a text, got 3"),
    ({"label": "swim", "segment": [1, 2, 3]}, "annotation 0: segment must be [start, end] in seconds, got [1, 2, 3]"),
    (annotation("swim", 0, "x"), "annotation 0: segment must be a finite number, got 'x'"),
    (annotation("swim", 0, "nan"), "annotation 0: segment must be a finite number, got 'nan'"),
    (annotation("swim", 0, float("inf")), "annotation 0: segment must be a finite number, got inf"),
    (annotation("swim", 0, True), "annotation 0: segment must be a finite number, got True"),
    (annotation("swim", 0, 10**400), "annotation 0: segment must be a finite number, got 1000"),
    (annotation("swim", 2, 1), "annotation 0: segment ends before it starts, got [2, 1]"),
    (annotation("swim\n" * 99, 2, None), "annotation 0: segment must be a finite number, got None"),
]


@pytest.mark.parametrize(
    ("entry", "expected"),
    BAD_ENTRIES + [({"subset": "train", "annotations": [a]}, f"video 'a': {text}") for a, text in BAD_ANNOTATIONS],
)
def test_ill_formed_ground_truth(folder: Path, entry: Any, expected: str, message: Message) -> None:
    write_truth(folder, {"a": entry})
    text = message(lambda: load_ground_truth(folder / "gt.json"))
    assert text.startswith(f"{folder / 'gt.json'}: {expected}")
    # The check goes on: the same words, and what else there is.
    report = check_folder(folder)
    assert f"gt.json: {expected}" in "\n".join(f.text for f in report.errors if f.kind == "ill-formed annotation")
    assert report.splits["test"].instances == {"swim": 1}


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("[1]", 'must be a JSON object with the key "database", got [1]'),
        ('{"results": {}}', 'must be a JSON object with the key "database", got an object without it'),
        ('{"database": []}', '"database" must map video names to entries, got []'),
    ],
)
def test_not_ground_truth(folder: Path, content: str, expected: str, message: Message) -> None:
    (folder / "gt.json").write_text(content)
    assert message(lambda: load_ground_truth(folder / "gt.json")).endswith(expected)
    assert check_folder(folder).errors[0].kind == "gt.json"


def test_open_folder_defaults(folder: Path) -> None:
    opened = open_folder(folder)
    assert (opened.name, opened.fps, opened.snippet_stride) == ("mine", 25.0, 16)
    assert opened.seconds_per_row == 0.64
    assert opened.modalities == ("rgb", "flow")
    assert opened.widths == (6, 4)
    assert opened.classes == ("dive", "swim")
    assert opened.split("train") == ["a", "b"]
    np.testing.assert_array_equal(opened.labels("b"), np.array([1, 0], dtype=np.float32))
    np.testing.assert_array_equal(opened.labels("unknown"), np.zeros(2, dtype=np.float32))
    rgb, flow = opened.load("train", "b")
    np.testing.assert_array_equal(rgb, features("b", "rgb"))
    np.testing.assert_array_equal(flow, features("b", "flow"))
    assert opened.notes == []


def test_dataset_json_and_overrides(folder: Path) -> None:
    described = {"name": "d", "fps": 30, "snippet_stride": 8.0, "modalities": ["flow"], "train_subset": "validation"}
    save_json(folder / "dataset.json", {**described, "classes": ["swim", "run", "dive"], "snipet": 8})
    opened = open_folder(folder)
    assert (opened.name, opened.fps, opened.snippet_stride, opened.train_subset) == ("d", 30.0, 8, "validation")
    assert (opened.modalities, opened.widths) == (("flow",), (4,))
    assert opened.classes == ("swim", "run", "dive")
    assert [re.sub(r".*dataset", "dataset", note) for note in opened.notes] == [
        "dataset.json: unknown key 'snipet' ignored; "
        "known: name, fps, snippet_stride, modalities, train_subset, test_subset, classes"
    ]
    opened = open_folder(folder, fps=10, snippet_stride=5, modalities=["flow", "rgb"])
    assert (opened.seconds_per_row, opened.modalities, opened.widths) == (0.5, ("flow", "rgb"), (4, 6))


def test_streams_of_any_number_in_a_fixed_order(folder: Path) -> None:
    for split in SPLITS:
        features_of = folder / "features" / split
        (features_of / "flow").rename(features_of / "audio")
        shutil.copytree(features_of / "rgb", features_of / "zoo")
    opened = open_folder(folder)
    assert opened.modalities == ("rgb", "audio", "zoo")
    assert [f.shape for f in load_split(opened, "test").features] == [(25, 6), (25, 4), (25, 6)]


@pytest.mark.parametrize(
    ("field", "value", "expected"),
    [
        ("fps", 0, "fps must be a number greater than 0, got 0"),
        ("fps", "25", "fps must be a number greater than 0, got '25'"),
        ("snippet_stride", 2.5, "snippet_stride must be a whole number of frames greater than 0, got 2.5"),
        ("modalities", "rgb", "modalities must be a list of different names, got 'rgb'"),
        ("modalities", ["rgb", "rgb"], "modalities must be a list of different names, got ['rgb', 'rgb']"),
        ("modalities", ["../rgb"], "modalities must be names of folders under features/<split>, got ['../rgb']"),
        ("modalities", ["depth"], "no features of the stream 'depth'; found: rgb, flow; choose with modalities"),
    ],
)
def test_bad_settings(folder: Path, field: str, value: Any, expected: str, message: Message) -> None:
    assert expected in message(lambda: open_folder(folder, **{field: value}))
    save_json(folder / "dataset.json", {field: value})
    text = message(lambda: open_folder(folder))
    assert text.startswith(str(folder))
    assert expected in text


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ('{"classes": []}', "dataset.json: classes must be a list of different names, got []"),
        ('{"train_subset": 3}', "dataset.json: train_subset must be a text, got 3"),
        ("[]", "dataset.json: must be a JSON object, got list"),
        ("{", "dataset.json: not valid JSON"),
    ],
)
def test_bad_dataset_json(folder: Path, content: str, expected: str, message: Message) -> None:
    (folder / "dataset.json").write_text(content)
    assert expected in message(lambda: open_folder(folder))
    report = check_folder(folder)
    assert [f.kind for f in report.errors] == ["dataset.json"]
    assert expected in report.errors[0].text
    assert report.splits["train"].rows == [20, 31]  # the rest is still looked at


def test_incomplete_folders(folder: Path, message: Message) -> None:
    assert message(lambda: open_folder(folder / "no")).endswith("feature folder not found; check the path")
    (folder / "gt.json").unlink()
    assert message(lambda: open_folder(folder)).endswith("gt.json: file not found; check the path")
    shutil.rmtree(folder / "features")
    assert "no features; expected folders such as features/train/rgb" in message(lambda: open_folder(folder))


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"a\nb\n#x\na\n", "split_train.txt: names 'a' twice (lines 1 and 4); remove one"),
        (b"# none\n", "split_train.txt: names no video; write one video name a line"),
        (b"../a\n", "split_train.txt: line 1 must be a video's file name without folders, got '../a'"),
        (b"\xff\xfe\n", "split_train.txt: not a text file: byte 0 is not UTF-8; save it as UTF-8"),
        (None, "split_train.txt: file not found; write one video name a line"),
    ],
)
def test_bad_split_file(folder: Path, content: bytes | None, expected: str, message: Message) -> None:
    path = folder / "split_train.txt"
    path.unlink() if content is None else path.write_bytes(content)
    assert expected in message(lambda: open_folder(folder).split("train"))
    assert any(expected in f.text for f in check_folder(folder).errors)


def test_split_names(folder: Path, message: Message) -> None:
    (folder / "split_train.txt").write_bytes("\ufeffa\r\n  b  \r\n".encode())
    assert open_folder(folder).split("train") == ["a", "b"]
    assert message(lambda: open_folder(folder).split("val")) == "unknown split 'val'; one of: train, test"


def damage(path: Path, how: str) -> None:
    good = np.load(path)
    if how == "missing":
        path.unlink()
    elif how == "corrupt":
        path.write_bytes(b"PK\x03\x04 some archive")
    elif how == "no bytes":
        path.write_bytes(b"")
    elif how == "truncated":
        path.write_bytes(path.read_bytes()[:-10])
    elif how == "unreadable":
        path.unlink()
        path.mkdir()
    else:
        bad = good.copy()
        bad[3, 1], bad[7, 0] = np.nan, np.inf
        arrays = {
            "empty": good[:0],
            "flat": good.ravel(),
            "whole numbers": good.astype(np.int32),
            "non-finite": bad,
            "too large": np.full(good.shape, 1e300),
            "other width": good[:, :5],
            "pickled": good.astype(object),
        }
        np.save(path, arrays[how], allow_pickle=True)


DAMAGES = [
    ("missing", "missing", "file not found; extract its features or drop the video"),
    ("corrupt", "corrupt", "not a .npy file (17 bytes); copy or extract it again"),
    ("no bytes", "corrupt", "not a .npy file (0 bytes); copy or extract it again"),
    ("truncated", "truncated", "truncated: 362 of 372 bytes of data; copy or extract it again"),
    ("unreadable", "unreadable", "cannot read it: Is a directory"),
    ("empty", "empty", "no features, shape (0, 6); extract it again or drop the video"),
    ("flat", "not 2-D", "must have shape (rows, width), got (186,); reshape or extract it again"),
    ("whole numbers", "wrong dtype", "features must be float16 or float32, got int32; convert them to floating point"),
    (
        "non-finite",
        "non-finite",
        "2 of 31 rows hold NaN or infinity (first: row 3, column 1, nan); extract it again",
    ),
    (
        "too large",
        "non-finite",
        "31 of 31 rows hold NaN or infinity (first: row 0, column 0, 1e+300); extract it again",
    ),
    (
        "pickled",
        "pickled",
        "holds pickled Python objects, which can run code when loaded; save it as a plain float array, "
        "or allow it (--allow-pickle) if you trust whoever made it",
    ),
]


@pytest.mark.parametrize(("how", "kind", "expected"), DAMAGES, ids=[d[0] for d in DAMAGES])
def test_bad_features(folder: Path, how: str, kind: str, expected: str, message: Message) -> None:
    damage(path_of(folder, "b"), how)
    told = f"features/train/rgb/b.npy: {expected}"
    assert message(lambda: open_folder(folder).load("train", "b")) == told
    assert message(lambda: load_split(open_folder(folder), "train")) == told
    report = check_folder(folder)
    assert [(f.kind, f.split, f.video, f.text) for f in report.errors] == [(f"{kind} features", "train", "b", told)]


def test_any_damage_to_a_header_is_reported_or_harmless(folder: Path, rng: np.random.Generator) -> None:
    path = path_of(folder, "b")
    good = path.read_bytes()
    opened = open_folder(folder)
    outcomes = set()
    for _ in range(300):
        damaged = bytearray(good)
        for place in rng.integers(0, 110, size=rng.integers(1, 4)):
            damaged[place] = rng.integers(32, 127)
        path.write_bytes(damaged)
        try:
            opened.load("train", "b")
        except FeatureError as error:  # any other exception fails the test
            outcomes.add(error.kind)
    assert "corrupt" in outcomes


def test_wrong_width(folder: Path, message: Message) -> None:
    damage(path_of(folder, "b"), "other width")
    told = "features/train/rgb/b.npy: 5 numbers per row, a has 6; extract both the same way"
    assert message(lambda: open_folder(folder).load("train", "b")) == told
    assert message(lambda: load_split(open_folder(folder), "train")) == told
    (finding,) = check_folder(folder).errors
    assert finding.text == "features/train/rgb/b.npy: 5 numbers per row, most files have 6; extract it the same way"


def test_widths_without_training_data(folder: Path, message: Message) -> None:
    (folder / "split_train.txt").unlink()
    assert open_folder(folder).widths == (6, 4)
    (folder / "split_test.txt").unlink()
    assert "neither split_train.txt nor split_test.txt" in message(lambda: open_folder(folder).widths)


@pytest.mark.parametrize("form", ["rows", "wrapped"])
def test_pickled_features_on_request(folder: Path, form: str) -> None:
    values = features("b", "rgb", "float32")
    stored = values.astype(object) if form == "rows" else np.array(None, dtype=object)
    if form == "wrapped":
        stored[()] = values
    np.save(path_of(folder, "b"), stored, allow_pickle=True)
    opened = open_folder(folder, allow_pickle=True)
    np.testing.assert_array_equal(opened.load("train", "b")[0], values)
    np.testing.assert_array_equal(load_split(opened, "train").features[0][20:], values)
    assert check_folder(folder, allow_pickle=True).ok


def test_corrupt_pickle(folder: Path, message: Message) -> None:
    damage(path_of(folder, "b"), "pickled")
    path_of(folder, "b").write_bytes(path_of(folder, "b").read_bytes()[:-20])
    told = message(lambda: open_folder(folder, allow_pickle=True).load("train", "b"))
    assert told.startswith("features/train/rgb/b.npy: corrupt pickle (")


def test_streams_of_different_length(folder: Path) -> None:
    np.save(path_of(folder, "b"), features("b", "rgb")[:29])
    opened = open_folder(folder)
    rgb, flow = opened.load("train", "b")
    assert (len(rgb), len(flow)) == (29, 29)
    note = "train video b: streams differ in length (rgb 29, flow 31 rows); using the first 29"
    loaded = load_split(opened, "train")
    assert opened.notes == [note]  # once, though seen three times
    assert loaded.notes == (note,)
    np.testing.assert_array_equal(loaded.offsets, [0, 20, 49])
    np.testing.assert_array_equal(loaded.features[1][20:], features("b", "flow")[:29])
    report = check_folder(folder)
    assert report.ok
    assert [f.text for f in report.warnings] == [note]


@pytest.mark.parametrize(
    ("stored", "expected"),
    [("float16", "float16"), ("float32", "float32"), ("float64", "float32"), (">f4", "float32"), (">f2", "float32")],
)
def test_load_split(folder: Path, stored: str, expected: str) -> None:
    np.save(path_of(folder, "b", "flow"), features("b", "flow", stored))
    seen: list[tuple[int, int]] = []
    loaded = load_split(open_folder(folder), "train", progress=lambda *counts: seen.append(counts))
    expected = "float16" if stored.endswith("f2") else expected
    assert [f.dtype for f in loaded.features] == [np.dtype(expected)] * 2
    assert all(f.dtype.isnative and f.flags.c_contiguous for f in loaded.features)
    assert loaded.videos == ("a", "b")
    np.testing.assert_array_equal(loaded.offsets, [0, 20, 51])
    assert loaded.offsets.dtype == np.int64
    for flat, stream in zip(loaded.features, WIDTHS, strict=True):
        np.testing.assert_array_equal(flat[:20], features("a", stream))
        b = features("b", stream, stored if stream == "flow" else "float16")
        np.testing.assert_array_equal(flat[20:], b.astype(expected))
    np.testing.assert_array_equal(loaded.labels, np.array([[1, 1], [1, 0]], dtype=np.float32))
    assert loaded.labels.dtype == np.float32
    assert seen == [(1, 2), (2, 2)]


def test_column_major_features(folder: Path) -> None:
    values = features("b", "rgb")
    np.save(path_of(folder, "b"), np.asfortranarray(values))
    rgb = open_folder(folder).load("train", "b")[0]
    np.testing.assert_array_equal(rgb, values)
    assert rgb.flags.c_contiguous


def test_training_video_without_label(folder: Path, message: Message) -> None:
    write_truth(folder, {"b": {"subset": "train", "annotations": []}})
    told = "training video 'b' has no label in gt.json; annotate it or drop it from the split"
    assert message(lambda: load_split(open_folder(folder), "train")) == told


def texts(report: Report, kind: str) -> list[str]:
    return [f.text for f in (*report.errors, *report.warnings, *report.infos) if f.kind == kind]


def test_check_of_a_good_folder(folder: Path) -> None:
    seen: list[tuple[int, int]] = []
    report = check_folder(folder, progress=lambda *counts: seen.append(counts))
    assert report.ok
    assert (report.errors, report.warnings, report.infos) == ([], [], [])
    assert seen == [(1, 3), (2, 3), (3, 3)]
    assert (report.widths, report.dtypes) == (WIDTHS, {"rgb": "float16", "flow": "float16"})
    train = report.splits["train"]
    assert (train.videos, train.rows, train.rows_range) == (2, [20, 31], (20, 31, 31))
    assert train.instances == {"swim": 1, "dive": 2}
    assert train.class_videos == {"swim": 1, "dive": 2}
    assert train.seconds == pytest.approx(20 * 0.64 + 19.84)
    assert train.action_share == pytest.approx((2.5 + 2 + 1.5) / train.seconds)
    text = report.render()
    assert text.splitlines()[0] == "mine: 2 classes, 0.64 s per row"
    assert "  rgb: width 6, float16" in text
    assert "rows 20 / 31 / 31 (min / median / max), 51 in all" in text
    assert text.splitlines()[-1] == "ok: 0 errors, 0 warnings, 0 remarks"


def test_overlapping_instances_count_once(folder: Path) -> None:
    items = [annotation("swim", 5, 7), annotation("dive", 1, 6), annotation("dive", 2, 3)]
    write_truth(folder, {"c": {"subset": "test", "annotations": items}})
    assert check_folder(folder).splits["test"].action_seconds == pytest.approx(6)


def test_check_names_every_video(folder: Path) -> None:
    damage(path_of(folder, "a"), "missing")
    damage(path_of(folder, "b", "flow"), "non-finite")
    damage(path_of(folder, "c"), "truncated")
    report = check_folder(folder)
    assert [(f.kind, f.video) for f in report.errors] == [
        ("missing features", "a"),
        ("non-finite features", "b"),
        ("truncated features", "c"),
    ]
    text = report.render()
    for finding in report.errors:
        assert f"error: {finding.kind} (1)\n  {finding.text}" in text
    assert text.splitlines()[-1] == "not usable as it is: 3 errors, 0 warnings, 0 remarks"


@pytest.mark.parametrize(
    ("segment", "expected"),
    [
        ((-0.5, 1), "train video 'b': the segment [-0.5, 1] of 'swim' starts before 0; correct it"),
        ((2, 2), "train video 'b': the segment [2, 2] of 'swim' has no length; correct it"),
        ((2, 19.9), "train video 'b': the segment [2, 19.9] of 'swim' ends past the video (19.84 s); correct it"),
        ((2, 19.84), None),
    ],
)
def test_segments_out_of_place(folder: Path, segment: tuple[float, float], expected: str | None) -> None:
    items = [annotation("swim", *segment), annotation("dive", 0, 1)]
    write_truth(folder, {"b": {"subset": "train", "duration": 19.84, "annotations": items}})
    assert texts(check_folder(folder), "segment out of place") == ([expected] if expected else [])


@pytest.mark.parametrize(("end", "bad"), [(16.6, False), (16.7, True)])
def test_segment_past_the_features(folder: Path, end: float, bad: bool) -> None:
    write_truth(folder, {"c": {"subset": "test", "annotations": [annotation("swim", 1, end)]}})
    assert bool(texts(check_folder(folder), "segment out of place")) is bad  # 25 rows of 0.64 s, and one more


def test_wrong_frame_rate_shows(folder: Path) -> None:
    (told,) = texts(check_folder(folder, fps=50), "duration differs from features")
    assert told == "train video 'b': 31 rows cover 9.9 s, gt.json says 19.8 s; check fps and snippet_stride"


def test_check_of_splits_and_annotations(folder: Path) -> None:
    save_json(folder / "dataset.json", {"classes": ["dive", "swim", "run"], "colour": 1})
    (folder / "split_train.txt").write_text("a\nb\na\nc\n")
    write_truth(
        folder,
        {
            "a": {"subset": "train", "annotations": [annotation("fly", 0, 1)]},
            "b": {"subset": "test", "annotations": [annotation("dive", 0, 1)]},
            "x": {"subset": "train", "annotations": [annotation("dive", 0, 1)]},
        },
    )
    np.save(folder / "features" / "train" / "rgb" / "extra.npy", features("a", "rgb"))
    report = check_folder(folder)
    found = {(f.kind, f.video) for f in report.errors}
    assert found == {
        ("unknown label", "a"),
        ("duplicate in split", "a"),
        ("in both splits", "c"),
        ("missing features", "c"),
        ("no label", "a"),
        ("other subset", "b"),
        ("other subset", "c"),
    }
    assert texts(report, "unknown label") == [
        "gt.json: video 'a': annotation 0 has the label 'fly', which dataset.json does not list"
    ]
    assert texts(report, "class without training video") == ["class 'run' has no training video; it cannot be learned"]
    assert {f.kind for f in report.warnings} == {"dataset.json", "class without training video"}
    assert [(f.kind, f.video) for f in report.infos] == [
        ("features outside the split", "extra"),
        ("annotated video outside the splits", "x"),
    ]


def test_test_video_without_ground_truth(folder: Path) -> None:
    write_truth(folder, {"c": {"subset": "test", "annotations": []}})
    assert texts(check_folder(folder), "no ground truth") == [
        "test video 'c' has no usable annotation in gt.json; a test video needs ground truth: "
        "annotate it or drop it from the split"
    ]


def test_check_of_nothing(tmp_path: Path, message: Message) -> None:
    (finding,) = check_folder(tmp_path / "none").errors
    assert finding.kind == "folder missing"
    report = check_folder(tmp_path)
    assert [f.kind for f in report.errors] == ["no features", "gt.json", "split file", "split file"]
    assert report.render().endswith("not usable as it is: 4 errors, 0 warnings, 0 remarks")
    assert message(lambda: check_folder(tmp_path, fps=-1)) == "fps must be a number greater than 0, got -1"


# The package


def test_data_needs_no_torch() -> None:
    script = "import sys, case.data; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 0


def test_real_data(shared_data: Path) -> None:
    root = shared_data
    report = check_folder(root / "shrec21")
    assert report.ok, report.render()
    assert (report.splits["train"].videos, report.splits["test"].videos) == (108, 72)
    assert sum(sum(s.instances.values()) for s in report.splits.values()) == 676
    truth, ambiguous = load_wtalc(root / "thumos14" / "Thumos14reduced-Annotations", allow_pickle=True)
    usual = load_ground_truth(root / "thumos14" / "gt.json")
    assert truth.classes == usual.classes
    assert len(ambiguous) == 37
    for video, known in usual.videos.items():  # two copies of the same annotations, each in an order of its own
        ours = np.sort(truth.videos[video].segments, axis=0)
        np.testing.assert_allclose(ours, np.sort(known.segments, axis=0), atol=0.05, err_msg=video)
    detections = load_detections(root / "thumos14" / "pmil_base_test_detections.json")
    assert sum(map(len, detections.values())) == 31_587
