"""A training step at THUMOS14's size, sampling included, beside the same step as WTAL code usually writes it.

16 videos with the lengths of THUMOS14's training split (log-normal, cut to its range), T = 750, two streams of 1024
numbers, 20 classes, 16 clusters, H = 512. The limit is this machine's own time for the products that the distinct rows
need, forward and backward; under the class logits only rows that a class chooses have a gradient, though a GPU's graph
multiplies all. ``python -m benchmarks.bench_train OUT`` profiles a step and writes a trace.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from benchmarks import timing
from benchmarks.machine import THREADS
from benchmarks.records import NO_GPU
from benchmarks.usual_step import UsualStep, numpy_samples
from case.config import Settings, make_settings
from case.data import LoadedSplit
from case.data.synthetic import SyntheticConfig, generate
from case.engine.graphs import StaticSteps
from case.engine.learner import Learner
from case.engine.plain import PlainLearner
from case.engine.precision import set_products
from case.engine.sampling import batch_videos, position_key
from case.engine.store import ResidentSplit
from case.objective import training_losses

WIDTHS, VIDEOS, POOL = (1024, 1024), 16, 64
# Steps before any is timed. On CUDA the first two of each number of rows, of which there are a few, make its graph.
WARM = {"cpu": 1, "cuda": 60}
DEVICES = [
    "cpu",
    pytest.param("cuda", marks=() if torch.cuda.is_available() else pytest.mark.skip(reason=NO_GPU)),
]


@cache
def data() -> LoadedSplit:
    return generate(SyntheticConfig(num_train=POOL, num_test=1, seed=1, dtype="float32")).train


def settings() -> Settings:
    return make_settings(protocol="corrected")


def learner(kind: type[Learner] = Learner, device: str = "cpu") -> Learner:
    torch.manual_seed(0)
    return kind(WIDTHS, settings(), device)


@dataclass(frozen=True)
class Size:
    """Of the batches that are stepped through."""

    samples: int
    rows: float
    chosen: float  # rows with a gradient of their class logits
    mean_length: float

    @property
    def operations(self) -> float:
        """Of a step's products, forward, in the weights and in the inputs of all layers but the first."""
        s, width = settings(), WIDTHS[0]
        hidden, classes, directions = width * s.hidden, s.hidden * s.num_classes, s.hidden * (1 + s.num_clusters)
        by_rows = self.rows * (3 * hidden + classes + 3 * directions) + self.chosen * (hidden + 2 * classes)
        return 2 * len(WIDTHS) * by_rows


def size(split: ResidentSplit, steps: int = 4) -> Size:
    s, taught, rows, chosen = settings(), learner(device=split.device.type), [], []
    for step in range(steps):
        features, index, labels = split.sampled(
            batch_videos(POOL, VIDEOS, 0, step), s.num_segments, position_key(0, step)
        )
        heads = taught.model(features)
        losses = training_losses(heads, index, labels, taught.labels, s)
        (found,) = torch.autograd.grad(losses.total, heads.cas)
        rows.append(len(features[0]))
        chosen.append(float((found != 0).any(-1).sum(-1).double().mean()))
    return Size(
        VIDEOS * s.num_segments, float(np.mean(rows)), float(np.mean(chosen)), float(split.lengths.double().mean())
    )


def fast(split: ResidentSplit, device: str) -> Callable[[], Tensor]:
    """As ``case-wtal train`` steps: a graph on CUDA, captured by the steps that warm up."""
    taught, s = learner(device=device), settings()
    if device == "cuda":
        static = StaticSteps(taught, split, VIDEOS, (0,), capture=True)
        return lambda: static.step().total

    def step() -> Tensor:
        videos = batch_videos(POOL, VIDEOS, 0, taught.steps)
        key = position_key(0, taught.steps)
        return taught.step(*split.sampled(videos, s.num_segments, key, scratch=taught.scratch)).total

    return step


