"""``case-wtal evaluate``: the mAP of a run, or of a detections file against a ground-truth file."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from case import console
from case.commands._flags import parse
from case.data import load_detections, load_ground_truth, save_json
from case.errors import CaseError
from case.metrics import MeanAP, evaluate, parse_tiou
from case.report import ap_rows, per_class_rows


@dataclass(frozen=True)
class EvaluateConfig:
    run: Annotated[Path | None, tyro.conf.Positional] = None
    """Run folder or checkpoint, evaluated on the test split of its data (or of --data)."""
    ground_truth: Path | None = None
    """Ground truth JSON, ActivityNet form."""
    predictions: Path | None = None
    """Detections JSON, ActivityNet form."""
    subset: str | None = None
    """Subset of the ground truth; default: test for files, the data folder's own for a run."""
    tiou: str = ""
    """IoU thresholds START:STEP:STOP; default 0.1:0.1:0.7 for files, the run's own for a run."""
    data: Path | None = None
    """Data folder for a run; default: the one it was trained on."""
    device: str = "auto"
    """cpu, cuda, cuda:1, ..."""
    per_class: bool = False
    """Also print the AP of each class."""
    allow_pickle: bool = False
    """Accept pickled feature files, which can run code of whoever made them."""
    json: Path | None = None
    """File for mAP, tiou, ap_per_tiou and ap_per_class."""


def run(argv: Sequence[str]) -> int:
    config = parse(
        EvaluateConfig, argv, command="evaluate",
        description="mAP of a run folder or checkpoint, or of --predictions against --ground-truth.",
    )  # fmt: skip
    files = config.ground_truth is not None or config.predictions is not None
    if files == (config.run is not None):
        raise CaseError("give either a run folder, or --ground-truth and --predictions")
    name, score = _of_files(config) if files else _of_run(config)
    console.table("mAP, %", *ap_rows({name: score}))
    if config.per_class:
        console.table("AP by class, %", *per_class_rows(score))
    if config.json is not None:
        save_json(config.json, score.to_json(), indent=1)
    return 0


def _of_files(config: EvaluateConfig) -> tuple[str, MeanAP]:
    if config.ground_truth is None or config.predictions is None:
        missing = "--ground-truth" if config.ground_truth is None else "--predictions"
        raise CaseError(f"{missing} is missing; detections are evaluated from two files")
    truth = load_ground_truth(config.ground_truth)
    results = load_detections(config.predictions)
    tiou = parse_tiou(config.tiou or "0.1:0.1:0.7")
    return config.predictions.name, evaluate(truth, results, tiou, subset=config.subset or "test")


def _of_run(config: EvaluateConfig) -> tuple[str, MeanAP]:
    from case.engine.resolve import open_checkpoint

    assert config.run is not None
    opened = open_checkpoint(config.run, device=config.device)
    localized, folder, split = opened.localize_data(config.data, "test", allow_pickle=config.allow_pickle)
    tiou = parse_tiou(config.tiou) if config.tiou else opened.settings.tiou
    score = opened.score(localized, folder, split, tiou=tiou, subset=config.subset)
    exact = f"set of classes exactly right in {100 * score.video_accuracy:.1f} % of videos"
    console.note(f"{opened.path}, step {opened.checkpoint.steps}: {exact}")
    return str(config.run), score.mean_ap
