"""Argument checks of the public ops: one line that names the argument, what was got and what fits."""

from __future__ import annotations

import math

import torch
from torch import Tensor

FLOATING = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


def show(shape: tuple[int, ...] | torch.Size) -> str:
    return "(" + ", ".join(map(str, shape)) + ("," if len(shape) == 1 else "") + ")"


def floating(op: str, name: str, value: object, dims: int | None = None, *, at_least: int | None = None) -> None:
    """``value`` is a floating tensor of ``dims`` dimensions (or of at least ``at_least``)."""
    if not isinstance(value, Tensor):
        raise TypeError(f"{op}: {name} must be a torch.Tensor, got {type(value).__name__}; wrap it in torch.as_tensor")
    if value.dtype not in FLOATING:
        raise TypeError(
            f"{op}: {name} must be float32, bfloat16, float16 or float64, got {value.dtype}; convert it with .float()"
        )
    if dims is not None and value.dim() != dims:
        raise ValueError(f"{op}: {name} must have {dims} dimensions, got shape {show(value.shape)}")
    if at_least is not None and value.dim() < at_least:
        raise ValueError(f"{op}: {name} must have at least {at_least} dimensions, got shape {show(value.shape)}")


def kind(op: str, name: str, value: object, dtype: torch.dtype, convert: str) -> None:
    """``value`` is a tensor of ``dtype`` (bool or int64); ``convert`` names the method that makes it one."""
    if not isinstance(value, Tensor) or value.dtype != dtype:
        got = value.dtype if isinstance(value, Tensor) else type(value).__name__
        raise TypeError(f"{op}: {name} must be a tensor of {dtype}, got {got}; convert it with {convert}()")


def same_device(op: str, name: str, value: Tensor, other_name: str, other: Tensor) -> None:
    if value.device != other.device:
        raise ValueError(f"{op}: {name} is on {value.device} but {other_name} on {other.device}; move one of them")


def shape(op: str, name: str, value: Tensor, expected: tuple[int, ...], because: str) -> None:
    if tuple(value.shape) != tuple(expected):
        raise ValueError(f"{op}: {name} must have shape {show(expected)} {because}, got {show(value.shape)}")


def broadcast(op: str, name: str, value: Tensor, target: tuple[int, ...], because: str) -> Tensor:
    """``value`` expanded to ``target``, or a ValueError that names both shapes."""
    try:
        return value.expand(target)
    except RuntimeError:
        raise ValueError(
            f"{op}: {name} must broadcast to {show(target)} {because}, got shape {show(value.shape)}"
        ) from None


def positive(op: str, name: str, value: float) -> None:
    if not (value > 0 and math.isfinite(value)):
        raise ValueError(f"{op}: {name} must be a finite number greater than 0, got {value!r}")


def finite(op: str, name: str, value: float) -> None:
    if not math.isfinite(value):
        raise ValueError(f"{op}: {name} must be finite, got {value!r}")


def at_least(op: str, name: str, value: float, low: float) -> None:
    if not value >= low:
        raise ValueError(f"{op}: {name} must be at least {low}, got {value!r}")


def whole(op: str, name: str, value: int, low: int = 1) -> None:
    """``value`` is a whole number of at least ``low``."""
    if int(value) != value:
        raise ValueError(f"{op}: {name} must be a whole number, got {value!r}")
    at_least(op, name, value, low)


def choice(op: str, name: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise ValueError(f"{op}: {name} must be one of {', '.join(choices)}, got {value!r}")


def narrow(op: str, name: str, segments: Tensor, length_offset: float) -> None:
    """Sums of two lengths of ``segments`` are finite in their dtype. Reads the device, as ``all_finite`` does."""
    if torch.compiler.is_compiling() or segments.numel() == 0:
        return
    low, high = torch.stack(segments.aminmax()).tolist()
    if 2 * (high - low + abs(length_offset)) > torch.finfo(segments.dtype).max:
        raise ValueError(
            f"{op}: {name} must span less than half of what {segments.dtype} can, got {low:g} to {high:g}; rescale them"
        )


def all_finite(op: str, name: str, value: Tensor) -> None:
    """Reads the device: only for ops whose result size needs a sync anyway."""
    if torch.compiler.is_compiling():
        return
    bad = ~value.isfinite()
    if bool(bad.any()):
        where = tuple(bad.nonzero()[0].tolist())
        raise ValueError(
            f"{op}: {name} must be finite, got {value[where].item()} at index {where}; drop such rows before the call"
        )


def each_finite(op: str, **values: Tensor) -> None:
    """``all_finite`` for several tensors on one device, which it reads once: a sum is finite only if every term is."""
    if torch.compiler.is_compiling():
        return
    sums = torch.stack([value.sum().double() for value in values.values()])
    if not bool(sums.isfinite().all()):
        for name, value in values.items():
            all_finite(op, name, value)
