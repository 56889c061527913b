"""The training loop: from a data folder and a configuration to a run folder that holds everything about it."""

from __future__ import annotations

import math
import signal
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import FrameType
from typing import Any

import torch

from case import console
from case.config import TrainConfig, to_dict, to_toml
from case.data import (
    FeatureFolder,
    atomic_write,
    load_split,
    make_folder,
    open_folder,
    remove_unfinished,
    split_bytes,
)
from case.engine.checkpoint import load_checkpoint, save_checkpoint
from case.engine.distributed import ALONE, Ranks
from case.engine.evaluate import Localized, Score, concatenate, localize_split, score_split
from case.engine.graphs import StaticSteps
from case.engine.learner import Learner
from case.engine.plain import PlainLearner
from case.engine.precision import rows_dtype, set_products
from case.engine.runlog import RunLog
from case.engine.sampling import batch_videos
from case.engine.store import ResidentSplit, fitting_residence
from case.errors import CaseError
from case.metrics import truth_instances

LAST, BEST = "last.safetensors", "best.safetensors"


class Interrupted(Exception):
    """Training was stopped by a signal after a step; the run can be resumed."""


@dataclass(eq=False)
class TrainingRun:
    """A run in progress: its data on the device, its learner and what it has found so far."""

    config: TrainConfig
    folder: FeatureFolder
    train: ResidentSplit
    test: ResidentSplit
    learner: Learner
    best: dict[str, Any] = field(default_factory=dict)
    """Step and mAP of the best evaluation on the test split."""
    static: StaticSteps | None = None
    """Steps as CUDA graphs, where they can be."""
    evaluated: tuple[int, Localized, Score] | None = None
    """The latest evaluation and its step."""
    ranks: Ranks = ALONE

    def save(self, name: str, score: Score | None) -> None:
        """Write a checkpoint with the run's configuration, best evaluation, and the score of these very weights."""
        if not self.ranks.first:
            return
        notes = {
            "config": to_dict(self.config),
            "best": self.best,
            "score": None if score is None else _score_entry(score),
        }
        save_checkpoint(self.config.output / name, self.learner, notes)


def open_run(config: TrainConfig, ranks: Ranks = ALONE) -> TrainingRun:
    """Read all data and, when resuming, the last checkpoint; nothing is written before all of it has proved usable.

    Each of several processes opens the same run.
    """
    if config.data is None:
        raise CaseError("no data folder given; use --data DIR, or `case-wtal synth DIR` to make one")
    device = pick_device(config.device)
    if config.threads:
        torch.set_num_threads(config.threads)
    last = config.output / LAST
    if config.resume and not last.exists():
        raise CaseError(f"{last}: no checkpoint to resume from; leave --resume out to start a new run")
    if not config.resume and last.exists():
        raise CaseError(f"{config.output} already holds a run; give another --output, or --resume to go on with it")
    folder = open_folder(
        config.data, fps=config.fps, snippet_stride=config.snippet_stride, modalities=config.modalities,
        allow_pickle=config.allow_pickle,
    )  # fmt: skip
    if tuple(folder.classes) != config.labels:
        raise CaseError(f"{config.data} has the classes {_few(folder.classes)}, the settings {_few(config.labels)}")
    both = sorted(set(folder.split("train")) & set(folder.split("test")))
    if both:
        raise CaseError(f"{config.data}: training videos are in the test split too: {_few(both)}; drop them from one")
    # Asked for here, since an unknown subset must not be found out by the first evaluation.
    truth_instances(folder.ground_truth, {v: i for i, v in enumerate(folder.ground_truth.videos)}, folder.test_subset)
    train, test = _load(config, folder, device)
    for note in folder.notes:
        console.warn(note)
    if config.engine == "plain" and ranks.size > 1:
        raise CaseError(f"engine plain is for one process, got {ranks.size}; use --engine fast")
    best: dict[str, Any] = {}
    kind = PlainLearner if config.engine == "plain" else Learner
    set_products(config.precision)
    if config.resume:
        checkpoint = load_checkpoint(last)
        if checkpoint.widths != folder.widths:
            raise CaseError(
                f"{config.data} has features of width {folder.widths}, {last} was trained on {checkpoint.widths}"
            )
        for name in ("modalities", "num_classes", "num_clusters", "hidden"):
            if getattr(config, name) != getattr(checkpoint.settings, name):
                raise CaseError(
                    f"{name} is {getattr(config, name)!r}, {last} was trained with "
                    f"{getattr(checkpoint.settings, name)!r}; it cannot change on --resume"
                )
        if checkpoint.steps > config.max_steps:
            raise CaseError(
                f"{last} is at step {checkpoint.steps}, past max_steps {config.max_steps}; give a larger --max-steps, "
                "or use evaluate"
            )
        learner = checkpoint.learner(config.settings, device, kind)
        best = checkpoint.notes["best"]
    else:
        torch.manual_seed(config.seed)
        learner = kind(folder.widths, config.settings, device)
    graphed = train.features[0].is_cuda and config.engine == "fast" and ranks.size == 1
    static = StaticSteps(learner, train, config.batch_size, config.seed, capture=True) if graphed else None
    return TrainingRun(config, folder, train, test, learner, best, static, ranks=ranks)


