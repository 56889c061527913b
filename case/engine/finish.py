"""The end of a run: its results side by side, detections, pictures and a report, in the run's folder."""

from __future__ import annotations

import math
import platform
import shlex
import sys
from dataclasses import dataclass
from datetime import datetime
from importlib import metadata
from pathlib import Path

import numpy as np
import torch

from case import __version__, console, viz
from case.config import Settings, TrainConfig
from case.data import FeatureFolder, make_folder, save_json
from case.engine.checkpoint import Checkpoint, load_checkpoint
from case.engine.evaluate import Localized, Score
from case.engine.learner import Learner
from case.engine.runlog import read_entries, series
from case.engine.selection import CHECKPOINTS, LOSSES, SELECTED_ON, Evaluation
from case.engine.train import TrainingRun
from case.report import ap_rows, write_markdown


@dataclass(frozen=True, eq=False)
class Outcome:
    """One checkpoint's result on the test split, and its score on held-out videos where there are any."""

    name: str
    step: int
    localized: Localized
    score: Score
    heldout: Score | None
    cluster_foreground: np.ndarray


def finish_run(run: TrainingRun) -> dict[str, Outcome]:
    """``conclude_run``, and print the table."""
    config, outcomes = run.config, conclude_run(run)
    scores = {_title(o): o.score.mean_ap for o in outcomes.values()}
    console.table(f"{run.folder.name}, {config.protocol}, seed {config.seed}: mAP, %", *ap_rows(scores))
    for outcome in outcomes.values():
        held = (
            ""
            if outcome.heldout is None
            else f"; mAP of the held-out videos {100 * outcome.heldout.mean_ap.mean:.1f} %"
        )
        exact = 100 * outcome.score.video_accuracy
        console.note(
            f"{outcome.name} (step {outcome.step}): set of classes exactly right in {exact:.1f} % of videos{held}"
        )
    console.note(f"detections, pictures and report of '{_kept(config, outcomes).name}' in {config.output}")
    return outcomes


def conclude_run(run: TrainingRun) -> dict[str, Outcome]:
    """Evaluate the checkpoints that the run has selected, write files, and pictures of the kept one.

    Writes ``results.json``, ``detections.json``, ``video_scores.json``, ``timelines/*.png``, ``curve_*.png``,
    ``ap.png`` and ``report.md``. Returns the outcomes by name: ``last``, ``best-heldout`` if videos are held out,
    ``best-test``.
    """
    config, output = run.config, run.config.output
    outcomes = {
        name: _outcome(run, name, output / file) for name, file in CHECKPOINTS.items() if (output / file).exists()
    }
    kept = _kept(config, outcomes)
    save_json(output / "results.json", _results(config, outcomes, kept), indent=1)
    save_json(output / "detections.json", kept.localized.results(config))
    save_json(output / "video_scores.json", {"classes": list(config.labels), "scores": kept.localized.scores})
    pictures = _draw(run, outcomes, kept)
    scores = {_title(o): o.score.mean_ap for o in outcomes.values()}
    held = {_title(o): o.heldout.mean_ap for o in outcomes.values() if o.heldout is not None}
    write_markdown(output / "report.md", config, scores, pictures, origin=run_origin(config), heldout=held)
    return outcomes


def draw_timelines(
    folder: FeatureFolder, localized: Localized, lengths: list[int], cluster_foreground: np.ndarray,
    settings: Settings, output: Path, count: int,
) -> list[Path]:  # fmt: skip
    """Draw ``count`` videos, spread over the split; returns the pictures' paths."""
    chosen = np.unique(np.linspace(0, len(localized.videos) - 1, min(count, len(localized.videos))).astype(int))
    if count <= 0:
        return []
    make_folder(output)
    paths = []
    with console.progress(len(chosen), "draw", unit="picture") as bar:
        for v in chosen:
            paths.append(output / f"{localized.videos[v]}.png")
            timeline = _timeline(folder, localized, int(v), lengths[v], cluster_foreground, settings)
            viz.draw_timeline(paths[-1], timeline)
            bar.advance(1)
    return paths


def _outcome(run: TrainingRun, name: str, path: Path) -> Outcome:
    checkpoint = load_checkpoint(path)
    found: Evaluation | None = run.evaluated
    if found is None or found.step != checkpoint.steps or not _same_weights(checkpoint, run.learner):
        device = run.train.device
        labels = checkpoint.cluster_labels.to(device)
        found = run.evaluator(checkpoint.steps, checkpoint.model(device), labels, run.config.settings)
    foreground = checkpoint.cluster_labels[:, 0].numpy()
    return Outcome(name, found.step, found.localized, found.score, found.heldout, foreground)


