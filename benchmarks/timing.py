"""Statistics of times that share a machine, and times on a GPU: graph replay between events, over rotated inputs."""

from __future__ import annotations

import itertools
import math
import random
import statistics
import time
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch

from benchmarks.work import Inputs

ROTATED_BYTES = 200e6  # of inputs, four times the L2 cache of an H200
MOST_SETS = 300  # a captured graph has a node for each launch on each of them
BETWEEN = 1e-3  # seconds at least between two events, which are exact to half a microsecond
MOST_REPEATS = 50
CYCLES = 2e9  # a second, of a GPU's multiprocessor: how long a sleep lasts does not matter to a factor


def spread(values: Sequence[float]) -> dict[str, float]:
    """Median and quartiles."""
    if len(values) == 1:
        return {"median": values[0], "quartile_1": values[0], "quartile_3": values[0]}
    low, median, high = statistics.quantiles(values, n=4, method="inclusive")
    return {"median": median, "quartile_1": low, "quartile_3": high}


def ratio_interval(a: Sequence[float], b: Sequence[float], draws: int = 2000, level: float = 0.95) -> dict[str, float]:
    """Median of a[i] / b[i], measured one right after the other, with its bootstrap interval.

    What else the machine does weighs on both of a pair, so ratios vary less than times do.
    """
    logs = [math.log(x / y) for x, y in zip(a, b, strict=True)]
    generator = random.Random(0)
    medians = sorted(statistics.median(generator.choices(logs, k=len(logs))) for _ in range(draws))
    edge = round((1 - level) / 2 * draws)
    found = {"ratio": statistics.median(logs), "low": medians[edge], "high": medians[draws - 1 - edge]}
    return {name: math.exp(value) for name, value in found.items()} | {"pairs": len(logs)}


def seconds(function: Callable[[], object], device: str = "cpu") -> float:
    """Wall time of one call, the device's work included."""
    synchronize(device)
    start = time.perf_counter()
    function()
    synchronize(device)
    return time.perf_counter() - start


def synchronize(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def timed(
    benchmark: Any, step: Callable[[], Any], partner: Callable[[], Any] | None, rounds: int, device: str = "cpu"
) -> None:
    """Times ``step``, which has run before, as a benchmark, and a ``partner`` in each of its rounds.

    The ratio of the two goes into the report. They take turns in going first: what the first leaves in the cache, or
    has made of the memory, helps or hinders the second. Results are freed within the time of both.
    """
    if partner is None:
        benchmark.pedantic(_dropping(step), rounds=rounds)
        return
    compared = _dropping(partner)
    partners: list[float] = []
    first = itertools.cycle([True, False, False, True])  # asked before and after each round

    def before() -> None:
        if next(first):
            partners.append(seconds(compared, device))

    def after() -> None:
        if next(first):
            partners.append(seconds(compared, device))

    compared()
    benchmark.pedantic(_dropping(step), setup=before, teardown=after, rounds=rounds)
    if benchmark.stats is not None:
        # Where a benchmark is switched off it runs once and keeps no times.
        benchmark.extra_info["ratio"] = ratio_interval(benchmark.stats.stats.data, partners)
        benchmark.extra_info["partner_seconds"] = spread(partners)


def _dropping(step: Callable[[], Any]) -> Callable[[], None]:
    def call() -> None:
        step()

    return call


def rotation(inputs: Inputs) -> int:
    """How many sets of such inputs are needed so that none is found in the cache; small ones may all stay there."""
    return max(2, min(MOST_SETS, int(ROTATED_BYTES / bytes_of(inputs))))


def bytes_of(inputs: Inputs) -> int:
    return sum(x.nbytes for x in inputs.values())


def capture(call: Callable[[Inputs], Any], sets: Sequence[Inputs]) -> Callable[[], None]:
    """A graph of one call for each of ``sets``."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for x in sets[:3]:
            call(x)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for x in sets:
            call(x)
    return graph.replay


def waits_for_host(call: Callable[[], Any]) -> str | None:
    """What torch says of a call that makes the host wait for the device, in a line; None if it does not.

    To be known before a capture: one that fails leaves the allocator in the middle of it, and no other succeeds.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch says that the mode does not see everything
        torch.cuda.set_sync_debug_mode("error")
    try:
        call()
    except RuntimeError as error:
        return _line(error)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    return None


def between_events(run: Callable[[], Any], calls: int, patience: float, *, queued: bool) -> dict[str, float]:
    """Microseconds a call of ``run``, which makes so many: least, median and quartiles of what fits in so many seconds.

    queued: all of a measurement is launched while the device is still busy with something else, so that launching takes
    no part in it; only for what does not wait for the host. Otherwise launching is as much a part of it as in use.
    """
    for _ in range(3):  # what is compiled with graphs of its own records one in the second call
        run()
    torch.cuda.synchronize()
    begin = time.perf_counter()
    run()
    launched = time.perf_counter() - begin
    torch.cuda.synchronize()
    once = max(time.perf_counter() - begin, 1e-7)
    runs = max(1, math.ceil(BETWEEN / once))
    ahead = 2 * runs * launched + 1e-4 if queued else 0.0
    repeats = max(3, min(MOST_REPEATS, int(patience / (runs * once + ahead))))
    times = []
    for _ in range(1 + repeats):
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        if queued:
            torch.cuda._sleep(int(CYCLES * ahead))
        start.record()
        for _ in range(runs):
            run()
        end.record()
        end.synchronize()
        times.append(1e3 * start.elapsed_time(end) / (runs * calls))
    del times[0]  # clocks were still rising
    return {"least_us": min(times)} | {f"{name}_us": value for name, value in spread(times).items()}


def eager_time(call: Callable[[Inputs], Any], sets: Sequence[Inputs], patience: float) -> dict[str, float]:
    """Of a call as the host launches it. All sets take their turn, from one measurement to the next."""
    turns = itertools.cycle(sets)
    return between_events(lambda: call(next(turns)), 1, patience, queued=False)


def device_time(call: Callable[[Inputs], Any], sets: Sequence[Inputs], patience: float) -> dict[str, Any]:
    """Of a call on rotated inputs, eager, and by graph replay unless it waits for the host; in so many seconds."""
    found: dict[str, Any] = {
        "eager": eager_time(call, sets, patience / 2),
        "rotated_sets": len(sets),
        "rotated_bytes": sum(bytes_of(x) for x in sets),
        "l2_bytes": torch.cuda.get_device_properties(torch.cuda.current_device()).L2_cache_size,
    }
    reason = waits_for_host(lambda: call(sets[0]))
    if reason is None:
        before = torch.cuda.current_stream()
        try:
            found["replay"] = between_events(capture(call, sets), len(sets), patience / 2, queued=True)
        except RuntimeError as error:
            torch.cuda.set_stream(before)  # torch leaves the stream of a failed capture current
            reason = _line(error)
    return found if reason is None else found | {"not captured": reason}


def _line(error: Exception) -> str:
    return (str(error).splitlines() or [""])[0][:200]