def run_training(run: TrainingRun) -> None:
    """Train to ``max_steps`` with evaluations on the way; checkpoints after each, at the end and on a signal.

    Raises ``Interrupted`` after SIGINT or SIGTERM, with the last checkpoint saved.
    """
    config, learner = run.config, run.learner
    if run.ranks.first:
        _prepare_folder(run)
    log = RunLog(config.output, step=learner.steps, writing=run.ranks.first)
    try:
        with _signals() as stopped, console.progress(config.max_steps, "train", done=learner.steps) as bar:
            started = time.perf_counter()
            first = learner.steps
            unsaved = not (config.output / LAST).exists()
            while not run.ranks.any(bool(stopped)) and learner.steps < config.max_steps:
                losses = _step(run)
                step = learner.steps
                ending = step == config.max_steps or bool(stopped)
                if ending or step % config.log_every == 0:
                    shown = {name: value.item() for name, value in losses._asdict().items() if value.dim() == 0}
                    _require_finite(shown["total"], step)
                    pace = (time.perf_counter() - started) / (step - first)
                    log.write("train", step, **shown, seconds_per_step=pace)
                    bar.advance(0, loss=shown["total"])
                evaluating = step == config.max_steps or (config.eval_every > 0 and step % config.eval_every == 0)
                unsaved = not (evaluating or step % config.save_every == 0)
                if not unsaved:
                    _require_finite(losses.total.item(), step)
                    run.save(LAST, None)
                if evaluating:
                    score = _evaluate(run, log)
                    bar.advance(0, mAP=100 * score.mean_ap.mean)
                bar.advance(1)
            if unsaved:
                if learner.steps > first:
                    _require_finite(losses.total.item(), learner.steps)
                run.save(LAST, None)
            if learner.steps < config.max_steps:
                raise Interrupted
    finally:
        log.close()


def evaluate_run(run: TrainingRun) -> tuple[Localized, Score]:
    """Localize and score the test split with the run's present weights.

    Each of several processes localizes its stretch of the videos; ``Localized`` is of all of them on rank 0, and
    elsewhere of that stretch.
    """
    settings, ranks = run.config.settings, run.ranks
    mine = run.test.part(ranks.slice(len(run.test.videos)))
    parts = ranks.gather(localize_split(run.learner.model, run.learner.inference_labels, mine, settings))
    localized = concatenate(parts)
    truth, subset = run.folder.ground_truth, run.folder.test_subset
    return localized, ranks.from_first(lambda: score_split(localized, run.test.labels, truth, subset, settings))


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


