"""Synthetic data: the same from a seed everywhere, of the promised form, and hard in the promised way."""

from __future__ import annotations

import dataclasses
import errno
import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from case.data import (
    DEMO,
    THUMOS14_SIZED,
    SyntheticConfig,
    SyntheticData,
    check_folder,
    generate,
    iter_videos,
    load_split,
    open_folder,
    to_json,
    write,
)
from case.data.timeline import Timeline, coverage, draw_timeline
from case.errors import CaseError

TINY = SyntheticConfig(num_train=6, num_test=3, num_classes=3, width=8, length_scale=0.2, seed=3)


@pytest.fixture(scope="module")
def demo() -> SyntheticData:
    return generate(DEMO)


def digest(data: SyntheticData) -> str:
    """Of everything except the features, whose last bits may depend on how NumPy was built."""
    return hashlib.sha256(json.dumps(to_json(data.ground_truth), sort_keys=True).encode()).hexdigest()[:16]


def test_seed_decides_everything(demo: SyntheticData) -> None:
    again, other = generate(DEMO), generate(dataclasses.replace(DEMO, seed=1))
    for split in ("train", "test"):
        one, two, three = (getattr(d, split) for d in (demo, again, other))
        for a, b, c in zip(one.features, two.features, three.features, strict=True):
            np.testing.assert_array_equal(a, b)
            assert a.shape != c.shape or not np.array_equal(a, c)
        np.testing.assert_array_equal(one.offsets, two.offsets)
    assert digest(demo) == digest(again) != digest(other)


def test_numbers_stay_as_they_are() -> None:
    """A change of these numbers changes every result that was reported on synthetic data."""
    data = generate(TINY)
    assert digest(data) == "9f5ace07d01d25bc"
    np.testing.assert_array_equal(data.train.offsets, [0, 44, 69, 93, 168, 323, 333])
    row = [0.0, 0.59228515625, 1.6357421875, 0.0, 0.0, 0.2496337890625, 1.0234375, 0.8056640625]
    np.testing.assert_allclose(data.train.features[1][5].astype(np.float32), row, rtol=2e-3, atol=2e-3)


def test_video_does_not_depend_on_how_many_there_are() -> None:
    few, many = TINY, dataclasses.replace(TINY, num_train=12)
    for a, b in zip(iter_videos(few, "train"), iter_videos(many, "train"), strict=False):
        assert a.name == b.name
        np.testing.assert_array_equal(a.features[0], b.features[0])
        np.testing.assert_array_equal(a.truth.segments, b.truth.segments)


