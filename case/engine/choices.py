"""Choices that are made after training: the same activations localized as released and as corrected."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from case.config import PROTOCOLS, Settings

DEVIATIONS = {
    "3 proposal score": ("outer_ratio", "score_weight"),
    "4 NMS lengths": ("nms_length_offset",),
    "5 first sample": ("keep_first_sample",),
}
"""What can be chosen without training again: rows of METHOD.md's Deviations, and their settings."""


def localization_choices(settings: Settings) -> dict[str, Settings]:
    """Each of ``DEVIATIONS`` alone, and all, as released and as corrected, where that differs from ``settings``."""
    choices: dict[str, Settings] = {}
    groups = {**DEVIATIONS, "3, 4, 5": tuple(name for names in DEVIATIONS.values() for name in names)}
    for protocol, preset in PROTOCOLS.items():
        for title, names in groups.items():
            values: dict[str, Any] = {name: preset.get(name, getattr(Settings(), name)) for name in names}
            changed = replace(settings, **values)
            if changed != settings and changed not in choices.values():
                choices[f"{title} {protocol}"] = changed
    return choices
