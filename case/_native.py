"""Which native parts are there, and if one is not, why. Imports neither torch nor Triton.

``CASE_NATIVE`` in the environment (read at the first call): 0 hides the native module, to run or test without it; the
path of a file takes another build of it (``make sanitize`` does).
"""

from __future__ import annotations

import functools
import hashlib
import importlib
import importlib.util
import os
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

from case.errors import CaseError


class _Loaded(NamedTuple):
    module: ModuleType | None
    reason: str | None


@functools.cache
def _load() -> _Loaded:
    chosen = os.environ.get("CASE_NATIVE", "")
    if chosen == "0":
        return _Loaded(None, "switched off by CASE_NATIVE=0 in the environment")
    if chosen.endswith(".so"):
        spec = importlib.util.spec_from_file_location("case._C", chosen)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return _Loaded(_of_this_interface(module), None)
    try:
        module = importlib.import_module("case._C")
    except ModuleNotFoundError as error:
        if error.name != "case._C":
            raise
        return _Loaded(None, "case._C was not built; install again with a C++ compiler and CASE_BUILD_NATIVE unset")
    except ImportError as error:
        detail = " ".join(str(error).split())
        return _Loaded(None, f"case._C does not load ({detail}); install case again on this machine")
    return _Loaded(_of_this_interface(module), None)


def _of_this_interface(module: ModuleType) -> ModuleType:
    """``module``, compiled with the interface ``_C.pyi`` beside this file. Raises ``CaseError`` if it has another.

    An editable install takes Python from the checkout as it is now, and the module as it was compiled: arguments that
    have changed since would be read as others. Without a stub, as in a bundle, the two came together.
    """
    stub = Path(__file__).parent / "_C.pyi"
    if stub.exists() and getattr(module, "INTERFACE", None) != hashlib.sha256(stub.read_bytes()).hexdigest():
        raise CaseError(
            f"case._C ({module.__file__}) was compiled with another interface than that of these sources; build it "
            "again with pip install --no-build-isolation --no-deps -e . or set CASE_NATIVE=0 to go without it"
        )
    return module


def load() -> ModuleType | None:
    """The module ``case._C``, or None where it is absent; tried once, then remembered. ``reason()`` says why."""
    return _load().module


def reason() -> str | None:
    """One line on why ``load()`` returned None; None if the module is there."""
    return _load().reason


def has_cuda() -> bool:
    """Whether the native module was built with its CUDA half. Says nothing about a GPU being present."""
    module = load()
    return module is not None and hasattr(module, "iou_cuda")


@functools.cache
def triton_reason() -> str | None:
    """One line on why Triton cannot be imported; None if it can. Looks for it without importing it."""
    try:
        found = importlib.util.find_spec("triton") is not None
    except ValueError:  # sys.modules["triton"] is None, or a stand-in without a spec.
        found = False
    return None if found else "triton is not installed; pip install triton (Linux x86_64)"
