"""Non-maximum suppression of one video's worth of proposals, 20 classes of 500, and of more classes; temporal IoU."""

from __future__ import annotations

import torch
from torch import Tensor

from benchmarks import peers
from benchmarks.work import Inputs, Work, bench
from case import ops

GROUPS, PER_GROUP, THRESHOLD, SIGMA = 20, 500, 0.4, 0.35


def grouped(groups: int) -> Inputs:
    n = groups * PER_GROUP
    torch.manual_seed(0)
    start = 200 * torch.rand(n, dtype=torch.float64)
    segments = torch.stack([start, start + 0.5 + 20 * torch.rand(n, dtype=torch.float64) ** 2], dim=1)
    scores = torch.rand(n, dtype=torch.float64)
    return {"segments": segments, "scores": scores, "groups": torch.arange(n) % groups}


@bench("batched_nms", peers=("numpy loop",), scales=(1, 10), dtypes=("float64",), slow_reference=True)
def test_nms_decay_once(scale: int) -> Work:
    """What the method does."""
    inputs = grouped(scale * GROUPS)
    n = len(inputs["scores"])
    return Work(
        lambda segments, scores, groups: ops.batched_nms(
            segments, scores, groups, THRESHOLD, method="decay_once", sigma=SIGMA
        ),
        inputs,
        moved=n * (2 * 8 + 8 + 8) + n * 16,
        sizes={"groups": scale * GROUPS, "per_group": PER_GROUP},
        peers={"numpy loop": lambda **given: peers.numpy_nms(**given, threshold=THRESHOLD, sigma=SIGMA)},
        tolerance=1e-12,
    )


@bench(
    "batched_nms",
    peers=("numpy loop", "torchvision nms", "actionformer nms"),
    scales=(1, 10),
    slow_reference=True,
)
def test_nms_hard(scale: int) -> Work:
    """In float32, which some packages need: times in 64ths of a second and a threshold that no IoU of them meets."""
    inputs = grouped(scale * GROUPS)
    inputs["segments"] = ((64 * inputs["segments"]).round() / 64).float()
    inputs["scores"] = inputs["scores"].float()
    n, threshold = len(inputs["scores"]), 0.4123

    def run(segments: Tensor, scores: Tensor, groups: Tensor) -> Tensor:
        return ops.batched_nms(segments, scores, groups, threshold, method="hard")[0].sort().values

    def of(function: object) -> object:
        # Packages differ in the order of what they keep: all of them sort it.
        return lambda **given: function(**given, threshold=threshold).sort().values  # type: ignore[operator]

    return Work(
        run,
        inputs,
        moved=n * (2 * 4 + 4 + 8),
        sizes={"groups": scale * GROUPS, "per_group": PER_GROUP},
        peers={
            "numpy loop": lambda **given: peers.numpy_nms(**given, threshold=threshold, sigma=None)[0].sort().values,
            "torchvision nms": of(peers.torchvision_nms),
            "actionformer nms": of(peers.actionformer_nms),
        },
        tolerance=0.0,
    )


def one_group(method: str, n: int) -> Work:
    """Ten segments of 0.5 to 20 seconds start each second."""
    torch.manual_seed(0)
    start = n / 10 * torch.rand(n, dtype=torch.float64)
    segments = torch.stack([start, start + 0.5 + 20 * torch.rand(n, dtype=torch.float64) ** 2], dim=1)

    def in_numpy(segments: Tensor, scores: Tensor) -> tuple[Tensor, Tensor]:
        return peers.numpy_nms(segments, scores, torch.zeros(n, dtype=torch.int64), THRESHOLD, None)

    return Work(
        lambda segments, scores: ops.nms(segments, scores, THRESHOLD, method=method, sigma=SIGMA),
        {"segments": segments, "scores": torch.rand(n, dtype=torch.float64)},
        moved=n * (2 * 8 + 8),
        sizes={"n": n},
        peers={"numpy loop": in_numpy},
        tolerance=1e-9,
    )


@bench("batched_nms", peers=("numpy loop",), dtypes=("float64",), slow_reference=True)
def test_nms_hard_in_one_group(scale: int) -> Work:
    return one_group("hard", 10_000 * scale)


@bench("batched_nms", dtypes=("float64",), slow_reference=True)
def test_nms_gaussian_in_one_group(scale: int) -> Work:
    return one_group("gaussian", 300 * scale)


@bench("temporal_iou", peers=("eager torch",), scales=(1, 4), backward=True)
def test_temporal_iou(scale: int) -> Work:
    pairs = scale * 2_000
    segments = grouped(16)["segments"].float()
    return Work(
        ops.temporal_iou,
        {"a": segments[:pairs].clone(), "b": segments[-pairs:].clone()},
        moved=4 * (2 * pairs * 2 + pairs**2),
        sizes={"m": pairs, "p": pairs},
        leaves=("a", "b"),
        peers={"eager torch": peers.eager_iou},
        tolerance=1e-4,
    )
