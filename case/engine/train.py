"""The training loop: from a data folder and a configuration to a run folder that holds everything about it."""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean
from typing import Any

import torch

from case import console
from case.config import TrainConfig, to_dict, to_toml
from case.data import FeatureFolder, atomic_write, make_folder, remove_unfinished
from case.engine.checkpoint import load_checkpoint, save_checkpoint, save_step
from case.engine.distributed import ALONE, Ranks
from case.engine.evaluate import Score
from case.engine.graphs import StaticSteps
from case.engine.heldout import hold_out
from case.engine.learner import Learner
from case.engine.plain import PlainLearner
from case.engine.precision import set_products
from case.engine.resume import evaluates_at, logged_losses, remove_later, require_one_run, require_same_run, take_up
from case.engine.rundata import RunData, load_data
from case.engine.runlog import RunLog, read_entries
from case.engine.sampling import batch_videos, position_key
from case.engine.selection import (
    CHECKPOINTS,
    LAST,
    LOSSES,
    Evaluation,
    Evaluator,
    score_entry,
    write_evaluations,
)
from case.engine.signals import Interrupted, stop_signals
from case.engine.store import ResidentSplit
from case.errors import CaseError
from case.objective import Losses


@dataclass(eq=False)
class TrainingRun:
    """A run in progress: its data on the device, its learner and what it has found so far."""

    config: TrainConfig
    folder: FeatureFolder
    train: ResidentSplit
    """What is trained on: the training split, less the held-out videos."""
    evaluator: Evaluator
    learner: Learner
    best: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Step and mAP of the evaluation that each of ``SELECTED_ON`` would keep."""
    evaluated: Evaluation | None = None
    """The latest evaluation."""
    ranks: Ranks = ALONE
    due: bool = False
    """Whether the weights that it goes on from are to be evaluated first."""

    def save(self, name: str, score: Score | None) -> None:
        """Write a checkpoint with the run's configuration, best evaluations, and the test score of these weights."""
        if not self.ranks.first:
            return
        heldout = self.evaluator.heldout
        notes = {
            "config": to_dict(self.config),
            "best": self.best.get("best-test", {}),
            "best_heldout": self.best.get("best-heldout", {}),
            "heldout": [] if heldout is None else list(heldout.videos),
            "score": None if score is None else score_entry(score),
        }
        save_checkpoint(self.config.output / name, self.learner, notes)
        if name == LAST:
            save_step(self.config.output, self.learner, notes, self.config.keep_last)


def open_run(config: TrainConfig, ranks: Ranks = ALONE, data: RunData | None = None) -> TrainingRun:
    """Read all data (unless given) and, when resuming, the last checkpoint.

    Nothing is written before all of it has proved usable. Each of several processes opens the same run. Raises
    ``CaseError`` in one line.
    """
    if config.data is None:
        raise CaseError("no data folder given; use --data DIR, or `case-wtal synth DIR` to make one")
    device = pick_device(config.device)
    if config.threads:
        torch.set_num_threads(config.threads)
    last = config.output / LAST
    require_one_run(config.output)
    if config.resume and not last.exists():
        raise CaseError(f"{last}: no checkpoint to resume from; leave --resume out to start a new run")
    if not config.resume and last.exists():
        raise CaseError(f"{config.output} already holds a run; give another --output, or --resume to go on with it")
    if config.engine == "plain" and ranks.size > 1:
        raise CaseError(f"engine plain is for one process, got {ranks.size}; use --engine fast")
    data = data or load_data(config, device)
    train, heldout = hold_out(data.train, config.val_fraction, config.seed)
    evaluator = Evaluator(data.folder, data.test, heldout)
    kind = PlainLearner if config.engine == "plain" else Learner
    set_products(config.precision, device)
    if not config.resume:
        torch.manual_seed(config.seed)
        learner = kind(data.folder.widths, config.settings, device)
        return TrainingRun(config, data.folder, train, evaluator, learner, ranks=ranks)
    checkpoint = load_checkpoint(last)
    require_same_run(config, data.folder, checkpoint, () if heldout is None else heldout.videos)
    best, due = take_up(config, checkpoint)
    learner = checkpoint.learner(config.settings, device, kind)
    return TrainingRun(config, data.folder, train, evaluator, learner, best, ranks=ranks, due=due)