def _same_weights(checkpoint: Checkpoint, learner: Learner) -> bool:
    """Whether they are those of the learner. The step alone does not say so: a run may have gone back and on again."""
    mine = learner.state()["tensors"]
    names = [name for name in mine if name.startswith("model/") or name == "inference_labels"]
    return learner.steps == checkpoint.steps and all(torch.equal(mine[n], checkpoint.tensors[n]) for n in names)


def _kept(config: TrainConfig, outcomes: dict[str, Outcome]) -> Outcome:
    return outcomes.get(config.keep_checkpoint, outcomes["last"])


def run_origin(config: TrainConfig) -> dict[str, str]:
    """What it takes to make the run again, as far as the settings do not say it."""
    names = ("numpy", "torch", "triton")
    present = {distribution.name for distribution in metadata.distributions()}
    versions = [f"{name} {metadata.version(name)}" for name in names if name in present]
    return {
        "date": datetime.now().astimezone().isoformat(timespec="seconds"),
        "command": shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]]),
        "seed": str(config.seed),
        "device": config.device,
        "versions": ", ".join([f"case {__version__}", f"Python {platform.python_version()}", *versions]),
    }


def _title(outcome: Outcome) -> str:
    chosen = f", selected on {SELECTED_ON[outcome.name]}" if outcome.name in SELECTED_ON else ""
    return f"{outcome.name} (step {outcome.step}{chosen})"


def _results(config: TrainConfig, outcomes: dict[str, Outcome], kept: Outcome) -> dict[str, object]:
    found: dict[str, object] = {}
    for name, o in outcomes.items():
        result = {"step": o.step, "selected_on": SELECTED_ON.get(name), **_score_json(o.score)}
        found[name] = result if o.heldout is None else {**result, "heldout": _score_json(o.heldout)}
    return {"protocol": config.protocol, "seed": config.seed, "kept": kept.name, **found}


def _score_json(score: Score) -> dict[str, object]:
    return {"video_accuracy": score.video_accuracy, **score.mean_ap.to_json()}


def _draw(run: TrainingRun, outcomes: dict[str, Outcome], kept: Outcome) -> list[Path]:
    config, output = run.config, run.config.output
    entries = read_entries(output / "metrics.jsonl")
    pictures = [output / "ap.png", output / "curve_map.png", output / "curve_loss.png"]
    per_tiou = {o.name: [100 * x for x in o.score.mean_ap.per_tiou] for o in outcomes.values()}
    viz.draw_ap(pictures[0], config.tiou, per_tiou, "mAP on the test split")
    curves = {"test": series(entries, "eval", "mAP")}
    if run.evaluator.heldout is not None:
        curves["held-out training videos"] = series(entries, "heldout", "mAP")
    steps = sorted({step for curve in curves.values() for step in curve["steps"]})
    means = {name: dict(zip(curve["steps"], curve["values"], strict=True)) for name, curve in curves.items()}
    viz.draw_curve(
        pictures[1], steps, {name: [100 * at.get(step, math.nan) for step in steps] for name, at in means.items()},
        ylabel="mAP, %", title="mAP of each evaluation",
    )  # fmt: skip
    losses = {name: series(entries, "train", name) for name in LOSSES}
    viz.draw_curve(
        pictures[2], losses["total"]["steps"], {n: s["values"] for n, s in losses.items()},
        ylabel="loss", title="training losses",
    )  # fmt: skip
    lengths = run.evaluator.test.lengths.tolist()
    return pictures + draw_timelines(
        run.folder, kept.localized, lengths, kept.cluster_foreground, config, output / "timelines", config.pictures
    )


def _timeline(
    folder: FeatureFolder, localized: Localized, v: int, rows: int, cluster_foreground: np.ndarray, settings: Settings
) -> viz.Timeline:
    truth = folder.ground_truth.videos.get(localized.videos[v])
    instances = [] if truth is None else list(zip(truth.labels.tolist(), *truth.segments.T.tolist(), strict=True))
    mine = localized.detections.video == v
    detections = localized.detections
    labels, scores, segments = (c[mine].tolist() for c in (detections.label, detections.score, detections.segment))
    found = [(label, score, *segment) for label, score, segment in zip(labels, scores, segments, strict=True)]
    activations = localized.activations
    return viz.Timeline(
        video=localized.videos[v],
        duration=rows * settings.seconds_per_snippet,
        classes=settings.labels,
        truth=instances,
        detections=found,
        attention=activations.attention[v].numpy(),
        foreground=activations.foreground[v].numpy(),
        clusters=activations.clusters[v].numpy(),
        cluster_foreground=cluster_foreground,
        activation=activations.fused[v].numpy(),
    )
