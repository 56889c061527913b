"""The flags of ``case-wtal train``. Apart from what it does, so that training without flags needs no tyro."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import tyro

from case.config import TrainConfig


@dataclass(frozen=True)
class TrainFlags(TrainConfig):
    """A configuration, and how many runs are made of it."""

    seeds: str = ""
    """Train a run for each of these seeds at once: 0-7, or 0,3,5; each gets a folder in --output."""
    sweep: Annotated[tuple[str, ...], tyro.conf.UseAppendAction] = ()
    """Train a run for each value of a setting at once: w_cls=0.1,0.3; may be repeated for all combinations."""
