"""``case-wtal evaluate``: the mAP of a run, or of a detections file against a ground-truth file."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import tyro

from case import console
from case.commands._flags import parse
from case.data import load_ambiguous, load_detections, load_ground_truth, save_json
from case.errors import CaseError
from case.metrics import MeanAP, Problem, Rules, average_recall, diagnose, parse_tiou, pose, score
from case.metrics.arrays import AMBIGUOUS
from case.metrics.rules import alternatives, apply
from case.report import ap_rows, error_rows, per_class_rows, protocol_changes, protocol_rows, recall_rows


@dataclass(frozen=True)
class Files:
    """Detections of a file, in place of a run."""

    ground_truth: Path | None = None
    """Ground truth JSON, ActivityNet form."""
    predictions: Path | None = None
    """Detections JSON, ActivityNet form."""


@dataclass(frozen=True)
class Localizing:
    """How a run localizes."""

    data: Path | None = None
    """Data folder; default: the one it was trained on."""
    device: str = "auto"
    """cpu, cuda, cuda:1, ..."""
    precision: Literal["fp32", "tf32", "bf16"] = "fp32"
    """Of the wide matrix products."""
    allow_pickle: bool = False
    """Accept pickled feature files, which can run code of whoever made them."""


@dataclass(frozen=True)
class Output:
    """What is printed and written beside the mAP."""

    per_class: bool = False
    """Print the AP of each class."""
    protocol_report: bool = False
    """Print the mAP under each other choice of public evaluators and, for a run, of localization."""
    errors: bool = False
    """Print average recall (AR@AN), and of what kind the detections of each class are."""
    errors_tiou: float = 0.5
    """IoU from which a detection counts as right in --errors."""
    errors_top: float = 10.0
    """Detections of a class that --errors looks at, as a multiple of its instances; 0: all."""
    json: Path | None = None
    """File for mAP, tiou, ap_per_tiou, ap_per_class and what else was asked for."""


@dataclass(frozen=True)
class EvaluateConfig:
    run: Annotated[Path | None, tyro.conf.Positional] = None
    """Run folder or checkpoint, evaluated on the test split of its data (or of --data)."""
    subset: str | None = None
    """Subset of the ground truth; default: test for files, the data folder's own for a run."""
    tiou: str = ""
    """IoU thresholds START:STEP:STOP; default 0.1:0.1:0.7 for files, the run's own for a run."""
    ambiguous_file: Path | None = None
    """Ambiguous stretches: lines of a video, a start and an end (THUMOS14's Ambiguous_test.txt), for --ambiguous."""
    files: Files = field(default_factory=Files)
    localizing: Localizing = field(default_factory=Localizing)
    output: Output = field(default_factory=Output)
    rules: Rules = field(default_factory=Rules)


@dataclass(frozen=True, eq=False)
class Asked:
    """What is evaluated: its name, and the mAP of the same activations under other choices, for a run."""

    name: str
    problem: Problem
    tiou: tuple[float, ...]
    localizations: Callable[[], dict[str, Problem]]


def run(argv: Sequence[str]) -> int:
    config = parse(
        EvaluateConfig, argv, command="evaluate",
        description="mAP of a run folder or checkpoint, or of --predictions against --ground-truth.",
    )  # fmt: skip
    files = config.files.ground_truth is not None or config.files.predictions is not None
    if files == (config.run is not None):
        raise CaseError("give either a run folder, or --ground-truth and --predictions")
    if not 0.1 <= config.output.errors_tiou <= 1:
        raise CaseError(f"errors_tiou must lie in [0.1, 1], got {config.output.errors_tiou:g}")
    if not 0 <= config.output.errors_top < np.inf:
        raise CaseError(f"errors_top must be a finite number, 0 or greater, got {config.output.errors_top:g}")
    if config.ambiguous_file is not None and config.rules.ambiguous == "count" and not config.output.protocol_report:
        raise CaseError("--ambiguous-file has no effect by itself; say what to do with it: --ambiguous forgive, say")
    if files and config.localizing.data is not None:
        raise CaseError("--data is for a run; detections are evaluated from --ground-truth and --predictions alone")
    asked = _of_files(config) if files else _of_run(config)
    if asked is None:  # one of several processes that localized; the first goes on with what all of them found
        return 0
    rules = config.rules
    if rules.ambiguous != "count" and not _knows_ambiguous(asked.problem):
        console.warn(
            f"--ambiguous {rules.ambiguous} changes nothing: no class is called '{AMBIGUOUS}' and no stretch is given; "
            "name THUMOS14's Ambiguous_test.txt, say, with --ambiguous-file"
        )
    protocols: dict[str, MeanAP] = {}
    if config.output.protocol_report:
        rules, result, protocols = _protocols(asked, rules)
    else:
        result = score(asked.problem, asked.tiou, rules)
    written: dict[str, Any] = result.to_json()
    console.table("mAP, %", *ap_rows({asked.name: result}))
    if config.output.per_class:
        console.table("AP by class, %", *per_class_rows(result))
    if config.output.protocol_report:
        written["protocols"] = _show_protocols(protocols)
    if config.output.errors:
        written |= _show_errors(config, asked.problem, rules)
    if config.output.json is not None:
        save_json(config.output.json, written, indent=1)
    return 0


