"""Linear and gaussian NMS on CUDA by ``csrc/nms_soft_rounds.h``.

A group of ordinary size is one block's work. Large ones take as many rounds of all blocks as the longest chain of
overlapping picks has links: after every ``ROUNDS`` the host asks if that was all. Where nobody may wait,
``PADDED_ROUNDS`` are launched and a block does what they leave.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from case.ops._native_ops._common import address
from case.ops._native_ops.nms_index import among_best, build, heads
from case.ops.reference.nms import order_by_group

ROUNDS = 32
PADDED_ROUNDS = 192  # 10,000 segments, ten a second, take 178
BELOW_ZERO = -2  # csrc/nms.h


class SoftLauncher(NamedTuple):
    """The kernels, called as ``case._C`` takes them: rounds over all, and whole groups."""

    rounds: Callable[..., None]
    groups: Callable[..., None]


def pick(
    launcher: SoftLauncher,
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
    large: int,
    waits: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Segments, their new scores and which of them are returned, by rising group and in the order of picks.

    large: groups of more segments are not one block's work. waits: the host may ask what the device has found."""
    order = order_by_group(scores, groups)
    ranked, head = scores[order], heads(groups[order])
    index = build(segments[order], head, offset, 1.0)
    slot = index.slot.long()
    score = ranked[slot]
    first_key = score.double()
    if method == "gaussian":
        first_key = torch.where(score < 0, -first_key.abs().log(), first_key.abs().log())
    key = first_key.clone()
    turn = torch.where(score < 0, BELOW_ZERO, 0).masked_fill_(~(score >= min_score), -1).int()
    rival = torch.full_like(turn, -1)
    state = (address(score), address(first_key), address(key), address(turn))
    given = index.description(), (*state, threshold, min_score, method == "gaussian", sigma, address(rival)), offset
    n = len(scores)
    is_large = n > large and (not waits or bool((head[large:] == head[:-large]).any()))
    launcher.groups(*given, 0, large if is_large else n)
    if is_large:
        rounds = _by_rounds(launcher, given, (turn == 0).sum(dtype=torch.int32)[None], waits)
        launcher.groups(*given, rounds, n)
    final = key.to(score.dtype)
    if method == "gaussian":
        decayed = score.double() * torch.where(score < 0, first_key - key, key - first_key).exp()
        final = torch.where(key == first_key, score, decayed.to(score.dtype))
    # A pick's key is at most that of the pick before it; those below 0 come last (keys end at -2e299), one a turn.
    key = torch.where(score < 0, -2e300 - 1e290 * turn.double(), key.clamp(min=-1e300))
    key, final, turn = (torch.empty_like(x).scatter_(0, slot, x) for x in (key, final, turn))
    taken = (turn > 0) & (final >= min_score)
    if max_num > 0:
        taken &= among_best(final.masked_fill(~taken, -torch.inf), head, max_num)
    picked = order_by_group(key, head)
    return order[picked], final[picked], taken[picked]


def _by_rounds(launcher: SoftLauncher, given: tuple[object, ...], left: Tensor, waits: bool) -> int:
    """How many rounds were launched; left (1,): how many segments are open."""
    rounds, before, each = 0, -1, ROUNDS if waits else PADDED_ROUNDS
    while rounds == 0 or (waits and 0 < int(left) != before):
        before = int(left) if waits else -1
        left = torch.cat([left, left.new_zeros(each)])
        launcher.rounds(*given, address(left), rounds, each)
        rounds, left = rounds + each, left[-1:]
    return rounds
