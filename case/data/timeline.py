"""What happens when in a synthetic video: background, context, actions and bursts of motion. Times in seconds."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import numpy as np

ACTION_LOG_MEAN, ACTION_LOG_SD = float(np.log(3.0)), 0.8
"""Action lengths, log-normal seconds: the 6,300 instances of THUMOS14 have geometric mean 3.03 s, deviation 0.84."""

PLACES = 6
"""Kinds of plain background, shared by all videos."""

_LONGEST_ACTION = 20.0
_GAP_LOG_MEAN, _GAP_LOG_SD = float(np.log(2.5)), 0.7
_SHORTEST_STRETCH, _MEAN_EXTRA = 5.0, 15.0
"""Seconds: a stretch is the first plus an exponential of the second, so about 20 s."""


@dataclass(frozen=True)
class Stretch:
    """Part of a video in one place: background (``label`` None) or the context of a class."""

    start: float
    end: float
    label: int | None
    place: int
    """Which of the ``PLACES`` it is where it is background."""
    strength: float


@dataclass(frozen=True)
class Event:
    """An action (``label`` a class) or a burst of motion that is none (``label`` None)."""

    start: float
    end: float
    label: int | None
    strength: float


@dataclass(frozen=True)
class Timeline:
    """A whole video."""

    duration: float
    stretches: tuple[Stretch, ...]
    actions: tuple[Event, ...]
    """In order of time, without overlaps, at least one for every class of the video."""
    bursts: tuple[Event, ...]


def draw_timeline(
    rng: np.random.Generator,
    duration: float,
    classes: tuple[int, ...],
    *,
    shortest_action: float,
    context_share: float,
    action_share: float,
    burst_gap: float,
    weakest: float,
) -> Timeline:
    """Draw a video of the given classes.

    Of the stretches, ``context_share`` are context alone, ``action_share`` context with actions, the rest background.
    ``burst_gap`` is the mean time between bursts of motion, ``weakest`` the least strength of an action (the most
    is 1.2). Where the video is too short for a stretch per class, later classes are left out.
    """
    bounds = [0.0]
    while duration - bounds[-1] > 2 * _SHORTEST_STRETCH:
        length = _SHORTEST_STRETCH + rng.exponential(_MEAN_EXTRA)
        if bounds[-1] + length > duration - _SHORTEST_STRETCH:
            break
        bounds.append(bounds[-1] + length)
    bounds.append(duration)
    count = len(bounds) - 1
    kinds = rng.random(count)
    labels = [classes[int(i)] for i in rng.integers(len(classes), size=count)]
    # Every class acts at least once: one stretch each is set aside for it.
    reserved = {int(i): c for i, c in zip(rng.permutation(count), classes, strict=False)}

    stretches, actions = [], []
    for i, (start, end) in enumerate(itertools.pairwise(bounds)):
        label = reserved.get(i, labels[i])
        active = i in reserved or kinds[i] < action_share
        present = active or kinds[i] < action_share + context_share
        place, strength = int(rng.integers(PLACES)), float(rng.uniform(0.7, 1.1))
        stretches.append(Stretch(start, end, label if present else None, place, strength))
        if active:
            actions += _draw_actions(rng, start, end, label, shortest_action, weakest)
    bursts = []
    cursor = rng.exponential(burst_gap)
    while cursor < duration:
        end = min(duration, cursor + rng.lognormal(ACTION_LOG_MEAN, ACTION_LOG_SD))
        bursts.append(Event(cursor, end, None, float(rng.uniform(0.4, 1.0))))
        cursor = end + rng.exponential(burst_gap)
    return Timeline(duration, tuple(stretches), tuple(actions), tuple(bursts))


def _draw_actions(
    rng: np.random.Generator, start: float, end: float, label: int, shortest: float, weakest: float
) -> list[Event]:
    actions: list[Event] = []
    cursor = start + rng.lognormal(_GAP_LOG_MEAN, _GAP_LOG_SD)
    while True:
        length = min(max(rng.lognormal(ACTION_LOG_MEAN, ACTION_LOG_SD), shortest), _LONGEST_ACTION)
        if cursor + length > end:
            if actions:
                return actions
            length = min(length, end - start)
            cursor = start + (end - start - length) * rng.random()
        # Annotators round; what they wrote is the truth that the features follow.
        first, last = round(float(cursor), 2), round(float(cursor + length), 2)
        actions.append(Event(first, min(last, round(end, 2)), label, float(rng.uniform(weakest, 1.2))))
        cursor += length + rng.lognormal(_GAP_LOG_MEAN, _GAP_LOG_SD)


def coverage(start: float, end: float, rows: int, seconds_per_row: float) -> np.ndarray:
    """(rows,) float32: part of each row's time that lies within [start, end), 0 to 1."""
    left = np.arange(rows) * seconds_per_row
    inside = np.minimum(end, left + seconds_per_row) - np.maximum(start, left)
    return (np.maximum(inside, 0) / seconds_per_row).astype(np.float32)
