"""What the parts of a synthetic video look like: directions in feature space, and the rows that they add up to."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from case.data.timeline import PLACES, Timeline, coverage

if TYPE_CHECKING:
    from case.data.synthetic import SyntheticConfig

_PHASES = 3
"""An action looks different in each third."""


def generator(*key: int) -> np.random.Generator:
    """A generator that depends on these numbers alone."""
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence(key)))


@dataclass(frozen=True, eq=False)
class Look:
    """What things look like in one stream: directions, float32, already of their strength."""

    profile: np.ndarray
    places: np.ndarray
    contexts: np.ndarray
    actions: np.ndarray
    """(C, phases, width), all that an action adds in each of its phases."""
    motion: np.ndarray
    scene: float


def draw_look(config: SyntheticConfig, stream: int) -> Look:
    """The look of a stream, the same for all videos of a seed."""
    rng = generator(config.seed, 0, stream)
    width, unit = config.width, config.noise

    def directions(*shape: int) -> np.ndarray:
        # Length about 1 in expectation, without a norm whose summation order would vary.
        return (rng.standard_normal((*shape, width)) / math.sqrt(width) * unit).astype(np.float32)

    profile = (0.3 * rng.standard_exponential(width)).astype(np.float32)
    motion = directions() * np.float32(config.motion if config.modalities[stream] != "rgb" else config.motion / 2)
    peculiar = directions(config.num_classes, 1) * np.float32(config.action)
    actions = peculiar + directions(config.num_classes, _PHASES) * np.float32(config.phase) + motion
    contexts = directions(config.num_classes) * np.float32(config.context)
    places = directions(PLACES) * np.float32(config.context)
    return Look(profile, places, contexts, actions, motion, config.scene * unit)


def draw_features(
    config: SyntheticConfig, look: Look, timeline: Timeline, rows: int, rng: np.random.Generator
) -> np.ndarray:
    """(rows, width) features of one stream of a video, in the configured dtype."""
    spr = config.seconds_per_row
    noise = rng.standard_normal((rows, config.width), dtype=np.float32)
    values = noise * np.float32(config.noise) + look.profile
    for stretch in timeline.stretches:
        a, b = math.floor(stretch.start / spr), math.ceil(stretch.end / spr)
        part = coverage(stretch.start, stretch.end, rows, spr)[a:b, None]
        scene = rng.standard_normal(config.width, dtype=np.float32) * np.float32(look.scene / math.sqrt(config.width))
        place = look.places[stretch.place] if stretch.label is None else look.contexts[stretch.label]
        values[a:b] += part * (scene + place * np.float32(stretch.strength))
    acting = np.zeros(rows, dtype=np.float32)
    for action in timeline.actions:
        assert action.label is not None
        third = (action.end - action.start) / _PHASES
        for phase in range(_PHASES):
            start = action.start + phase * third
            part = coverage(start, start + third, rows, spr)
            acting += part
            a, b = math.floor(start / spr), math.ceil((start + third) / spr)
            values[a:b] += part[a:b, None] * (look.actions[action.label, phase] * np.float32(action.strength))
    for burst in timeline.bursts:
        part = coverage(burst.start, burst.end, rows, spr) * np.maximum(1 - acting, 0) * np.float32(burst.strength)
        a, b = math.floor(burst.start / spr), math.ceil(burst.end / spr)
        values[a:b] += part[a:b, None] * look.motion
    return np.maximum(values, 0).astype(config.dtype)
