"""What the command line prints with: progress, notes, warnings, tables.

Results and notes go to standard output; progress, warnings and errors to standard error, so that output can be piped.
On a terminal, rich draws; elsewhere (files, pipes, TERM=dumb) the same content comes as plain lines. NO_COLOR is
honoured. rich is imported on first use: importing this file costs nothing.
"""

from __future__ import annotations

import os
import sys
import time
from collections import deque
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, TextIO

if TYPE_CHECKING:
    from types import TracebackType

    import rich.console
    import rich.progress

_LINE_INTERVAL = 5.0
"""Seconds between plain progress lines."""
_BAR_INTERVAL = 0.1
_BAR_WIDTH = 24
"""Characters; on a terminal without room for a bar beside the numbers, the numbers alone are drawn."""
_SAMPLE_INTERVAL, _SAMPLES = 0.5, 60
"""Seconds, and how many: the rate is that of the last half minute or sixty slow steps, never of the first one, whose
compilation and cold caches say little about the time left."""

_live: rich.progress.Progress | None = None
"""The display on the terminal, if one is open: an evaluation inside training becomes a second bar of the same display,
since two displays on one terminal overwrite each other."""


_muted = False


def mute(muted: bool) -> None:
    """Print nothing but errors from here on, or everything again: one of several processes speaks for all."""
    global _muted
    _muted = muted


def note(text: str) -> None:
    """Print to standard output, at once even where that is a file."""
    if _muted:
        return
    print(text, flush=True)


def warn(text: str) -> None:
    """Print ``warning: text`` to standard error."""
    if _muted:
        return
    _labelled("warning:", "33", text)


def error(text: str) -> None:
    """Print ``error: text`` to standard error as one line, whatever line breaks the text has."""
    _labelled("error:", "31", " ".join(text.split()))


def progress(total: int, description: str, *, unit: str = "step", done: int = 0) -> Progress:
    """Progress of ``total`` units of work, of which ``done`` lie behind (a resumed run), as a context manager.

    >>> with progress(600, "train") as bar:
    ...     for step in range(600):
    ...         bar.advance(loss=train_step())

    A bar with rate and time left on a terminal; elsewhere a line after the first unit, every five seconds, and at the
    end: ``train 120/600 (20%)  loss 8.31  0.04 s/step  19 s left``.
    """
    return Progress(total, description, unit, done)


class Progress:
    """See ``progress``. Rate and time left count the work of this process only, not what was done before."""

    def __init__(self, total: int, description: str, unit: str, done: int) -> None:
        self.total, self.description, self.unit, self.done = total, description, unit, done
        self._shown: dict[str, Any] = {}
        self._display: rich.progress.Progress | None = None

    def __enter__(self) -> Progress:
        global _live
        self._first_done = self.done
        self._start = time.monotonic()
        self._samples: deque[tuple[float, int]] = deque(maxlen=_SAMPLES)
        self._printed_at, self._printed_done = float("-inf"), self.done
        if _is_terminal(sys.stderr) and not _muted:
            self._owner = _live is None
            self._display = _live = _live or _start_display()
            self._task = self._display.add_task(self.description, total=self.total, completed=self.done, tail="")
        return self

    def advance(self, n: int = 1, **shown: Any) -> None:
        """Count ``n`` units as done and show numbers beside them (``loss=8.31, mAP=46.2``).

        A number stays until another of its name comes. Numbers are read only when they are printed, at most ten times
        a second: a tensor on a GPU may be given without waiting for it at every step.
        """
        self.done += n
        self._shown.update(shown)
        now = time.monotonic()
        if n and (not self._samples or now - self._samples[-1][0] >= _SAMPLE_INTERVAL):
            self._samples.append((now, self.done))
        interval = _LINE_INTERVAL if self._display is None else _BAR_INTERVAL
        finished = self.done >= self.total and self.done != self._printed_done
        if now - self._printed_at >= interval or finished:
            self._print(now)

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        global _live
        try:
            if self._printed_done != self.done:
                self._print(time.monotonic())
        finally:
            if self._display is not None and self._owner:
                self._display.stop()
                _live = None
            elif self._display is not None:
                self._display.remove_task(self._task)

    def _print(self, now: float) -> None:
        self._printed_at, self._printed_done = now, self.done
        if _muted:
            return
        parts = [*(f"{name} {_number(value)}" for name, value in self._shown.items()), *self._pace(now)]
        if self._display is not None:
            self._display.update(self._task, completed=self.done, tail="  ".join(parts))
            return
        share = 100 * self.done // self.total if self.total else 100
        head = f"{self.description} {self.done}/{self.total} ({share}%)"
        print("  ".join([head, *parts]), file=sys.stderr, flush=True)

    def _pace(self, now: float) -> tuple[str, ...]:
        """Rate, then time left; at the end the rate and time of the whole."""
        finished = self.done >= self.total
        since, before = (self._start, self._first_done) if finished or not self._samples else self._samples[0]
        if self.done <= before:
            return ()
        seconds = (now - since) / (self.done - before)
        rate = f"{_number(1000 * seconds)} ms/{self.unit}" if seconds < 0.01 else f"{seconds:.2f} s/{self.unit}"
        if finished:
            return rate, f"{_duration(now - self._start)} in all"
        return rate, f"{_duration(seconds * (self.total - self.done))} left"


