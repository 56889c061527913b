"""Pictures of a run: what was found in a video, training curves, mAP by IoU.

matplotlib is imported when a picture is drawn, and only its object interface is used: no display, no pyplot, no change
to its settings, so that drawing works on servers and beside a user's own plots. Files are PNG, written whole or not
at all; all functions raise ``CaseError`` where the system refuses to write.
"""

from __future__ import annotations

import contextlib
import itertools
import logging
import math
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from case.data.files import PathLike, atomic_write

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
"""Colours that stay apart under the common colour blindnesses (after Okabe and Ito)."""

_DPI = 100
_ATTENTION, _FOREGROUND = "#222222", "#B40426"
_SHARE_MAP = "coolwarm"
"""Foreground share: blue for background, red for foreground as in its curve, grey in between. Lightness falls evenly
from the middle to both ends, which have the same contrast to white, 7 to 1, and stay blue and red, not near black."""

_WIDTH, _LEFT, _RIGHT, _TOP, _BOTTOM, _GAP = 14.0, 2.5, 1.0, 0.45, 0.5, 0.22
"""Inches. Rows are placed by hand: matplotlib's own layout takes longer than all of the drawing."""

_LEAST_SHARE = 0.3
"""Detections below this share of the video's best score are not drawn: NMS leaves many decayed repeats."""


@dataclass(frozen=True)
class Timeline:
    """One video over time. Position i of the T covers [i, i + 1) * duration / T seconds.

    Labels in ``truth`` and ``detections`` index ``classes``; only classes that occur are drawn. Raises ``ValueError``
    where sizes or labels disagree.
    """

    video: str
    duration: float
    """Seconds."""
    classes: tuple[str, ...]
    truth: Sequence[tuple[int, float, float]]
    """(label, start, end), seconds."""
    detections: Sequence[tuple[int, float, float, float]]
    """(label, score, start, end), seconds; any order."""
    attention: NDArray[Any]
    """(T,), 0 to 1."""
    foreground: NDArray[Any]
    """(T,) cluster foreground h, 0 to 1; all 0 (attention-only baseline): clusters are not drawn."""
    clusters: NDArray[Any]
    """(T,) most likely cluster."""
    cluster_foreground: NDArray[Any]
    """(K,) foreground share of each cluster, R[:, 0]."""
    activation: NDArray[Any] | None = None
    """(T, len(classes)) fused CAS."""

    def __post_init__(self) -> None:
        t, c = len(self.attention), len(self.classes)
        if not self.duration > 0 or t == 0:
            raise ValueError(f"timeline of '{self.video}' needs duration > 0 and T > 0, got {self.duration} and {t}")
        for name, shape in (("foreground", (t,)), ("clusters", (t,)), ("activation", (t, c))):
            value = getattr(self, name)
            if value is not None and np.shape(value) != shape:
                raise ValueError(f"{name} of '{self.video}' must have shape {shape}, got {np.shape(value)}")
        for name, rows in (("truth", self.truth), ("detections", self.detections)):
            labels = {int(row[0]) for row in rows}
            if any(not 0 <= label < c for label in labels):
                raise ValueError(f"{name} of '{self.video}' must have labels in [0, {c}), got {sorted(labels)}")
        k = len(self.cluster_foreground)
        if self.has_clusters and not 0 <= np.min(self.clusters) <= np.max(self.clusters) < k:
            raise ValueError(f"clusters of '{self.video}' must lie in [0, {k}), got up to {np.max(self.clusters)}")

    @property
    def has_clusters(self) -> bool:
        return bool(np.any(self.foreground))

    def best_detections(self) -> list[tuple[int, float, float, float]]:
        """The detections worth drawing, by falling score: at most max(20, 3 per instance), none far below the best."""
        ranked = sorted(self.detections, key=lambda d: -d[1])[: max(20, 3 * len(self.truth))]
        top = ranked[0][1] if ranked else 0.0
        return [d for d in ranked if d[1] >= min(top, _LEAST_SHARE * top)]


