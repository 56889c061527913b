"""The index by group, level and start in which ``csrc/nms_neighbours.h`` looks for whom a segment meets."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from case.ops._native_ops._common import DTYPES, address
from case.ops.reference.nms import order_by_group

LEVELS = 1024  # csrc/nms.h


class Index(NamedTuple):
    """By position (n,): segments (n, 2); key, first place of the group * LEVELS + level; slot, the place by group and
    score; head, the first place of the group; all int32 but the key, int64. position: by slot. fine: csrc/nms.h."""

    segments: Tensor
    key: Tensor
    slot: Tensor
    head: Tensor
    position: Tensor
    fine: float

    def description(self) -> tuple[int | float | str, ...]:
        """As ``case._C`` takes it."""
        return (*(address(x) for x in self[:5]), len(self.key), DTYPES[self.segments.dtype], self.fine)


def heads(number: Tensor) -> Tensor:
    """The first place (n,) int32 of each one's group, for rising group numbers (n,)."""
    return torch.searchsorted(number, number, out_int32=True)


def among_best(scores: Tensor, head: Tensor, most: int) -> Tensor:
    """Marks the ``most`` highest of each group, ties to the earlier; head (n,): the first place of each one's group."""
    order = order_by_group(scores, head)
    rank = torch.arange(scores.shape[0], device=scores.device) - head[order]
    return torch.empty_like(rank, dtype=torch.bool).scatter_(0, order, rank < most)


def build(ranked: Tensor, head: Tensor, offset: float, least_iou: float) -> Index:
    """Of segments (n, 2) by group and score, with the first place of each one's group (n,) int32.

    least_iou: what is looked for overlaps with at least this; as in ``csrc/interval_index.h``. Does not wait."""
    n, device = len(head), head.device
    offset = torch.tensor(offset, dtype=ranked.dtype, device="cpu").item()  # as the kernels have it
    fine = 2**12 * torch.finfo(ranked.dtype).eps * abs(offset) / least_iou if least_iou > 0 else 0.0
    length = (ranked[:, 1] - ranked[:, 0] + offset).double()
    level = torch.where(length < fine, 0, length.view(torch.int64) >> 53).clamp(max=LEVELS - 2)
    level = torch.where((length > 0) & length.isfinite(), level, LEVELS - 1)
    slot = ranked[:, 0].argsort(stable=True)
    key, place = (head.long() * LEVELS + level)[slot].sort(stable=True)
    slot = slot[place]
    position = torch.empty(n, dtype=torch.int32, device=device)
    position.scatter_(0, slot, torch.arange(n, dtype=torch.int32, device=device))
    return Index(ranked[slot], key, slot.int(), head[slot], position, fine)
