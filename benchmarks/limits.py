"""What the machine can do: the rate of copies, by size, and of matrix products. Run once: python -m benchmarks.limits

Nothing of this repository takes part. Writes limits.json into the machine's folder under benchmarks/results, or OUT,
the GPU's part first and as soon as it is known. The best of many short runs is the limit: what else the machine does
can only lower a rate.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from benchmarks.machine import RESULTS, THREADS, folder_name, machine
from benchmarks.timing import between_events, seconds

COPIED = tuple(2**i for i in range(17, 29))  # bytes read and written, 128 KiB to 256 MiB: from a core's cache to memory
PRODUCT = (4096, 1024, 1024)  # rows, inner, columns: a wide layer of the network
ROUNDS, PATIENCE, PRODUCT_PATIENCE = 200, 0.25, 2.0


def best_rate(call: Callable[[], object], amount: float, device: str, patience: float) -> float:
    """Amount a second, the best there is: on a CPU on one thread or all, since a busy machine makes threads wait."""
    if device == "cuda":
        return 1e6 * amount / between_events(call, 1, patience, queued=True)["least_us"]
    rates = []
    for count in sorted({1, THREADS}):
        torch.set_num_threads(count)
        rates.append(_rate(call, amount, patience))
    return max(rates)


def _rate(call: Callable[[], object], amount: float, patience: float) -> float:
    call()
    once = max(seconds(call), 1e-6)
    calls = max(1, math.ceil(5e-4 / once))
    best, end = 0.0, time.perf_counter() + patience
    for _ in range(ROUNDS):
        best = max(best, amount * calls / seconds(lambda: [call() for _ in range(calls)]))
        if time.perf_counter() > end:
            break
    return best


def measure(device: str) -> dict[str, Any]:
    copies = {}
    for size in COPIED if device == "cpu" else (2**30,):
        source = torch.ones(size // 8, device=device)
        target = torch.empty_like(source)
        copies[str(size)] = best_rate(lambda: target.copy_(source), size, device, PATIENCE)  # noqa: B023
    n, inner, columns = PRODUCT
    rates = {}
    for dtype in ("float32",) if device == "cpu" else ("float32", "bfloat16"):
        x = torch.randn(n, inner, device=device, dtype=getattr(torch, dtype))
        w = torch.randn(inner, columns, device=device, dtype=getattr(torch, dtype))
        rates[dtype] = best_rate(lambda: x @ w, 2 * n * inner * columns, device, PRODUCT_PATIENCE)  # noqa: B023
    return {"copy_bytes_per_second": copies, "product_operations_per_second": rates}


def copy_rate(limits: dict[str, Any], moved: float) -> float:
    """Of so many bytes read and written: the best rate of copies that are no smaller."""
    rates = {int(size): rate for size, rate in limits["copy_bytes_per_second"].items()}
    return max((rate for size, rate in rates.items() if size >= moved), default=rates[max(rates)])


def least_seconds(limits: dict[str, Any], moved: float, operations: float, dtype: str = "float32") -> float:
    """The roofline: no less than the copies take, and no less than the products take."""
    rates = limits["product_operations_per_second"]
    return max(moved / copy_rate(limits, moved), operations / rates.get(dtype, rates["float32"]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path, nargs="?", help="folder for limits.json")
    given = parser.parse_args()
    torch.set_num_threads(THREADS)
    header = machine()
    out = given.out or RESULTS / folder_name(header)
    out.mkdir(parents=True, exist_ok=True)
    found = {"machine": header}
    for device in ("cuda", "cpu") if header["gpu"] else ("cpu",):
        found[device] = measure(device)
        (out / "limits.json").write_text(json.dumps(found, indent=2) + "\n")
        copies, rates = found[device].values()
        shown = ", ".join(f"{int(size) / 2**20:g} MiB {rate / 1e9:.1f}" for size, rate in copies.items())
        print(f"{device}: copies in GB/s: {shown}")
        shown = ", ".join(f"{dtype} {rate / 1e9:.1f}" for dtype, rate in rates.items())
        print(f"{device}: products in GFLOP/s: {shown}", flush=True)


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        sys.exit("limits: stopped; devices that were not finished have none")