def draw_timeline(path: PathLike, timeline: Timeline) -> None:
    """One picture, 1400 px wide, time in seconds: instances, detections, attention, clusters, and CAS if given.

    Detections stand as high as their score, relative to the video's best; instances are shaded behind all rows.
    """
    best = timeline.best_detections()
    lanes = sorted({int(row[0]) for row in (*timeline.truth, *best)})
    colours = {label: PALETTE[i % len(PALETTE)] for i, label in enumerate(lanes)}
    with_cas = timeline.activation is not None and len(lanes) > 0
    rows = {
        "truth": 0.22 * max(1, len(lanes)) + 0.1,
        "detections": 0.5 * max(1, len(lanes)) + 0.1,
        **({"fused CAS": 1.1} if with_cas else {}),
        "foreground": 1.1,
        **({"cluster": 0.3} if timeline.has_clusters else {}),
    }
    height = _TOP + sum(rows.values()) + _GAP * (len(rows) - 1) + _BOTTOM
    with _figure(path, _WIDTH, height) as figure:
        axes = _stack(figure, rows, height)
        _draw_truth(axes["truth"], timeline, lanes, colours)
        _draw_detections(axes["detections"], timeline, best, lanes, colours)
        if with_cas:
            for label in lanes:
                _draw_steps(
                    axes["fused CAS"], timeline, np.asarray(timeline.activation)[:, label], color=colours[label]
                )
        _draw_foreground(axes["foreground"], timeline)
        if timeline.has_clusters:
            _draw_clusters(axes["cluster"], timeline)
            low = _BOTTOM / height
            _draw_shares(figure.add_axes((13.15 / _WIDTH, low, 0.16 / _WIDTH, 1 - low - _TOP / height)), timeline)
        for name in rows.keys() - {"truth", "cluster"}:
            for label, start, end in timeline.truth:
                axes[name].axvspan(start, end, color=colours[int(label)], alpha=0.13, linewidth=0, zorder=0)
        last = axes[next(reversed(rows))]
        last.set_xlim(0, timeline.duration)
        last.tick_params(labelbottom=True)
        last.set_xlabel("time (s)")
        present = ", ".join(dict.fromkeys(timeline.classes[int(row[0])] for row in timeline.truth)) or "no action"
        title = f"{_short(timeline.video, 60)}: {_short(present, 80)}, instances: {len(timeline.truth)}"
        figure.text(0.01, 1 - 0.1 / height, _plain(title), va="top", fontsize=13)


def _stack(figure: Figure, rows: Mapping[str, float], height: float) -> dict[str, Axes]:
    """Axes of the given heights (inches) one below the other, sharing their time axis, named at the left."""
    axes: dict[str, Axes] = {}
    top = height - _TOP
    for name, inches in rows.items():
        place = (_LEFT / _WIDTH, (top - inches) / height, (_WIDTH - _LEFT - _RIGHT) / _WIDTH, inches / height)
        ax = axes[name] = figure.add_axes(place, sharex=next(iter(axes.values()), None))
        ax.spines[["top", "right"]].set_visible(False)
        ax.tick_params(labelbottom=False)
        figure.text(0.01, (top - inches / 2) / height, name, va="center", color="#555555")
        top -= inches + _GAP
    return axes


def _draw_truth(ax: Axes, timeline: Timeline, lanes: list[int], colours: dict[int, str]) -> None:
    for label, start, end in timeline.truth:
        # The edge keeps a short instance of a long video visible.
        lane, colour = lanes.index(int(label)), colours[int(label)]
        ax.barh(lane, end - start, left=start, height=0.7, color=colour, edgecolor=colour, linewidth=0.8)
    _label_lanes(ax, timeline, lanes, -0.5)


