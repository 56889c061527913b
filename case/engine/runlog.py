"""What a run writes while it goes: ``metrics.jsonl`` and TensorBoard scalars."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from case import console
from case.data.files import atomic_write, reason
from case.errors import CaseError


class RunLog:
    """Appends entries to ``<folder>/metrics.jsonl``, one JSON object a line, and their numbers to TensorBoard.

    On resuming at ``step``, entries past it, of steps that will be made again, are dropped.
    """

    def __init__(self, folder: Path, *, step: int = 0) -> None:
        self.path = folder / "metrics.jsonl"
        kept = [line for line in read_entries(self.path) if line["step"] <= step] if step else []
        atomic_write(self.path, "".join(json.dumps(entry) + "\n" for entry in kept).encode())
        self._board = _tensorboard(folder / "tensorboard", step)

    def write(self, kind: str, step: int, **values: Any) -> None:
        """Add an entry {"step", "kind", ...}. Raises ``CaseError`` where the disk refuses."""
        try:
            with open(self.path, "a", encoding="utf-8") as file:
                file.write(json.dumps({"step": step, "kind": kind, **values}) + "\n")
        except OSError as error:
            raise CaseError(f"cannot write {self.path}: {reason(error)}; free space and use --resume") from error
        if self._board is not None:
            for name, value in values.items():
                if isinstance(value, float):
                    self._board.add_scalar(f"{kind}/{name}", value, step)

    def close(self) -> None:
        if self._board is not None:
            with contextlib.suppress(OSError):  # metrics.jsonl holds the same numbers, and its errors are told
                self._board.close()


def read_entries(path: Path) -> list[dict[str, Any]]:
    """Entries of a ``metrics.jsonl``; a last line cut short by a killed run is left out, a missing file has none."""
    entries = []
    with contextlib.suppress(FileNotFoundError):
        for line in path.read_text(encoding="utf-8").splitlines():
            with contextlib.suppress(json.JSONDecodeError):
                entries.append(json.loads(line))
    return entries


def series(entries: list[dict[str, Any]], kind: str, name: str) -> Mapping[str, list[float]]:
    """``{"steps": [...], "values": [...]}`` of one number of one kind of entry."""
    found = [(e["step"], e[name]) for e in entries if e["kind"] == kind and name in e]
    return {"steps": [s for s, _ in found], "values": [v for _, v in found]}


def _tensorboard(folder: Path, step: int) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        console.warn("tensorboard is not installed: scalars go to metrics.jsonl only; pip install tensorboard")
        return None
    return SummaryWriter(str(folder), purge_step=step + 1 if step else None)
