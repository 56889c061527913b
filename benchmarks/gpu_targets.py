"""The kernels' targets on a GPU: each op proven right, then timed by graph replay beside eager torch and torch.compile.

Usage: python -m benchmarks.gpu_targets OUT_FOLDER [--quick] [--compiled]. The first pass is all targets without
torch.compile; --compiled is the second: compiled peers alone, added to what the first has written, since they take
longest to make and matter least. OUT_FOLDER/gpu_targets.json is written after every target, so that a run cut short has
kept what it had. Exit code 1 if a result of the first pass is wrong or missing, 2 if there is no GPU. Inputs rotate so
that nothing is found in the L2 cache that a training step would not find there.
"""

from __future__ import annotations

import argparse
import json
import sys
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks import timing
from benchmarks.bench_losses import chain_inputs
from benchmarks.peers import eager_rank_prior, eager_sinkhorn
from benchmarks.work import Inputs, cotangent
from case import ops
from case.ops.reference import losses as reference

BANDWIDTH = 4.3e12  # bytes a second that a copy reaches on an H200
COMPILE_MODES = ("max-autotune-no-cudagraphs", "reduce-overhead")
PATIENCE, QUICK_PATIENCE = 0.6, 0.15  # seconds of measurements of each contender


@dataclass(frozen=True)
class Target:
    """One line of the table. ``predicted``: microseconds, argued in GPU_TODO.md; ``moved``: bytes for the floor.

    inputs: drawn on torch's default device, which is the GPU then: a CPU takes seconds for 10^6 rows of 512.
    """

    name: str
    limit_us: float
    predicted_us: float
    moved: float
    inputs: Callable[[], Inputs]
    run: Callable[[Inputs], Any]
    peer: Callable[[Inputs], Any]
    tolerance: float = 2e-6
    leaves: tuple[str, ...] = ()
    most_launches: int | None = None


GRADIENT_TOLERANCE = 1e-5


def matrix(n: int, k: int) -> Inputs:
    return {"logits": torch.randn(n, k), "prior": torch.rand(n, k) + 0.1}


def ranked(n: int, k: int) -> Inputs:
    return {"logits": torch.randn(n, k), "scores": torch.rand(n), "centers": torch.rand(k)}


def sinkhorn_of_matrix(x: Inputs) -> Tensor:
    return ops.sinkhorn(x["logits"], scale=2.0)


def plain_sinkhorn(x: Inputs) -> Tensor:
    return eager_sinkhorn(x["logits"])


def sinkhorn_of_ranks(x: Inputs) -> Tensor:
    return ops.sinkhorn(x["logits"], prior=ops.RankPrior(x["scores"], x["centers"], 0.3), scale=2.0)


def plain_ranked_sinkhorn(x: Inputs) -> Tensor:
    return eager_sinkhorn(x["logits"], eager_rank_prior(x["scores"], x["centers"]))


def wide(n: int, d: int, k: int) -> Inputs:
    return {"embeddings": torch.randn(n, d).bfloat16(), "weights": torch.rand(n, k).bfloat16()}


def fused_chain(x: Inputs) -> tuple[Tensor, Tensor]:
    return ops.clustering_losses(**x, sigma=0.3)[:2]


def plain_chain(x: Inputs) -> tuple[Tensor, Tensor]:
    """Plain torch that a compiler sees into; the registered ops would be opaque to it."""
    return reference.clustering_losses(**x, sigma=0.3, ranks="true", ot_scale=2.0, cosine_scale=10.0, n_iters=3)[:2]


