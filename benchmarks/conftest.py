"""How an op is timed: proven right first, then forward (and backward) at the method's own size.

A benchmark names its op, ``@pytest.mark.bench("sinkhorn", ...)``, and runs for each implementation of it and each
device, beside the peers it names, so that the table of a group reads as a comparison. ``CASE_BENCH_COMPILE=1`` adds the
peers under ``torch.compile``.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor

from case import ops
from case.ops import _backend

THREADS = 2
SECONDS_PER_CASE = 0.6
Function = Callable[..., Any]
_proofs: dict[tuple[str, bool], list[Tensor]] = {}


@dataclass(frozen=True)
class Contender:
    """One row of the table: a backend of case.ops or a peer, on a device, forward or with backward."""

    name: str
    is_peer: bool
    device: str
    backward: bool


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line(
        "markers", "bench(op, backward=False, peers=()): the op a benchmark times, and against what"
    )


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    marker = metafunc.definition.get_closest_marker("bench")
    if marker is None:
        return
    (op,) = marker.args
    peers = list(marker.kwargs.get("peers", ()))
    if os.environ.get("CASE_BENCH_COMPILE") == "1":
        peers += [f"{peer}+compile" for peer in peers]
    implementations = set(_backend.table()[op])
    params = []
    for device in ("cpu", "cuda"):
        backends = [b for b in _backend.BACKENDS[1:] if {f"{b}/{device}", f"{b}/any"} & implementations]
        if device == "cpu" and "triton" in backends:
            backends.remove("triton")  # the interpreter is for tests
        for name in (*backends, *peers):
            for backward in (False, True) if marker.kwargs.get("backward") else (False,):
                contender = Contender(name, name in peers, device, backward)
                missing = device == "cuda" and not torch.cuda.is_available()
                marks = [pytest.mark.skip(reason="no CUDA device")] if missing else []
                label = f"{device}-{'both' if backward else 'forward'}-{name}"
                params.append(pytest.param(contender, id=label, marks=marks))
    metafunc.parametrize("contender", params)


@pytest.fixture(autouse=True)
def fixed_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(THREADS)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def measure(request: pytest.FixtureRequest, benchmark: Any, contender: Contender) -> Callable[..., None]:
    """Times ``function`` (or the contender among ``peers``) on ``inputs``.

    ``leaves`` names the inputs with a gradient; ``moved`` is the least number of bytes that a forward pass must
    read and write; ``sizes`` go into the report.
    """

    def run(
        function: Function,
        inputs: dict[str, Tensor],
        *,
        leaves: tuple[str, ...] = (),
        peers: dict[str, Function] | None = None,
        moved: int,
        tolerance: float = 1e-5,
        **sizes: int,
    ) -> None:
        timed = _timed_function(function, contender, peers or {})
        op = request.node.get_closest_marker("bench").args[0]
        exact = {name: x.double() if x.is_floating_point() else x for name, x in inputs.items()}
        key = (request.node.originalname, contender.backward)
        if key not in _proofs:
            with ops.backend("reference"):
                _proofs[key] = _results(function, _placed(exact, "cpu", leaves), leaves, contender.backward)
        placed = _placed(inputs, contender.device, leaves)
        with ops.backend("auto" if contender.is_peer else contender.name):
            start = time.perf_counter()
            found = _results(timed, placed, leaves, contender.backward)
            _synchronize(contender.device)
            _prove(found, _proofs[key], tolerance)
            once = time.perf_counter() - start
            rounds = 1 if once > 1 else max(3, min(100, int(SECONDS_PER_CASE / max(once, 1e-5))))
            direction = "forward + backward" if contender.backward else "forward"
            benchmark.group = f"{op}, {direction}, {contender.device}"
            benchmark.extra_info.update(sizes, threads=THREADS, megabytes_moved=moved / 1e6)

            def step() -> None:
                _results(timed, placed, leaves, contender.backward)
                _synchronize(contender.device)

            benchmark.pedantic(step, rounds=rounds, warmup_rounds=min(1, rounds - 1))
        if benchmark.stats is not None:
            benchmark.extra_info["gigabytes_per_second"] = moved / 1e9 / benchmark.stats.stats.min

    return run


def _timed_function(function: Function, contender: Contender, peers: dict[str, Function]) -> Function:
    if not contender.is_peer:
        return function
    peer = peers[contender.name.removesuffix("+compile")]
    return torch.compile(peer) if contender.name.endswith("+compile") else peer


def _placed(inputs: dict[str, Tensor], device: str, leaves: tuple[str, ...]) -> dict[str, Tensor]:
    return {name: x.detach().to(device).clone().requires_grad_(name in leaves) for name, x in inputs.items()}


def _results(function: Function, inputs: dict[str, Tensor], leaves: tuple[str, ...], backward: bool) -> list[Tensor]:
    """The op's outputs, or its gradients for a fixed cotangent."""
    with torch.set_grad_enabled(backward):
        result = function(**inputs)
    outputs = [result] if isinstance(result, Tensor) else list(result)
    if not backward:
        return outputs
    outputs = [x for x in outputs if x.requires_grad]
    # The same hash of the position at every precision; constant ones would vanish on rows that sum to 1.
    cotangents = [
        torch.arange(x.numel(), device=x.device).mul(7919).remainder(1009).to(x).div(1009).view_as(x) for x in outputs
    ]
    return list(torch.autograd.grad(outputs, [inputs[name] for name in leaves], cotangents))


def _prove(found: list[Tensor], expected: list[Tensor], tolerance: float) -> None:
    """An op whose result is wrong is not timed."""
    for got, wanted in zip(found, expected, strict=True):
        assert got.shape == wanted.shape
        error = (got.detach().cpu().double() - wanted.double()).abs().max().item()
        scale = wanted.abs().max().item() or 1.0
        assert error <= tolerance * scale, f"error {error:.3g} against the float64 reference, largest value {scale:.3g}"


def _synchronize(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()
