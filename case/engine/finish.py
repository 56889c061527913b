"""The end of a run: both results side by side, detections, pictures and a report, in the run's folder."""

from __future__ import annotations

import platform
import shlex
import sys
from dataclasses import dataclass
from datetime import datetime
from importlib import metadata
from pathlib import Path

import numpy as np

from case import __version__, console, viz
from case.config import Settings, TrainConfig
from case.data import FeatureFolder, make_folder, save_json
from case.engine.checkpoint import load_checkpoint
from case.engine.evaluate import Localized, Score, localize_split, score_split
from case.engine.runlog import read_entries, series
from case.engine.train import BEST, LAST, TrainingRun
from case.report import ap_rows, write_markdown


@dataclass(frozen=True, eq=False)
class Outcome:
    """One checkpoint's result on the test split."""

    name: str
    step: int
    localized: Localized
    score: Score
    cluster_foreground: np.ndarray


def finish_run(run: TrainingRun) -> dict[str, Outcome]:
    """Evaluate the last and the best-on-test checkpoint, write files and pictures of the kept one, print the table.

    Writes ``results.json``, ``detections.json``, ``video_scores.json``, ``timelines/*.png``, ``curve_*.png``,
    ``ap.png`` and ``report.md``. Returns the outcomes by name: ``last``, ``best-test``.
    """
    config, output = run.config, run.config.output
    files = {"last": output / LAST, "best-test": output / BEST}
    outcomes = {name: _outcome(run, name, file) for name, file in files.items() if file.exists()}
    kept = outcomes.get(config.keep_checkpoint, outcomes["last"])
    save_json(output / "results.json", _results(config, outcomes, kept), indent=1)
    save_json(output / "detections.json", kept.localized.results(config))
    save_json(output / "video_scores.json", {"classes": list(config.labels), "scores": kept.localized.scores})
    shown = list(outcomes.values())
    if len({o.step for o in shown}) == 1:
        shown = shown[:1]  # the last checkpoint is the best: one row, not two alike
    scores = {_title(o): o.score.mean_ap for o in shown}
    pictures = _draw(run, shown, kept)
    write_markdown(output / "report.md", config, scores, pictures, origin=_origin(config))
    console.table(f"{run.folder.name}, {config.protocol}, seed {config.seed}: mAP, %", *ap_rows(scores))
    for outcome in shown:
        exact = 100 * outcome.score.video_accuracy
        console.note(f"{outcome.name} (step {outcome.step}): set of classes exactly right in {exact:.1f} % of videos")
    console.note(f"detections, pictures and report of '{kept.name}' in {output}")
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
    foreground = checkpoint.cluster_labels[:, 0].numpy()
    if run.evaluated is not None and run.evaluated[0] == checkpoint.steps:
        return Outcome(name, *run.evaluated, foreground)
    device = run.test.device
    labels = checkpoint.cluster_labels.to(device)
    localized = localize_split(checkpoint.model(device), labels, run.test, run.config.settings)
    score = score_split(
        localized, run.test.labels, run.folder.ground_truth, run.folder.test_subset, run.config.settings
    )
    return Outcome(name, checkpoint.steps, localized, score, foreground)


def _origin(config: TrainConfig) -> dict[str, str]:
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
    chosen = ", selected on the test set" if outcome.name == "best-test" else ""
    return f"{outcome.name} (step {outcome.step}{chosen})"


def _results(config: TrainConfig, outcomes: dict[str, Outcome], kept: Outcome) -> dict[str, object]:
    found = {
        name: {"step": o.step, "video_accuracy": o.score.video_accuracy, **o.score.mean_ap.to_json()}
        for name, o in outcomes.items()
    }
    return {"protocol": config.protocol, "seed": config.seed, "kept": kept.name, **found}


def _draw(run: TrainingRun, shown: list[Outcome], kept: Outcome) -> list[Path]:
    config, output = run.config, run.config.output
    entries = read_entries(output / "metrics.jsonl")
    pictures = [output / "ap.png", output / "curve_map.png", output / "curve_loss.png"]
    per_tiou = {o.name: [100 * x for x in o.score.mean_ap.per_tiou] for o in shown}
    viz.draw_ap(pictures[0], config.tiou, per_tiou, "mAP on the test split")
    means = series(entries, "eval", "mAP")
    viz.draw_curve(
        pictures[1], means["steps"], {"mAP": [100 * x for x in means["values"]]}, ylabel="mAP, %", title="test mAP"
    )
    names = ("total", "video", "attention", "scc", "ccc")
    losses = {name: series(entries, "train", name) for name in names}
    viz.draw_curve(
        pictures[2], losses["total"]["steps"], {n: s["values"] for n, s in losses.items()},
        ylabel="loss", title="training losses",
    )  # fmt: skip
    lengths = run.test.lengths.tolist()
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
