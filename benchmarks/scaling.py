"""How time and memory grow, with rows, clusters, width, groups and threads: python -m benchmarks.scaling [OUT]

Each curve goes on until a call takes longer than --seconds or would need more than half of the free memory. Writes
scaling.json into the machine's folder under benchmarks/results, or OUT; ``benchmarks.report`` draws it.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks import bench_losses, bench_nms, bench_prototypes, bench_sinkhorn, timing
from benchmarks.machine import RESULTS, THREADS, folder_name, machine
from benchmarks.work import Work, placed, results
from case import ops

ROUNDS = 5
STATUS, CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


@dataclass(frozen=True)
class Curve:
    """One op over one number; ``build`` makes its inputs, ``backward`` times the gradient as well."""

    name: str
    over: str
    values: Sequence[int]
    build: Callable[[int], Work]
    backward: bool = False


def of_width(h: int) -> Work:
    n, k = 12_000, 16
    torch.manual_seed(0)
    return Work(
        lambda embeddings, weights: ops.prototypes(embeddings, weights, normalize="l2"),
        {"embeddings": torch.rand(n, h), "weights": torch.rand(n, k)},
        moved=4 * (n * h + n * k + k * h),
        sizes={"h": h},
    )


def case_of(test: Any) -> Callable[[int], Work]:
    return test.case.build


ROWS = tuple(3_000 * 4**i for i in range(9))
CURVES = (
    Curve("sinkhorn, K = 16, prior", "rows N", ROWS, lambda n: bench_sinkhorn.with_prior(n, 16)),
    Curve("sinkhorn, 60,000 rows, prior", "clusters K", tuple(4 * 2**i for i in range(9)),
          lambda k: bench_sinkhorn.with_prior(60_000, k)),
    Curve("prototypes, 12,000 rows, K = 16", "width H", tuple(64 * 2**i for i in range(7)), of_width),
    Curve("prototypes, 2 x 12,000 rows, H = 512", "times the method's rows", (1, 2, 4, 8, 16, 32),
          case_of(bench_prototypes.test_prototypes)),
    Curve("clustering losses, forward + backward", "times the method's rows", (1, 2, 4, 8, 16, 32),
          case_of(bench_losses.test_clustering_losses), backward=True),
    Curve("decay-once NMS, 10,000 segments a step", "times 20 groups of 500", (1, 4, 16, 64, 256),
          case_of(bench_nms.test_nms_decay_once)),
    Curve("hard NMS, one group", "segments", (1_000, 4_000, 16_000, 64_000, 256_000, 1_024_000),
          lambda n: bench_nms.one_group("hard", n)),
)  # fmt: skip


def exponent(values: Sequence[float], times: Sequence[float]) -> float | None:
    """b of t = a x^b, by least squares of logarithms over the upper half, where fixed costs no longer show."""
    kept = max(3, math.ceil(len(values) / 2))
    if len(values) < 3:
        return None
    x, y = ([math.log(v) for v in part[-kept:]] for part in (values, times))
    mx, my = statistics.fmean(x), statistics.fmean(y)
    return sum((a - mx) * (b - my) for a, b in zip(x, y, strict=True)) / sum((a - mx) ** 2 for a in x)


def measure(curve: Curve, device: str, patience: float) -> dict[str, Any]:
    found: dict[str, Any] = {"name": curve.name, "over": curve.over, "device": device, "points": []}
    for value in curve.values:
        work = curve.build(value)
        inputs = placed(work.inputs, device, work.leaves)
        size = sum(x.nbytes for x in inputs.values())

        def step() -> object:
            return results(work.run, inputs, work.leaves, curve.backward)  # noqa: B023

        step()
        peak = peak_bytes(step, device)
        times = [timing.seconds(step, device) for _ in range(ROUNDS)]
        found["points"].append(
            {"value": value, "seconds": timing.spread(times), "input_bytes": size, "peak_bytes": peak}
        )
        if statistics.median(times) > patience or 8 * size > free_bytes(device):
            break
    points = found["points"]
    found["exponent"] = exponent([p["value"] for p in points], [p["seconds"]["median"] for p in points])
    return found


def threads(most: int) -> dict[str, Any]:
    """Sinkhorn of 1,200,000 rows on one thread and more."""
    work = bench_sinkhorn.with_prior(1_200_000, 16)
    found: dict[str, Any] = {
        "name": "sinkhorn, 1,200,000 rows, prior",
        "over": "threads",
        "device": "cpu",
        "points": [],
    }
    for count in sorted({1, *(2**i for i in range(1, most.bit_length())), most}):
        torch.set_num_threads(count)
        times = [timing.seconds(lambda: work.run(**work.inputs)) for _ in range(ROUNDS)]
        found["points"].append({"value": count, "seconds": timing.spread(times)})
    torch.set_num_threads(THREADS)
    return found


def peak_bytes(step: Callable[[], object], device: str) -> int | None:
    """Memory at the peak of a call beyond what there was before it; None where the system does not tell."""
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        step()
        return torch.cuda.max_memory_allocated() - before
    try:
        CLEAR.write_text("5")  # the peak starts anew
        before = _status("VmRSS")
        step()
        return max(0, _status("VmHWM") - before)
    except (OSError, KeyError):
        return None


def free_bytes(device: str) -> int:
    if device == "cuda":
        return torch.cuda.mem_get_info()[0]
    lines = dict(line.split(":", 1) for line in Path("/proc/meminfo").read_text().splitlines())
    return 1024 * int(lines["MemAvailable"].split()[0])


def _status(name: str) -> int:
    lines = dict(line.split(":", 1) for line in STATUS.read_text().splitlines())
    return 1024 * int(lines[name].split()[0])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path, nargs="?", help="folder for scaling.json")
    parser.add_argument("--seconds", type=float, default=0.5, help="a call longer than this ends its curve")
    given = parser.parse_args()
    torch.set_num_threads(THREADS)
    header = machine()
    out = given.out or RESULTS / folder_name(header)
    out.mkdir(parents=True, exist_ok=True)
    device = "cuda" if header["gpu"] else "cpu"
    found: dict[str, Any] = {"machine": header, "curves": []}
    for curve in CURVES:
        found["curves"].append(measure(curve, device, given.seconds))
        _write(found, out)  # one after the other: a run that is stopped keeps them
        last, power = found["curves"][-1]["points"][-1], found["curves"][-1]["exponent"]
        shown = f"{power:.2f}" if power is not None else "too few points"
        print(
            f"{curve.name}, {curve.over} {last['value']}: {last['seconds']['median']:.4g} s, exponent {shown}",
            flush=True,
        )
    if device == "cpu":
        found["curves"].append(threads(torch.get_num_threads()))
        _write(found, out)


def _write(found: dict[str, Any], out: Path) -> None:
    (out / "scaling.json").write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        sys.exit("scaling: stopped; curves printed above are kept")
