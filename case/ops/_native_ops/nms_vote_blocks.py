"""``score_vote`` on CUDA by ``csrc/nms_vote_blocks.h``. Nothing waits for the device."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from case.ops._native_ops import _common
from case.ops._native_ops._common import address
from case.ops._native_ops.nms_index import build, heads


def score_vote(
    keep: Tensor, segments: Tensor, scores: Tensor, groups: Tensor, threshold: float, offset: float
) -> Tensor:
    with torch.cuda.device(segments.device):
        stream = torch.cuda.current_stream().cuda_stream
        return by_blocks(
            lambda *given: _common.module().nms_vote_cuda(*given, stream),
            keep, segments, scores, groups, threshold, offset,
        )  # fmt: skip


def by_blocks(
    vote: Callable[..., None],
    keep: Tensor,
    segments: Tensor,
    scores: Tensor,
    groups: Tensor,
    threshold: float,
    offset: float,
) -> Tensor:
    """The segments (kept, 2) as the registered op gives them; ``vote`` takes what ``case._C`` does."""
    out = segments.new_empty((len(keep), 2))
    if len(keep) == 0:
        return out
    number, order = groups.sort(stable=True)
    index = build(segments[order], heads(number), offset, 1.0)
    place = torch.empty_like(order).scatter_(0, order, torch.arange(len(order), device=order.device))
    score, position = scores[order][index.slot.long()], index.position[place[keep]]
    ballot = (address(score), address(position), len(keep), threshold, address(out))
    vote(index.description(), ballot, offset)
    return out