N, K, H, ROWS, MANY = 12_000, 16, 512, 4_560, 1_000_000
TARGETS = (
    Target(
        "sinkhorn 12,000 x 16 with the rank prior", 12, 10.5, 5 * 4 * N * K, lambda: ranked(N, K), sinkhorn_of_ranks,
        plain_ranked_sinkhorn, most_launches=5,
    ),
    Target(
        "clustering_losses, forward + backward", 100, 38, 2 * 4 * 2 * ROWS * H, lambda: chain_inputs(ROWS, N, K, H),
        fused_chain, plain_chain, leaves=("logits", "embeddings"),
    ),
    Target(
        "sinkhorn 10^6 x 16", 100, 92, 5 * 4 * MANY * 16, lambda: matrix(MANY, 16), sinkhorn_of_matrix, plain_sinkhorn,
        most_launches=5,
    ),
    Target(
        "sinkhorn 10^6 x 128", 750, 690, 5 * 4 * MANY * 128, lambda: matrix(MANY, 128), sinkhorn_of_matrix,
        plain_sinkhorn, most_launches=5,
    ),
    Target(
        "prototypes of 10^6 x 512 bfloat16, K = 16", 280, 265, 2 * MANY * (H + K), lambda: wide(MANY, H, K),
        lambda x: ops.prototypes(x["embeddings"], x["weights"]), lambda x: x["weights"].T @ x["embeddings"], 1e-2,
    ),
)  # fmt: skip


def call(function: Callable[[Inputs], Any], x: Inputs, leaves: tuple[str, ...]) -> list[Tensor]:
    """Outputs, or with ``leaves`` the outputs and their gradients."""
    result = function(x)
    outputs = [result] if isinstance(result, Tensor) else list(result)
    if leaves:
        cotangents = [cotangent(y.shape, y.dtype, y.device) for y in outputs]
        outputs += torch.autograd.grad(outputs, [x[name] for name in leaves], cotangents)
    return outputs


def drawn(target: Target, device: str) -> list[Inputs]:
    """As many sets of inputs as it takes."""
    torch.manual_seed(0)
    sets: list[Inputs] = []
    while not sets or len(sets) < timing.rotation(sets[0]):
        with torch.device(device):
            inputs = target.inputs()
        sets.append({name: value.requires_grad_(name in target.leaves) for name, value in inputs.items()})
    return sets


def errors_of(target: Target, x: Inputs) -> tuple[float, float]:
    """Largest error of any result and of any gradient, as a share of its largest value; reference in float64."""

    def exact(name: str, value: Tensor) -> Tensor:
        wide = value.detach().double() if value.is_floating_point() else value
        return wide.requires_grad_(name in target.leaves)

    found = call(target.run, x, target.leaves)
    with ops.backend("reference"):
        wanted = call(target.run, {name: exact(name, value) for name, value in x.items()}, target.leaves)
    worst = [0.0, 0.0]
    for at, (got, right) in enumerate(zip(found, wanted, strict=True)):
        difference = (got.double() - right).abs().max().item() / (right.abs().max().item() or 1.0)
        gradient = at >= len(found) - len(target.leaves)
        worst[gradient] = max(worst[gradient], difference if difference == difference else float("inf"))
    return worst[0], worst[1]


