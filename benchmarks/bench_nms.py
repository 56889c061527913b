"""Non-maximum suppression of one video's worth of proposals, 20 classes of 500, and of more classes; temporal IoU."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from benchmarks import peers
from benchmarks.work import Inputs, Part, Work, bench
from case import ops

GROUPS, PER_GROUP, THRESHOLD, SIGMA = 20, 500, 0.4, 0.35


def grouped(groups: int) -> Inputs:
    n = groups * PER_GROUP
    torch.manual_seed(0)
    start = 200 * torch.rand(n, dtype=torch.float64)
    segments = torch.stack([start, start + 0.5 + 20 * torch.rand(n, dtype=torch.float64) ** 2], dim=1)
    scores = torch.rand(n, dtype=torch.float64)
    return {"segments": segments, "scores": scores, "groups": torch.arange(n) % groups}


def some_groups(inputs: Inputs, scale: int) -> Part | None:
    """As many of the groups as the method has: the reference takes a second for each twenty."""
    if scale == 1:
        return None
    chosen = torch.randperm(scale * GROUPS)[:GROUPS]
    rows = torch.isin(inputs["groups"], chosen).nonzero().squeeze(1)
    place = torch.full((len(inputs["groups"]),), -1)
    place[rows] = torch.arange(len(rows))

    def of(found: list[Tensor]) -> list[Tensor]:
        at = place.to(found[0].device)[found[0]]
        return [at[at >= 0], *(x[at >= 0] for x in found[1:])]

    return Part({name: x[rows] for name, x in inputs.items()}, of)


@bench("batched_nms", peers=("numpy loop",), scales=(1, 10, 100), dtypes=("float64",), slow_reference=True)
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
        part=some_groups(inputs, scale),
    )


@bench(
    "batched_nms",
    peers=("numpy loop", "torchvision nms", "actionformer nms"),
    scales=(1, 10, 100),
    slow_reference=True,
)
def test_nms_hard(scale: int) -> Work:
    """In float32, which some packages need: times in 64ths of a second and a threshold that no IoU of them meets."""
    inputs = grouped(scale * GROUPS)
    inputs["segments"] = ((64 * inputs["segments"]).round() / 64).float()
    inputs["scores"] = inputs["scores"].float()
    inputs["boxes"] = peers.boxes(inputs["segments"])  # torchvision's input as the others have theirs: made beforehand
    n, threshold = len(inputs["scores"]), 0.4123

    def of(function: Callable[..., Tensor], *names: str) -> Callable[..., Tensor]:
        # Packages differ in the order of what they keep: all of them sort it.
        return lambda **given: function(*(given[name] for name in names), threshold).sort().values

    def ours(segments: Tensor, scores: Tensor, groups: Tensor, threshold: float) -> Tensor:
        return ops.batched_nms(segments, scores, groups, threshold, method="hard")[0]

    def in_numpy(segments: Tensor, scores: Tensor, groups: Tensor, threshold: float) -> Tensor:
        return peers.numpy_nms(segments, scores, groups, threshold, sigma=None)[0]

    segments = ("segments", "scores", "groups")

    return Work(
        of(ours, *segments),
        inputs,
        moved=n * (2 * 4 + 4 + 8),
        sizes={"groups": scale * GROUPS, "per_group": PER_GROUP},
        peers={
            "numpy loop": of(in_numpy, *segments),
            "torchvision nms": of(peers.torchvision_nms, "boxes", "scores", "groups"),
            "actionformer nms": of(peers.actionformer_nms, *segments),
        },
        tolerance=0.0,
        part=some_groups(inputs, scale),
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


@bench(
    "batched_nms",
    peers=("numpy loop",),
    dtypes=("float64",),
    slow_reference=True,
    left_out="the reference takes minutes for 100,000 segments in one group; scaling times up to a million, unproven",
)
def test_nms_hard_in_one_group(scale: int) -> Work:
    return one_group("hard", 10_000 * scale)


@bench(
    "batched_nms",
    dtypes=("float64",),
    slow_reference=True,
    left_out="the reference takes a minute for 3,000 picks in one group",
)
def test_nms_gaussian_in_one_group(scale: int) -> Work:
    return one_group("gaussian", 300 * scale)


@bench(
    "temporal_iou",
    peers=("eager torch",),
    scales=(1, 10),
    backward=(1,),
    left_out="a matrix is 1.6 GB; the gradient, which holds a dozen, is left out at 10 times as well",
)
def test_temporal_iou(scale: int) -> Work:
    """Ten times the pairs, that is, the square root of it on both sides."""
    n = round(2_000 * math.sqrt(scale))
    segments = grouped(26)["segments"].float()
    rows = torch.randperm(n)[:500]
    return Work(
        ops.temporal_iou,
        {"a": segments[:n].clone(), "b": segments[-n:].clone()},
        moved=4 * (2 * n * 2 + n**2),
        sizes={"m": n, "p": n},
        leaves=("a", "b"),
        peers={"eager torch": peers.eager_iou},
        tolerance=1e-4,
        part=None
        if scale == 1
        else Part({"a": segments[:n][rows], "b": segments[-n:]}, lambda found: [found[0][rows]]),
    )
