"""``batched_nms`` on CUDA: who settles or decays whom by csrc/, the rest by torch.

Groups of up to ``LARGE`` segments are a block's work each (``csrc/nms_blocks.h``), larger ones that of all blocks in
rounds (``csrc/nms_rounds.h``); soft methods likewise (``nms_soft_rounds``). ``batched_nms`` waits to hear whether
groups come in order, whether one of them is large, whether rounds of a large one are over, and how many segments are
left. The padded form does not wait.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from case.ops._native_ops import _common, nms_soft_rounds
from case.ops._native_ops._common import DTYPES, Emulation, address
from case.ops._native_ops.nms_index import among_best, build
from case.ops._native_ops.nms_soft_rounds import SoftLauncher
from case.ops.reference.nms import order_by_group, padding, paired_iou

# The kernel sorts groups of up to so many segments (float64: half as many) in shared memory, larger ones beside it.
SHARED = 2048
# One block takes some 0.4 ms for 8,192 segments, about what sorting and rounds take at least.
LARGE = 8192
# Soft methods take rounds, of which each is more work for one block the larger the group: 2 ms for 2,048 (predicted).
SOFT_LARGE = 2048
# Random scores take some ten; what is open after the last is one block's work.
ROUNDS = 32
LEFT = -2  # csrc/nms.h


class _Settled(NamedTuple):
    """By place (n,) int32, groups by rising number and within a group by falling score.

    order: the segment; head: the first place of its group; by: -1 for what hard NMS keeps, else the place within the
    group of the kept segment that settled it first."""

    order: Tensor
    head: Tensor
    by: Tensor


class Launcher(NamedTuple):
    """The kernels, called as ``case._C`` takes them, and the sizes at which they change hands."""

    settle: Callable[..., None]
    rounds: Callable[..., None]
    soft: SoftLauncher
    large: int = LARGE
    soft_large: int = SOFT_LARGE
    most_rounds: int = ROUNDS


def batched_nms(segments: Tensor, *given: Any) -> tuple[Tensor, Tensor]:
    with torch.cuda.device(segments.device):
        return by_blocks(on_device(), segments, *given)


def batched_nms_padded(segments: Tensor, *given: Any) -> tuple[Tensor, Tensor, Tensor]:
    with torch.cuda.device(segments.device):
        return padded_by_blocks(on_device(), segments, *given)


def emulated(emulation: Emulation, **sizes: int) -> Launcher:
    """The kernels on the CPU, for ``by_blocks``."""
    return _launcher("emulated", tuple(emulation), **sizes)


def on_device() -> Launcher:
    return _launcher("cuda", torch.cuda.current_stream().cuda_stream)


def _launcher(where: str, last: Any, **sizes: int) -> Launcher:
    def kernel(name: str) -> Callable[..., None]:
        function = getattr(_common.module(), f"nms_{name}_{where}")
        return lambda *given: function(*given, last)

    return Launcher(kernel("settle"), kernel("rounds"), SoftLauncher(kernel("soft"), kernel("soft_groups")), **sizes)


def by_blocks(
    launcher: Launcher, segments: Tensor, scores: Tensor, groups: Tensor, *settings: Any
) -> tuple[Tensor, Tensor]:
    """(keep, new scores) as the registered op gives them."""
    if scores.shape[0] == 0:
        return groups.new_empty(0), scores.new_empty(0)
    order, current, taken = _outcome(launcher, segments, scores, groups, *settings, waits=True)
    return order[taken].long(), current[taken]


def padded_by_blocks(
    launcher: Launcher, segments: Tensor, scores: Tensor, groups: Tensor, *settings_and_capacity: Any
) -> tuple[Tensor, Tensor, Tensor]:
    """(keep, new scores, total) as the registered op gives them."""
    *settings, capacity = settings_and_capacity
    keep, kept_scores = padding(scores, capacity + 1)  # the last place takes what is not returned
    if scores.shape[0] == 0:
        return keep[:capacity], kept_scores[:capacity], torch.zeros((), dtype=torch.int64, device=scores.device)
    order, current, taken = _outcome(launcher, segments, scores, groups, *settings, waits=False)
    ends = taken.cumsum(0)
    to = torch.where(taken, ends - 1, capacity).clamp(max=capacity)
    keep.scatter_(0, to, order.long())
    kept_scores.scatter_(0, to, current)
    return keep[:capacity], kept_scores[:capacity], ends[-1]


def _outcome(
    launcher: Launcher,
    segments: Tensor,
    scores: Tensor,
    groups: Tensor,
    threshold: float,
    method: str,
    sigma: float,
    min_score: float,
    max_num: int,
    offset: float,
    *,
    waits: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Segments, their new scores and which of them are returned, in the order of the method."""
    rest = method, sigma, min_score, max_num, offset
    if method in ("linear", "gaussian"):
        given = launcher.soft, segments, scores, groups, threshold
        return nms_soft_rounds.pick(*given, *rest, large=launcher.soft_large, waits=waits)
    in_order = bool((groups[1:] >= groups[:-1]).all()) if waits else None
    settled = _settle(launcher, segments, scores, groups, threshold, offset, in_order)
    return _finish(settled, segments, scores, *rest)


