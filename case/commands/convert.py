"""``case-wtal convert``: a checkpoint of the authors' code to one of ours."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from case import console
from case.commands._flags import parse, program
from case.config import Preset, Protocol, make_settings
from case.errors import CaseError


@dataclass(frozen=True)
class ConvertConfig:
    weights: Annotated[Path, tyro.conf.Positional]
    """The authors' best_model.pkl. Only tensors are unpickled: no code runs."""
    cluster_labels: Annotated[Path, tyro.conf.Positional]
    """cls_gt.npy beside it: (K, 2)."""
    output: Path = Path("released.safetensors")
    """Checkpoint to write."""
    preset: Preset = "thumos14"
    """Data set it was trained on: number of samples, thresholds."""
    protocol: Protocol = "released"
    """How to localize with it."""
    class_names: tuple[str, ...] | None = None
    """Class names in index order; default: THUMOS14's for 20 classes."""


def run(argv: Sequence[str]) -> int:
    config = parse(
        ConvertConfig, argv, command="convert",
        description="Make a checkpoint for `case-wtal localize` and `case-wtal evaluate` out of the authors' files.",
    )  # fmt: skip
    from case.compat import from_released, load_released, released_sizes
    from case.engine.checkpoint import save_checkpoint
    from case.engine.learner import Learner

    if config.output.exists():
        raise CaseError(f"{config.output} exists; give another --output")
    state, labels = load_released(config.weights, config.cluster_labels)
    widths, sizes = released_sizes(state)
    if labels.shape[0] != sizes["num_clusters"]:
        raise CaseError(
            f"{config.cluster_labels}: {labels.shape[0]} clusters, but {config.weights} has {sizes['num_clusters']}"
        )
    names = {} if config.class_names is None else {"class_names": config.class_names}
    settings = make_settings(config.preset, config.protocol, **{**sizes, **names})
    learner = Learner(widths, settings)
    learner.model.load_state_dict(from_released(state, settings.modalities))
    learner.labels = learner.inference_labels = labels
    save_checkpoint(config.output, learner, {"config": {"data": None}, "source": str(config.weights)})
    console.note(f"wrote {config.output}; next: {program()} localize {config.output} --features DIR")
    return 0
