"""Atomic writing, JSON, detections, and W-TALC style annotations; feature folders are in test_data.py."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from case.data import (
    GroundTruth,
    VideoTruth,
    atomic_write,
    load_detections,
    load_ground_truth,
    load_json,
    load_wtalc,
    save_json,
    to_json,
)

Message = Callable[[Callable[[], object]], str]


def test_atomic_write_takes_bytes_and_functions(tmp_path: Path) -> None:
    path = tmp_path / ("n" * 250)  # almost the longest name that file systems have
    atomic_write(path, b"one")
    assert path.read_bytes() == b"one"
    atomic_write(path, lambda file: file.write(b"two"))
    assert path.read_bytes() == b"two"
    assert list(tmp_path.iterdir()) == [path]


def test_failed_write_leaves_the_earlier_file(tmp_path: Path, message: Message) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"earlier")

    def full_disk(file: BinaryIO) -> None:
        file.write(b"half")
        raise OSError(28, "No space left on device")

    def mistake(file: BinaryIO) -> None:
        file.write(b"half")
        raise ZeroDivisionError

    text = message(lambda: atomic_write(path, full_disk))
    assert text == f"cannot write {path}: No space left on device; free space or choose another folder"
    with pytest.raises(ZeroDivisionError):
        atomic_write(path, mistake)
    assert path.read_bytes() == b"earlier"
    assert list(tmp_path.iterdir()) == [path]


def test_write_where_no_file_can_be(tmp_path: Path, message: Message) -> None:
    assert message(lambda: atomic_write(tmp_path, b"")).endswith("it is a folder; give the name of a file")
    assert "No such file or directory" in message(lambda: atomic_write(tmp_path / "none" / "x", b""))


def test_atomic_write_follows_links_and_writes_to_devices(tmp_path: Path) -> None:
    real, link = tmp_path / "real", tmp_path / "link"
    real.write_bytes(b"old")
    link.symlink_to(real)
    atomic_write(link, b"new")
    assert link.is_symlink()
    assert real.read_bytes() == b"new"
    null = tmp_path / "pipe"
    os.mkfifo(null)
    reader = os.open(null, os.O_RDONLY | os.O_NONBLOCK)
    try:
        atomic_write(null, b"through")
        assert os.read(reader, 100) == b"through"
    finally:
        os.close(reader)
    assert null.is_fifo()


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full on this system")
def test_full_device_is_named(tmp_path: Path, message: Message) -> None:
    link = tmp_path / "out.json"
    link.symlink_to("/dev/full")
    assert "No space left on device" in message(lambda: save_json(link, {"a": 1}))


def test_json_round_trip_with_numpy_numbers(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    save_json(path, {"n": np.float32(0.5), "i": np.int64(3), "a": np.arange(3), "p": Path("é"), "t": (1, 2)})
    assert load_json(path) == {"n": 0.5, "i": 3, "a": [0, 1, 2], "p": "é", "t": [1, 2]}


def test_json_refuses_nan_and_unknown_types(tmp_path: Path, message: Message) -> None:
    path = tmp_path / "x.json"
    assert "a value is NaN or infinite" in message(lambda: save_json(path, {"score": np.float32("nan")}))
    with pytest.raises(TypeError, match="set cannot be written as JSON"):
        save_json(path, {"s": {1}})
    assert not path.exists()


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"", "not valid JSON: the file is empty"),
        (b'{"a": 1,\n "b"', "not valid JSON: Expecting ':' delimiter at line 2 column 5"),
        (b'{"a": "\xff"}', "not a JSON file: byte 7 is not UTF-8 text"),
        (b'{"a": {"v": 1, "v": 2}}', "the key 'v' occurs twice in one object"),
        (b"[" * 200_000, "nested too deeply"),
    ],
)
def test_bad_json(tmp_path: Path, content: bytes, expected: str, message: Message) -> None:
    path = tmp_path / "x.json"
    path.write_bytes(content)
    text = message(lambda: load_json(path))
    assert text.startswith(f"{path}: ")
    assert expected in text


def test_missing_json(tmp_path: Path, message: Message) -> None:
    assert message(lambda: load_json(tmp_path / "x.json")).endswith("x.json: file not found; check the path")
    assert "Is a directory" in message(lambda: load_json(tmp_path))


seconds = st.floats(0, 1e6, allow_nan=False)


@settings(deadline=None, max_examples=50)  # a busy machine is not a bug
@given(
    st.dictionaries(
        st.text(min_size=1),
        st.tuples(
            st.sampled_from(["train", "test"]),
            st.none() | st.floats(0.1, 1e6),
            st.lists(st.tuples(st.integers(0, 2), seconds, seconds)),
        ),
    )
)
def test_ground_truth_round_trip(tmp_path_factory: pytest.TempPathFactory, content: dict[str, Any]) -> None:
    videos = {}
    for video, (subset, duration, instances) in content.items():
        segments = np.array([sorted((s, e)) for _, s, e in instances], dtype=np.float64).reshape(-1, 2)
        videos[video] = VideoTruth(subset, duration, segments, np.array([c for c, _, _ in instances], dtype=np.int64))
    truth = GroundTruth(("z", "a", "é"), videos)
    path = tmp_path_factory.mktemp("gt") / "gt.json"
    save_json(path, to_json(truth))
    again = load_ground_truth(path, classes=truth.classes)
    assert again.classes == truth.classes
    assert list(again.videos) == list(videos)
    for video, known in videos.items():
        other = again.videos[video]
        assert (other.subset, other.duration) == (known.subset, known.duration)
        np.testing.assert_array_equal(other.segments, known.segments)
        np.testing.assert_array_equal(other.labels, known.labels)


def test_detections(tmp_path: Path) -> None:
    path = tmp_path / "d.json"
    save_json(path, {"results": {"a": [{"label": "swim", "score": "0.5", "segment": ["1", 2]}], "b": []}})
    assert load_detections(path) == {"a": [{"label": "swim", "score": 0.5, "segment": [1.0, 2.0]}], "b": []}


@pytest.mark.parametrize(
    ("items", "expected"),
    [
        ({}, "video 'v': its detections must be a list, got {}"),
        ([{"label": "swim", "segment": [0, 1]}], "video 'v': detection 0 has no score; give a number"),
        ([{"score": 1, "segment": [0, 1]}], "video 'v': detection 0 has no label; give label and segment"),
        ([{"label": "s", "score": 1}], "video 'v': detection 0 has no segment; give label and segment"),
        ([{"label": "s", "score": "?", "segment": [0, 1]}], "detection 0: score must be a finite number, got '?'"),
        ([{"label": "s", "score": float("nan"), "segment": [0, 1]}], "score must be a finite number, got nan"),
        ([{"label": "s", "score": 1, "segment": [3, 1]}], "detection 0: segment ends before it starts, got [3, 1]"),
    ],
)
def test_bad_detections(tmp_path: Path, items: Any, expected: str, message: Message) -> None:
    path = tmp_path / "d.json"
    path.write_text(json.dumps({"results": {"v": items}}))
    text = message(lambda: load_detections(path))
    assert text.startswith(f"{path}: video 'v'")
    assert expected in text


def objects(*items: Any) -> np.ndarray:
    column = np.empty(len(items), dtype=object)
    column[:] = items
    return column


@pytest.fixture
def wtalc(tmp_path: Path) -> Path:
    root = tmp_path / "annotations"
    root.mkdir()
    np.save(root / "videoname.npy", np.array([b"v1", b"v2"]))
    np.save(root / "subset.npy", np.array([b"validation", b"test"]))
    np.save(root / "classlist.npy", np.array([b"swim", b"dive"]))
    np.save(root / "duration.npy", np.array([[10.0], [20.0]]))
    np.save(root / "segments.npy", objects([[1.0, 2.0], [3.0, 4.5]], [[0.0, 9.0]]), allow_pickle=True)
    np.save(root / "labels.npy", objects(["dive", "swim"], ["swim"]), allow_pickle=True)
    (root / "Ambiguous_test.txt").write_text("v2  1.0 2.5\nv2 3 4\n\n")
    return root


def test_wtalc(wtalc: Path, tmp_path: Path) -> None:
    truth, ambiguous = load_wtalc(wtalc, allow_pickle=True)
    assert truth.classes == ("swim", "dive")
    assert ambiguous == {"v2": [(1.0, 2.5), (3.0, 4.0)]}
    v1 = truth.videos["v1"]
    assert (v1.subset, v1.duration) == ("validation", 10.0)
    np.testing.assert_array_equal(v1.labels, [1, 0])
    save_json(tmp_path / "gt.json", to_json(truth))
    again = load_ground_truth(tmp_path / "gt.json", classes=truth.classes)
    np.testing.assert_array_equal(again.videos["v1"].segments, [[1, 2], [3, 4.5]])


def test_wtalc_refuses_pickle(wtalc: Path, message: Message) -> None:
    assert message(lambda: load_wtalc(wtalc)) == (
        f"{wtalc / 'segments.npy'}: holds pickled Python objects, which can run code when loaded; "
        "pass allow_pickle=True if you trust whoever made it"
    )


def test_wtalc_video_labels_and_optional_files(wtalc: Path) -> None:
    for name in ("labels.npy", "duration.npy", "Ambiguous_test.txt"):
        (wtalc / name).unlink()
    np.save(wtalc / "labels_all.npy", objects(["dive"], ["swim"]), allow_pickle=True)
    truth, ambiguous = load_wtalc(wtalc, allow_pickle=True)
    np.testing.assert_array_equal(truth.videos["v1"].labels, [1, 1])
    assert truth.videos["v1"].duration is None
    assert ambiguous == {}


@pytest.mark.parametrize(
    ("file", "column", "expected"),
    [
        ("subset.npy", np.array([b"test"]), "subset.npy: 1 rows for the 2 videos of videoname.npy"),
        ("videoname.npy", np.array([b"v", b"v"]), "video 'v' occurs twice in videoname.npy; keep one of the rows"),
        ("labels.npy", objects(["run"], ["swim"]), "video 'v1' has the label 'run', which classlist.npy does not name"),
        ("labels.npy", objects(["swim", "dive", "dive"], ["swim"]), "video 'v1': 3 labels for 2 segments"),
        ("segments.npy", objects([[1.0]], [[0.0, 9.0]]), "video 'v1': its segments must be pairs of numbers"),
        ("segments.npy", objects([[2.0, 1.0]], [[0, 9]]), "video 'v1': a segment must be finite and end after"),
    ],
)
def test_bad_wtalc(wtalc: Path, file: str, column: np.ndarray, expected: str, message: Message) -> None:
    np.save(wtalc / file, column, allow_pickle=True)
    text = message(lambda: load_wtalc(wtalc, allow_pickle=True))
    assert text.startswith(str(wtalc))
    assert expected in text


def test_missing_and_corrupt_wtalc(wtalc: Path, message: Message) -> None:
    (wtalc / "Ambiguous_test.txt").write_text("v2 1.0\n")
    assert "line 1 must be a video, a start and an end" in message(lambda: load_wtalc(wtalc, allow_pickle=True))
    (wtalc / "segments.npy").write_bytes(b"\x93NUMPY nothing")
    assert "segments.npy: corrupt .npy file" in message(lambda: load_wtalc(wtalc, allow_pickle=True))
    (wtalc / "subset.npy").unlink()
    assert "subset.npy: file not found" in message(lambda: load_wtalc(wtalc, allow_pickle=True))
    assert message(lambda: load_wtalc(wtalc / "no")).endswith("annotation folder not found; check the path")
