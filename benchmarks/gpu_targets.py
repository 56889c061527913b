"""The kernels' targets on a GPU: each op proven right, then timed by graph replay beside eager torch and torch.compile.

Usage: python -m benchmarks.gpu_targets OUT_FOLDER [--quick]. Writes OUT_FOLDER/gpu_targets.json after every target, so
that a run cut short has kept what it had; exit code 1 if a result is wrong, 2 if there is no GPU. Inputs rotate so that
nothing is found in the L2 cache that a training step would not find there.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.peers import eager_sinkhorn
from benchmarks.timing import ROTATED_BYTES, between_events, capture
from case import ops
from case.ops.reference import losses as reference

Inputs = dict[str, Tensor]
BANDWIDTH = 4.3e12  # bytes a second that a copy reaches on an H200
COMPILE_MODES = ("max-autotune-no-cudagraphs", "reduce-overhead")


@dataclass(frozen=True)
class Target:
    """One line of the table. ``predicted``: microseconds, argued in GPU_TODO.md; ``moved``: bytes for the floor."""

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
    n = x["scores"].shape[0]
    ranks = x["scores"].argsort(descending=True).argsort()
    prior = torch.exp(-(((ranks + 1) / n).unsqueeze(1) - x["centers"]).square() / (2 * 0.3**2))
    return eager_sinkhorn(x["logits"], prior / prior.sum())


def wide(n: int, d: int, k: int) -> Inputs:
    return {"embeddings": torch.randn(n, d).bfloat16(), "weights": torch.rand(n, k).bfloat16()}


def chain(rows: int, n: int, k: int, h: int) -> Inputs:
    first = torch.rand(k, 1)
    return {
        "logits": torch.randn(2, rows, k),
        "embeddings": torch.rand(2, rows, h),
        "attention": torch.linspace(0, 1, rows)[torch.randperm(rows)],
        "foreground": (torch.rand(n) < 0.4).float(),
        "cluster_labels": torch.cat([first, 1 - first], dim=1),
        "index": torch.randint(0, rows, (n,)),
    }


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
        "clustering_losses, forward + backward", 100, 38, 2 * 4 * 2 * ROWS * H, lambda: chain(ROWS, N, K, H),
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
        outputs += torch.autograd.grad(outputs, [x[name] for name in leaves], [torch.ones_like(y) for y in outputs])
    return outputs


def placed(x: Inputs, device: str, leaves: tuple[str, ...], *, exact: bool = False) -> Inputs:
    def move(value: Tensor) -> Tensor:
        return (value.double() if exact and value.is_floating_point() else value).to(device)

    return {name: move(value).requires_grad_(name in leaves) for name, value in x.items()}


def errors_of(target: Target, x: Inputs) -> tuple[float, float]:
    """Largest error of any result and of any gradient, as a share of its largest value; reference in float64."""
    found = call(target.run, placed(x, "cuda", target.leaves), target.leaves)
    with ops.backend("reference"):
        expected = call(target.run, placed(x, "cuda", target.leaves, exact=True), target.leaves)
    worst = [0.0, 0.0]
    for at, (got, wanted) in enumerate(zip(found, expected, strict=True)):
        difference = (got.double() - wanted).abs().max().item() / (wanted.abs().max().item() or 1.0)
        gradient = at >= len(found) - len(target.leaves)
        worst[gradient] = max(worst[gradient], difference if difference == difference else float("inf"))
    return worst[0], worst[1]


def launches(function: Callable[[Inputs], Any], x: Inputs, leaves: tuple[str, ...]) -> int:
    """Kernels and fills that one call puts on the GPU."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        call(function, x, leaves)
        torch.cuda.synchronize()
    return sum(event.count for event in profile.key_averages() if event.self_device_time_total > 0)


def measure(target: Target, *, quick: bool) -> dict[str, Any]:
    torch.manual_seed(0)
    first = target.inputs()
    bytes_of_one = sum(value.nbytes for value in first.values())
    count = max(2, min(300, int(ROTATED_BYTES / bytes_of_one)))
    sets = [placed(first if i == 0 else target.inputs(), "cuda", target.leaves) for i in range(count)]
    error, gradient_error = errors_of(target, first)
    found: dict[str, Any] = {
        "name": target.name, "limit_us": target.limit_us, "predicted_us": target.predicted_us,
        "floor_us": 1e6 * target.moved / BANDWIDTH, "error": error, "tolerance": target.tolerance,
        "gradient_error": gradient_error, "right": error <= target.tolerance and gradient_error <= GRADIENT_TOLERANCE,
        "launches": launches(target.run, sets[0], target.leaves), "most_launches": target.most_launches,
        "rotated_sets": count,
    }  # fmt: skip
    repeats = 15 if quick else 50
    found["replay"] = between_events(capture(lambda x: call(target.run, x, target.leaves), sets), count, repeats)
    # Peers rotate as well; a few sets already exceed the L2 cache together with what eager code writes between.
    few = sets[:20]

    def each(function: Callable[[Inputs], Any]) -> Callable[[], None]:
        def run() -> None:
            for x in few:
                call(function, x, target.leaves)

        return run

    found["eager case"] = between_events(each(target.run), len(few), repeats)
    found["eager torch"] = between_events(each(target.peer), len(few), repeats)
    for mode in () if quick else COMPILE_MODES:
        torch._dynamo.reset()
        try:
            compiled = torch.compile(target.peer, mode=mode)
            found[mode] = between_events(each(compiled), len(few), repeats)
        except Exception as error:  # a peer that does not compile is reported, not hidden
            found[mode] = {"failed": f"{type(error).__name__}: {error}".splitlines()[0][:200]}
    return found


def row(found: dict[str, Any]) -> str:
    replay, eager = found["replay"]["median_us"], found["eager torch"]["median_us"]
    verdict = "ok" if replay <= found["limit_us"] else "MISSED"
    if not found["right"]:
        verdict = "WRONG"
    elif found["most_launches"] and found["launches"] > found["most_launches"]:
        verdict = "TOO MANY LAUNCHES"
    compiled = [f"{found[mode].get('median_us', float('nan')):9.1f}" for mode in COMPILE_MODES if mode in found]
    errors = f"{found['error']:.0e} {found['gradient_error']:.0e}"
    return (
        f"{found['name']:<44}{found['floor_us']:7.1f}{found['predicted_us']:7.1f}{found['limit_us']:7.0f}{replay:9.1f}"
        f"{found['launches']:4d}{eager:10.1f}{''.join(compiled)}  {errors}  {verdict}"
    )


def main(argv: list[str]) -> int:
    if not argv or argv[0].startswith("-"):
        print("usage: python -m benchmarks.gpu_targets OUT_FOLDER [--quick]", file=sys.stderr)
        return 2
    if not torch.cuda.is_available():
        print("gpu_targets: no CUDA device", file=sys.stderr)
        return 2
    out = Path(argv[0])
    out.mkdir(parents=True, exist_ok=True)
    results = []
    for target in TARGETS:
        results.append(measure(target, quick="--quick" in argv))
        print(row(results[-1]), flush=True)
        (out / "gpu_targets.json").write_text(json.dumps(results, indent=2))
    print(f"{'microseconds':<44}{'floor':>7}{'pred.':>7}{'limit':>7}{'replay':>9}{'n':>4}{'eager':>10}{'compiled':>9}")
    for found in results:
        print(row(found))
    return 0 if all(found["right"] for found in results) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
