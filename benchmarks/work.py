"""What is measured: one op at one size, its peers, what it must move and compute, and the proof that all agree."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from case import ops

Function = Callable[..., Any]
Inputs = dict[str, Tensor]
COMPARED = (
    2**20
)  # elements at a time: fresh memory for the difference of large results takes longer than computing them


@dataclass(frozen=True)
class Part:
    """Some groups, videos or rows of a large input whose results do not depend on the rest: what is proven of it.

    of: the part of the results of everything, as the op gives them for ``inputs`` alone.
    """

    inputs: Inputs
    of: Callable[[list[Tensor]], list[Tensor]]


@dataclass(frozen=True)
class Work:
    """One op at one size.

    run: the op, called by the names of ``inputs``; peers: the same by other means, likewise; leaves: inputs with a
    gradient; moved: bytes that a forward pass must read and write; operations: of its matrix products, 2 a product;
    tolerance: error allowed, as a share of the largest value; sizes: for the report; part: where the reference takes
    too long for all of it, in what the forward results are compared; oracle: what gives all of them in float64 where
    the reference takes too much memory.
    """

    run: Function
    inputs: Inputs
    moved: int
    sizes: dict[str, int]
    operations: int = 0
    leaves: tuple[str, ...] = ()
    peers: dict[str, Function] = field(default_factory=dict)
    tolerance: float = 1e-5
    part: Part | None = None
    oracle: Function | None = None

    def least(self, backward: bool) -> tuple[int, int]:
        """Bytes and operations that no implementation can do without; backward, gradients are written as well."""
        if not backward:
            return self.moved, self.operations
        return self.moved + sum(self.inputs[name].nbytes for name in self.leaves), 3 * self.operations


@dataclass(frozen=True)
class Case:
    """How ``build`` becomes benchmarks: of every implementation of ``op`` and every peer, at every scale and dtype."""

    op: str
    build: Callable[[int], Work]
    peers: tuple[str, ...]
    scales: tuple[int, ...]
    quick: tuple[int, ...]
    dtypes: tuple[str, ...]
    backward: tuple[int, ...]
    slow_reference: bool
    left_out: str


@dataclass(frozen=True)
class Contender:
    """One row of a table: a backend of case.ops or a peer, on a device, at a size, forward or with backward."""

    name: str
    is_peer: bool
    device: str
    backward: bool
    scale: int
    dtype: str


def bench(
    op: str,
    *,
    peers: tuple[str, ...] = (),
    scales: tuple[int, ...] = (1,),
    quick: tuple[int, ...] = (1,),
    dtypes: tuple[str, ...] = ("float32",),
    backward: bool | tuple[int, ...] = False,
    slow_reference: bool = False,
    left_out: str = "",
) -> Callable[[Callable[[int], Work]], Function]:
    """Makes a pytest function of one that builds the work at a scale: 1 is the method's own size.

    Scales beyond ``quick`` carry the mark ``slow``; dtypes after the first run on CUDA alone.
    The reference has a row where nothing faster is in place, and at the method's own size unless it is slow.
    backward: whether with the gradient as well, or at which scales; left_out: why ten or a hundred times the size is
    not among the scales, for the report.
    """

    with_gradient = (scales if backward else ()) if isinstance(backward, bool) else backward

    def wrap(build: Callable[[int], Work]) -> Function:
        def test(measure: Callable[[], None], contender: Contender) -> None:
            measure()

        test.__name__, test.__doc__, test.__module__ = build.__name__, build.__doc__, build.__module__
        test.case = Case(  # type: ignore[attr-defined]
            op, build, peers, scales, quick, dtypes, with_gradient, slow_reference, left_out
        )
        return test

    return wrap


def placed(inputs: Inputs, device: str, leaves: tuple[str, ...], dtype: torch.dtype | None = None) -> Inputs:
    """Copies on ``device``, floating-point ones in ``dtype``, leaves with a gradient."""

    def move(name: str, x: Tensor) -> Tensor:
        copy = x.detach().to(device, dtype if dtype and x.is_floating_point() else x.dtype, copy=True)
        return copy.requires_grad_(name in leaves)

    return {name: move(name, x) for name, x in inputs.items()}


def results(function: Function, inputs: Inputs, leaves: tuple[str, ...], backward: bool) -> list[Tensor]:
    """The outputs, or their gradients for a fixed cotangent."""
    with torch.set_grad_enabled(backward):
        result = function(**inputs)
    outputs = [result] if isinstance(result, Tensor) else list(result)
    if not backward:
        return outputs
    outputs = [x for x in outputs if x.requires_grad]
    cotangents = [cotangent(x.shape, x.dtype, x.device) for x in outputs]
    return list(torch.autograd.grad(outputs, [inputs[name] for name in leaves], cotangents))


@lru_cache(maxsize=8)
def cotangent(shape: torch.Size, dtype: torch.dtype, device: torch.device) -> Tensor:
    """The same hash of the position at every precision; constant ones would vanish on rows that sum to 1.

    Kept from call to call: what is timed is the op. Never 0, or nothing would be asked of the gradient of a scalar.
    """
    position = torch.arange(1, 1 + shape.numel(), device=device)
    return position.mul(7919).remainder(1009).add(1).to(dtype).div(1010).view(shape)


def expected(work: Work, backward: bool, dtype: torch.dtype, device: str = "cpu") -> list[Tensor]:
    """What the reference computes on ``device`` in float64 from the inputs as rounded to ``dtype``."""
    inputs = work.inputs if work.part is None or backward else work.part.inputs
    rounded = {name: x.to(dtype) if x.is_floating_point() else x for name, x in inputs.items()}
    if work.oracle is not None and not backward:
        return [work.oracle(**{name: x.to(device) for name, x in rounded.items()})]
    with ops.backend("reference"):
        return results(work.run, placed(rounded, device, work.leaves, torch.float64), work.leaves, backward)


def prove(found: list[Tensor], wanted: list[Tensor], tolerance: float) -> None:
    """What is wrong is not timed."""
    for got, exact in zip(found, wanted, strict=True):
        assert got.shape == exact.shape, f"shape {tuple(got.shape)}, wanted {tuple(exact.shape)}"
        pieces = zip(got.detach().flatten().split(COMPARED), exact.flatten().split(COMPARED), strict=True)
        # As tensors, whose largest value is NaN where one of them is.
        error = torch.stack([(x.double() - y.to(x.device).double()).abs().max() for x, y in pieces]).max().item()
        scale = max(-exact.min().item(), exact.max().item()) or 1.0
        assert error <= tolerance * scale, f"error {error:.3g} against the float64 reference, largest value {scale:.3g}"