def run_training(run: TrainingRun) -> None:
    """Train to ``max_steps`` with evaluations on the way; checkpoints after each, at the end and on a signal.

    Raises ``Interrupted`` after SIGINT or SIGTERM, with the last checkpoint saved.
    """
    train_together([run], _steps(run))


def catch_up(runs: Sequence[TrainingRun]) -> None:
    """Bring runs that were saved at an earlier step than others to the step of these, each alone, as it would have got
    there. Raises as ``run_training`` does."""
    until = max(run.learner.steps for run in runs)
    for run in runs:
        if run.learner.steps < until:
            train_together([run], _steps(run), until)


def train_together(runs: Sequence[TrainingRun], step: Callable[[], Sequence[Losses]], until: int | None = None) -> None:
    """``run_training`` of runs that are at one step and differ in nothing that says when what is done.

    ``step`` makes the next step of all of them and gives the losses of each; the last step is ``until``, by default
    ``max_steps``.
    """
    config, learner, ranks = runs[0].config, runs[0].learner, runs[0].ranks
    catching_up, until = until is not None, config.max_steps if until is None else until
    if ranks.first:
        for run in runs:
            _prepare(run)
    logs = [RunLog(run.config.output, step=learner.steps, again=run.due, writing=ranks.first) for run in runs]
    try:
        with stop_signals() as stopped, console.progress(config.max_steps, "train", done=learner.steps) as bar:
            started = time.perf_counter()
            first = learner.steps
            losses: Sequence[Losses] = []
            unsaved = not all((run.config.output / LAST).exists() for run in runs)
            for run, log in zip(runs, logs, strict=True):
                if run.due:
                    _evaluate(run, log, logged_losses(read_entries(log.path), learner.steps))
            while not ranks.any(bool(stopped)) and learner.steps < until:
                losses = step()
                number = learner.steps
                ending = number == config.max_steps or bool(stopped)
                if ending or number % config.log_every == 0:
                    pace = (time.perf_counter() - started) / (number - first)
                    totals = [_log(run, log, mine, pace) for run, log, mine in zip(runs, logs, losses, strict=True)]
                    bar.advance(0, loss=fmean(totals))
                    if not all(map(math.isfinite, totals)):
                        _save_all(runs, losses, catching_up)  # raises
                evaluating = evaluates_at(number, config.max_steps, config.eval_every)
                unsaved = not (evaluating or number % config.save_every == 0)
                if not unsaved:
                    _save_all(runs, losses, catching_up)
                if evaluating:
                    made = zip(runs, logs, losses, strict=True)
                    scores = [_evaluate(run, log, _numbers(mine)) for run, log, mine in made]
                    bar.advance(0, mAP=100 * fmean(score.mean_ap.mean for score in scores))
                bar.advance(1)
            if unsaved:
                _save_all(runs, losses, catching_up)
            if learner.steps < until:
                raise Interrupted
    finally:
        for log in logs:
            log.close()


def pick_device(name: str) -> torch.device:
    """The device of that name; ``auto``: CUDA where there is one. Raises ``CaseError`` where there is none."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        device = torch.device("meta")
    if device.type not in ("cpu", "cuda"):
        raise CaseError(f"device must be auto, cpu, cuda or cuda:<number>, got '{name}'")
    count = torch.cuda.device_count()
    if device.type == "cuda" and (device.index or 0) >= count:
        raise CaseError(f"device '{name}' asked for but this torch finds {count} CUDA devices; use --device cpu")
    return device


def _prepare(run: TrainingRun) -> None:
    """The run's folder, with the configuration that it goes on under."""
    config, steps = run.config, run.learner.steps
    make_folder(config.output)
    remove_unfinished(config.output)
    if steps < config.max_steps or steps == 0:  # else a finished run, asked for its report again
        atomic_write(config.output / "config.toml", to_toml(config).encode())
    remove_later(config.output, steps)


