"""mAP, average recall and kinds of errors at the sizes of THUMOS14 and ActivityNet, on drawn detections.

The peers are in plain Python, as evaluators are usually written: they go through the detections one by one, in numpy
or in data frames.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks import peers, timing
from benchmarks.machine import THREADS
from case import _native
from case.data import load_detections
from case.metrics import Instances, average_recall, diagnose, mean_ap


@dataclass(frozen=True)
class Size:
    """Of a data set and the detections of a model on it."""

    videos: int
    classes: int
    instances: int
    detections: int
    tiou: tuple[float, ...]


THUMOS = Size(210, 20, 3_311, 31_587, tuple(round(0.1 * i, 1) for i in range(1, 8)))
ACTIVITYNET = Size(4_728, 200, 7_300, 500_000, tuple(round(0.5 + 0.05 * i, 2) for i in range(10)))
SIZES = {"thumos14": THUMOS, "activitynet": ACTIVITYNET}


def draw(size: Size) -> tuple[Instances, Instances]:
    """Videos with one class each; three of four detections have it, and lie anywhere."""
    rng = np.random.default_rng(0)
    of_video = rng.integers(0, size.classes, size.videos)

    def segments(n: int) -> np.ndarray:
        start = rng.uniform(0, 200, n)
        return np.stack([start, start + rng.uniform(1, 40, n)], 1)

    video = rng.integers(0, size.videos, size.instances)
    truth = Instances(video, of_video[video], segments(size.instances), np.zeros(size.instances))
    video = rng.integers(0, size.videos, size.detections)
    other = rng.integers(0, size.classes, size.detections)
    label = np.where(rng.random(size.detections) < 0.75, of_video[video], other)
    return truth, Instances(video, label, segments(size.detections), rng.random(size.detections))


def usual_loop(truth: Instances, found: Instances, tiou: tuple[float, ...]) -> np.ndarray:
    """AP (thresholds, classes): one detection at a time, against the instances of its video."""
    columns = []
    for label in np.unique(truth.label):
        here: dict[int, list[int]] = {}
        for g in np.flatnonzero(truth.label == label).tolist():
            here.setdefault(int(truth.video[g]), []).append(g)
        mine = np.flatnonzero(found.label == label)
        mine = mine[np.argsort(-found.score[mine], kind="stable")]
        hits = np.zeros((len(tiou), len(mine)), dtype=bool)
        claimed: set[tuple[int, int]] = set()
        for rank, i in enumerate(mine.tolist()):
            instances = np.array(here.get(int(found.video[i]), []), dtype=np.int64)
            if len(instances) == 0:
                continue
            start, end = truth.segment[instances].T
            inter = np.maximum(0.0, np.minimum(end, found.segment[i, 1]) - np.maximum(start, found.segment[i, 0]))
            iou = inter / (end - start + found.segment[i, 1] - found.segment[i, 0] - inter)
            order = np.argsort(-iou, kind="stable")
            for level, threshold in enumerate(tiou):
                for k in order:
                    if iou[k] < threshold:
                        break
                    if (level, int(instances[k])) not in claimed:
                        claimed.add((level, int(instances[k])))
                        hits[level, rank] = True
                        break
        precision = hits.cumsum(1) / np.arange(1, len(mine) + 1)
        envelope = np.maximum.accumulate(precision[:, ::-1], axis=1)[:, ::-1]
        columns.append(np.where(hits, envelope, 0.0).sum(1) / (truth.label == label).sum())
    return np.stack(columns, axis=1)


def pandas_loop(truth: Instances, found: Instances, tiou: tuple[float, ...]) -> np.ndarray:
    """AP (thresholds, classes) as evaluators with data frames have it: a frame a class, by video, row by row."""
    import pandas as pd

    def frame(x: Instances) -> pd.DataFrame:
        columns = {"video": x.video, "label": x.label, "start": x.segment[:, 0], "end": x.segment[:, 1]}
        return pd.DataFrame(columns | {"score": x.score})

    truths, detections = frame(truth), frame(found)
    columns = []
    for label in np.unique(truth.label):
        here = truths[truths["label"] == label].reset_index(drop=True)
        mine = detections[detections["label"] == label]
        mine = mine.sort_values("score", ascending=False, kind="stable").reset_index(drop=True)
        by_video = dict(iter(here.groupby("video")))
        claimed = np.zeros((len(tiou), len(here)), dtype=bool)
        hits = np.zeros((len(tiou), len(mine)), dtype=bool)
        for rank, row in mine.iterrows():
            if row["video"] not in by_video:
                continue
            instances = by_video[row["video"]]
            start, end = instances["start"].to_numpy(), instances["end"].to_numpy()
            inter = np.maximum(0.0, np.minimum(end, row["end"]) - np.maximum(start, row["start"]))
            iou = inter / (end - start + row["end"] - row["start"] - inter)
            order = np.argsort(-iou, kind="stable")
            for level, threshold in enumerate(tiou):
                for k in order:
                    if iou[k] < threshold:
                        break
                    if not claimed[level, instances.index[k]]:
                        claimed[level, instances.index[k]] = hits[level, rank] = True
                        break
        precision = hits.cumsum(1) / np.arange(1, len(mine) + 1)
        envelope = np.maximum.accumulate(precision[:, ::-1], axis=1)[:, ::-1]
        columns.append(np.where(hits, envelope, 0.0).sum(1) / len(here))
    return np.stack(columns, axis=1)


LOOPS = {"numpy loop": usual_loop, "pandas loop": pandas_loop}


def timed(benchmark: Any, group: str, step: Callable[[], Any], size: Size, rounds: int) -> None:
    benchmark.group = group
    benchmark.extra_info.update(detections=size.detections, instances=size.instances, thresholds=len(size.tiou))
    benchmark.pedantic(step, rounds=rounds, warmup_rounds=min(1, rounds - 1))


@pytest.mark.parametrize("contender", ["native", "numpy", *LOOPS])
@pytest.mark.parametrize("name", SIZES)
def test_mean_ap(benchmark: Any, monkeypatch: pytest.MonkeyPatch, name: str, contender: str) -> None:
    size = SIZES[name]
    if contender == "native" and _native.load() is None:
        pytest.skip(f"no native module: {_native.reason()}")
    if contender != "native" and name == "activitynet" and os.environ.get("CASE_BENCH_SLOW") != "1":
        pytest.skip("takes a minute; CASE_BENCH_SLOW=1 times it")
    if contender in LOOPS and (missing := peers.missing(contender, "cpu")):
        pytest.skip(missing)
    truth, found = draw(size)
    names = [str(c) for c in range(size.classes)]
    ours = lambda: mean_ap(truth, found, names, size.tiou)  # noqa: E731
    expected = ours().ap
    benchmark.extra_info.update(
        op="mean_ap", title=f"mAP, {name}", contender=contender, peer=contender in LOOPS, device="cpu",
        dtype="float64", backward=False, scale=1, moved=0, operations=0, threads=THREADS,
        sizes={"detections": size.detections, "instances": size.instances, "thresholds": len(size.tiou)},
    )  # fmt: skip
    if contender in LOOPS:
        loop = LOOPS[contender]
        np.testing.assert_allclose(loop(truth, found, size.tiou), expected, atol=1e-12)
        benchmark.group = f"mAP, {name}"
        timing.paired(benchmark, lambda: loop(truth, found, size.tiou), ours, 6, "cpu")
        return
    if contender == "numpy":
        monkeypatch.setattr(_native, "load", lambda: None)
        np.testing.assert_allclose(ours().ap, expected, atol=1e-12)
    timed(benchmark, f"mAP, {name}", ours, size, 30 if contender == "native" else 3)


@pytest.mark.parametrize("name", SIZES)
def test_average_recall(benchmark: Any, name: str) -> None:
    truth, found = draw(SIZES[name])
    timed(benchmark, f"AR@AN, {name}", lambda: average_recall(truth, found), SIZES[name], 5)


@pytest.mark.parametrize("top", [10.0, None])
@pytest.mark.parametrize("name", SIZES)
def test_diagnose(benchmark: Any, name: str, top: float | None) -> None:
    truth, found = draw(SIZES[name])
    names = [str(c) for c in range(SIZES[name].classes)]
    group = f"kinds of errors, {name}, {'all' if top is None else '10 G'}"
    timed(benchmark, group, lambda: diagnose(truth, found, names, top=top), SIZES[name], 5)


@pytest.mark.parametrize("contender", ["native", "json and checks", "json alone"])
def test_load_detections(benchmark: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, contender: str) -> None:
    if contender == "native" and _native.load() is None:
        pytest.skip(f"no native module: {_native.reason()}")
    _, found = draw(THUMOS)
    results: dict[str, list[dict[str, Any]]] = {f"video_test_{v:07d}": [] for v in range(THUMOS.videos)}
    for video, label, (start, end), score in zip(found.video, found.label, found.segment, found.score, strict=True):
        row = {"score": float(score), "segment": [round(start, 2), round(end, 2)], "label": f"Class{label}"}
        results[f"video_test_{video:07d}"].append(row)
    path = tmp_path / "detections.json"
    path.write_text(json.dumps({"results": results}))
    assert load_detections(path) == results
    if contender == "json and checks":
        monkeypatch.setattr(_native, "load", lambda: None)
        assert load_detections(path) == results
    step = (lambda: json.loads(path.read_text())) if contender == "json alone" else lambda: load_detections(path)
    timed(benchmark, "reading a detections file, thumos14", step, THUMOS, 10)
