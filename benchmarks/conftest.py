"""How an op is timed: proven right first, then interleaved with its peers, forward and with backward.

Each function made by ``benchmarks.work.bench`` becomes a row for every implementation of its op, every peer, device,
size and dtype, in groups that read as comparisons. A peer is timed in pairs: the op as ``case.ops`` runs it and the
peer, round after round, so that ratios do not depend on what else the machine does. What is not timed (a peer that is
not installed, a call that is predicted to be long, a run that was stopped) is named with its reason in the JSON file.
``CASE_BENCH_COMPILE=1`` adds peers of plain torch under ``torch.compile``.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from benchmarks import budget, peers, timing
from benchmarks.machine import THREADS
from benchmarks.peers import PEERS
from benchmarks.records import NO_GPU, Records
from benchmarks.work import Case, Contender, Function, Work, expected, placed, prove, results
from case import ops
from case.ops import _backend

ROUNDING = {"float32": 0.0, "float64": 0.0, "bfloat16": 2.0**-7, "float16": 2.0**-10}
# One at a time: a hundred times the method's size is large, and its inputs take longer to draw than to work on.
_work: dict[tuple[str, int], Work] = {}
_exact: dict[tuple[str, bool, int, str, str], list[Tensor]] = {}
_predictions = budget.Predictions()
_begin = time.monotonic()


def pytest_configure(config: pytest.Config) -> None:
    config.pluginmanager.register(Records())


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
                for backward in (False, True) if scale in case.backward else (False,):
                    for name in (*shown, *(x for x in rivals if device in PEERS[x.removesuffix("+compile")].devices)):
                        yield Contender(name, name in rivals, device, backward, scale, dtype)


def _parameter(contender: Contender, case: Case) -> Any:
    marks = []
    if contender.device == "cuda" and not torch.cuda.is_available():
        marks.append(pytest.mark.skip(reason=NO_GPU))
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


@pytest.fixture
def predictions() -> budget.Predictions:
    return _predictions


@pytest.fixture
def measure(request: pytest.FixtureRequest, benchmark: Any, contender: Contender) -> Callable[[], None]:
    """Builds the case at the contender's size, proves the contender right and times it."""

    def run() -> None:
        case: Case = request.function.case
        name, device, dtype = request.node.originalname, contender.device, getattr(torch, contender.dtype)
        called = (name, contender.name, device, contender.dtype, contender.backward)
        if why := budget.spent(contender.scale, _begin) or _predictions.too_long(called, contender.scale):
            pytest.skip(why)
        work = _built(name, case, contender.scale)
        key = (name, contender.backward, contender.scale, contender.dtype, device)
        if key not in _exact:
            _exact.clear()
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

        step = step_of(_function(work, contender), "auto" if contender.is_peer else contender.name)
        start = time.perf_counter()
        found = step()
        once = time.perf_counter() - start
        if once > 2 * budget.LONGEST:  # large results in fresh memory take longer than in proportion
            pytest.skip(f"a call took more than {2 * budget.LONGEST:g} s ({once:.1f} s)")
        if work.part is not None and not contender.backward:
            found = work.part.of(found)
        prove(found, _exact[key], max(work.tolerance, ROUNDING[contender.dtype]))
        del found
        if once < budget.SECONDS_PER_CASE:
            once = timing.seconds(step)  # the first call also loads, allocates and compiles
        direction = "forward + backward" if contender.backward else "forward"
        sizes = " x ".join(str(n) for n in work.sizes.values())
        benchmark.group = f"{name[5:]} {sizes}, {direction}, {contender.dtype}, {device}"
        moved, operations = work.least(contender.backward)
        benchmark.extra_info.update(
            op=case.op, title=name[5:], contender=contender.name, peer=contender.is_peer, device=device,
            dtype=contender.dtype, backward=contender.backward, scale=contender.scale, sizes=work.sizes, moved=moved,
            operations=operations, threads=THREADS, proven="a part" if work.part and not contender.backward else "all",
        )  # fmt: skip
        timing.timed(
            benchmark, step, step_of(work.run, "auto") if contender.is_peer else None, budget.rounds(once), device
        )
        if benchmark.stats is not None:
            _predictions.saw(called, contender.scale, benchmark.stats.stats.median)
        if device == "cuda":
            sets = [placed(inputs, device, work.leaves) for _ in range(timing.rotation(inputs))]
            with ops.backend("auto" if contender.is_peer else contender.name):
                benchmark.extra_info["device_time"] = timing.device_time(
                    lambda x: results(_function(work, contender), x, work.leaves, contender.backward),
                    sets,
                    budget.SECONDS_PER_CASE,
                )

    return run


def _built(name: str, case: Case, scale: int) -> Work:
    if (name, scale) not in _work:
        _work.clear()
        _exact.clear()
        _work[name, scale] = case.build(scale)
    return _work[name, scale]


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