def _few(names: Sequence[str], most: int = 5) -> str:
    """The first names of a list, and how many there are."""
    shown = ", ".join(names[:most])
    return f"{shown}, ... ({len(names)} in all)" if len(names) > most else shown


def _load(config: TrainConfig, folder: FeatureFolder, device: torch.device) -> tuple[ResidentSplit, ResidentSplit]:
    """(train, test), where there is room for both."""
    names = ("train", "test")
    storage = None if config.storage == "stored" else getattr(torch, config.storage)
    size = sum(split_bytes(folder, name) for name in names)
    residence = fitting_residence(size, device) if config.residence == "auto" else config.residence
    if residence == "disk" and storage is not None:
        raise CaseError(f"features on disk stay as they are stored, got storage {config.storage}; use --storage stored")
    directory = config.output if residence == "disk" else None

    def load(name: str) -> ResidentSplit:
        with console.progress(len(folder.split(name)), f"read {name}", unit="video") as bar:
            split = load_split(folder, name, directory=directory, progress=lambda done, total: bar.advance(1))
        return ResidentSplit.from_loaded(
            split, device, residence=residence, storage=storage, dtype=rows_dtype(config.precision)
        )

    return load(names[0]), load(names[1])


def _prepare_folder(run: TrainingRun) -> None:
    config, steps = run.config, run.learner.steps
    make_folder(config.output)
    remove_unfinished(config.output)
    if steps < config.max_steps or steps == 0:  # else a finished run, asked for its report again
        atomic_write(config.output / "config.toml", to_toml(config).encode())
    if steps == 0:
        (config.output / BEST).unlink(missing_ok=True)  # of an earlier run that lost its last checkpoint


def _step(run: TrainingRun) -> Any:
    """One update on the videos and samples that the seed and the step number decide."""
    seed, number = run.config.seed, run.learner.steps
    batch = batch_videos(len(run.train.videos), run.config.batch_size, seed, number)
    if run.static is not None:
        return run.static.step(batch)
    share = run.ranks.share(len(batch), run.config.num_segments)
    mine = batch[run.ranks.slice(len(batch))]
    return run.learner.step(*run.train.sampled(mine, run.config.num_segments, seed, number), share)


def _evaluate(run: TrainingRun, log: RunLog) -> Score:
    started = time.perf_counter()
    localized, score = evaluate_run(run)
    step = run.learner.steps
    run.evaluated = (step, localized, score)
    log.write("eval", step, **_score_entry(score), seconds=time.perf_counter() - started)
    if score.mean_ap.mean > run.best.get("mAP", -1.0):
        run.best = {"step": step, "mAP": score.mean_ap.mean}
        run.save(BEST, score)
    run.save(LAST, score)
    return score


def _score_entry(score: Score) -> dict[str, Any]:
    return {
        "mAP": score.mean_ap.mean,
        "video_accuracy": score.video_accuracy,
        "tiou": list(score.mean_ap.tiou),
        "ap_per_tiou": score.mean_ap.per_tiou.tolist(),
    }


def _require_finite(loss: float, step: int) -> None:
    if not math.isfinite(loss):
        raise CaseError(
            f"the loss is {loss} at step {step}; lower --lr, or look at the features (`case-wtal data check`)"
        )


@contextmanager
def _signals() -> Iterator[list[int]]:
    """A list that fills when SIGINT or SIGTERM arrives, so that the step in progress ends first.

    A second signal stops at once.
    """
    caught: list[int] = []
    before = {s: signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)}

    def catch(number: int, frame: FrameType | None) -> None:
        if caught:
            raise KeyboardInterrupt
        caught.append(number)
        console.note("stopping after this step; once more to stop at once")

    try:
        for number in before:
            signal.signal(number, catch)
    except ValueError:
        pass  # not in the main thread: signals are somebody else's
    try:
        yield caught
    finally:
        for number, handler in before.items():
            if signal.getsignal(number) is catch:
                signal.signal(number, handler)
