"""What the implementations share."""

from __future__ import annotations

from types import ModuleType
from typing import NamedTuple

import torch
from torch import Tensor

from case import _native

DTYPES = {torch.float32: "float32", torch.float64: "float64"}


class Emulation(NamedTuple):
    """How kernels run on the CPU; order of a phase's threads: 0 rising, 1 falling, 2 shuffled by ``seed``."""

    blocks: int
    threads: int
    order: int
    seed: int


def module() -> ModuleType:
    found = _native.load()
    assert found is not None, "these implementations are in place only where the module is"
    return found


def placed(x: Tensor, lead: tuple[int, int], k: int) -> tuple[Tensor, tuple[int, int]]:
    """x as (batch, n) rows of k contiguous columns, and strides of batch and rows: a copy only where none say it."""
    if not x.is_contiguous():
        x = x.reshape(*lead, k)
        if x.stride(2) == 1 or k == 1:
            return x, (x.stride(0), x.stride(1))
        x = x.contiguous()
    return x, (lead[1] * k, k)


def address(x: Tensor | None) -> int:
    """Of the first element; 0 stands for what is absent or not wanted."""
    return 0 if x is None else x.data_ptr()
