"""``batched_nms`` on CUDA: sorting and gathering by torch, who settles whom by ``csrc/nms_blocks.h``.

Nothing here waits for the device but the last step, which asks how many segments are left.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from case.ops import _backend
from case.ops._native_ops import _common
from case.ops._native_ops._common import DTYPES, Emulation, address
from case.ops.reference.nms import order_by_group, paired_iou

# Blocks beyond what a device runs at once would only wait; each takes groups in turns.
BLOCKS = 4096


class _Sorted(NamedTuple):
    """Segments by group, and within a group by falling score; number (n,): the group of each, from 0.

    begins: of each group, and the end of the last; groups (1,): how many there are."""

    order: Tensor
    segments: Tensor
    scores: Tensor
    number: Tensor
    begins: Tensor
    groups: Tensor


Settle = Callable[[_Sorted, float, float, Tensor], None]


def batched_nms(
    segments: Tensor, scores: Tensor, groups: Tensor, threshold: float, method: str, *rest: Any
) -> tuple[Tensor, Tensor]:
    if method not in ("hard", "decay_once"):
        return _backend.reference("batched_nms")(segments, scores, groups, threshold, method, *rest)
    with torch.cuda.device(segments.device):
        return by_blocks(_on_device, segments, scores, groups, threshold, method, *rest)


def emulated(emulation: Emulation) -> Settle:
    """The kernel on the CPU, for ``by_blocks``."""

    def settle(rows: _Sorted, threshold: float, offset: float, by: Tensor) -> None:
        _common.module().nms_settle_emulated(*_arguments(rows, threshold, offset, by), tuple(emulation))

    return settle


def _on_device(rows: _Sorted, threshold: float, offset: float, by: Tensor) -> None:
    blocks = min(BLOCKS, rows.order.shape[0])
    stream = torch.cuda.current_stream().cuda_stream
    _common.module().nms_settle_cuda(*_arguments(rows, threshold, offset, by), blocks, stream)


def _arguments(rows: _Sorted, threshold: float, offset: float, by: Tensor) -> tuple[int | float | str, ...]:
    n, dtype = rows.order.shape[0], DTYPES[rows.segments.dtype]
    return (
        address(rows.segments), address(rows.begins), address(rows.groups), n, dtype, threshold, offset, address(by),
    )  # fmt: skip


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
    n = scores.shape[0]
    if n == 0:
        return groups.new_empty(0), scores.new_empty(0)
    rows = _sort(segments, scores, groups)
    by = torch.empty(n, dtype=torch.int32, device=scores.device)
    settle(rows, threshold, offset, by)
    kept = by < 0
    first = rows.begins[rows.number]  # where the group of each begins
    current, taken, order = rows.scores, kept, rows.order
    if method == "decay_once":
        suppressor = first + by.clamp(min=0)
        iou = paired_iou(rows.segments[suppressor], rows.segments, offset)
        current = torch.where(kept, current, current * torch.exp(-iou.square() / sigma))
        taken = torch.ones_like(kept)
    taken = taken & (current >= min_score)
    if max_num > 0:
        taken &= _among_best(current.masked_fill(~taken, -torch.inf), rows.number, first, max_num)
    if method == "decay_once":
        # Within a group the kept ones, then the decayed in the order of their suppressors, then of their scores.
        place = ((2 * rows.number + ~kept) * n + torch.where(kept, 0, by)).argsort(stable=True)
        current, taken, order = current[place], taken[place], order[place]
    return order[taken], current[taken]


def _sort(segments: Tensor, scores: Tensor, groups: Tensor) -> _Sorted:
    n = scores.shape[0]
    order = order_by_group(scores, groups)
    of = groups[order]
    heads = torch.ones_like(of, dtype=torch.bool)
    torch.ne(of[1:], of[:-1], out=heads[1:])
    number = heads.cumsum(0) - 1
    # The first place of each group; what is no head writes behind the end.
    begins = torch.full((n + 2,), n, dtype=torch.int64, device=of.device)
    begins.scatter_(0, torch.where(heads, number, n + 1), torch.arange(n, device=of.device))
    return _Sorted(order, segments[order], scores[order], number, begins, number[-1:] + 1)


def _among_best(scores: Tensor, number: Tensor, first: Tensor, most: int) -> Tensor:
    """Marks the ``most`` highest of each group, ties to the earlier."""
    order = order_by_group(scores, number)
    rank = torch.arange(scores.shape[0], device=scores.device) - first[order]
    return torch.empty_like(rank, dtype=torch.bool).scatter_(0, order, rank < most)
