"""Reading and writing small files so that no reader ever meets half of one.

Every file the package writes (JSON, checkpoints, figures) goes through :func:`atomic_write`.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import secrets
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from case.errors import CaseError

PathLike = str | os.PathLike[str]


def reason(error: OSError) -> str:
    """Why the system refused, in its own words and on one line ("No space left on device")."""
    return error.strerror or " ".join(str(error).split()) or type(error).__name__


def atomic_write(path: PathLike, content: bytes | Callable[[BinaryIO], object]) -> None:
    """Write a file completely or not at all.

    ``content`` is the bytes, or a function that writes them to the open binary file it is given. They go to a
    temporary file in the same folder, reach the disk (fsync), and only then take the name ``path``; on any failure
    the temporary file is removed and an earlier file of that name is untouched. A symbolic link keeps pointing
    where it did. Devices and pipes (``/dev/stdout``) are written directly.

    Raises ``CaseError`` naming path and reason when the system refuses; whatever the function raises passes through.
    """
    if os.path.isdir(path):
        raise CaseError(f"cannot write {path}: it is a folder; give the name of a file")
    try:
        # Asked of the path as given: a pipe behind /dev/stdout has no name that could be resolved.
        if os.path.exists(path) and not os.path.isfile(path):
            with open(path, "wb") as device:
                _put(device, content)
            return
        # realpath: replacing a link by a file would cut other names off from the new content.
        target = Path(os.path.realpath(path))
        # A short name of its own: the target's name may already be as long as the file system allows.
        temporary = target.parent / f".tmp-{secrets.token_hex(8)}"
        try:
            with open(temporary, "xb") as file:
                _put(file, content)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, target)
        except BaseException:
            with contextlib.suppress(OSError):
                temporary.unlink()
            raise
    except OSError as error:
        raise CaseError(f"cannot write {path}: {reason(error)}; {_cure(error)}") from error
    sync_folder(target.parent)


def remove_unfinished(folder: PathLike) -> None:
    """Remove what ``atomic_write`` left in a folder where its process was killed; nobody else may be writing there."""
    for temporary in Path(folder).glob(".tmp-*"):
        with contextlib.suppress(OSError):
            temporary.unlink()


def make_folder(path: PathLike) -> None:
    """Make a folder and its parents unless they are there. Raises ``CaseError`` in one line where that fails."""
    try:
        Path(path).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise CaseError(f"cannot make the folder {path}: {reason(error)}; {_cure(error)}") from error


def _cure(error: OSError) -> str:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return "free space or choose another folder"
    return "make its folder first" if error.errno == errno.ENOENT else "choose another place"


def _put(file: BinaryIO, content: bytes | Callable[[BinaryIO], object]) -> None:
    if callable(content):
        content(file)
    else:
        file.write(content)


def sync_folder(folder: PathLike) -> None:
    """Make a rename inside the folder survive a power cut, where the system can do that."""
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def save_json(path: PathLike, obj: Any, *, indent: int | None = None) -> None:
    """Write ``obj`` as JSON, atomically; NumPy numbers and arrays become plain numbers and lists.

    Raises ``CaseError`` when the file cannot be written or ``obj`` holds NaN or infinity, which JSON does not have.
    """
    try:
        text = json.dumps(obj, indent=indent, allow_nan=False, ensure_ascii=False, default=_plain)
    except ValueError as error:
        raise CaseError(
            f"cannot write {path}: a value is NaN or infinite ({error}); JSON has no such number"
        ) from error
    atomic_write(path, (text + "\n").encode("utf-8"))


def _plain(value: Any) -> Any:
    if isinstance(value, np.generic | np.ndarray):
        return value.tolist()
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    raise TypeError(f"{type(value).__name__} cannot be written as JSON")


def load_json(path: PathLike) -> Any:
    """Parse a JSON file. Raises ``CaseError``, one line: missing, unreadable, not UTF-8, not JSON, or a key twice."""
    try:
        text = Path(path).read_text(encoding="utf-8-sig")
    except FileNotFoundError as error:
        raise CaseError(f"{path}: file not found; check the path") from error
    except OSError as error:
        raise CaseError(f"{path}: cannot read it: {reason(error)}") from error
    except UnicodeDecodeError as error:
        raise CaseError(f"{path}: not a JSON file: byte {error.start} is not UTF-8 text") from error
    try:
        return json.loads(text, object_pairs_hook=_unique_keys)
    except json.JSONDecodeError as error:
        found = "the file is empty" if not text.strip() else f"{error.msg} at line {error.lineno} column {error.colno}"
        raise CaseError(f"{path}: not valid JSON: {found}; write the file again") from error
    except RecursionError as error:
        raise CaseError(f"{path}: not usable JSON: nested too deeply") from error
    except _RepeatedKeyError as error:
        raise CaseError(f"{path}: the key '{error}' occurs twice in one object; keep one of them") from error


class _RepeatedKeyError(Exception):
    pass


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    # json keeps the last of two equal keys without a word: half of a video's annotations would be lost.
    result = dict(pairs)
    if len(result) != len(pairs):
        seen: set[str] = set()
        for key, _ in pairs:
            if key in seen:
                raise _RepeatedKeyError(key)
            seen.add(key)
    return result