def _draw_detections(
    ax: Axes,
    timeline: Timeline,
    best: list[tuple[int, float, float, float]],
    lanes: list[int],
    colours: dict[int, str],
) -> None:
    top = best[0][1] if best else 1.0
    for label, score, start, end in best:
        share = score / top if top > 0 else 1.0
        floor = lanes.index(int(label)) + 0.4
        ax.bar(
            (start + end) / 2, -0.85 * share, end - start, floor,
            color=(colours[int(label)], 0.15 + 0.4 * share**2), edgecolor=colours[int(label)], linewidth=0.8,
        )  # fmt: skip
    for lane in range(len(lanes)):
        ax.axhline(lane + 0.4, color="#BBBBBB", linewidth=0.6, zorder=0)
    _label_lanes(ax, timeline, lanes, -0.6)
    text = f"{len(best)} of {len(timeline.detections)} detections"
    if best:
        text += f" shown, height by score, the highest {top:.2f}, the lowest {best[-1][1]:.2f}"
    ax.set_title(text, loc="right", fontsize=9, color="#555555", pad=2)


def _label_lanes(ax: Axes, timeline: Timeline, lanes: list[int], first: float) -> None:
    names = [_plain(_short(timeline.classes[label], 18)) for label in lanes]
    ax.set_yticks(range(len(lanes)), labels=names)
    ax.set_ylim(max(1, len(lanes)) - 0.5, first)
    ax.tick_params(axis="y", length=0)


def _draw_steps(ax: Axes, timeline: Timeline, values: NDArray[Any], **style: Any) -> None:
    edges = np.linspace(0, timeline.duration, len(values) + 1)
    ax.plot(np.repeat(edges, 2)[1:-1], np.repeat(values, 2), **{"linewidth": 1.2, **style})


def _draw_foreground(ax: Axes, timeline: Timeline) -> None:
    _draw_steps(ax, timeline, np.asarray(timeline.attention), color=_ATTENTION, label="attention")
    if timeline.has_clusters:
        style: dict[str, Any] = {"color": _FOREGROUND, "linewidth": 1.6, "linestyle": (0, (4, 1))}
        _draw_steps(ax, timeline, np.asarray(timeline.foreground), label="cluster foreground", **style)
    ax.set_ylim(0, 1.02)
    ax.legend(loc="lower right", bbox_to_anchor=(1.0, 0.97), ncols=2, frameon=False, fontsize=9, borderpad=0)


def _share_range(timeline: Timeline) -> tuple[float, float]:
    """The shares that get the two end colours: those of the clusters, which lie close together early in training."""
    low, high = float(np.min(timeline.cluster_foreground)), float(np.max(timeline.cluster_foreground))
    half = max(high - low, 0.1) / 2
    return (low + high) / 2 - half, (low + high) / 2 + half


def _draw_clusters(ax: Axes, timeline: Timeline) -> None:
    low, high = _share_range(timeline)
    share = np.asarray(timeline.cluster_foreground, dtype=np.float64)[np.asarray(timeline.clusters)]
    edges = np.linspace(0, timeline.duration, len(share) + 1)
    ax.pcolormesh(edges, [0, 1], share[None], cmap=_SHARE_MAP, vmin=low, vmax=high)
    ax.set_yticks([])


def _draw_shares(ax: Axes, timeline: Timeline) -> None:
    """The colours of the cluster strip, with a line at each cluster's share."""
    low, high = _share_range(timeline)
    colours = np.linspace(low, high, 64)[:, None]
    ax.pcolormesh([0, 1], np.linspace(low, high, 65), colours, cmap=_SHARE_MAP, vmin=low, vmax=high)
    ax.hlines(timeline.cluster_foreground, 0, 1, color="black", linewidth=0.9)
    ax.set(xticks=[], ylim=(low, high))
    ax.locator_params(axis="y", nbins=6)
    ax.yaxis.set_major_formatter("{x:.2f}")
    ax.yaxis.tick_right()
    ax.yaxis.set_label_position("right")
    ax.set_ylabel(f"foreground share (lines: {len(timeline.cluster_foreground)} clusters)", fontsize=9)


