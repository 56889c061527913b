"""One process of ``test_distributed``, run by path with ``job`` among its globals.

job: output (file for what is printed), environment, and either argv (of the command line) or runs: name and settings of
each, trained one after the other, and folder, where results go. kill: step, and what then happens to this process.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from case.cli import main
from case.commands.train import configure
from case.engine import train as training
from case.engine.distributed import joined
from case.engine.learner import Learner


def die(*_: object) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def freeze(*_: object) -> None:
    os.kill(os.getpid(), signal.SIGSTOP)


def stop(*_: object) -> None:
    os.kill(os.getpid(), signal.SIGTERM)


def end_at(step: int, where: str) -> None:
    """At that step, "die", "freeze" or be told to "stop" in the step itself, or die in its save: "fsync", written but
    perhaps not on the disk, or "replace", before the file takes its name."""
    make_step, save = Learner.step, training.save_checkpoint
    endings: dict[str, Callable[..., None]] = {"die": die, "freeze": freeze, "stop": stop}

    def stepping(self: Learner, *args: Any) -> Any:
        if self.steps == step and where in endings:
            endings[where]()
        return make_step(self, *args)

    def saving(path: Path, learner: Any, notes: dict[str, Any]) -> None:
        if learner.steps == step and where not in endings:
            setattr(os, where, die)
        save(path, learner, notes)

    Learner.step, training.save_checkpoint = stepping, saving  # type: ignore[method-assign]


def train_all(folder: Path, runs: list[tuple[str, dict[str, Any]]]) -> None:
    with joined("cpu") as ranks:
        for name, values in runs:
            run = training.open_run(configure(values), ranks)
            training.run_training(run)
            outcome = {"tensors": run.learner.state()["tensors"], "best": run.best}
            if run.evaluated is not None:
                localized = run.evaluated.localized
                outcome["activations"] = tuple(localized.activations)
                outcome["detections"] = tuple(localized.detections)
                outcome["videos"] = localized.videos
            torch.save(outcome, folder / f"{name}-{ranks.rank}.pt")


def work(job: dict[str, Any]) -> None:
    descriptor = os.open(job["output"], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    for stream in (1, 2):
        os.dup2(descriptor, stream)
    sys.stdout, sys.stderr = os.fdopen(1, "w", closefd=False), os.fdopen(2, "w", closefd=False)
    os.environ.update(job["environment"])
    torch.set_num_threads(1)
    if job.get("kill"):
        end_at(*job["kill"])
    if "argv" in job:
        sys.exit(main(job["argv"]))
    train_all(job["folder"], job["runs"])


work(globals()["job"])
