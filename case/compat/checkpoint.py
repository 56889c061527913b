"""Weights under the names of the authors' checkpoints, and back (METHOD.md, Network).

There, every layer but the prototypes is a 1x1 Conv1d, so weights carry a trailing dimension of 1.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import numpy as np
import torch
from torch import Tensor

from case.errors import CaseError

# (name here, within a branch; name there, with the modality's place)
_NAMES = (
    ("cas_hidden", "cas_module_{}.0"),
    ("cas", "cas_module_{}.2"),
    ("base", "base_module_{}.0"),
    ("attention", "att_module_{}"),
)
_PROTOTYPES = "clu_head_{}.prototypes.weight"


def to_released(state: Mapping[str, Tensor], modalities: Sequence[str]) -> dict[str, Tensor]:
    """``CASE.state_dict()`` under the released names and shapes: (out, in, 1) weights."""
    released = {}
    for m in modalities:
        for ours, theirs in _NAMES:
            released[theirs.format(m) + ".weight"] = state[f"branches.{m}.{ours}.weight"].unsqueeze(-1)
            released[theirs.format(m) + ".bias"] = state[f"branches.{m}.{ours}.bias"]
        released[_PROTOTYPES.format(m)] = state[f"branches.{m}.prototypes"]
    return released


def from_released(state: Mapping[str, Tensor], modalities: Sequence[str]) -> dict[str, Tensor]:
    """The inverse of ``to_released``. Raises ``CaseError`` naming a weight that is missing or unknown."""
    left = dict(state)
    ours = {}

    def take(name: str) -> Tensor:
        if name not in left:
            raise CaseError(
                f"checkpoint lacks the weight '{name}'; expected the released names for {tuple(modalities)}"
            )
        return torch.as_tensor(left.pop(name))

    for m in modalities:
        for name, theirs in _NAMES:
            weight = take(theirs.format(m) + ".weight")
            ours[f"branches.{m}.{name}.weight"] = weight.squeeze(-1) if weight.dim() == 3 else weight
            ours[f"branches.{m}.{name}.bias"] = take(theirs.format(m) + ".bias")
        ours[f"branches.{m}.prototypes"] = take(_PROTOTYPES.format(m))
    if left:
        raise CaseError(f"checkpoint has weights this network lacks: {', '.join(sorted(left))}")
    return ours


def released_sizes(state: Mapping[str, Tensor]) -> tuple[tuple[int, ...], dict[str, Any]]:
    """Feature width of each modality, and the settings modalities, hidden, num_classes and num_clusters, from weights.

    Modalities come in the order rgb, flow, then others by name. Raises ``CaseError`` naming a weight that is missing.
    """
    found = {match[1] for name in state if (match := re.fullmatch(r"cas_module_(.+)\.0\.weight", name))}
    modalities = tuple(sorted(found, key=lambda m: ({"rgb": 0, "flow": 1}.get(m, 2), m)))
    if not modalities:
        raise CaseError("weights have no 'cas_module_<modality>.0.weight'; expected the released names")
    for name in ("cas_module_{}.2.weight", _PROTOTYPES):
        if name.format(modalities[0]) not in state:
            raise CaseError(f"weights lack '{name.format(modalities[0])}'; expected the released names")
    hidden = state[f"cas_module_{modalities[0]}.0.weight"]
    sizes = {
        "modalities": modalities,
        "hidden": hidden.shape[0],
        "num_classes": state[f"cas_module_{modalities[0]}.2.weight"].shape[0],
        "num_clusters": state[_PROTOTYPES.format(modalities[0])].shape[0],
    }
    return tuple(state[f"cas_module_{m}.0.weight"].shape[1] for m in modalities), sizes


def load_released(weights: Path, cluster_labels: Path) -> tuple[dict[str, Tensor], Tensor]:
    """The authors' ``best_model.pkl`` and ``cls_gt.npy``: weights under the released names, and R (K, 2).

    Only tensors are unpickled (``weights_only``), so loading runs no code. Raises ``CaseError`` in one line for files
    that are missing, damaged, or hold something else.
    """
    for path in (weights, cluster_labels):
        if not path.is_file():
            raise CaseError(f"{path}: file not found; give the authors' best_model.pkl and cls_gt.npy")
    try:
        stored: Any = torch.load(weights, map_location="cpu", weights_only=True)
    except (UnpicklingError, RuntimeError, EOFError, ValueError, OSError) as error:
        raise CaseError(f"{weights}: not a file of plain weights ({type(error).__name__}); is it damaged?") from error
    try:
        labels = torch.from_numpy(np.load(cluster_labels, allow_pickle=False)).float()
    except (ValueError, TypeError, OSError, EOFError) as error:
        raise CaseError(f"{cluster_labels}: not a .npy array of numbers ({type(error).__name__})") from error
    if not isinstance(stored, dict) or not all(isinstance(v, Tensor) for v in stored.values()):
        raise CaseError(f"{weights}: must hold a state_dict (names to tensors), got {type(stored).__name__}")
    if labels.dim() != 2 or labels.shape[1] != 2:
        raise CaseError(f"{cluster_labels}: must have shape (K, 2), got {tuple(labels.shape)}")
    # DataParallel prefixes every name.
    return {name.removeprefix("module."): value.float() for name, value in stored.items()}, labels
