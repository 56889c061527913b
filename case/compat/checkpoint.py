"""Weights under the names of the authors' checkpoints, and back (spec: Network).

There, every layer but the prototypes is a 1x1 Conv1d, so weights carry a trailing dimension of 1.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

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
