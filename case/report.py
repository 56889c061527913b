"""A run's summary: tables of mAP, and ``report.md`` with settings, results and pictures."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np

from case.config import Settings
from case.data.files import PathLike, atomic_write
from case.metrics import ERRORS, AverageRecall, Diagnosis, MeanAP

Table = tuple[list[str], list[list[str]]]
"""Column names, and rows of as many cells."""

AVERAGES = {"0.1:0.5": (0.1, 0.2, 0.3, 0.4, 0.5), "0.1:0.7": (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7)}
"""The averages that THUMOS14 results are published with, by the thresholds they are over."""

_NO_SETTING = ("config", "output", "resume")
"""Fields that say where a run's files are, not what was computed."""


def ap_rows(results: Mapping[str, MeanAP]) -> Table:
    """mAP in % at each IoU threshold and its averages, one row per named result.

    The averages are "0.1:0.5" and "0.1:0.7" where their thresholds are among the results', else "mean" over all.
    A result without classes has "-". Raises ``ValueError`` where results have different thresholds.
    """
    tiou = _common_tiou(results)
    averages = _averages(tiou)
    rows = []
    for name, result in results.items():
        if not result.classes:
            rows.append([name, *"-" * (len(tiou) + len(averages))])
            continue
        mean_ap = result.per_tiou
        rows.append([name, *_percent(mean_ap), *_percent(mean_ap[over].mean() for over in averages.values())])
    return ["result", *(f"{t:g}" for t in tiou), *averages], rows


def spread_rows(results: Mapping[str, Sequence[MeanAP]]) -> Table:
    """Mean and standard deviation (n - 1) over runs of what ``ap_rows`` shows, in %; one row per named group of runs.

    Without a deviation where there is one run alone. Raises ``ValueError`` where results have different thresholds.
    """
    tiou = _common_tiou({f"{name} {i}": run for name, runs in results.items() for i, run in enumerate(runs)})
    averages = _averages(tiou)
    rows = []
    for name, runs in results.items():
        values = 100 * np.array([[*r.per_tiou, *(r.per_tiou[over].mean() for over in averages.values())] for r in runs])
        cells = [f"{mean:.1f}" for mean in values.mean(0)]
        if len(runs) > 1:
            cells = [f"{mean} ± {deviation:.1f}" for mean, deviation in zip(cells, values.std(0, ddof=1), strict=True)]
        rows.append([name, str(len(runs)), *cells])
    return ["setting", "n", *(f"{t:g}" for t in tiou), *averages], rows


def protocol_rows(results: Mapping[str, MeanAP]) -> Table:
    """``ap_rows`` with a last column: points by which the last average lies above that of the first result.

    The first result is the first that has classes; one without has "-".
    """
    columns, rows = ap_rows(results)
    changes = protocol_changes(results)
    for row, change in zip(rows, changes.values(), strict=True):
        row.append("-" if change is None else f"{100 * change:+.2f}")
    return [*columns, "change"], rows


def protocol_changes(results: Mapping[str, MeanAP]) -> dict[str, float | None]:
    """By how much mAP, averaged as in the last column of ``ap_rows``, lies above that of the first with classes."""
    tiou = {round(t, 6): i for i, t in enumerate(_common_tiou(results))}
    over = next((list(o) for o in reversed(AVERAGES.values()) if all(t in tiou for t in o)), list(tiou))
    places = [tiou[t] for t in over]
    means = {name: float(r.per_tiou[places].mean()) if r.classes else None for name, r in results.items()}
    base = next((mean for mean in means.values() if mean is not None), 0.0)
    return {name: None if mean is None else mean - base for name, mean in means.items()}


def recall_rows(result: AverageRecall, numbers: Sequence[float] = (1, 5, 10, 50, 100)) -> Table:
    """AR in % at average numbers of proposals per video, and the area under the curve."""
    return [*(f"AR@{n:g}" for n in numbers), "AUC"], [_percent([*(result.at(n) for n in numbers), result.auc])]


def error_rows(result: Diagnosis) -> Table:
    """How many detections of each class are of each kind, all classes first; at last what mAP would gain, in points."""
    rows = [["all", str(result.instances.sum()), *map(str, result.counts.sum(0))]]
    for c in np.argsort(-result.counts.sum(1), kind="stable"):
        rows.append([result.classes[c], str(result.instances[c]), *map(str, result.counts[c])])
    rows.append(["mAP without", "-", "-", *(f"{100 * gain:+.1f}" for gain in result.gain[1:])])
    return ["class", "instances", *ERRORS], rows


def per_class_rows(result: MeanAP) -> Table:
    """AP in % of each class at each IoU threshold and over all of them, best class first."""
    order = np.argsort(-result.per_class, kind="stable")
    rows = [[result.classes[c], *_percent(result.ap[:, c]), *_percent([result.ap[:, c].mean()])] for c in order]
    return ["class", *(f"{t:g}" for t in result.tiou), "mean"], rows


