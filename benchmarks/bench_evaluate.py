"""A whole evaluation, from features to mAP, of synthetic videos as many and as long as THUMOS14's test split.

``python -m benchmarks.bench_evaluate`` prints where the time goes, beside this machine's own time for the network's
matrix products; ``--videos`` makes it smaller, ``--lengths FILE`` takes a CSV with the columns subset and
num_snippets_est.
"""

from __future__ import annotations

import argparse
import csv
import statistics
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from benchmarks.machine import THREADS
from case.config import Settings, make_settings
from case.data.synthetic import SyntheticConfig, SyntheticData, generate
from case.engine.evaluate import Localized, Score, localize_split, score_split
from case.engine.learner import Learner
from case.engine.precision import rows_dtype
from case.engine.sampling import batch_videos, position_key, uniform_positions
from case.engine.store import ResidentSplit

OPERATIONS_A_ROW = 2 * (4 * 1024 * 512 + 2 * 512 * 37)  # of the network's matrix products
STAGES = ("rows", "network", "activations", "detections", "mAP")


def thumos_sized(videos: int, lengths: Path | None = None) -> SyntheticData:
    """Two streams of 1024 numbers a snippet; the lengths of a file, or log-normal after THUMOS14's."""
    data = generate(SyntheticConfig(num_train=16, num_test=videos, seed=1, dtype="float32"))
    if lengths is None:
        return data
    with lengths.open() as file:
        counts = [int(row["num_snippets_est"]) for row in csv.DictReader(file) if row["subset"] == "test"]
    # Each video's rows, repeated or cut to the length of the file's; annotations stay as they are.
    test, wanted = data.test, counts[:videos]
    starts, rows = test.offsets[:-1], np.diff(test.offsets)
    taken = np.concatenate([s + np.arange(n) % r for s, r, n in zip(starts, rows, wanted, strict=True)])
    offsets = np.concatenate([[0], np.cumsum(wanted)])
    return replace(data, test=replace(test, features=tuple(f[taken] for f in test.features), offsets=offsets))


def trained(data: SyntheticData, settings: Settings, steps: int) -> Learner:
    """Random weights, or half trained: some steps on a few videos at a high rate."""
    torch.manual_seed(0)
    learner = Learner((1024, 1024), settings)
    train = ResidentSplit.from_loaded(data.train, torch.device("cpu"))
    for step in range(steps):
        videos = batch_videos(len(train.videos), 8, seed=0, step=step)
        learner.step(*train.sampled(videos, 200, position_key(1, step)))
    return learner


def evaluate(
    learner: Learner, split: ResidentSplit, data: SyntheticData, settings: Settings
) -> tuple[Localized, Score]:
    localized = localize_split(learner.model, learner.inference_labels, split, settings)
    return localized, score_split(localized, split.labels, data.ground_truth, "test", settings)


def distinct_rows(split: ResidentSplit, settings: Settings) -> int:
    positions = uniform_positions(split.lengths, settings.num_segments)
    return int(torch.unique(split.starts[:, None] + positions).numel())


def product_seconds(rows: int, dtype: torch.dtype = torch.float32) -> float:
    """This machine's time for the network's matrix products of so many rows, in pieces of 8192 at its own best rate."""
    x, w = torch.randn(8192, 1024).to(dtype), torch.randn(512, 1024).to(dtype)
    best = min(_seconds(lambda: x @ w.mT) for _ in range(10))
    return OPERATIONS_A_ROW * rows / (2 * 8192 * 1024 * 512 / best)


def _seconds(function: Callable[[], object]) -> float:
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def stages(function: Callable[[], object]) -> dict[str, float]:
    """Seconds in each labelled part of an evaluation."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        function()
    found = {event.key: event.cpu_time_total / 1e6 for event in profile.key_averages()}
    return {stage: found[f"case: {stage}"] for stage in STAGES}


@pytest.mark.parametrize("steps", [0, 20], ids=["random", "half trained"])
def test_evaluation(benchmark: Any, steps: int) -> None:
    settings = make_settings(protocol="released", lr=1e-3)
    data = thumos_sized(30)
    split = ResidentSplit.from_loaded(data.test, torch.device("cpu"))
    learner = trained(data, settings, steps)
    weights = "half trained" if steps else "random weights"
    benchmark.group = f"evaluation of 30 videos, {weights}, features to mAP, cpu"
    localized, _ = benchmark.pedantic(evaluate, args=(learner, split, data, settings), rounds=3, warmup_rounds=1)
    rows = distinct_rows(split, settings)
    benchmark.extra_info.update(
        op="evaluation", title=f"evaluation, {weights}", contender="case",
        peer=False, device="cpu", dtype="float32", backward=False, scale=1, moved=0, operations=OPERATIONS_A_ROW * rows,
        sizes={"videos": len(split.videos), "rows": rows}, threads=THREADS,
    )  # fmt: skip
    benchmark.extra_info["detections"] = len(localized.detections.score)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--videos", type=int, default=210)
    parser.add_argument("--lengths", type=Path, help="CSV with the columns subset and num_snippets_est")
    parser.add_argument("--steps", type=int, nargs="+", default=[0, 40], help="training steps before the evaluation")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--precision", choices=["fp32", "bf16"], default="fp32", help="of the network's wide products")
    given = parser.parse_args()
    torch.set_num_threads(THREADS)
    settings = make_settings(protocol="released", lr=1e-3)
    data = thumos_sized(given.videos, given.lengths)
    dtype = rows_dtype(given.precision)
    split = ResidentSplit.from_loaded(data.test, torch.device("cpu"), storage=dtype, dtype=dtype)
    rows = distinct_rows(split, settings)
    for steps in given.steps:
        learner = trained(data, settings, steps)
        localized, score = evaluate(learner, split, data, settings)
        # In turns, so that what else the machine does weighs on both alike.
        pairs = [
            (_seconds(lambda: evaluate(learner, split, data, settings)), product_seconds(rows, dtype))  # noqa: B023
            for _ in range(given.rounds)
        ]
        seconds, products = (statistics.median(column) for column in zip(*pairs, strict=True))
        spread = f"{min(s for s, _ in pairs):.2f} to {max(s for s, _ in pairs):.2f}"
        ratios = [s / p for s, p in pairs]
        print(
            f"{steps} steps: {len(localized.detections.score)} detections, mAP {100 * score.mean_ap.mean:.1f} %: "
            f"{seconds:.2f} s ({spread}); matrix products of {rows} rows {products:.2f} s; "
            f"{statistics.median(ratios):.2f} x ({min(ratios):.2f} to {max(ratios):.2f})"
        )
        parts = stages(lambda: evaluate(learner, split, data, settings))  # noqa: B023
        print("  " + ", ".join(f"{name} {value:.3f} s" for name, value in parts.items()))


if __name__ == "__main__":
    main()