def _protocols(asked: Asked, rules: Rules) -> tuple[Rules, MeanAP, dict[str, MeanAP]]:
    """The rules by which the detections can be evaluated, their mAP, and that under each choice, theirs first."""
    results = {}
    name = "released rules" if rules == Rules() else "rules as given"
    try:
        own = score(asked.problem, asked.tiou, rules)
    except CaseError as refused:
        if rules.ignore_unseen_labels or not asked.problem.unseen:
            raise
        rules = replace(rules, ignore_unseen_labels=True)
        own = score(asked.problem, asked.tiou, rules)
        console.warn(str(refused))
        results["refused: unseen labels"] = MeanAP(asked.tiou, (), np.zeros((len(asked.tiou), 0)))
        name = "unseen labels ignored"
    results[name] = own
    for name, changed in alternatives(asked.problem, rules).items():
        results[name] = score(asked.problem, asked.tiou, changed)
    for name, problem in asked.localizations().items():
        results[name] = score(problem, asked.tiou, rules)
    return rules, own, results


def _show_protocols(results: dict[str, MeanAP]) -> dict[str, Any]:
    console.table("mAP under each choice alone, %; change in points", *protocol_rows(results))
    changes = protocol_changes(results)
    return {
        name: {"mAP": r.mean, "ap_per_tiou": r.per_tiou.tolist(), "change": changes[name]} if r.classes else None
        for name, r in results.items()
    }


def _show_errors(config: EvaluateConfig, problem: Problem, rules: Rules) -> dict[str, Any]:
    truth, found, forgive = apply(problem, rules)
    recall = average_recall(truth, found)
    kinds = diagnose(
        truth, found, problem.labels, config.output.errors_tiou, top=config.output.errors_top or None, forgive=forgive,
        best_only=rules.best_only, strict_iou=rules.strict_iou, interpolate=rules.interpolate,
    )  # fmt: skip
    console.table("average recall over IoU 0.5:0.05:0.95, labels aside, %", *recall_rows(recall))
    which = f"the {config.output.errors_top:g} G first of each class" if config.output.errors_top else "all"
    looked = f"{kinds.counts.sum() + kinds.forgiven} of {len(found.score)}"
    forgiven = f", {kinds.forgiven} of them forgiven" if kinds.forgiven else ""
    console.table(
        f"kinds of detections at IoU {config.output.errors_tiou:g}, {which}: {looked}{forgiven}", *error_rows(kinds)
    )
    return {"average_recall": recall.to_json(), "errors": kinds.to_json()}


def _of_files(config: EvaluateConfig) -> Asked:
    if config.files.ground_truth is None or config.files.predictions is None:
        missing = "--ground-truth" if config.files.ground_truth is None else "--predictions"
        raise CaseError(f"{missing} is missing; detections are evaluated from two files")
    truth = load_ground_truth(config.files.ground_truth)
    results = load_detections(config.files.predictions)
    tiou = parse_tiou(config.tiou or "0.1:0.1:0.7")
    problem = pose(truth, results, subset=config.subset or "test", ambiguous=_ambiguous(config))
    return Asked(config.files.predictions.name, problem, tiou, dict)


def _of_run(config: EvaluateConfig) -> Asked | None:
    from case.engine.choices import localization_choices
    from case.engine.distributed import joined
    from case.engine.evaluate import pose_split, relocalize
    from case.engine.resolve import open_checkpoint

    assert config.run is not None
    ambiguous = _ambiguous(config)
    with joined(config.localizing.device) as ranks:
        opened = open_checkpoint(
            config.run, device=config.localizing.device, precision=config.localizing.precision, ranks=ranks
        )
        localized, folder, split = opened.localize_data(
            config.localizing.data, "test", allow_pickle=config.localizing.allow_pickle
        )
    if not ranks.first:
        return None
    tiou = parse_tiou(config.tiou) if config.tiou else opened.settings.tiou
    subset = config.subset or folder.test_subset

    def localizations() -> dict[str, Problem]:
        return {
            name: pose_split(relocalize(localized, settings), folder.ground_truth, subset, ambiguous)
            for name, settings in localization_choices(opened.settings).items()
        }

    problem = pose_split(localized, folder.ground_truth, subset, ambiguous)
    exact = f"set of classes exactly right in {100 * opened.accuracy(localized, split):.1f} % of videos"
    console.note(f"{opened.path}, step {opened.checkpoint.steps}: {exact}")
    return Asked(str(config.run), problem, tiou, localizations)


def _knows_ambiguous(problem: Problem) -> bool:
    return AMBIGUOUS in problem.labels or len(problem.ambiguous.video) > 0


def _ambiguous(config: EvaluateConfig) -> dict[str, list[tuple[float, float]]] | None:
    return None if config.ambiguous_file is None else load_ambiguous(config.ambiguous_file)
