"""Many runs of one configuration at once: seeds, and sweeps over settings that enter a step as numbers."""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from case.config import Settings, TrainConfig, make_train_config, to_dict, to_toml
from case.data import atomic_write, make_folder
from case.engine.distributed import started
from case.engine.graphs import StaticSteps
from case.engine.rundata import load_data
from case.engine.sampling import batch_videos, position_key
from case.engine.selection import EVALUATION, LAST
from case.engine.stacked import SWEEPABLE, StackedLearner
from case.engine.store import stacked
from case.engine.train import TrainingRun, catch_up, open_run, pick_device, train_together
from case.errors import CaseError
from case.objective import Losses


@dataclass(frozen=True)
class Planned:
    """One of many runs: its configuration, its seed among it, and its values of what is swept."""

    config: TrainConfig
    swept: dict[str, float]

    @property
    def setting(self) -> str:
        """What it shares with runs of other seeds: "w_cls=0.1, lr=0.001"; "" where nothing is swept."""
        return ", ".join(f"{name}={value}" for name, value in self.swept.items())


def parse_seeds(text: str) -> tuple[int, ...]:
    """Seeds from "0-7" or "0,3,5", or both. Raises ``CaseError`` for anything else and for a seed that comes twice."""
    seeds: list[int] = []
    for part in text.split(","):
        match = re.fullmatch(r"\s*(\d{1,19})(?:-(\d{1,19}))?\s*", part)
        first, last = (int(match[1]), int(match[2] or match[1])) if match else (0, -1)
        if last < first or last - first >= 10_000:
            raise CaseError(f"seeds must be like 0-7 or 0,3,5, got '{text}'")
        seeds += range(first, last + 1)
    _require_distinct("seeds", seeds)
    return tuple(seeds)


def parse_sweep(texts: Sequence[str]) -> dict[str, tuple[float, ...]]:
    """Values by setting from texts like "w_cls=0.1,0.3".

    Raises ``CaseError`` for text of another form, a value that is no number, a value or setting that comes twice, and,
    with what to do instead, for a setting that runs trained at once cannot differ in.
    """
    sweep: dict[str, tuple[float, ...]] = {}
    for text in texts:
        name, _, given = text.partition("=")
        name = name.strip().replace("-", "_")
        _require_sweepable(name)
        if name in sweep:
            raise CaseError(f"{name} is swept twice; give its values as one list: --sweep {name}=0.1,0.3")
        try:
            values = [float(value) for value in given.split(",")]
        except ValueError as error:
            raise CaseError(f"a sweep must be like w_cls=0.1,0.3, got '{text}'") from error
        _require_distinct(name, values)
        sweep[name] = tuple(int(value) if value.is_integer() and name == "ot_iters" else value for value in values)
    return sweep


def plan_runs(config: TrainConfig, seeds: Sequence[int], sweep: Mapping[str, Sequence[float]]) -> list[Planned]:
    """A run for every seed under every combination of swept values, seeds innermost, in folders of ``config.output``.

    Raises ``CaseError`` for a value outside its setting's range.
    """
    planned = []
    for values in itertools.product(*sweep.values()):
        swept = dict(zip(sweep, values, strict=True))
        for seed in seeds:
            folder = "-".join([f"seed-{seed}", *(f"{name}-{value}" for name, value in swept.items())])
            fields = {**to_dict(config), **swept, "seed": seed, "output": config.output / folder}
            planned.append(Planned(make_train_config(fields), swept))
    return planned


def open_many(config: TrainConfig, planned: Sequence[Planned]) -> list[TrainingRun]:
    """``open_run`` of each, on data that is read once; ``config`` is what they have in common."""
    if config.output.joinpath(LAST).exists():
        raise CaseError(f"{config.output} already holds a run; give another --output for many")
    if started() > 1:
        raise CaseError(f"many runs are for one process, got {started()}; start without torchrun, or give one --seed")
    if config.engine == "plain":
        raise CaseError("engine plain trains one run at a time; use --engine fast, or --seed")
    data = load_data(config, pick_device(config.device))
    # Runs killed in their first save leave some without a checkpoint: these start, and catch up with the others.
    saved = [one.config.output.joinpath(LAST).exists() for one in planned]
    resumed = [has or not any(saved) for has in saved]
    configs = [replace(one.config, resume=one.config.resume and was) for one, was in zip(planned, resumed, strict=True)]
    return [open_run(mine, data=data) for mine in configs]


def train_many(config: TrainConfig, runs: Sequence[TrainingRun]) -> None:
    """``run_training`` of all runs in steps that are made at once; each run comes out as if it had been alone.

    Runs that an interrupted save left at an earlier step than the others catch up with them first. Leaves a run folder
    for each, and what they have in common as ``config.toml`` beside them. Raises ``Interrupted`` as ``run_training``
    does, and ``CaseError`` for runs that cannot be trained at once.
    """
    make_folder(config.output)
    atomic_write(config.output / "config.toml", to_toml(config).encode())
    catch_up(runs)
    train_together(runs, _steps(runs))


def _steps(runs: Sequence[TrainingRun]) -> Callable[[], list[Losses]]:
    """What makes the next step of all runs: of each, on the videos and samples that it would have alone."""
    config, learner = runs[0].config, StackedLearner([run.learner for run in runs])
    split, count = stacked([run.train for run in runs]), len(runs[0].train.videos)
    seeds = [run.config.seed for run in runs]

    def each(losses: Losses) -> list[Losses]:
        return [Losses(*mine) for mine in zip(*(part.unbind() for part in losses), strict=True)]

    if split.features[0].is_cuda:
        static = StaticSteps(learner, split, config.batch_size, seeds, capture=True)
        return lambda: each(static.step())

    def step() -> list[Losses]:
        keys = torch.tensor([position_key(seed, learner.steps) for seed in seeds])[:, None, None]
        videos = torch.stack([batch_videos(count, config.batch_size, seed, learner.steps) for seed in seeds])
        rows = split.sampled(videos, config.num_segments, keys, scratch=learner.scratch)
        return each(learner.step(*rows))

    return step


def _require_sweepable(name: str) -> None:
    known = {*vars(TrainConfig())}
    if name not in known:
        raise CaseError(f"unknown setting '{name}' in --sweep; one of: {', '.join(SWEEPABLE)}")
    if name == "seed":
        raise CaseError("seeds are not swept; give them with --seeds 0-7, say")
    if name in (*EVALUATION, "keep_checkpoint"):
        raise CaseError(
            f"{name} changes evaluation only, so that the runs of a sweep would learn the same; run them "
            f"apart, each with its own --{name.replace('_', '-')}"
        )
    if name not in SWEEPABLE:
        what = "a setting of the method" if name in vars(Settings()) else "a setting of the run"
        raise CaseError(
            f"{name} is {what} that runs trained at once must share; run them apart, each with its own "
            f"--{name.replace('_', '-')} (--sweep takes {', '.join(SWEEPABLE)})"
        )


def _require_distinct(name: str, values: Sequence[Any]) -> None:
    if len(set(values)) < len(values) or not all(math.isfinite(value) for value in values):
        raise CaseError(f"{name} must be finite numbers, each given once, got {', '.join(map(str, values))}")
