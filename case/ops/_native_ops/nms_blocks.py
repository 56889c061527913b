"""``batched_nms`` on CUDA: order by score and who settles whom by ``csrc/nms_blocks.h``, the rest by torch.

``batched_nms`` waits for the device twice: whether groups come in order, and how many segments are left. The padded
form does not wait.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from case.ops import _backend
from case.ops._native_ops import _common
from case.ops._native_ops._common import DTYPES, Emulation, address
from case.ops.reference.nms import order_by_group, padding, paired_iou

# The kernel sorts groups of up to so many segments (float64: half as many) in shared memory, larger ones beside it.
SHARED = 2048


class _Settled(NamedTuple):
    """By place (n,) int32, groups by rising number and within a group by falling score.

    order: the segment; head: the first place of its group; by: -1 for what hard NMS keeps, else the place within the
    group of the kept segment that settled it first."""

    order: Tensor
    head: Tensor
    by: Tensor


# (rows, threshold, length_offset, spare, outcome) as ``case._C`` takes them.
Settle = Callable[..., None]


def batched_nms(
    segments: Tensor, scores: Tensor, groups: Tensor, threshold: float, method: str, *rest: Any
) -> tuple[Tensor, Tensor]:
    if method not in ("hard", "decay_once"):
        return _backend.reference("batched_nms")(segments, scores, groups, threshold, method, *rest)
    with torch.cuda.device(segments.device):
        return by_blocks(_on_device, segments, scores, groups, threshold, method, *rest)


def batched_nms_padded(
    segments: Tensor, scores: Tensor, groups: Tensor, threshold: float, method: str, *rest: Any
) -> tuple[Tensor, Tensor, Tensor]:
    if method not in ("hard", "decay_once"):
        return _backend.reference("batched_nms_padded")(segments, scores, groups, threshold, method, *rest)
    with torch.cuda.device(segments.device):
        return padded_by_blocks(_on_device, segments, scores, groups, threshold, method, *rest)


def emulated(emulation: Emulation) -> Settle:
    """The kernel on the CPU, for ``by_blocks``."""
    return lambda *given: _common.module().nms_settle_emulated(*given, tuple(emulation))


def _on_device(*given: Any) -> None:
    _common.module().nms_settle_cuda(*given, torch.cuda.current_stream().cuda_stream)


def by_blocks(
    settle: Settle,
    segments: Tensor,
    scores: Tensor,
    groups: Tensor,
    threshold: float,
    method: str,
    sigma: float,
    min_score: float,
    max_num: int,
    offset: float,
) -> tuple[Tensor, Tensor]:
    """(keep, new scores) as the registered op gives them, for methods that settle a segment once."""
    if scores.shape[0] == 0:
        return groups.new_empty(0), scores.new_empty(0)
    in_order = bool((groups[1:] >= groups[:-1]).all())
    settled = _settle(settle, segments, scores, groups, threshold, offset, in_order)
    order, current, taken = _finish(settled, segments, scores, method, sigma, min_score, max_num, offset)
    return order[taken].long(), current[taken]


def padded_by_blocks(
    settle: Settle,
    segments: Tensor,
    scores: Tensor,
    groups: Tensor,
    threshold: float,
    method: str,
    sigma: float,
    min_score: float,
    max_num: int,
    offset: float,
    capacity: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """(keep, new scores, total) as the registered op gives them. Whether groups come in order nobody waits to hear."""
    keep, kept_scores = padding(scores, capacity + 1)  # the last place takes what is not returned
    if scores.shape[0] == 0:
        return keep[:capacity], kept_scores[:capacity], torch.zeros((), dtype=torch.int64, device=scores.device)
    settled = _settle(settle, segments, scores, groups, threshold, offset, in_order=False)
    order, current, taken = _finish(settled, segments, scores, method, sigma, min_score, max_num, offset)
    ends = taken.cumsum(0)
    to = torch.where(taken, ends - 1, capacity).clamp(max=capacity)
    keep.scatter_(0, to, order.long())
    kept_scores.scatter_(0, to, current)
    return keep[:capacity], kept_scores[:capacity], ends[-1]


def _settle(
    settle: Settle, segments: Tensor, scores: Tensor, groups: Tensor, threshold: float, offset: float, in_order: bool
) -> _Settled:
    n, device = scores.shape[0], scores.device
    segments, scores, rows = segments.contiguous(), scores.contiguous(), None
    if in_order:
        groups = groups.contiguous()
    else:
        groups, rows = groups.sort(stable=True)
    spare = None
    if n > SHARED // (scores.element_size() // 4):
        spare = torch.empty(2, n, 2, dtype=scores.dtype, device=device)
    found = _Settled(*(torch.empty(n, dtype=torch.int32, device=device) for _ in range(3)))
    given = (address(segments), address(scores), address(groups), address(rows), n, DTYPES[scores.dtype])
    settle(given, threshold, offset, address(spare), tuple(address(x) for x in found))
    return found


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
        taken &= _among_best(current.masked_fill(~taken, -torch.inf), head, max_num)
    if method == "decay_once":
        # Within a group the kept ones, then the decayed in the order of their suppressors, then of their scores.
        place = ((2 * head.long() + ~kept) * len(order) + torch.where(kept, 0, by)).argsort(stable=True)
        current, taken, order = current[place], taken[place], order[place]
    return order, current, taken


def _among_best(scores: Tensor, head: Tensor, most: int) -> Tensor:
    """Marks the ``most`` highest of each group, ties to the earlier."""
    order = order_by_group(scores, head)
    rank = torch.arange(scores.shape[0], device=scores.device) - head[order]
    return torch.empty_like(rank, dtype=torch.bool).scatter_(0, order, rank < most)