def launches(function: Callable[[Inputs], Any], x: Inputs, leaves: tuple[str, ...]) -> int:
    """Kernels and fills that one call puts on the GPU."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        call(function, x, leaves)
        torch.cuda.synchronize()
    return sum(event.count for event in profile.key_averages() if event.self_device_time_total > 0)


def measure(target: Target, found: dict[str, Any], device: str, patience: float) -> None:
    """The first pass. Into ``found`` step by step: what fails loses nothing of what came before it."""
    found |= {
        "limit_us": target.limit_us, "predicted_us": target.predicted_us, "floor_us": 1e6 * target.moved / BANDWIDTH,
        "tolerance": target.tolerance, "most_launches": target.most_launches, "right": False,
    }  # fmt: skip
    sets = drawn(target, device)
    error, gradient_error = errors_of(target, sets[0])
    found |= {"error": error, "gradient_error": gradient_error}
    found["right"] = error <= target.tolerance and gradient_error <= GRADIENT_TOLERANCE
    taken = timing.device_time(lambda x: call(target.run, x, target.leaves), sets, 2 * patience)
    found["eager case"] = taken.pop("eager")
    found |= taken
    found["eager torch"] = timing.eager_time(lambda x: call(target.peer, x, target.leaves), sets, patience)
    found["launches"] = launches(target.run, sets[0], target.leaves)


def measure_compiled(target: Target, found: dict[str, Any], device: str, patience: float) -> None:
    """The second pass."""
    sets = drawn(target, device)
    for mode in COMPILE_MODES:
        torch._dynamo.reset()
        try:
            compiled = torch.compile(target.peer, mode=mode)
            found[mode] = timing.eager_time(lambda x: call(compiled, x, target.leaves), sets, patience)  # noqa: B023
        except Exception as error:  # a peer that does not compile is reported, not hidden
            found[mode] = {"failed": line(error)}


def line(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".splitlines()[0][:200]


def verdict(found: dict[str, Any]) -> str:
    if "failed" in found:
        return f"FAILED: {found['failed']}"
    if "right" not in found:
        return "not proven"
    if not found["right"]:
        return "WRONG"
    if found["most_launches"] and found["launches"] > found["most_launches"]:
        return "TOO MANY LAUNCHES"
    if "replay" not in found:
        return f"NOT CAPTURED: {found['not captured']}"
    return "ok" if found["replay"]["median_us"] <= found["limit_us"] else "MISSED"


def row(found: dict[str, Any]) -> str:
    """What there is of a line; a dash for what is not there."""

    def shown(name: str, form: str, width: int, mode: str = "") -> str:
        value = found.get(mode, {}).get(name) if mode else found.get(name)
        return f"{'-' if value is None else format(value, form):>{width}}"

    times = [shown("median_us", ".1f", 10, mode) for mode in ("replay", "eager case", "eager torch", *COMPILE_MODES)]
    numbers = [shown("floor_us", ".1f", 7), shown("predicted_us", ".1f", 7), shown("limit_us", ".0f", 7)]
    errors = [shown("error", ".0e", 7), shown("gradient_error", ".0e", 7)]
    counted = shown("launches", "d", 4)
    return f"{found['name']:<44}{''.join((*numbers, counted, *times, *errors))}  {verdict(found)}"


HEAD = (
    f"{'microseconds':<44}{'floor':>7}{'pred.':>7}{'limit':>7}{'n':>4}{'replay':>10}{'eager':>10}{'torch':>10}"
    f"{'autotune':>10}{'reduce':>10}{'error':>7}{'grad':>7}"
)


def passed(
    targets: Sequence[Target], path: Path, device: str, patience: float, *, compiled: bool
) -> list[dict[str, Any]]:
    """One pass over all targets, ``path`` rewritten after each: errors are a target's own."""
    before = {found["name"]: found for found in json.loads(path.read_text())} if compiled and path.exists() else {}
    results = [before.get(target.name, {"name": target.name}) for target in targets]
    for target, found in zip(targets, results, strict=True):
        try:
            (measure_compiled if compiled else measure)(target, found, device, patience)
        except Exception as error:
            traceback.print_exc()
            found["failed"] = line(error)
        path.write_text(json.dumps(results, indent=2))
        print(row(found), flush=True)
    return results


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="benchmarks.gpu_targets", description=__doc__)
    parser.add_argument("out", type=Path)
    parser.add_argument("--quick", action="store_true", help="fewer measurements")
    parser.add_argument("--compiled", action="store_true", help="the second pass: compiled peers")
    given = parser.parse_args(argv)
    if not torch.cuda.is_available():
        print("gpu_targets: no CUDA device", file=sys.stderr)
        return 2
    given.out.mkdir(parents=True, exist_ok=True)
    print(HEAD)
    patience = QUICK_PATIENCE if given.quick else PATIENCE
    results = passed(TARGETS, given.out / "gpu_targets.json", "cuda", patience, compiled=given.compiled)
    return 0 if given.compiled or all(found.get("right") and "failed" not in found for found in results) else 1


if __name__ == "__main__":
    sys.exit(main())