def table(title: str, columns: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """Print a table to standard output; columns of numbers are aligned right.

    Where the terminal is too narrow for the columns, the table is turned (one line per column) if that is narrower.
    """
    if _muted:
        return
    cells = [[_cell(value) for value in row] for row in rows]
    for row in cells:
        if len(row) != len(columns):
            raise ValueError(f"table '{title}' has {len(columns)} columns, got a row of {len(row)}: {row}")
    terminal = _is_terminal(sys.stdout)
    heads = list(columns)
    if terminal and _width(heads, cells) > _console(sys.stdout).width:
        turned = [[heads[i], *(row[i] for row in cells)] for i in range(len(heads))]
        if _width(turned[0], turned[1:]) < _width(heads, cells):
            heads, cells = turned[0], turned[1:]
    numeric = [all(_is_number(row[i]) for row in cells) for i in range(len(heads))]
    if terminal:
        _rich_table(title, heads, cells, numeric)
        return
    widths = _widths(heads, cells)
    lines = [title, *(_aligned(row, widths, numeric) for row in (heads, ["-" * w for w in widths], *cells))]
    note("\n".join(lines))


def _aligned(row: Sequence[str], widths: Sequence[int], right: Sequence[bool]) -> str:
    cells = (cell.rjust(w) if r else cell.ljust(w) for cell, w, r in zip(row, widths, right, strict=True))
    return "  ".join(cells).rstrip()


def _widths(heads: Sequence[str], cells: Sequence[Sequence[str]]) -> list[int]:
    return [max(len(head), *(len(row[i]) for row in cells), 1) for i, head in enumerate(heads)]


def _width(heads: Sequence[str], cells: Sequence[Sequence[str]]) -> int:
    """Characters of a line on a terminal, where rich puts two blanks around each cell."""
    return sum(_widths(heads, cells)) + 3 * len(heads) + 1


def _rich_table(title: str, heads: Sequence[str], cells: Sequence[Sequence[str]], numeric: Sequence[bool]) -> None:
    from rich.box import SIMPLE_HEAD
    from rich.table import Table
    from rich.text import Text

    # Text, not str: a class name in square brackets is no markup.
    drawn = Table(title=Text(title), box=SIMPLE_HEAD, title_justify="left", title_style="bold")
    for head, right in zip(heads, numeric, strict=True):
        drawn.add_column(Text(head), justify="right" if right else "left", overflow="fold")
    for row in cells:
        drawn.add_row(*(Text(cell) for cell in row))
    _console(sys.stdout).print(drawn)


def _start_display() -> rich.progress.Progress:
    from rich.progress import BarColumn, Progress, ProgressColumn, TextColumn
    from rich.table import Column

    console = _console(sys.stderr)
    cut = Column(no_wrap=True, overflow="ellipsis")
    text = "{task.description} {task.completed}/{task.total}  {task.fields[tail]}"
    columns: list[ProgressColumn] = [TextColumn(text, markup=False, table_column=cut)]
    if console.width >= _BAR_WIDTH + 60:
        columns.append(BarColumn(_BAR_WIDTH))
    display = Progress(
        *columns,
        console=console,
        refresh_per_second=4,
        # rich moves what is printed during the display above it, but onto its own stream: not for a piped output.
        redirect_stdout=_is_terminal(sys.stdout),
    )
    display.start()
    return display


def _console(stream: TextIO) -> rich.console.Console:
    from rich.console import Console

    return Console(file=stream)


def _labelled(label: str, colour: str, text: str) -> None:
    # Escape codes rather than a rich console: a second console would write into an open display.
    if _is_terminal(sys.stderr) and not os.environ.get("NO_COLOR"):
        label = f"\x1b[{colour}m{label}\x1b[0m"
    print(f"{label} {text}", file=sys.stderr, flush=True)


def _is_terminal(stream: TextIO) -> bool:
    return stream.isatty() and os.environ.get("TERM", "") not in ("dumb", "unknown")


def _number(value: Any) -> str:
    if isinstance(value, (int, str)):
        return str(value)
    value = float(value)
    return f"{value:.0f}" if 1000 <= abs(value) < 1e9 else f"{value:.3g}"


def _cell(value: object) -> str:
    return _number(value) if isinstance(value, float) else str(value)


def _is_number(cell: str) -> bool:
    try:
        float(cell.rstrip("%"))
    except ValueError:
        return cell in ("", "-")
    return True


def _duration(seconds: float) -> str:
    whole = round(seconds)
    if whole < 120:
        return f"{whole} s"
    if whole < 7200:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"
