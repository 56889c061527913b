"""What going on with a run means: whether it may, which evaluation was cut short, what was selected so far."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from case import console
from case.config import TrainConfig
from case.data import FeatureFolder
from case.engine.checkpoint import Checkpoint, load_checkpoint, step_files
from case.engine.selection import BEST, BEST_HELDOUT, CHECKPOINTS, EVALUATION, LAST, LOSSES
from case.errors import CaseError


def evaluates_at(step: int, max_steps: int, eval_every: int) -> bool:
    """Whether a run evaluates after that step."""
    return step == max_steps or (eval_every > 0 and step % eval_every == 0)


def take_up(config: TrainConfig, checkpoint: Checkpoint) -> tuple[dict[str, dict[str, Any]], bool]:
    """The best evaluations so far, as ``TrainingRun.best``, and whether ``checkpoint`` is to be evaluated first.

    It is where its evaluation was cut short, then or by what is asked now, and where what was selected before is gone:
    then it is what selection starts from.
    """
    notes, steps = checkpoint.notes, checkpoint.steps
    noted = {"best-test": notes["best"], "best-heldout": notes.get("best_heldout", {})}
    # Selected, but no longer there: gone, of a later step, or of an evaluation that was cut short before it was noted.
    lost = [name for name, b in noted.items() if b and _steps_of(config.output / CHECKPOINTS[name]) != b["step"]]
    then = notes["config"]
    asked = ((then["max_steps"], then["eval_every"]), (config.max_steps, config.eval_every))
    cut_short = notes["score"] is None and any(evaluates_at(steps, *pair) for pair in asked)
    due = steps > 0 and (cut_short or bool(lost))
    changed = [name for name in EVALUATION if getattr(config, name) != getattr(checkpoint.settings, name)]
    if changed and (due or steps < config.max_steps):  # else nothing will be compared
        console.warn(
            f"{', '.join(changed)} changed since {config.output / LAST}, so that mAPs do not compare: the best "
            "checkpoints are selected anew, from here on"
        )
        return {}, due
    return {name: best for name, best in noted.items() if name not in lost}, due


def require_same_run(
    config: TrainConfig, folder: FeatureFolder, checkpoint: Checkpoint, heldout: Sequence[str]
) -> None:
    """Raise ``CaseError`` unless ``checkpoint`` can go on under ``config`` on this data."""
    last = config.output / LAST
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
    before = checkpoint.notes.get("heldout", [])
    if list(heldout) != before:
        raise CaseError(
            f"{len(heldout)} videos would be held out, not the {len(before)} of {last}, so that some were or would be "
            "trained on; val_fraction, seed and training videos cannot change on --resume"
        )
    if checkpoint.steps > config.max_steps:
        raise CaseError(
            f"{last} is at step {checkpoint.steps}, past max_steps {config.max_steps}; give a larger --max-steps, "
            "or use evaluate"
        )


def remove_later(folder: Path, steps: int) -> None:
    """Remove a run folder's checkpoints of steps past ``steps``, which will be made again, and perhaps otherwise.

    At step 0, where a run starts, all of them: these are of an earlier one that lost its last checkpoint.
    """
    kept = [folder / name for name in (BEST, BEST_HELDOUT) if (folder / name).exists()]
    later = [path for path in (*kept, *step_files(folder)) if steps == 0 or (_steps_of(path) or 0) > steps]
    for path in later:
        path.unlink(missing_ok=True)
    if later and steps:
        console.note(
            f"goes on from step {steps}; removed {', '.join(p.name for p in later)} of later steps in {folder}"
        )


def require_one_run(folder: Path) -> None:
    """Raise ``CaseError`` where ``folder`` is one of many runs, in which a single one would be out of place."""
    inside = sorted(path.parent for path in folder.glob("seed-*/" + LAST))
    if inside:
        raise CaseError(
            f"{folder} is the folder of many runs; give --resume with --seeds and --sweep as before, the "
            f"folder of one run as --output ({inside[0]}) with --resume, or another --output for a new run"
        )


def logged_losses(entries: Sequence[Mapping[str, Any]], step: int) -> dict[str, float]:
    """The losses of a step that was made, from the entries of ``metrics.jsonl``; empty where they were not logged."""
    found = [{name: e[name] for name in LOSSES} for e in entries if e["kind"] == "train" and e["step"] == step]
    return found[-1] if found else {}


def _steps_of(path: Path) -> int | None:
    """The step of a checkpoint; None where there is none that can be read."""
    with contextlib.suppress(CaseError):
        return load_checkpoint(path).steps
    return None
