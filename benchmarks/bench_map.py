"""mAP, average recall and kinds of errors at the sizes of THUMOS14 and ActivityNet, on drawn detections.

The peers are in plain Python, as evaluators are usually written: they go through the detections one by one, in numpy
or in data frames. Beyond THUMOS14's size one class is proven against them.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks import peers, timing
from benchmarks.budget import Predictions, rounds
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
DATASETS = {"thumos14": THUMOS, "activitynet": ACTIVITYNET}


def times(size: Size, scale: int) -> Size:
    return replace(
        size, videos=scale * size.videos, instances=scale * size.instances, detections=scale * size.detections
    )


SIZES = DATASETS | {f"thumos14 x {scale}": times(THUMOS, scale) for scale in (10, 100)}


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


def of_class(found: Instances, label: int) -> Instances:
    here = found.label == label
    return Instances(found.video[here], found.label[here], found.segment[here], found.score[here])


def described(
    benchmark: Any, group: str, op: str, contender: str, size: Size, scale: int = 1, peer: bool = False
) -> None:
    benchmark.group = group
    benchmark.extra_info.update(
        op=op, title=group, contender=contender, peer=peer, device="cpu", dtype="float64", backward=False, scale=scale,
        moved=0, operations=0, threads=THREADS,
        sizes={"detections": size.detections, "instances": size.instances, "thresholds": len(size.tiou)},
    )  # fmt: skip


@pytest.mark.parametrize("contender", ["native", "numpy", *LOOPS])
@pytest.mark.parametrize("name", [pytest.param(x, marks=pytest.mark.slow if " x " in x else ()) for x in SIZES])
def test_mean_ap(
    benchmark: Any, monkeypatch: pytest.MonkeyPatch, predictions: Predictions, name: str, contender: str
) -> None:
    size = SIZES[name]
    if contender == "native" and _native.load() is None:
        pytest.skip(f"no native module: {_native.reason()}")
    if contender in LOOPS and (missing := peers.missing(contender, "cpu")):
        pytest.skip(missing)
    if why := predictions.too_long(("mean_ap", contender), size.detections):
        pytest.skip(why)
    truth, found = draw(size)
    names = [str(c) for c in range(size.classes)]
    ours = lambda: mean_ap(truth, found, names, size.tiou)  # noqa: E731
    loop = LOOPS.get(contender, usual_loop)
    if contender == "numpy":
        monkeypatch.setattr(_native, "load", lambda: None)
    if name == "thumos14":
        expected, exact = ours().ap, loop(truth, found, size.tiou)
    else:  # a class does not depend on the others
        one = truth.label[0]
        expected = ours().ap[:, [one]]
        exact = loop(of_class(truth, one), of_class(found, one), size.tiou)
    np.testing.assert_allclose(exact, expected, atol=1e-12)
    step = (lambda: loop(truth, found, size.tiou)) if contender in LOOPS else ours
    scale = int(name.partition(" x ")[2] or 1)
    described(benchmark, f"mAP, {name}", "mean_ap", contender, size, scale, contender in LOOPS)
    benchmark.extra_info["proven"] = "all" if name == "thumos14" else "a part"
    once = timing.seconds(step)
    timing.timed(benchmark, step, ours if contender in LOOPS else None, rounds(once))
    if benchmark.stats is not None:
        predictions.saw(("mean_ap", contender), size.detections, benchmark.stats.stats.median)


@pytest.mark.parametrize("name", DATASETS)
def test_average_recall(benchmark: Any, name: str) -> None:
    truth, found = draw(DATASETS[name])
    described(benchmark, f"AR@AN, {name}", "average_recall", "case", DATASETS[name])
    benchmark.pedantic(lambda: average_recall(truth, found), rounds=5, warmup_rounds=1)


@pytest.mark.parametrize("top", [10.0, None])
@pytest.mark.parametrize("name", DATASETS)
def test_diagnose(benchmark: Any, name: str, top: float | None) -> None:
    truth, found = draw(DATASETS[name])
    names = [str(c) for c in range(DATASETS[name].classes)]
    group = f"kinds of errors, {name}, {'all' if top is None else '10 G'}"
    described(benchmark, group, "diagnose", "case", DATASETS[name])
    benchmark.pedantic(lambda: diagnose(truth, found, names, top=top), rounds=5, warmup_rounds=1)


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
    described(benchmark, "reading a detections file, thumos14", "load_detections", contender, THUMOS)
    benchmark.pedantic(step, rounds=10, warmup_rounds=1)
