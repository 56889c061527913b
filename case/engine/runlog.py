"""What a run writes while it goes: ``metrics.jsonl`` and TensorBoard scalars."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import platform
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from case import console
from case.data.files import atomic_write, make_folder, reason
from case.errors import CaseError


class RunLog:
    """Appends entries to ``<folder>/metrics.jsonl``, one JSON object a line, and their numbers to TensorBoard.

    On resuming at ``step``, entries past it, of steps that will be made again, are dropped, and evaluations at it where
    they will be made ``again``. Without ``writing``, in all but one of several processes, nothing is written. Raises
    ``CaseError`` where the disk refuses.
    """

    def __init__(self, folder: Path, *, step: int = 0, again: bool = False, writing: bool = True) -> None:
        self.path = folder / "metrics.jsonl"
        self._writing = writing
        self._board: _Board | None = None
        if not writing:
            return
        kept = [line for line in read_entries(self.path) if line["step"] <= step] if step else []
        if again:
            kept = [line for line in kept if line["step"] < step or line["kind"] == "train"]
        atomic_write(self.path, "".join(json.dumps(entry) + "\n" for entry in kept).encode())
        if _has_tensorboard():
            self._board = _Board(folder / "tensorboard", step)

    def write(self, kind: str, step: int, **values: Any) -> None:
        """Add an entry {"step", "kind", ...}."""
        if not self._writing:
            return
        try:
            with open(self.path, "a", encoding="utf-8") as file:
                file.write(json.dumps({"step": step, "kind": kind, **values}) + "\n")
            if self._board is not None:
                self._board.add(step, {f"{kind}/{name}": v for name, v in values.items() if isinstance(v, float)})
        except OSError as error:
            raise CaseError(f"cannot write to {self.path.parent}: {reason(error)}; then use --resume") from error

    def close(self) -> None:
        if self._board is not None:
            self._board.close()


class _Board:
    """A TensorBoard event file, written in the calling thread, where a full disk can be told of.

    torch's SummaryWriter hands events to a thread of its own, which prints a traceback and dies.
    """

    def __init__(self, folder: Path, step: int) -> None:
        from tensorboard.compat.proto import event_pb2, summary_pb2
        from tensorboard.summary.writer.record_writer import RecordWriter

        self._event, self._summary = event_pb2, summary_pb2
        make_folder(folder)
        path = folder / f"events.out.tfevents.{time.time():.6f}.{platform.node()}.{os.getpid()}"
        try:
            self._file = open(path, "xb")  # noqa: SIM115 (open for the whole run)
        except OSError as error:
            raise CaseError(f"cannot write to {folder}: {reason(error)}") from error
        self._records = RecordWriter(self._file)
        self._write(file_version="brain.Event:2")
        if step:  # what is past this step comes again
            start = event_pb2.SessionLog(status=event_pb2.SessionLog.START)
            self._write(step=step + 1, session_log=start)

    def add(self, step: int, scalars: dict[str, float]) -> None:
        values = [self._summary.Summary.Value(tag=tag, simple_value=value) for tag, value in scalars.items()]
        self._write(step=step, summary=self._summary.Summary(value=values))
        self._file.flush()

    def close(self) -> None:
        with contextlib.suppress(OSError):  # metrics.jsonl holds the same numbers, and its errors are told
            self._file.close()

    def _write(self, **fields: Any) -> None:
        self._records.write(self._event.Event(wall_time=time.time(), **fields).SerializeToString())


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


def _has_tensorboard() -> bool:
    if importlib.util.find_spec("tensorboard") is not None:
        return True
    console.warn("tensorboard is not installed: scalars go to metrics.jsonl only; pip install tensorboard")
    return False
