"""Statistics of times that share a machine, and times on a GPU: graph replay between events, over rotated inputs."""

from __future__ import annotations

import math
import random
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch

from benchmarks.work import Function, Inputs, results

ROTATED_BYTES = 200e6  # of inputs, four times the L2 cache of an H200


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


def paired(benchmark: Any, step: Callable[[], Any], partner: Callable[[], Any], rounds: int, device: str) -> None:
    """Times ``step`` as a benchmark and ``partner`` right before each of its rounds; the ratio goes into the report."""
    partners: list[float] = []

    def setup() -> None:
        partners.append(seconds(partner, device))

    benchmark.pedantic(step, setup=setup, rounds=rounds, warmup_rounds=1)
    if benchmark.stats is not None:
        times = benchmark.stats.stats.data
        # Where a benchmark is switched off it runs once and keeps no times.
        benchmark.extra_info["ratio"] = ratio_interval(times, partners[-len(times) :])
        benchmark.extra_info["partner_seconds"] = spread(partners[-len(times) :])


def rotation(inputs: Inputs) -> int:
    """How many sets of such inputs are needed so that none is found in the cache."""
    return max(2, min(300, int(ROTATED_BYTES / sum(x.nbytes for x in inputs.values()))))


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


def between_events(run: Callable[[], Any], calls: int, repeats: int) -> dict[str, float]:
    """Microseconds a call: median and quartiles over ``repeats``, each between two events."""
    for _ in range(3):
        run()
    times = []
    for _ in range(repeats):
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        run()
        end.record()
        end.synchronize()
        times.append(1e3 * start.elapsed_time(end) / calls)
    return {f"{name}_us": value for name, value in spread(times).items()}


def device_time(
    function: Function, sets: Sequence[Inputs], leaves: tuple[str, ...], backward: bool, repeats: int = 15
) -> dict[str, Any]:
    """Of a call on rotated inputs: by graph replay, or where it cannot be captured (it waits for the host), eager."""

    def call(x: Inputs) -> None:
        results(function, x, leaves, backward)

    # A few sets already exceed the L2 cache together with what eager code writes between.
    few = sets[:20]

    def each() -> None:
        for x in few:
            call(x)

    eager = between_events(each, len(few), repeats)
    try:
        replay = between_events(capture(call, sets), len(sets), repeats)
    except RuntimeError as error:
        return {"eager": eager, "not captured": str(error).splitlines()[0][:200], "rotated_sets": len(sets)}
    return {"eager": eager, "replay": replay, "rotated_sets": len(sets)}
