"""Detections as columns: the compiled reader says what the slow one says, of good files and of bad ones."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from case import _native
from case.data import DetectionTable, load_detections
from case.data import detections as module_under_test
from case.errors import CaseError

SEGMENT = {"label": "swim", "score": 0.5, "segment": [1.0, 2.5]}


def outcome(read: Callable[[], DetectionTable]) -> Any:
    """What a reader returns, columns included, or the one line it raises."""
    try:
        table = read()
    except CaseError as error:
        return str(error)
    columns = [column.tolist() for column in (table.video, table.label, table.segment, table.score)]
    return table.videos, table.labels, *columns, dict(table)


def both(path: Path) -> tuple[Any, Any]:
    """By the compiled reader (as far as it goes), and without it."""
    fast = outcome(lambda: load_detections(path))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_native, "load", lambda: None)
        return fast, outcome(lambda: load_detections(path))


def item(rng: np.random.Generator) -> dict[str, Any]:
    """A detection; numbers are floats, integers, or texts that are numbers."""
    start, length, score = rng.uniform(-5, 50), rng.exponential(5), rng.normal()
    shapes: list[Callable[[float], Any]] = [float, lambda x: round(x, 1), lambda x: int(x), lambda x: f"{x:.3f}"]
    shape = shapes[rng.integers(4)]
    row = {
        "score": shapes[rng.integers(4)](score * 10.0 ** rng.integers(-12, 12)),
        "segment": [shape(start), shape(start + abs(length))],
        "label": str(rng.choice(["swim", "dive", "跳", "long jump", ""])),
    }
    return {key: row[key] for key in rng.permutation(list(row)).tolist()}


def document(rng: np.random.Generator) -> dict[str, Any]:
    results = {f"v{i}_é": [item(rng) for _ in range(rng.integers(0, 5))] for i in range(rng.integers(0, 5))}
    parts = {
        "version": "VERSION 1.3",
        "results": results,
        "external_data": {"used": True, "details": [1, -2.5e-3, None, False, {"a": {}}]},
    }
    return {key: parts[key] for key in rng.permutation(list(parts)).tolist()}


def test_the_compiled_reader_reads_the_usual_form(native: ModuleType, rng: np.random.Generator, tmp_path: Path) -> None:
    for i in range(60):
        content = document(rng)
        text = json.dumps(content, ensure_ascii=False, indent=[None, 0, 3][i % 3])
        assert native.read_detections(text.encode()) is not None
        path = tmp_path / "d.json"
        path.write_text(("\ufeff" if i % 2 else "") + text, encoding="utf-8")
        fast, slow = both(path)
        assert fast == slow
        assert fast[-1] == {
            video: [
                {"label": d["label"], "score": float(d["score"]), "segment": [float(x) for x in d["segment"]]}
                for d in rows
            ]
            for video, rows in content["results"].items()
        }


def test_damaged_files_end_alike(native: ModuleType, rng: np.random.Generator, tmp_path: Path) -> None:
    """Bytes changed, cut out and put in at random: the same table or the same line."""
    path = tmp_path / "d.json"
    alphabet = b'"{}[],:.-+0123456789eE \\ntfaulsr\x00\xff\xc3N'
    refused = 0
    for _ in range(400):
        text = bytearray(json.dumps(document(rng), ensure_ascii=False).encode())
        for _ in range(rng.integers(1, 4)):
            at, kind = int(rng.integers(len(text))), rng.integers(3)
            byte = alphabet[rng.integers(len(alphabet))]
            if kind == 0:
                text[at] = byte
            elif kind == 1:
                text.insert(at, byte)
            else:
                del text[at : at + int(rng.integers(1, 4))]
        path.write_bytes(text)
        fast, slow = both(path)
        assert fast == slow, bytes(text)
        refused += isinstance(slow, str)
    assert 0 < refused < 400


def in_results(value: Any) -> str:
    return json.dumps({"results": {"v": [SEGMENT, value]}})


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "{}",
        '{"results": []}',
        '{"results": {}} x',
        '{"results": {"v": {}}}',
        '{"results": {"v": [], "v": []}}',
        '{"results": {}, "results": {}}',
        '{"a": {"b": 1, "b": 2}, "results": {}}',
        '{"a": 01, "results": {}}',
        '{"a": tru, "results": {}}',
        '{"a": "\t", "results": {}}',
        '{"a": [[[]], {"b": [1,]}], "results": {}}',
        '{"results": {"v": [{"label": "s", "label": "t", "score": 1, "segment": [0, 1]}]}}',
        '{"results": {"v": [{"label": "s", "score": 1, "segment": [0, 1]},]}}',
        '{"results": {"v": [{"label": "s", "score": 1e999, "segment": [0, 1]}]}}',
        '{"results": {"v": [{"label": "s", "score": 1e-999, "segment": [0, 1]}]}}',
        '{"results": {"v": [{"label": "s", "score": -Infinity, "segment": [0, 1]}]}}',
        '{"results": {"v": [{"label": "\\u0073", "score": 1, "segment": [0, 1]}]}}',
        '{"results": {"v": [{"label": "s", "score": 1, "segment": [0, 1e2], "id": 7}]}}',
        '{"results": {"v": [{"label": "s", "score": " 1_0 ", "segment": ["+1", ".5e1"]}]}}',
        '{"results": {"v": [{"label": "s", "score": 123456789012345678901234567890, "segment": [0, 1]}]}}',
        in_results({**SEGMENT, "score": True}),
        in_results({**SEGMENT, "score": None}),
        in_results({**SEGMENT, "segment": [3, 1]}),
        in_results({**SEGMENT, "segment": [1, 2, 3]}),
        in_results({**SEGMENT, "segment": "12"}),
        in_results({**SEGMENT, "label": 3}),
        in_results({"label": "a", "score": 1}),
        in_results([]),
        in_results("a"),
    ],
)
def test_unusual_files_end_alike(tmp_path: Path, text: str) -> None:
    path = tmp_path / "d.json"
    path.write_text(text, encoding="utf-8")
    fast, slow = both(path)
    assert fast == slow


def test_missing_files_and_folders_end_alike(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "none.json"):
        fast, slow = both(path)
        assert fast == slow
        assert isinstance(fast, str)


def test_a_table_is_a_mapping(rng: np.random.Generator) -> None:
    results = {f"v{i}": [SEGMENT] * int(rng.integers(0, 4)) for i in range(5)}
    table = DetectionTable.from_results(results)
    assert table == results
    assert list(table) == list(results)
    assert len(table) == 5
    assert table["v3"] == results["v3"]
    assert DetectionTable.from_results(table) == table
    with pytest.raises(KeyError):
        table["nowhere"]


def test_results_in_memory(rng: np.random.Generator) -> None:
    rows = [{"label": "a", "score": np.float32(0.5), "segment": np.array([0.0, 1.0])}, SEGMENT]
    table = DetectionTable.from_results({"v": [], "w": rows})
    assert table.labels == ("a", "swim")
    assert table.video.tolist() == [1, 1]
    np.testing.assert_array_equal(table.segment, [[0.0, 1.0], [1.0, 2.5]])
    assert len(DetectionTable.from_results({}).score) == 0
    assert DetectionTable.from_results({"v": [{**SEGMENT, "score": "0.25"}]}).score.tolist() == [0.25]


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"score": float("nan")}, "video 'v': detection 1: score must be a finite number, got nan"),
        ({"segment": [0.0, float("inf")]}, "video 'v': detection 1: segment must be a finite number, got inf"),
        ({"segment": [0.0]}, "video 'v': detection 1: segment must be [start, end] in seconds, got [0.0]"),
        ({"label": 3}, "video 'v': detection 1: label must be a text, got 3"),
    ],
)
def test_bad_results_in_memory(change: dict[str, Any], expected: str) -> None:
    with pytest.raises(CaseError) as caught:
        DetectionTable.from_results({"v": [SEGMENT, {**SEGMENT, **change}]})
    assert str(caught.value) == expected


def test_the_compiled_reader_is_used(native: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "d.json"
    path.write_text(in_results(SEGMENT))
    monkeypatch.setattr(module_under_test, "load_json", lambda path: pytest.fail("read the slow way"))
    assert len(load_detections(path)["v"]) == 2