def draw_curve(
    path: PathLike, steps: Sequence[float], series: Mapping[str, Sequence[float]], *, ylabel: str, title: str
) -> None:
    """Curves over training steps; NaN where a series has no value at a step (mAP between evaluations).

    Raises ``ValueError`` naming a series whose length differs from that of ``steps``.
    """
    with _figure(path, 9.0, 4.5) as figure:
        ax = _single(figure, 9.0)
        x = np.asarray(steps, dtype=np.float64)
        for (name, values), colour in zip(series.items(), itertools.cycle(PALETTE)):
            y = np.asarray(values, dtype=np.float64)
            if y.shape != x.shape:
                raise ValueError(f"series '{name}' must have one value per step ({len(x)}), got {len(y)}")
            known = np.isfinite(y)
            marker = "o" if known.sum() <= 60 else None
            ax.plot(x[known], y[known], color=colour, marker=marker, markersize=3.5, linewidth=1.3, label=_plain(name))
        _finish(ax, "training step", ylabel, title, legend=len(series) > 0)


def draw_ap(path: PathLike, tiou: Sequence[float], series: Mapping[str, Sequence[float]], title: str) -> None:
    """Bars of mAP by IoU threshold, and their mean, one colour per series; values in %.

    Raises ``ValueError`` naming a series whose length differs from that of ``tiou``.
    """
    groups = len(tiou) + 1
    inches = max(7.0, 0.4 * groups * len(series) + 1.5)
    with _figure(path, inches, 4.5) as figure:
        ax = _single(figure, inches)
        width = 0.8 / max(1, len(series))
        for i, ((name, values), colour) in enumerate(zip(series.items(), itertools.cycle(PALETTE))):
            if len(values) != len(tiou):
                raise ValueError(f"series '{name}' must have one value per threshold ({len(tiou)}), got {len(values)}")
            heights = [*values, math.fsum(values) / max(1, len(values))]
            bars = ax.bar(np.arange(groups) - 0.4 + width * (i + 0.5), heights, width, color=colour, label=_plain(name))
            ax.bar_label(bars, fmt="%.1f", fontsize=8, padding=1)
        ax.set_xticks(range(groups), labels=[*(f"{t:g}" for t in tiou), "mean"])
        ax.axvline(groups - 1.5, color="#BBBBBB", linewidth=0.8)
        _finish(ax, "IoU threshold", "mAP (%)", title, legend=len(series) > 0)


def _single(figure: Figure, inches: float) -> Axes:
    return figure.add_axes((0.75 / inches, 0.13, 1 - 0.95 / inches, 0.77))


def _finish(ax: Axes, xlabel: str, ylabel: str, title: str, *, legend: bool) -> None:
    ax.set(xlabel=xlabel, ylabel=_plain(ylabel))
    ax.set_title(_plain(title), loc="left")
    ax.spines[["top", "right"]].set_visible(False)
    ax.grid(axis="y", color="#DDDDDD", linewidth=0.6)
    ax.set_axisbelow(True)
    if legend:
        ax.legend(frameon=False)


@contextlib.contextmanager
def _figure(path: PathLike, width: float, height: float) -> Iterator[Figure]:
    """A figure of the given inches that is written as PNG when the block ends without an error."""
    logger = logging.getLogger("matplotlib")
    level = logger.level
    # The first import on a machine says that it builds a font cache, an unwritable home that it uses another folder,
    # and a name in a script that no installed font has warns once per letter: none of it concerns the user.
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=r"Glyph .* missing from")
            from matplotlib.figure import Figure

            figure = Figure(figsize=(width, height))
            yield figure
            atomic_write(path, lambda file: figure.savefig(file, format="png", dpi=_DPI))
    finally:
        logger.setLevel(level)


def _plain(text: str) -> str:
    """Text in which a dollar sign is a dollar sign, not the start of a formula."""
    return text.replace("$", r"\$")


def _short(name: str, most: int) -> str:
    return name if len(name) <= most else name[: most - 1] + "…"
