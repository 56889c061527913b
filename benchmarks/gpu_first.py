"""The first question on a new GPU machine: does case._C run beside torch's own CUDA runtime, on torch's streams?

Temporal IoU in float32 and float64, on the current stream, on a side stream and inside a captured CUDA graph, against
a torch formula, into NaN-poisoned outputs; then its speed. Usage: python -m benchmarks.gpu_first OUT_FOLDER [--quick].
Writes OUT_FOLDER/gpu_first.json, whatever goes wrong; exit code 1 if an answer is wrong, 2 if the question could not be
asked.
"""

from __future__ import annotations

import json
import statistics
import sys
import traceback
from collections.abc import Callable
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

SIZES = [(1, 1, 1), (2, 3, 5), (3, 129, 257), (70000, 2, 3), (1, 1000, 4096)]


def torch_iou(a: Tensor, b: Tensor, offset: float) -> Tensor:
    (s1, e1), (s2, e2) = a[:, :, None].unbind(-1), b[:, None].unbind(-1)
    inter = (torch.minimum(e1, e2) - torch.maximum(s1, s2) + offset).clamp_min(0)
    union = (e1 - s1 + offset) + (e2 - s2 + offset) - inter
    return torch.where(union <= 0, 0, inter / union)


def segments(batch: int, count: int, dtype: torch.dtype) -> Tensor:
    start = torch.rand(batch, count, device="cuda", dtype=dtype) * 100
    return torch.stack([start, start + torch.rand_like(start) * 20], dim=-1)


@cache
def native() -> ModuleType:
    """The module, or why there is nothing to ask: it, or case itself, is not there, or has no CUDA half."""
    from case import _native

    module = _native.load()
    if module is None or not _native.has_cuda():
        raise RuntimeError(f"no CUDA half in the native module: {_native.reason() or 'it was built without nvcc'}")
    return module


def launch(a: Tensor, b: Tensor, out: Tensor, offset: float) -> None:
    dtype = str(out.dtype).removeprefix("torch.")
    stream = torch.cuda.current_stream().cuda_stream
    native().iou_cuda(a.data_ptr(), b.data_ptr(), out.data_ptr(), *out.shape, dtype, offset, stream)


def on_current_stream(a: Tensor, b: Tensor, out: Tensor) -> None:
    launch(a, b, out, 1.0)


def on_side_stream(a: Tensor, b: Tensor, out: Tensor) -> None:
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        # Torch work on the same stream before and after: a launch on another stream would race with it.
        torch.cuda._sleep(2_000_000)
        a.add_(1)
        b.add_(1)
        launch(a, b, out, 1.0)
        a.zero_()
    torch.cuda.current_stream().wait_stream(side)


def in_graph(a: Tensor, b: Tensor, out: Tensor) -> None:
    scratch_a, scratch_b = torch.zeros_like(a), torch.zeros_like(b)
    launch(scratch_a, scratch_b, out, 1.0)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        launch(scratch_a, scratch_b, out, 1.0)
    scratch_a.copy_(a)
    scratch_b.copy_(b)
    out.fill_(torch.nan)
    graph.replay()


def compare(run: Callable[[Tensor, Tensor, Tensor], None], sizes: tuple[int, int, int], dtype: torch.dtype) -> float:
    """Largest deviation from the torch formula; raises if a result was not written or a NaN not kept."""
    batch, m, p = sizes
    a, b = segments(batch, m, dtype), segments(batch, p, dtype)
    a[0, 0, 0] = torch.nan
    shift = 1 if run is on_side_stream else 0
    wanted = torch_iou(a + shift, b + shift, 1.0)
    out = torch.full_like(wanted, torch.nan)
    run(a, b, out)
    torch.cuda.synchronize()
    if not torch.equal(out.isnan(), wanted.isnan()):
        raise AssertionError(f"NaN in other places than the formula's: {int(out.isnan().sum())} of {out.numel()}")
    return float((out - wanted).nan_to_num().abs().max())


def timing(m: int, p: int, rounds: int) -> dict[str, Any]:
    a, b = segments(1, m, torch.float32), segments(1, p, torch.float32)
    out = a.new_empty(1, m, p)
    flush = torch.empty(256 * 2**20, dtype=torch.uint8, device="cuda")
    times: list[float] = []
    for _ in range(rounds):
        # Else a part of the output would stay in the L2 cache from round to round. It also outlasts the launch below.
        flush.zero_()
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        begin.record()
        launch(a, b, out, 0.0)
        end.record()
        torch.cuda.synchronize()
        times.append(begin.elapsed_time(end) * 1e3)
    median = statistics.median(times[rounds // 10 :])
    count = out.numel() * 4 + (a.numel() + b.numel()) * 4
    return {"shape": [1, m, p], "dtype": "float32", "median_us": median, "min_us": min(times), "bytes": count,
            "gb_per_s": count / median / 1e3}  # fmt: skip


def ask(quick: bool) -> dict[str, Any]:
    torch.manual_seed(0)
    checks: list[dict[str, Any]] = []
    for run in (on_current_stream, on_side_stream, in_graph):
        for dtype in (torch.float32, torch.float64):
            # Both do the same operations in the same order; this leaves one unit in the last place below 1.
            tolerance = torch.finfo(dtype).eps
            for sizes in SIZES:
                check: dict[str, Any] = {"where": run.__name__, "dtype": str(dtype), "sizes": list(sizes)}
                try:
                    check["max_error"] = compare(run, sizes, dtype)
                    check["ok"] = check["max_error"] <= tolerance
                except Exception as error:  # The report must be written whatever goes wrong on this machine.
                    traceback.print_exc()
                    check |= {"ok": False, "error": f"{type(error).__name__}: {error}"}
                checks.append(check)
                print("ok  " if check["ok"] else "BAD ", check, flush=True)
    answer: dict[str, Any] = {"device": torch.cuda.get_device_name(), "checks": checks}
    answer["ok"] = all(check["ok"] for check in checks)
    if answer["ok"]:  # A wrong kernel is not timed.
        try:
            answer["timing"] = timing(4096, 4096, 50 if quick else 500)
        except Exception as error:
            traceback.print_exc()
            answer |= {"ok": False, "error": f"{type(error).__name__}: {error}"}
        print(answer.get("timing"), flush=True)
    return answer


def main(arguments: list[str]) -> int:
    folders = [a for a in arguments if not a.startswith("--")]
    if len(folders) != 1:
        print("usage: python -m benchmarks.gpu_first OUT_FOLDER [--quick]", file=sys.stderr)
        return 2
    answer: dict[str, Any] = {"ok": False}
    try:
        if not torch.cuda.is_available():
            raise RuntimeError("torch sees no CUDA device")
        answer["build_info"] = native().build_info()
        answer |= ask("--quick" in arguments)
    except Exception as error:
        answer |= {"ok": False, "error": f"{type(error).__name__}: {error}"}
        print(answer["error"], file=sys.stderr)
    folder = Path(folders[0])
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "gpu_first.json").write_text(json.dumps(answer, indent=2) + "\n")
    if "checks" not in answer:
        return 2
    return 0 if answer["ok"] else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
