"""``case-wtal localize``: feature files in, detections JSON out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from case import console
from case.commands._flags import parse
from case.data import save_json
from case.errors import CaseError


@dataclass(frozen=True)
class LocalizeConfig:
    checkpoint: Annotated[Path | None, tyro.conf.Positional] = None
    """Run folder or checkpoint."""
    features: Path | None = None
    """Folder that holds one folder of .npy files per stream (rgb/, flow/); a data folder's features/test, say."""
    output: Path = Path("detections.json")
    """Detections in ActivityNet form."""
    fps: float | None = None
    """Frames per second of these videos; default: the checkpoint's, of its training data."""
    snippet_stride: int | None = None
    """Frames per feature row; default: the checkpoint's."""
    device: str = "auto"
    """cpu, cuda, cuda:1, ..."""
    precision: Literal["fp32", "tf32", "bf16"] = "fp32"
    """Of the wide matrix products."""
    allow_pickle: bool = False
    """Accept pickled feature files, which can run code of whoever made them."""


def run(argv: Sequence[str]) -> int:
    config = parse(
        LocalizeConfig, argv, command="localize",
        description="Localize actions in every video of a feature folder with a trained checkpoint. No labels needed.",
    )  # fmt: skip
    if config.checkpoint is None or config.features is None:
        raise CaseError(
            "give a run folder or checkpoint, and --features DIR; for example: case-wtal localize RUN --features DIR"
        )
    from case.engine.distributed import joined
    from case.engine.resolve import open_checkpoint

    with joined(config.device) as ranks:
        opened = open_checkpoint(config.checkpoint, device=config.device, precision=config.precision, ranks=ranks)
        opened = opened.timed(fps=config.fps, snippet_stride=config.snippet_stride)
        localized = opened.localize_features(config.features, allow_pickle=config.allow_pickle)
        # Not the activations, which of a large folder no one process should have to hold.
        parts = ranks.gather(localized.results(opened.settings))
    if not ranks.first:
        return 0
    results = {video: found for part in parts for video, found in part["results"].items()}
    save_json(config.output, {**parts[0], "results": results})
    count = sum(len(found) for found in results.values())
    console.note(f"wrote {config.output}: {count} detections in {len(results)} videos")
    console.note(
        f"times are of {opened.settings.fps:g} frames per second, {opened.settings.snippet_stride} frames a row"
    )
    return 0