def plain(split: ResidentSplit, device: str) -> Callable[[], Tensor]:
    """Straight-line torch on every sample, by Linear layers: ``--engine plain``."""
    taught, s = learner(PlainLearner, device), settings()

    def step() -> Tensor:
        videos = batch_videos(POOL, VIDEOS, 0, taught.steps)
        return taught.step(*split.sampled(videos, s.num_segments, position_key(0, taught.steps))).total

    return step


def usual(split: ResidentSplit, device: str) -> Callable[[], Tensor]:
    model, s, rng = learner(device=device), settings(), np.random.default_rng(0)
    taught = UsualStep(model.model, model.labels, s)
    taught.branches.to(device)
    features, offsets, steps = data().features, data().offsets, iter(range(10**9))

    def step() -> Tensor:
        videos = batch_videos(POOL, VIDEOS, 0, next(steps))
        samples = numpy_samples(features, offsets, videos.tolist(), s.num_segments, rng)
        return taught.step([x.to(device) for x in samples], split.labels[videos.to(device)])

    return step


PEERS = {"usual code, Conv1d": usual, "plain engine, Linear": plain}
TF32 = "case, --precision tf32"  # a GPU's; all others multiply in float32


@pytest.fixture
def products() -> Iterator[None]:
    """A step's choice of how to multiply is no other test's."""
    yield
    set_products("fp32", torch.device("cpu"))


def test_usual_step_computes_the_same() -> None:
    """The peer is CASE: its loss and cluster labels on the same weights and samples are the engine's."""
    split, s = ResidentSplit.from_loaded(data(), torch.device("cpu")), settings()
    rows, index, labels = split.sampled(torch.arange(3), s.num_segments, position_key(0, 0))
    taught = learner()
    peer = UsualStep(taught.model, taught.labels, s)
    loss, found = peer.losses([x[index] for x in rows], labels)
    losses = taught.losses(rows, index, labels)
    torch.testing.assert_close(loss, losses.total, rtol=1e-5, atol=0)
    torch.testing.assert_close(found, losses.cluster_labels, rtol=0, atol=1e-4)


@pytest.mark.usefixtures("products")
@pytest.mark.parametrize("contender", ["case", TF32, *PEERS])
@pytest.mark.parametrize("device", DEVICES)
def test_training_step(benchmark: Any, device: str, contender: str) -> None:
    if contender == TF32 and device == "cpu":
        pytest.skip(NO_GPU)
    split = ResidentSplit.from_loaded(data(), torch.device(device))
    found = size(split)
    benchmark.group = f"training step, {VIDEOS} videos, {device}"
    benchmark.extra_info.update(
        op="training step", title="training_step", contender=contender, peer=contender in PEERS, device=device,
        dtype="float32", backward=True, scale=1, threads=THREADS, moved=0, operations=found.operations,
        sizes={
            "videos": VIDEOS, "samples": found.samples, "mean_length": found.mean_length,
            "rows": round(found.rows), "rows_with_class_gradient": round(found.chosen),
        },
    )  # fmt: skip
    ours = fast(split, device)
    set_products("tf32" if contender == TF32 else "fp32", torch.device(device))
    for _ in range(WARM[device]):
        ours()
    step = _waiting(PEERS[contender](split, device), device) if contender in PEERS else _waiting(ours, device)
    step()
    rounds = 6 if device == "cpu" else 50
    timing.timed(benchmark, step, ours if contender in PEERS else None, rounds, device)


def _waiting(step: Callable[[], Tensor], device: str) -> Callable[[], None]:
    def run() -> None:
        step()
        timing.synchronize(device)

    return run


def main() -> None:
    """Where a step spends its time: a table, and trace.json for a viewer of traces."""
    out = Path(sys.argv[1])
    out.mkdir(parents=True, exist_ok=True)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    split = ResidentSplit.from_loaded(data(), torch.device(device))
    step = _waiting(fast(split, device), device)
    for _ in range(WARM[device]):
        step()
    with torch.profiler.profile() as profile:
        for _ in range(3):
            step()
    profile.export_chrome_trace(str(out / "train_trace.json"))
    table = profile.key_averages().table(sort_by=f"self_{device}_time_total", row_limit=30)
    (out / "train_profile.txt").write_text(table)
    print(table)


if __name__ == "__main__":
    main()
