"""Checkpoints: one safetensors file each, tensors and a JSON description, written whole or not at all.

Loading one never executes code. The description holds the step, the settings, the feature widths and the metrics, so
that a checkpoint can be used without the run it came from.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from case.config import Settings, settings_from, to_dict
from case.data import atomic_write
from case.data.files import reason
from case.engine.learner import Learner
from case.errors import CaseError
from case.model import CASE

FORMAT = "case-checkpoint-1"


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """A checkpoint in memory: settings, feature widths, step count, tensors, and what the run noted beside them."""

    settings: Settings
    widths: tuple[int, ...]
    steps: int
    tensors: dict[str, Tensor]
    notes: dict[str, Any]

    def model(self, device: torch.device | str = "cpu") -> CASE:
        """The network with these weights."""
        model = CASE(self.widths, self.settings)
        model.load_state_dict({k.removeprefix("model/"): v for k, v in self.tensors.items() if k.startswith("model/")})
        return model.to(device)

    def learner(self, settings: Settings, device: torch.device | str = "cpu", kind: type[Learner] = Learner) -> Learner:
        """A learner of this ``kind`` that goes on from here, under ``settings``."""
        learner = kind(self.widths, settings, device)
        learner.load({"steps": self.steps, "tensors": self.tensors})
        return learner

    @property
    def cluster_labels(self) -> Tensor:
        """R (K, 2) for inference."""
        return self.tensors["inference_labels"]


def save_checkpoint(path: Path, learner: Learner, notes: dict[str, Any]) -> None:
    """Write the learner's state and ``notes`` (JSON values). Raises ``CaseError`` where the disk refuses."""
    state = learner.state()
    description = {
        "format": FORMAT,
        "settings": to_dict(learner.settings),
        "widths": list(learner.model.widths),
        "steps": state["steps"],
        "notes": notes,
    }
    atomic_write(path, save(state["tensors"], metadata={"case": json.dumps(description)}))


def save_step(folder: Path, learner: Learner, notes: dict[str, Any], keep: int) -> None:
    """Write ``step-<n>.safetensors`` beside the others of the folder, then remove all but the ``keep`` of most steps.

    A ``keep`` of 1 keeps none, since the last step has a file of its own. Raises ``CaseError`` where the disk refuses;
    then nothing is removed.
    """
    if keep > 1:
        save_checkpoint(folder / f"step-{learner.steps}.safetensors", learner, notes)
    for path in step_files(folder)[: None if keep == 1 else -keep]:
        try:
            path.unlink(missing_ok=True)
        except OSError as error:
            raise CaseError(f"cannot remove {path}: {reason(error)}; then use --resume") from error


def step_files(folder: Path) -> list[Path]:
    """``step-<n>.safetensors`` of a run folder, by n."""
    found = {int(m[1]): path for path in folder.iterdir() if (m := re.fullmatch(r"step-(\d+)\.safetensors", path.name))}
    return [found[step] for step in sorted(found)]


def load_checkpoint(path: Path) -> Checkpoint:
    """Read a checkpoint. Raises ``CaseError`` in one line: missing, truncated, corrupt, or no checkpoint of ours."""
    if not path.is_file():
        raise CaseError(f"{path}: checkpoint not found; check the path")
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
        description = json.loads(metadata.get("case", "{}"))
        known = description if isinstance(description, dict) else {}
    except (SafetensorError, OSError, json.JSONDecodeError) as error:
        detail = " ".join(str(error).split())
        raise CaseError(
            f"{path}: checkpoint is truncated or corrupt ({detail}); use an earlier one or train again"
        ) from error
    if known.get("format") != FORMAT:
        raise CaseError(f"{path}: checkpoint is not one of case (format {known.get('format')!r}, not {FORMAT!r})")
    missing = [name for name in ("settings", "widths", "steps", "notes") if name not in known]
    if missing:
        raise CaseError(f"{path}: checkpoint lacks its {', '.join(missing)}; use an earlier one or train again")
    settings = settings_from(known["settings"])
    checkpoint = Checkpoint(settings, tuple(known["widths"]), known["steps"], tensors, known["notes"])
    _check_tensors(path, checkpoint)
    return checkpoint


def _check_tensors(path: Path, checkpoint: Checkpoint) -> None:
    """Raise ``CaseError`` unless the weights and labels are there in the shapes that the settings imply."""
    with torch.device("meta"):
        expected = {f"model/{k}": v.shape for k, v in CASE(checkpoint.widths, checkpoint.settings).state_dict().items()}
    expected |= dict.fromkeys(("labels", "inference_labels"), torch.Size((checkpoint.settings.num_clusters, 2)))
    for name, shape in expected.items():
        found = checkpoint.tensors.get(name)
        if found is None or found.shape != shape:
            got = "nothing" if found is None else f"shape {tuple(found.shape)}"
            raise CaseError(f"{path}: checkpoint has {got} for '{name}', expected shape {tuple(shape)}; train again")
