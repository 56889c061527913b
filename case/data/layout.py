"""What a feature folder says about itself: ``dataset.json``, the streams it holds and its split files."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from case.data.files import load_json, reason
from case.errors import CaseError

Split = Literal["train", "test"]
SPLITS: tuple[Split, ...] = ("train", "test")


@dataclass(frozen=True)
class Description:
    """The content of ``dataset.json``; the defaults are those of a folder without one."""

    name: str = ""
    fps: float = 25.0
    """Frames per second of the video that the features were made from."""
    snippet_stride: int = 16
    """Frames per feature row."""
    modalities: tuple[str, ...] = ()
    """Feature streams in order; empty: those that exist."""
    train_subset: str = "train"
    test_subset: str = "test"
    """The subsets of ``gt.json`` that the two splits belong to."""
    classes: tuple[str, ...] | None = None
    """Class names in index order; None: the labels of ``gt.json``, sorted."""


def read_description(folder: Path) -> tuple[Description, list[str], list[str]]:
    """``dataset.json`` of a folder, what is wrong with it, and remarks on it, both as one-line texts.

    A wrong field takes its default. No file at all is fine.
    """
    path = folder / "dataset.json"
    if not path.exists():
        return Description(name=folder.resolve().name), [], []
    try:
        raw = load_json(path)
        if not isinstance(raw, dict):
            raise CaseError(f"{path}: must be a JSON object, got {type(raw).__name__}")
    except CaseError as error:
        return Description(name=folder.resolve().name), [str(error)], []
    fields: dict[str, Any] = {"name": folder.resolve().name}
    problems, remarks = [], []
    for key, value in raw.items():
        if key not in Description.__dataclass_fields__:
            # Not an error, since people keep notes there; not silent, since it may be a slip of the pen.
            remarks.append(f"{path}: unknown key '{key}' ignored; known: {', '.join(Description.__dataclass_fields__)}")
            continue
        try:
            fields[key] = checked_field(key, value)
        except CaseError as error:
            problems.append(f"{path}: {error}")
    return Description(**fields), problems, remarks


def checked_field(name: str, value: Any) -> Any:
    """A field of ``Description`` in its own type. Raises ``CaseError`` naming field and value."""
    if name == "fps":
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf:
            raise CaseError(f"fps must be a number greater than 0, got {value!r}")
        return float(value)
    if name == "snippet_stride":
        if isinstance(value, bool) or not isinstance(value, int | float) or value != value // 1 or not value > 0:
            raise CaseError(f"snippet_stride must be a whole number of frames greater than 0, got {value!r}")
        return int(value)
    if name in ("modalities", "classes"):
        names = list(value) if isinstance(value, Sequence) and not isinstance(value, str) else None
        if not names or not all(isinstance(n, str) and n for n in names) or len(set(names)) != len(names):
            raise CaseError(f"{name} must be a list of different names, got {value!r}")
        if name == "modalities" and not all(is_file_name(n) for n in names):
            raise CaseError(f"modalities must be names of folders under features/<split>, got {value!r}")
        return tuple(names)
    if not isinstance(value, str) or not value:
        raise CaseError(f"{name} must be a text, got {value!r}")
    return value


def find_modalities(folder: Path) -> tuple[str, ...]:
    """Streams that the folder holds, of either split: rgb, then flow, then others by name."""
    found = {p.name for split in SPLITS for p in (folder / "features" / split).glob("*") if p.is_dir()}
    first = [name for name in ("rgb", "flow") if name in found]
    return (*first, *sorted(n for n in found.difference(first) if not n.startswith(".")))


def read_split_lines(folder: Path, split: str) -> list[tuple[int, str]]:
    """Line number and video of every entry of ``split_<split>.txt``; blank lines and ``#`` comments are skipped.

    Raises ``CaseError`` when the file is missing, unreadable or not text.
    """
    path = folder / f"split_{split}.txt"
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except FileNotFoundError as error:
        raise CaseError(f"{path}: file not found; write one video name a line") from error
    except OSError as error:
        raise CaseError(f"{path}: cannot read it: {reason(error)}") from error
    except UnicodeDecodeError as error:
        raise CaseError(f"{path}: not a text file: byte {error.start} is not UTF-8; save it as UTF-8") from error
    entries = ((number, line.strip()) for number, line in enumerate(lines, start=1))
    return [(number, entry) for number, entry in entries if entry and not entry.startswith("#")]


def is_file_name(name: str) -> bool:
    """Whether a name stays inside its folder: a list that names ``../x`` must not make the program read there."""
    return not ({"/", "\\", "\0"} & set(name) or name in (".", ".."))
