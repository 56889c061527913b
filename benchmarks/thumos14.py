"""A run as ``case-wtal train`` makes it, on synthetic videos as many and as long as THUMOS14's.

Usage: python -m benchmarks.thumos14 OUT. Writes OUT/thumos14.json: seconds a step once the step's graphs are there, of
each evaluation, of all before, and from these what a whole run takes, 3,600 steps with an evaluation every 50. Nothing
goes through the command line, whose parser a GPU machine may lack.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

from benchmarks.machine import machine
from case.commands.train import configure
from case.config import TrainConfig
from case.data import THUMOS14_SIZED, SyntheticConfig, write
from case.engine.train import Interrupted, open_run, run_training

STEPS, WARM = 200, 100  # in the first steps graphs are captured
WHOLE = {"steps": 3600, "evaluations": 72}


def measure(synthetic: SyntheticConfig, folder: Path, **settings: Any) -> dict[str, Any]:
    """A run of ``STEPS`` steps with an evaluation after ``WARM`` of them and at the end."""
    found: dict[str, float] = {}
    begin = time.perf_counter()
    write(synthetic, folder / "data")
    found["making_data"] = time.perf_counter() - begin
    fixed = {"max_steps": STEPS, "eval_every": WARM, "log_every": 10, "save_every": 10 * STEPS, "pictures": 0}
    config: TrainConfig = configure({**fixed, **settings, "data": folder / "data", "output": folder / "run"})
    begin = time.perf_counter()
    run = open_run(config)
    found["opening"] = time.perf_counter() - begin
    # A time limit ends a run early, and what it has logged by then is an answer, too.
    with suppress(Interrupted, KeyboardInterrupt):
        run_training(run)
    entries = [json.loads(line) for line in (config.output / "metrics.jsonl").read_text().splitlines()]
    begun = {"seconds": found, "precision": config.precision, "device": str(run.train.device)}
    return {**begun, "steps": run.learner.steps, **summary(entries)}


def summary(entries: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """From a run's own log: times of steps and evaluations, and of a whole run unless this one was cut short."""
    # The pace is over all that came before, evaluations included, and logged before the one of its own step.
    passed = {e["step"]: e["step"] * e["seconds_per_step"] for e in entries if e["kind"] == "train"}
    scored = {e["step"]: e for e in entries if e["kind"] == "eval"}
    evaluating = {step: e["seconds"] for step, e in scored.items()}
    found: dict[str, Any] = {
        "first_steps": [{"step": n, "seconds_until": s} for n, s in passed.items() if n <= WARM],
        "evaluations": [{"step": n, "seconds": s, "mAP": scored[n]["mAP"]} for n, s in evaluating.items()],
    }
    # Neither the evaluation in between, nor the checkpoints beside it, are part of a step.
    steady = [step for step in passed if step > WARM]
    if len(steady) < 2:
        return found
    step = (passed[steady[-1]] - passed[steady[0]]) / (steady[-1] - steady[0])
    # The first evaluation also loads and compiles.
    projected = WHOLE["steps"] * step + WHOLE["evaluations"] * evaluating[max(evaluating)]
    return {**found, "seconds_per_step": step, "whole_run": {**WHOLE, "seconds": projected}}


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="benchmarks.thumos14", description=__doc__)
    parser.add_argument("out", type=Path)
    out = parser.parse_args(argv).out
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        found = measure(THUMOS14_SIZED, Path(folder), protocol="corrected")
    if torch.cuda.is_available():
        found["peak_bytes"] = torch.cuda.max_memory_allocated()
    (out / "thumos14.json").write_text(json.dumps({"machine": machine(), **found}, indent=2) + "\n")
    print(json.dumps(found, indent=2))


if __name__ == "__main__":
    main()