def test_written_folder_is_what_generate_gives(tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    write(TINY, tmp_path / "data", progress=lambda *counts: seen.append(counts))
    data = generate(TINY)
    report = check_folder(tmp_path / "data")
    assert report.ok, report.render()
    assert report.warnings == []
    assert report.infos == []
    folder = open_folder(tmp_path / "data")
    assert (folder.name, folder.fps, folder.snippet_stride) == ("synthetic", 25.0, 16)
    assert folder.classes == TINY.classes == ("action_0", "action_1", "action_2")
    for split, expected in (("train", data.train), ("test", data.test)):
        loaded = load_split(folder, split)
        assert loaded.videos == expected.videos
        for name in ("offsets", "labels"):
            np.testing.assert_array_equal(getattr(loaded, name), getattr(expected, name))
        for a, b in zip(loaded.features, expected.features, strict=True):
            assert a.dtype == b.dtype == np.float16
            np.testing.assert_array_equal(a, b)
    for video, known in data.ground_truth.videos.items():
        np.testing.assert_array_equal(folder.ground_truth.videos[video].segments, known.segments)
        np.testing.assert_array_equal(folder.ground_truth.videos[video].labels, known.labels)
    assert seen == [(i, 9) for i in range(1, 10)]
    assert [p.name for p in tmp_path.iterdir()] == ["data"]


def test_other_forms(tmp_path: Path) -> None:
    config = dataclasses.replace(TINY, modalities=("depth",), dtype="float32", fps=50.0, snippet_stride=8, width=5)
    write(config, tmp_path / "data")
    folder = open_folder(tmp_path / "data")
    assert (folder.modalities, folder.widths, folder.seconds_per_row) == (("depth",), (5,), 0.16)
    assert load_split(folder, "test").features[0].dtype == np.float32
    assert check_folder(tmp_path / "data").ok


def test_demo_is_as_described(demo: SyntheticData) -> None:
    assert (len(demo.train.videos), len(demo.test.videos)) == (60, 30)
    assert sum(f.nbytes for s in (demo.train, demo.test) for f in s.features) < 40e6
    for features in (*demo.train.features, *demo.test.features):
        assert features.min() == 0  # ReLU
        assert 0.2 < features.mean(dtype=np.float64) < 0.5
        assert np.isfinite(features).all()
    classes_per_video = demo.train.labels.sum(axis=1)
    assert set(classes_per_video) == {1, 2}
    for split in (demo.train, demo.test):
        assert (split.labels.sum(axis=0) > 0).all()
    lengths = np.concatenate([np.diff(v.segments, axis=1)[:, 0] for v in demo.ground_truth.videos.values()])
    assert lengths.min() >= 2 * 0.64 - 0.011  # rounded to 0.01 s
    assert 2.3 < np.exp(np.log(lengths).mean()) < 3.7
    assert len(lengths) / 90 > 5


def test_lengths_follow_thumos14() -> None:
    """Log-mean of 400 videos within 4 standard errors of the source, in the limits of the source."""
    config = SyntheticConfig(num_train=400, num_test=400, width=1, modalities=("rgb",))
    for split, mean, deviation, least, most in (("train", 5.38, 0.92, 13, 2202), ("test", 5.46, 0.85, 23, 2614)):
        rows = np.array([len(v.features[0]) for v in iter_videos(config, split)])  # type: ignore[arg-type]
        assert least <= rows.min() < rows.max() <= most
        assert abs(np.log(rows).mean() - mean) < 4 * deviation / 20
        assert abs(np.log(rows).std() - deviation) < 0.15


def test_thumos14_sized_is_described_by_its_defaults() -> None:
    c = THUMOS14_SIZED
    assert (c.num_train, c.num_test, c.num_classes, c.width, c.modalities) == (200, 210, 20, 1024, ("rgb", "flow"))
    assert (c.dtype, c.classes[0], c.classes[-1]) == ("float16", "action_00", "action_19")


# What makes it hard


def rows_by_kind(data: SyntheticData) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Test rows (R, both streams), whether each lies in an action, and the video of each."""
    split = data.test
    rows = np.concatenate([f.astype(np.float64) for f in split.features], axis=1)
    acting = np.zeros(len(rows), dtype=bool)
    for v, name in enumerate(split.videos):
        a, b = split.offsets[v : v + 2]
        for start, end in data.ground_truth.videos[name].segments:
            acting[a:b] |= coverage(start, end, int(b - a), data.config.seconds_per_row) > 0.5
    return rows, acting, np.repeat(np.arange(len(split.videos)), np.diff(split.offsets))


def test_videos_are_told_apart_by_what_is_not_action(demo: SyntheticData) -> None:
    """Nearest class mean on the rows outside all actions names the class of most videos with one class."""
    rows, acting, video = rows_by_kind(demo)
    labels = demo.test.labels
    single = [v for v in range(len(labels)) if labels[v].sum() == 1]
    means = np.stack([rows[(video == v) & ~acting].mean(axis=0) for v in range(len(labels))])
    hits = 0
    for v in single:
        classes = labels[v].argmax()
        others = [u for u in single if u != v]
        members = {c: [u for u in others if labels[u, c]] for c in range(8)}
        known = {c: means[videos].mean(axis=0) for c, videos in members.items() if videos}
        hits += min(known, key=lambda c: float(((means[v] - known[c]) ** 2).sum())) == classes
    assert hits / len(single) > 0.6  # chance is 0.125


def test_actions_share_a_component_that_is_stronger_in_flow(demo: SyntheticData) -> None:
    """The direction from rest to action, learned on half of the classes, finds the actions of the other half."""
    rows, acting, video = rows_by_kind(demo)
    seen = (demo.test.labels[:, :4].sum(axis=1) > 0)[video]
    score = rows @ (rows[seen & acting].mean(axis=0) - rows[seen & ~acting].mean(axis=0))
    unseen = ~seen
    order = score[unseen].argsort().argsort()
    positives = acting[unseen]
    rank_sum = order[positives].mean() - (positives.sum() - 1) / 2
    assert 0.65 < rank_sum / (~positives).sum() < 0.97  # area under the ROC curve: helpful, not trivial
    rgb, flow = np.split(np.abs(rows[acting].mean(axis=0) - rows[~acting].mean(axis=0)), 2)
    assert flow.sum() > 1.2 * rgb.sum()


# Timeline


def draw(duration: float, classes: tuple[int, ...], seed: int) -> Timeline:
    return draw_timeline(
        np.random.default_rng(seed), duration, classes,
        shortest_action=1.28, context_share=0.3, action_share=0.4, burst_gap=20.0, weakest=0.5,
    )  # fmt: skip


@pytest.mark.parametrize("duration", [2.56, 8.32, 14.72, 150.0, 1409.28])
def test_timeline(duration: float) -> None:
    for seed in range(50):
        line = draw(duration, (4, 2), seed)
        assert line.stretches[0].start == 0
        assert line.stretches[-1].end == duration
        for before, after in zip(line.stretches[:-1], line.stretches[1:], strict=True):
            assert before.end == after.start
        assert {a.label for a in line.actions} == ({4, 2} if len(line.stretches) > 1 else {4})
        for action in line.actions:
            assert 0 <= action.start < action.end <= duration
            inside = [s for s in line.stretches if s.start - 0.005 <= action.start and action.end <= s.end + 0.005]
            assert [s.label for s in inside] == [action.label]
        for first, second in zip(line.actions[:-1], line.actions[1:], strict=True):
            assert first.end <= second.start
        assert all(0 <= b.start < b.end <= duration for b in line.bursts)


def test_coverage() -> None:
    np.testing.assert_allclose(coverage(0.5, 2.25, 4, 0.5), [0, 1, 1, 1], atol=1e-7)
    np.testing.assert_allclose(coverage(0.25, 0.3, 3, 0.5), [0.1, 0, 0], atol=1e-7)
    np.testing.assert_allclose(coverage(1.4, 9.0, 3, 0.5), [0, 0, 0.2], atol=1e-7)


# Refusals


@pytest.mark.parametrize(
    ("field", "value", "expected"),
    [
        ("num_train", 0, "num_train must be a whole number greater than 0, got 0"),
        ("width", 2.5, "width must be a whole number greater than 0, got 2.5"),
        ("fps", float("nan"), "fps must be a number greater than 0, got nan"),
        ("noise", -1.0, "noise must not be negative, got -1.0"),
        ("action_share", 1.5, "action_share must lie in [0, 1], got 1.5"),
        ("dtype", "int8", "dtype must be float16 or float32, got 'int8'"),
        ("modalities", (), "modalities must be different names, got ()"),
        ("seed", -1, "seed must not be negative, got -1"),
    ],
)
def test_bad_config(field: str, value: Any, expected: str) -> None:
    with pytest.raises(CaseError) as caught:
        dataclasses.replace(TINY, **{field: value})
    assert str(caught.value) == f"synthetic data: {expected}"


def test_write_does_not_replace_what_it_should_not(tmp_path: Path) -> None:
    target = tmp_path / "data"
    target.mkdir()
    write(TINY, target)  # an empty folder is fine
    with pytest.raises(CaseError, match="not empty; choose another folder, or pass force to replace it"):
        write(TINY, target)
    write(dataclasses.replace(TINY, num_test=2), target, force=True)
    assert len(open_folder(target).split("test")) == 2
    assert not list((target / "features" / "test" / "rgb").glob("test_0002.npy"))
    (target / "dataset.json").unlink()
    with pytest.raises(CaseError, match="so it is not replaced"):
        write(TINY, target, force=True)
    assert (target / "gt.json").exists()
    with pytest.raises(CaseError, match="is a file; give a folder"):
        write(TINY, target / "gt.json", force=True)
    assert [p.name for p in tmp_path.iterdir()] == ["data"]


@pytest.mark.parametrize("existing", [False, True])
def test_full_disk_leaves_nothing_half_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, existing: bool) -> None:
    target = tmp_path / "data"
    if existing:
        write(TINY, target)
    saves = iter(range(100))
    save = np.save

    def failing(path: Path, rows: np.ndarray) -> None:
        if next(saves) == 7:
            raise OSError(errno.ENOSPC, "No space left on device")
        save(path, rows)

    monkeypatch.setattr(np, "save", failing)
    with pytest.raises(CaseError) as caught:
        write(dataclasses.replace(TINY, seed=9), target, force=True)
    assert str(caught.value) == (f"cannot write {target}: No space left on device; free space or choose another folder")
    assert [p.name for p in tmp_path.iterdir()] == (["data"] if existing else [])
    if existing:
        assert load_split(open_folder(target), "train").videos == tuple(f"train_{i:04d}" for i in range(6))


def test_failed_exchange_keeps_the_former_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = tmp_path / "data"
    write(TINY, target)
    rename = Path.rename

    def refusing(self: Path, other: Path) -> Path:
        if ".partial-" in self.name:
            raise OSError(errno.EACCES, "Permission denied")
        return rename(self, other)

    monkeypatch.setattr(Path, "rename", refusing)
    with pytest.raises(CaseError, match="Permission denied"):
        write(dataclasses.replace(TINY, num_test=1), target, force=True)
    assert [p.name for p in tmp_path.iterdir()] == ["data"]
    assert len(open_folder(target).split("test")) == 3


def test_interruption_leaves_nothing(tmp_path: Path) -> None:
    def interrupt(done: int, total: int) -> None:
        if done == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write(TINY, tmp_path / "data", progress=interrupt)
    assert list(tmp_path.iterdir()) == []
