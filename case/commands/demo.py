"""``case-wtal demo``: the whole tour on synthetic data, ending in a table of the baseline against CASE."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from case import console
from case.commands._flags import parse, program
from case.commands.train import configure
from case.data import DEMO, atomic_write, make_folder, write
from case.errors import CaseError


@dataclass(frozen=True)
class DemoConfig:
    output: Path = Path("demo")
    """Folder for the data and both runs; an earlier demo there is replaced."""
    max_steps: int = 200
    """Training steps of each run."""
    seed: int = 1
    """Decides initial weights and batches. It also decides whether attention finds the actions or their context: of the
    seeds 0 to 4, 0 and 2 settle on the context, for the baseline and for CASE alike."""


def run(argv: Sequence[str]) -> int:
    config = parse(
        DemoConfig, argv, command="demo",
        description="Make synthetic data, train the attention-only baseline and CASE on it, compare and draw.",
    )  # fmt: skip
    if config.max_steps < 1:
        raise CaseError(f"max_steps must be at least 1, got {config.max_steps}")
    data, runs = config.output / "data", {"baseline": config.output / "baseline", "CASE": config.output / "case"}
    _clear(config.output)
    console.note(f"1/3 synthetic data: {DEMO.num_train} training and {DEMO.num_test} test videos, {data}")
    write(DEMO, data)

    from case.engine.finish import finish_run
    from case.engine.train import Interrupted, open_run, run_training
    from case.report import ap_rows

    scores = {}
    for number, (name, output) in enumerate(runs.items(), start=2):
        baseline = name == "baseline"
        console.note(f"{number}/3 {name}{' (attention only)' if baseline else ''}, {config.max_steps} steps")
        training = open_run(
            configure(
                {
                    "preset": "demo", "protocol": "corrected", "data": data, "output": output, "seed": config.seed,
                    "max_steps": config.max_steps, "pictures": 4,
                    "clustering": not baseline,
                }
            )
        )  # fmt: skip
        try:
            run_training(training)
        except Interrupted:
            console.note(f"stopped at step {training.learner.steps}; start over with: case-wtal demo")
            return 130
        scores[name] = finish_run(training)["last"].score.mean_ap
    titles = {"baseline": "attention only", "CASE": "CASE"}
    console.table("mAP on synthetic test videos, %", *ap_rows({titles[name]: score for name, score in scores.items()}))
    console.note("one seed each; whether attention settles on actions or on their context depends on it (try --seed 0)")
    console.note(f"pictures: {runs['CASE'] / 'timelines'}; report: {runs['CASE'] / 'report.md'}")
    console.note(
        f"next: {program()} train --data {data} --preset demo --protocol released --output {config.output / 'released'}"
    )
    return 0


def _clear(folder: Path) -> None:
    """An empty folder for the demo: an earlier demo is removed, and nothing that does not carry its mark."""
    mark = folder / ".case-demo"
    if folder.exists() and (not folder.is_dir() or (any(folder.iterdir()) and not mark.exists())):
        raise CaseError(f"{folder} exists and is not an earlier demo; give another --output")
    if folder.exists():
        shutil.rmtree(folder)
    make_folder(folder)
    atomic_write(mark, b"case-wtal demo may delete this folder\n")