def _steps(run: TrainingRun) -> Callable[[], list[Losses]]:
    """What makes the next update, on the videos and samples that the seed and the step number decide."""
    config, learner, train, ranks = run.config, run.learner, run.train, run.ranks

    if train.features[0].is_cuda and config.engine == "fast" and ranks.size == 1:
        static = StaticSteps(learner, train, config.batch_size, (config.seed,), capture=True)
        return lambda: [static.step()]

    def step() -> list[Losses]:
        batch = batch_videos(len(train.videos), config.batch_size, config.seed, learner.steps)
        mine = batch[ranks.slice(len(batch))]
        key = position_key(config.seed, learner.steps)
        rows = train.sampled(mine, config.num_segments, key, scratch=learner.scratch)
        return [learner.step(*rows, ranks.share(len(batch), config.num_segments))]

    return step


def _log(run: TrainingRun, log: RunLog, losses: Losses, pace: float) -> float:
    """Write the losses of the step that was made, if they are finite; returns their total."""
    shown = _numbers(losses)
    if math.isfinite(shown["total"]):
        log.write("train", run.learner.steps, **shown, seconds_per_step=pace)
    return shown["total"]


def _save_all(runs: Sequence[TrainingRun], losses: Sequence[Losses], some: bool) -> None:
    """Last checkpoints of all runs that are finite; ``losses`` of the step that was made, empty where none was.

    ``some``: there are others beside these. Raises ``CaseError`` where a run is not, after the others have been saved,
    so that they can go on without it.
    """
    failed: dict[Path, str] = {}
    for run, mine in itertools.zip_longest(runs, losses):
        wrong = _not_finite(run, mine)
        if wrong:
            failed[run.config.output] = wrong
        else:
            run.save(LAST, None)
    if not failed:
        return
    (output, wrong), *others = failed.items()
    more = f" (and in {', '.join(path.name for path, _ in others)})" if others else ""
    cure = "lower --lr, or look at the features (`case-wtal data check`)"
    if some or len(failed) < len(runs):
        cure = "leave that value or seed out of --sweep and --seeds, and --resume: the other runs are saved"
    raise CaseError(f"{wrong} at step {runs[0].learner.steps} of {output}{more}; {cure}")


def _not_finite(run: TrainingRun, losses: Losses | None) -> str:
    """What of a run is not finite, "" where all is. The loss alone will not do: it was computed before the update."""
    if losses is not None and not math.isfinite(losses.total.item()):
        return f"the loss is {losses.total.item()}"
    learner = run.learner
    kept = [*learner.model.parameters(), learner.labels, learner.inference_labels]
    finite = torch.stack([part.detach().isfinite().all() for part in kept])  # one wait for the device
    return "" if finite.all() else "weights are not finite"


def _evaluate(run: TrainingRun, log: RunLog, losses: Mapping[str, float]) -> Score:
    """Evaluate, keep the checkpoints that are the best so far, and log; returns the score on the test split."""
    started = time.perf_counter()
    learner = run.learner
    try:
        found = run.evaluator(learner.steps, learner.model, learner.inference_labels, run.config.settings, run.ranks)
    except CaseError as error:  # finite weights can be too large for finite scores
        raise CaseError(f"{run.config.output}: {error}") from error
    run.evaluated, run.due = found, False
    numbers = {"losses": losses, "seconds": time.perf_counter() - started}
    log.write("eval", found.step, **score_entry(found.score), **numbers)
    if found.heldout is not None:
        log.write("heldout", found.step, **score_entry(found.heldout), **numbers)
    if run.ranks.first:
        write_evaluations(run.config.output, read_entries(log.path))
    for name, score in (("best-heldout", found.heldout), ("best-test", found.score)):
        if score is not None and score.mean_ap.mean > run.best.get(name, {}).get("mAP", -1.0):
            run.best[name] = {"step": found.step, "mAP": score.mean_ap.mean}
            run.save(CHECKPOINTS[name], found.score)
    run.save(LAST, found.score)
    return found.score


def _numbers(losses: Losses) -> dict[str, float]:
    return {name: getattr(losses, name).item() for name in LOSSES}
