"""Numbers as words, and tables in Markdown."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence


def duration(seconds: float) -> str:
    for unit, size in (("s", 1.0), ("ms", 1e-3), ("µs", 1e-6)):
        if seconds >= size:
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds / 1e-6:.2g} µs"


def amount(size: float) -> str:
    for unit, scale in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if size >= scale:
            return f"{size / scale:.3g} {unit}"
    return f"{size:.0f} B"


def ratio(found: Mapping[str, float]) -> str:
    few = f", {found['pairs']} pairs" if found["pairs"] < 6 else ""
    return f"{found['ratio']:.2f} ({found['low']:.2f} to {found['high']:.2f}{few})"


def percent(share: float | None) -> str:
    if share is None:
        return ""
    return f"{100 * share:.0f} %" if share >= 0.01 else f"{100 * share:.1g} %"


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [" | ".join(head), "|".join("---" for _ in head), *(" | ".join(row) for row in rows)]
    return "".join(f"| {line} |\n" if i != 1 else f"|{line}|\n" for i, line in enumerate(lines))


def spread(times: Mapping[str, float]) -> str:
    """Median and quartiles."""
    return f"{duration(times['median'])} ({duration(times['quartile_1'])} to {duration(times['quartile_3'])})"
