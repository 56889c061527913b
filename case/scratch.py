"""Memory that one training step after the other writes to."""

from __future__ import annotations

import math

import torch
from torch import Tensor


class Scratch:
    """Keeps what was asked for under a name and gives it again, larger if need be: for results that the next step may
    overwrite.

    On a CPU large tensors are fresh pages every time, and their faults can cost about as much as the products that fill
    them. Devices with an allocator that keeps memory need none of this.
    """

    def __init__(self) -> None:
        self._kept: dict[str, Tensor] = {}

    def __deepcopy__(self, memo: object) -> Scratch:
        return Scratch()

    def __reduce__(self) -> tuple[type[Scratch], tuple[()]]:
        return Scratch, ()  # nothing of what it keeps is worth a file

    def empty(self, name: str, shape: tuple[int, ...], like: Tensor) -> Tensor:
        """A contiguous tensor of that shape with the dtype and device of ``like``, not initialised."""
        size = math.prod(shape)
        kept = self._kept.get(name)
        if kept is None or kept.numel() < size or (kept.dtype, kept.device) != (like.dtype, like.device):
            kept = self._kept[name] = torch.empty(size + size // 8, dtype=like.dtype, device=like.device)
        return kept[:size].view(shape)


def empty(scratch: Scratch | None, name: str, shape: tuple[int, ...], like: Tensor) -> Tensor:
    """From ``scratch``, or without one a tensor of its own."""
    return like.new_empty(shape) if scratch is None else scratch.empty(name, shape, like)
