"""``case-wtal synth``: the embedded synthetic data set as a data folder."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Literal

import tyro

from case import console
from case.commands._flags import parse, program
from case.data import DEMO, THUMOS14_SIZED, write


@dataclass(frozen=True)
class SynthConfig:
    output: Annotated[Path, tyro.conf.Positional]
    """Folder to write; must not exist or be empty."""
    size: Literal["demo", "thumos14"] = "demo"
    """demo: small, in seconds; thumos14: 200 + 210 videos, 20 classes, 2 x 1024 features."""
    seed: int = 0
    """Same seed, same data, on every machine."""
    force: bool = False
    """Replace what is in the folder."""


def run(argv: Sequence[str]) -> int:
    config = parse(SynthConfig, argv, command="synth", description="Write the synthetic data set as a data folder.")
    synthetic = replace(DEMO if config.size == "demo" else THUMOS14_SIZED, seed=config.seed)
    with console.progress(synthetic.num_train + synthetic.num_test, "synthesize", unit="video") as bar:
        write(synthetic, config.output, force=config.force, progress=lambda done, total: bar.advance(1))
    console.note(f"wrote {config.output}; next: {program()} train --data {config.output} --preset {config.size}")
    return 0
