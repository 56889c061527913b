"""Linear and gaussian ``batched_nms`` on CUDA by ``csrc/nms_soft_rounds.h``.

As many rounds as the longest chain of overlapping picks; after every ``ROUNDS`` of them the host asks if that was all.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from case.ops import _backend
from case.ops._native_ops._common import address
from case.ops._native_ops.nms_index import build, heads
from case.ops.reference.nms import order_by_group

ROUNDS = 32


def by_rounds(
    soft: Callable[..., None],
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
    """(keep, new scores) as the registered op gives them.

    A decay raises a score below 0, so that order of picks hangs on all of a group: such problems run the reference, and
    those with scores of 0 as well, which have no logarithm.
    """
    if scores.shape[0] == 0 or bool((scores <= 0).any()):
        settings = (threshold, method, sigma, min_score, max_num, offset)
        return _backend.reference("batched_nms")(segments, scores, groups, *settings)
    order = order_by_group(scores, groups)
    ranked, head = scores[order], heads(groups[order])
    index = build(segments[order], head, offset, 1.0)
    slot = index.slot.long()
    score = ranked[slot]
    first_key = score.double().log() if method == "gaussian" else score.double()
    key = first_key.clone()
    turn = torch.where(score >= min_score, 0, -1).int()
    state = (address(score), address(first_key), address(key), address(turn))
    decay = (*state, threshold, min_score, method == "gaussian", sigma)
    left, rounds = torch.ones(1, dtype=torch.int32, device=scores.device), 0
    while int(left[-1]) > 0:
        left = torch.cat([left[-1:], left.new_zeros(ROUNDS)])
        soft(index.description(), decay, offset, address(left), rounds, ROUNDS)
        rounds += ROUNDS
    final = key.to(score.dtype)
    if method == "gaussian":
        final = torch.where(key == first_key, score, (score.double() * (key - first_key).exp()).to(score.dtype))
    # A pick's key is at most that of the pick before it.
    key, final, turn = (torch.empty_like(x).scatter_(0, slot, x) for x in (key, final, turn))
    picked = order_by_group(key, head)
    taken = (turn[picked] > 0) & (final[picked] >= min_score)
    if max_num > 0:
        count = taken.cumsum(0)
        taken &= count - (count - taken.long())[head.long()] <= max_num
    keep = picked[taken]
    return order[keep], final[keep]
