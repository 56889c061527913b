"""Which implementation of an op runs: ``auto``, ``reference``, ``triton`` or ``native``.

``auto`` takes the fastest there is for the tensor's device (CUDA: Triton, then CUDA C++; CPU: C++) and falls back to
the plain-torch reference. The others are for tests and comparisons, and say so when an op has no such implementation.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch

BACKENDS = ("auto", "reference", "triton", "native")
_AUTO_ORDER = {"cuda": ("triton", "native"), "cpu": ("native",)}

Implementation = Callable[..., Any]
_implementations: dict[str, dict[tuple[str, str], Implementation]] = {}


def _checked(name: str, origin: str) -> str:
    if name not in BACKENDS:
        raise ValueError(f"{origin} must be one of {', '.join(BACKENDS)}, got {name!r}")
    return name


_default = _checked(os.environ.get("CASE_BACKEND", "auto"), "CASE_BACKEND")
_current: ContextVar[str] = ContextVar("case_backend", default=_default)


@contextmanager
def backend(name: str) -> Iterator[None]:
    """Run the ops inside the ``with`` block on the named backend. Also: environment variable ``CASE_BACKEND``.

    Raises ``ValueError`` for an unknown name; an op without such an implementation raises ``RuntimeError``.
    """
    token = _current.set(_checked(name, "backend"))
    try:
        yield
    finally:
        _current.reset(token)


def add(op: str, name: str, device: str, function: Implementation) -> None:
    """Make ``function`` the implementation of ``op`` for backend ``name`` on ``device`` ("cpu", "cuda" or "any")."""
    _implementations.setdefault(op, {})[name, device] = function


def select(op: str, device: torch.device) -> Implementation:
    """The implementation of ``op`` for tensors on ``device`` under the current backend."""
    table = _implementations[op]
    wanted = _current.get()
    names = (*_AUTO_ORDER.get(device.type, ()), "reference") if wanted == "auto" else (wanted,)
    for name in names:
        for where in (device.type, "any"):
            if (name, where) in table:
                return table[name, where]
    available = sorted({name for name, where in table if where in (device.type, "any")})
    cure = "use backend('auto')"
    if wanted == "triton" and device.type == "cpu":
        cure += " or set TRITON_INTERPRET=1 before importing case"
    raise RuntimeError(f"{op}: no '{wanted}' implementation on {device.type}; it has {', '.join(available)}, {cure}")


def allows(name: str) -> bool:
    """Whether the current backend may be ``name``: asked by what is no op but has such an implementation."""
    return _current.get() in ("auto", name)


def reference(op: str) -> Implementation:
    """The plain-torch implementation, whatever the current backend."""
    return _implementations[op]["reference", "any"]


def table() -> dict[str, list[str]]:
    """Op -> the implementations in place ("backend/device"), for ``case-wtal info``."""
    return {op: sorted(f"{n}/{d}" for n, d in found) for op, found in sorted(_implementations.items())}