def _settle(
    launcher: Launcher,
    segments: Tensor,
    scores: Tensor,
    groups: Tensor,
    threshold: float,
    offset: float,
    in_order: bool | None,
) -> _Settled:
    """in_order: whether groups come by rising number; None: nobody may wait for an answer about them."""
    n, device = scores.shape[0], scores.device
    segments, scores, rows = segments.contiguous(), scores.contiguous(), None
    ordered = groups.contiguous()
    if not in_order:
        ordered, rows = groups.sort(stable=True)
    large = n > launcher.large
    if large and in_order is not None:
        large = bool((ordered[launcher.large :] == ordered[: -launcher.large]).any())
    if large:
        rows = order_by_group(scores, groups)
    spare = None
    if n > SHARED // (scores.element_size() // 4):
        spare = torch.empty(2, n, 2, dtype=scores.dtype, device=device)
    found = _Settled(*(torch.empty(n, dtype=torch.int32, device=device) for _ in range(3)))
    given = (address(segments), address(scores), address(ordered), address(rows), n, DTYPES[scores.dtype])
    most = launcher.large if large else n
    launcher.settle(given, threshold, offset, address(spare), most, tuple(address(x) for x in found))
    if large:
        _settle_large(launcher, found, segments, threshold, offset)
    return found


def _settle_large(launcher: Launcher, found: _Settled, segments: Tensor, threshold: float, offset: float) -> None:
    """Writes ``found.by`` of the groups that the first kernel has left."""
    least_iou = torch.tensor(threshold, dtype=segments.dtype, device="cpu").item() * (
        1 - 2**-8
    )  # as the kernels have it
    index = build(segments[found.order], found.head, offset, least_iou)
    state = torch.where(found.by[index.slot.long()] == LEFT, 0, 3).to(torch.uint8)
    left = torch.zeros(launcher.most_rounds + 1, dtype=torch.int32, device=segments.device)
    left[:1].fill_(1)
    launcher.rounds(
        index.description(), threshold, offset, address(state), address(left), launcher.most_rounds, address(found.by)
    )


def _finish(
    settled: _Settled,
    segments: Tensor,
    scores: Tensor,
    method: str,
    sigma: float,
    min_score: float,
    max_num: int,
    offset: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """Segments, their new scores and which of them are returned, in the order of the method."""
    order, head, by = settled
    kept = by < 0
    current = scores[order]
    taken = kept
    if method == "decay_once":
        iou = paired_iou(segments[order[head + by.clamp(min=0)]], segments[order], offset)
        current = torch.where(kept, current, current * torch.exp(-iou.square() / sigma))
        taken = torch.ones_like(kept)
    taken = taken & (current >= min_score)
    if max_num > 0:
        taken &= among_best(current.masked_fill(~taken, -torch.inf), head, max_num)
    if method == "decay_once":
        # Within a group the kept ones, then the decayed in the order of their suppressors, then of their scores.
        place = ((2 * head.long() + ~kept) * len(order) + torch.where(kept, 0, by)).argsort(stable=True)
        current, taken, order = current[place], taken[place], order[place]
    return order, current, taken
