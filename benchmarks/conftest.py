"""How an op is timed: proven right first, then interleaved with its peers, forward and with backward.

Each function made by ``benchmarks.work.bench`` becomes a row for every implementation of its op, every peer, device,
size and dtype, in groups that read as comparisons. A peer is timed in pairs: the op as ``case.ops`` runs it, then the
peer, round after round, so that ratios do not depend on what else the machine does. A peer that is not installed is
skipped by name. ``CASE_BENCH_COMPILE=1`` adds peers of plain torch under ``torch.compile``.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from benchmarks import peers, timing
from benchmarks.machine import THREADS, machine
from benchmarks.work import Case, Contender, Function, Work, expected, placed, prove, results
from case import ops
from case.ops import _backend

SECONDS_PER_CASE = float(os.environ.get("CASE_BENCH_SECONDS", "0.6"))
# The range of six pairs holds the median ratio with 97 %; fewer are reported as what they are.
FEWEST, LONG = 6, 0.5
ROUNDING = {"float32": 0.0, "float64": 0.0, "bfloat16": 2.0**-7, "float16": 2.0**-10}
_exact: dict[tuple[str, bool, int, str, str], list[Tensor]] = {}


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    case: Case | None = getattr(metafunc.function, "case", None)
    if case is not None:
        metafunc.parametrize("contender", [_parameter(x, case) for x in contenders(case)])


def contenders(case: Case) -> Iterator[Contender]:
    implementations = set(_backend.table()[case.op])
    rivals = list(case.peers)
    if os.environ.get("CASE_BENCH_COMPILE") == "1":
        rivals += [f"{name}+compile" for name in case.peers if name in peers.PLAIN]
    for device in ("cpu", "cuda"):
        backends = [b for b in _backend.BACKENDS[1:] if {f"{b}/{device}", f"{b}/any"} & implementations]
        if device == "cpu" and "triton" in backends:
            backends.remove("triton")  # the interpreter is for tests
        for scale in case.scales:
            oracle = len(backends) == 1 or (scale == 1 and not case.slow_reference)
            shown = [b for b in backends if b != "reference" or oracle]
            for dtype in case.dtypes if device == "cuda" else case.dtypes[:1]:
                for backward in (False, True) if case.backward else (False,):
                    for name in (*shown, *rivals):
                        yield Contender(name, name in rivals, device, backward, scale, dtype)


def _parameter(contender: Contender, case: Case) -> Any:
    marks = []
    if contender.device == "cuda" and not torch.cuda.is_available():
        marks.append(pytest.mark.skip(reason="no CUDA device"))
    elif contender.is_peer and (missing := peers.missing(contender.name, contender.device)):
        marks.append(pytest.mark.skip(reason=missing))
    if contender.is_peer:
        marks.append(pytest.mark.filterwarnings("ignore"))  # a package's warnings are its own affair
    if contender.scale not in case.quick:
        marks.append(pytest.mark.slow)
    direction = "both" if contender.backward else "forward"
    label = f"{contender.device}-{contender.dtype}-x{contender.scale}-{direction}-{contender.name}"
    return pytest.param(contender, id=label, marks=marks)


@pytest.fixture(autouse=True)
def fixed_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(THREADS)
    yield
    torch.set_num_threads(before)


def pytest_benchmark_update_machine_info(config: pytest.Config, machine_info: dict[str, Any]) -> None:
    """The repository's own header in place of the plug-in's, which names the host."""
    machine_info.clear()
    machine_info.update(machine())


@pytest.fixture
def measure(request: pytest.FixtureRequest, benchmark: Any, contender: Contender) -> Callable[[Work], None]:
    """Proves and times the contender on a piece of work."""

    def run(work: Work) -> None:
        case: Case = request.function.case
        device, dtype = contender.device, getattr(torch, contender.dtype)
        key = (request.node.originalname, contender.backward, contender.scale, contender.dtype, device)
        if key not in _exact:
            _exact.clear()  # one at a time: a hundred times the method's size is large
            # Where the reference asks for a value at every step, a CPU is the faster.
            _exact[key] = _expected(work, contender.backward, dtype, "cpu" if case.slow_reference else device)
        inputs = placed(work.inputs, device, work.leaves, None if dtype == torch.float32 else dtype)

        def step_of(function: Function, backend: str) -> Callable[[], list[Tensor]]:
            def step() -> list[Tensor]:
                with ops.backend(backend):
                    found = results(function, inputs, work.leaves, contender.backward)
                timing.synchronize(device)
                return found

            return step

        function = _function(work, contender)
        step = step_of(function, "auto" if contender.is_peer else contender.name)
        start = time.perf_counter()
        found = step()
        once = time.perf_counter() - start
        prove(found, _exact[key], max(work.tolerance, ROUNDING[contender.dtype]))
        if once < SECONDS_PER_CASE:
            once = timing.seconds(step)  # the first call also loads, allocates and compiles
        rounds = max(FEWEST if once < LONG else 3, min(100, int(SECONDS_PER_CASE / max(once, 1e-5))))
        direction = "forward + backward" if contender.backward else "forward"
        sizes = " x ".join(str(n) for n in work.sizes.values())
        benchmark.group = f"{request.node.originalname[5:]} {sizes}, {direction}, {contender.dtype}, {device}"
        moved, operations = work.least(contender.backward)
        benchmark.extra_info.update(
            op=case.op, title=request.node.originalname[5:], contender=contender.name, peer=contender.is_peer,
            device=device, dtype=contender.dtype, backward=contender.backward, scale=contender.scale,
            sizes=work.sizes, moved=moved, operations=operations, threads=THREADS,
        )  # fmt: skip
        if contender.is_peer:
            timing.paired(benchmark, step, step_of(work.run, "auto"), rounds, device)
        else:
            benchmark.pedantic(step, rounds=rounds, warmup_rounds=1)
        if device == "cuda":
            sets = [placed(inputs, device, work.leaves) for _ in range(timing.rotation(inputs))]
            with ops.backend("auto" if contender.is_peer else contender.name):
                benchmark.extra_info["device_time"] = timing.device_time(
                    lambda x: results(function, x, work.leaves, contender.backward), sets, SECONDS_PER_CASE
                )

    return run


def _expected(work: Work, backward: bool, dtype: torch.dtype, device: str) -> list[Tensor]:
    try:
        return expected(work, backward, dtype, device)
    except torch.OutOfMemoryError:
        torch.cuda.empty_cache()
        return expected(work, backward, dtype)


def _function(work: Work, contender: Contender) -> Function:
    if not contender.is_peer:
        return work.run
    peer = work.peers[contender.name.removesuffix("+compile")]
    return torch.compile(peer) if contender.name.endswith("+compile") else peer


def pytest_benchmark_update_json(config: pytest.Config, benchmarks: list[Any], output_json: dict[str, Any]) -> None:
    """What a reader needs: every round's time to four digits, and nothing about who ran it where."""
    output_json["commit_info"] = {}  # the machine's header has it
    for entry in output_json["benchmarks"]:
        for name in ("options", "params", "param", "fullname"):
            entry.pop(name, None)
        entry["stats"]["data"] = [float(f"{x:.4g}") for x in entry["stats"].get("data", [])]
