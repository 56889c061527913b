"""One feature file: a ``.npy`` array of shape (rows, width), checked before anything computes with it."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np

from case.data.files import reason
from case.errors import CaseError


class FeatureError(CaseError):
    """A feature file that cannot be used; ``kind`` says in two or three words what is wrong with it."""

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(message)
        self.kind = kind


@dataclass(frozen=True)
class FeatureHeader:
    """Size of a feature file, without its content."""

    rows: int
    width: int
    dtype: np.dtype
    """float16 or float32: what ``read_features`` returns."""


def read_header(path: Path, *, name: str, allow_pickle: bool = False) -> FeatureHeader:
    """Rows, width and dtype of a feature file, reading only its first bytes.

    ``name`` is what messages call the file. Raises ``FeatureError`` in one line, with kind ``missing``, ``unreadable``,
    ``corrupt``, ``truncated``, ``pickled``, ``not 2-D``, ``wrong dtype`` or ``empty``.
    """
    return _inspect(path, name, allow_pickle)[0]


def read_features(path: Path, *, name: str, allow_pickle: bool = False) -> np.ndarray:
    """The (rows, width) array of a feature file, native byte order: float16 and float32 as stored, others as float32.

    Raises ``FeatureError`` as ``read_header`` does, and with kind ``non-finite`` for NaN or infinity.
    """
    header, stored = _inspect(path, name, allow_pickle)
    if stored is None:
        try:
            stored = np.load(path, allow_pickle=False)
        except OSError as error:
            raise FeatureError("unreadable", f"{name}: cannot read it: {reason(error)}") from error
        except ValueError as error:
            raise FeatureError("corrupt", f"{name}: changed while it was read; try again") from error
    with np.errstate(over="ignore"):  # float64 past float32's range becomes inf, reported below
        values = np.ascontiguousarray(stored, dtype=header.dtype)
    if not np.isfinite(values).all():
        row, column = np.argwhere(~np.isfinite(values))[0]
        number = int(np.count_nonzero(~np.isfinite(values).all(axis=1)))
        raise FeatureError(
            "non-finite",
            f"{name}: {number} of {len(values)} rows hold NaN or infinity (first: row {row}, column {column}, "
            f"{stored[row, column]}); extract it again",
        )
    return values


def _inspect(path: Path, name: str, allow_pickle: bool) -> tuple[FeatureHeader, np.ndarray | None]:
    """The header, and the array where only unpickling the file could tell its size."""
    unpickled = None
    try:
        with open(path, "rb") as file:
            shape, dtype = _parse_header(file, name)
            if not dtype.hasobject:
                # Python's integers: a damaged header may claim more than 64 bits hold.
                expected = math.prod(shape) * dtype.itemsize
                found = os.fstat(file.fileno()).st_size - file.tell()
                if found < expected:
                    message = f"{name}: truncated: {found:,} of {expected:,} bytes of data; copy or extract it again"
                    raise FeatureError("truncated", message)
    except FileNotFoundError as error:
        raise FeatureError("missing", f"{name}: file not found; extract its features or drop the video") from error
    except OSError as error:
        raise FeatureError("unreadable", f"{name}: cannot read it: {reason(error)}") from error
    if dtype.hasobject:
        unpickled = _unpickle(path, name, allow_pickle)
        shape, dtype = unpickled.shape, unpickled.dtype
    _check_form(shape, dtype, name)
    return FeatureHeader(shape[0], shape[1], _storage(dtype)), unpickled


def _parse_header(file: BinaryIO, name: str) -> tuple[tuple[int, ...], np.dtype]:
    try:
        version = np.lib.format.read_magic(file)
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, _, dtype = read(file)
        if min(shape, default=0) < 0:
            raise ValueError(f"negative shape {shape}")
    except OSError:
        raise
    except Exception as error:  # the header is an expression: damaged, it fails in as many ways as those do
        size = os.fstat(file.fileno()).st_size
        raise FeatureError("corrupt", f"{name}: not a .npy file ({size:,} bytes); copy or extract it again") from error
    return shape, dtype


def _unpickle(path: Path, name: str, allow_pickle: bool) -> np.ndarray:
    if not allow_pickle:
        raise FeatureError(
            "pickled",
            f"{name}: holds pickled Python objects, which can run code when loaded; save it as a plain float array, "
            "or allow it (--allow-pickle) if you trust whoever made it",
        )
    try:
        objects = np.load(path, allow_pickle=True, encoding="latin1")
        return np.array(objects.tolist())
    except Exception as error:  # unpickling can raise anything
        message = f"{name}: corrupt pickle ({type(error).__name__}); copy or extract it again"
        raise FeatureError("corrupt", message) from error


def _check_form(shape: tuple[int, ...], dtype: np.dtype, name: str) -> None:
    if len(shape) != 2:
        raise FeatureError(
            "not 2-D", f"{name}: must have shape (rows, width), got {shape}; reshape or extract it again"
        )
    if dtype.kind != "f":
        message = f"{name}: features must be float16 or float32, got {dtype}; convert them to floating point"
        raise FeatureError("wrong dtype", message)
    if 0 in shape:
        raise FeatureError("empty", f"{name}: no features, shape {shape}; extract it again or drop the video")


def _storage(dtype: np.dtype) -> np.dtype:
    return np.dtype(np.float16 if dtype.itemsize == 2 else np.float32)
