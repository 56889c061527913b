"""Curves of time and memory over sizes, on logarithmic axes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib as mpl


def scaling(found: dict[str, Any], path: Path) -> None:
    """One panel a curve: median and quartiles of the time, and the memory at the peak, with the fitted exponent."""
    mpl.use("Agg")
    import matplotlib.pyplot as plt

    curves = [curve for curve in found["curves"] if len(curve["points"]) > 1]
    columns = 4
    rows = -(-len(curves) // columns)
    figure, panels = plt.subplots(rows, columns, figsize=(4.2 * columns, 3.2 * rows), squeeze=False)
    for panel in panels.flat[len(curves) :]:
        panel.set_axis_off()
    for panel, curve in zip(panels.flat, curves, strict=False):
        points = curve["points"]
        values = [p["value"] for p in points]
        low, middle, high = ([p["seconds"][q] for p in points] for q in ("quartile_1", "median", "quartile_3"))
        panel.fill_between(values, low, high, alpha=0.3)
        power = curve.get("exponent")
        panel.plot(values, middle, marker="o", label="seconds" if power is None else f"seconds ~ x^{power:.2f}")
        panel.set(xscale="log", yscale="log", xlabel=curve["over"], title=curve["name"])
        panel.title.set_size(9)
        panel.set_ylabel("seconds")
        panel.grid(True, which="major", alpha=0.3)
        memory = [(p["value"], p["peak_bytes"] / 1e6) for p in points if p.get("peak_bytes")]
        if memory:
            other = panel.twinx()
            other.plot(*zip(*memory, strict=True), color="tab:red", linestyle="--", marker=".", label="MB at the peak")
            other.set(yscale="log")
            other.tick_params(axis="y", labelcolor="tab:red")
            other.legend(loc="lower right", fontsize=7)
        panel.legend(loc="upper left", fontsize=7)
    figure.tight_layout()
    figure.savefig(path, dpi=80, metadata={"Software": None})
    plt.close(figure)