def changed_settings(settings: Settings) -> list[list[str]]:
    """Name, value and default of each setting that differs from its default, in the order of the fields."""
    rows = []
    for field in dataclasses.fields(settings):
        value = getattr(settings, field.name)
        if value != field.default and field.name not in _NO_SETTING:
            rows.append([field.name, _value(value), _value(field.default)])
    return rows


def write_markdown(
    path: PathLike,
    settings: Settings,
    results: Mapping[str, MeanAP],
    pictures: Sequence[PathLike] = (),
    *,
    title: str = "Run",
    origin: Mapping[str, str] | None = None,
    heldout: Mapping[str, MeanAP] | None = None,
) -> None:
    """Write a short report of a run as Markdown, atomically.

    It has the settings that differ from their defaults, mAP of each result, and on held-out training videos
    (``heldout``, by the same names) if there are any, AP by class of the first, where it all
    comes from (``origin``: date, command, versions, by name), and the pictures by paths relative to the report, so
    that the folder can be moved. Raises ``CaseError`` where the system refuses to write.
    """
    parts = [
        f"# {_escape(title)}",
        f"Protocol `{settings.protocol}`; the run's result is `{settings.keep_checkpoint}`.",
    ]
    parts += ["## mAP (%)", _markdown(*ap_rows(results))]
    if any(name.startswith("best-test") for name in results):
        parts.append(
            "`best-test` was chosen by its score on the test set, as published results of this method are; it says "
            "less about new videos than `last`."
        )
    if heldout:
        parts += [
            "## mAP of the held-out training videos (%)",
            "They were never trained on. `best-heldout` has the highest of these, so that it too is above what new "
            "videos would give; its mAP on the test split, above, is not.",
            _markdown(*ap_rows(heldout)),
        ]
    changed = changed_settings(settings)
    parts += ["## Settings", _markdown(["setting", "value", "default"], changed) if changed else "All at defaults."]
    first = next(((name, result) for name, result in results.items() if result.classes), None)
    if first is not None:
        parts += [f"## AP by class (%), {_escape(first[0])}", _markdown(*per_class_rows(first[1]))]
    if origin:
        parts += ["## Origin", _markdown(["what", "value"], list(origin.items()))]
    if pictures:
        parts += ["## Pictures", *(_picture(Path(picture), Path(path).parent) for picture in pictures)]
    atomic_write(path, ("\n\n".join(parts) + "\n").encode())


def write_summary(
    path: PathLike, settings: Settings, tables: Mapping[str, Table], *, title: str, origin: Mapping[str, str]
) -> None:
    """Write a report of many runs as Markdown, atomically: each table under its name, the settings, the origin.

    Raises ``CaseError`` where the system refuses to write.
    """
    about = f"Protocol `{settings.protocol}`. Mean ± standard deviation (n - 1) over the seeds."
    parts = [f"# {_escape(title)}", about]
    for name, table in tables.items():
        parts += [f"## {_escape(name)}", _markdown(*table)]
    changed = changed_settings(settings)
    parts += ["## Settings", _markdown(["setting", "value", "default"], changed) if changed else "All at defaults."]
    parts += ["## Origin", _markdown(["what", "value"], list(origin.items()))]
    atomic_write(path, ("\n\n".join(parts) + "\n").encode())


def _averages(tiou: Sequence[float]) -> dict[str, list[int]]:
    """Places of the thresholds of each average that can be made: those of ``AVERAGES``, or the mean over all."""
    at = {round(t, 6): i for i, t in enumerate(tiou)}
    averages = {name: [at[t] for t in over] for name, over in AVERAGES.items() if all(t in at for t in over)}
    return averages or {"mean": list(range(len(tiou)))}


def _common_tiou(results: Mapping[str, MeanAP]) -> tuple[float, ...]:
    found = {result.tiou for result in results.values()}
    if len(found) > 1:
        raise ValueError(f"results in one table must have the same IoU thresholds, got {sorted(found)}")
    return next(iter(found), ())


def _percent(values: Any) -> list[str]:
    return [f"{100 * value:.1f}" for value in values]


def _value(value: object) -> str:
    if isinstance(value, tuple):
        return ", ".join(map(str, value)) if len(value) <= 10 else f"{len(value)} values"
    return str(value)


def _markdown(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table; all columns but the first are aligned right."""
    lines = [columns, ["---", *["---:"] * (len(columns) - 1)], *rows]
    return "\n".join("| " + " | ".join(_escape(cell) for cell in line) + " |" for line in lines)


def _escape(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


def _picture(picture: Path, folder: Path) -> str:
    link = quote(Path(os.path.relpath(picture, folder)).as_posix())
    return f"![{_escape(picture.stem)}]({link})"
