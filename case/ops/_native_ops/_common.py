"""What the implementations share."""

from __future__ import annotations

from types import ModuleType

import torch
from torch import Tensor

from case import _native

DTYPES = {torch.float32: "float32", torch.float64: "float64"}


def module() -> ModuleType:
    found = _native.load()
    assert found is not None, "these implementations are in place only where the module is"
    return found


def address(x: Tensor | None) -> int:
    """Of the first element; 0 stands for what is absent or not wanted."""
    return 0 if x is None else x.data_ptr()
