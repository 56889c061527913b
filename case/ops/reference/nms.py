"""Temporal IoU and non-maximum suppression of any number of groups at once (METHOD.md, Inference 4).

All groups advance in step: one iteration takes the best remaining segment of every group and settles what it
suppresses, on arrays of (groups, largest group). Ties go to the earlier segment.
"""

from typing import Any

import torch
from torch import Tensor


def temporal_iou(a: Tensor, b: Tensor, length_offset: float) -> Tensor:
    return paired_iou(a[..., :, None, :], b[..., None, :, :], length_offset)


def paired_iou(a: Tensor, b: Tensor, length_offset: float) -> Tensor:
    """IoU of segments (..., 2) one by one, the leading dimensions broadcast."""
    start, end = torch.maximum(a[..., 0], b[..., 0]), torch.minimum(a[..., 1], b[..., 1])
    inter = (end - start + length_offset).clamp(min=0)
    union = (a[..., 1] - a[..., 0] + length_offset) + (b[..., 1] - b[..., 0] + length_offset) - inter
    nothing = union <= 0
    # Not divided by, or its gradient of 0 would be 0 / 0.
    return (inter / union.masked_fill(nothing, 1)).masked_fill(nothing, 0)


def batched_nms(
    segments: Tensor,
    scores: Tensor,
    groups: Tensor,
    iou_threshold: float,
    method: str,
    sigma: float,
    min_score: float,
    max_num: int,
    length_offset: float,
) -> tuple[Tensor, Tensor]:
    """(keep, new scores), by rising group and within a group in the method's order (see ``case.ops.nms``)."""
    if segments.shape[0] == 0:
        return groups.new_empty(0), scores.new_empty(0)
    slots, filled = _pad_groups(scores, groups)
    padded = segments[slots]
    current = scores[slots].masked_fill(~filled, -torch.inf)
    if method in ("hard", "decay_once"):
        turn, current = _settle_once(padded, current, filled, iou_threshold, method, sigma, length_offset)
    else:
        turn, current = _decay_all(padded, current, filled, iou_threshold, method, sigma, min_score, length_offset)
    taken = (turn >= 0) & (current >= min_score)
    if max_num > 0:
        taken &= _top(current.masked_fill(~taken, -torch.inf), max_num)
    # By group, then turn; slots of one turn (segments decayed by the same suppressor) keep the order of their scores.
    order = torch.where(taken, turn, turn.max() + 1).argsort(dim=1, stable=True)
    taken = taken.gather(1, order)
    return slots.gather(1, order)[taken], current.gather(1, order)[taken]


def batched_nms_padded(*args: Any) -> tuple[Tensor, Tensor, Tensor]:
    """The arguments of ``batched_nms`` and a capacity: what it keeps, padded, and how many that are."""
    *given, capacity = args
    return pad(*batched_nms(*given), capacity)


def pad(keep: Tensor, scores: Tensor, capacity: int) -> tuple[Tensor, Tensor, Tensor]:
    """The first ``capacity`` of each, then -1 and -inf; and how many there were."""
    padded, padded_scores = padding(scores, capacity)
    padded[: len(keep)] = keep[:capacity]
    padded_scores[: len(keep)] = scores[:capacity]
    return padded, padded_scores, torch.tensor(len(keep), device=keep.device)


def padding(scores: Tensor, capacity: int) -> tuple[Tensor, Tensor]:
    """What stands where nothing is kept: indices -1, scores -inf in the dtype of ``scores``."""
    keep = torch.full((capacity,), -1, dtype=torch.int64, device=scores.device)
    return keep, torch.full((capacity,), -torch.inf, dtype=scores.dtype, device=scores.device)


def vote(keep: Tensor, segments: Tensor, scores: Tensor, groups: Tensor, threshold: float, offset: float) -> Tensor:
    """Kept segments replaced by the mean of their group's segments with IoU >= threshold, weighted by score * IoU."""
    voted = segments[keep].clone()
    for group in groups[keep].unique():
        rows = groups[keep] == group
        members = groups == group
        iou = temporal_iou(segments[keep][rows], segments[members], offset)
        weight = torch.where(iou >= threshold, iou * scores[members], torch.zeros_like(iou))
        total = weight.sum(1, keepdim=True)
        mean = weight @ segments[members] / torch.where(total > 0, total, torch.ones_like(total))
        voted[rows] = torch.where(total > 0, mean, voted[rows])
    return voted


def order_by_group(scores: Tensor, groups: Tensor) -> Tensor:
    """Indices by rising group, within a group by falling score, of equal scores in the order they came in."""
    order = scores.argsort(descending=True, stable=True)
    return order[groups[order].argsort(stable=True)]


def _pad_groups(scores: Tensor, groups: Tensor) -> tuple[Tensor, Tensor]:
    """(slots, filled): per group a row of segment indices by falling score, padded to the largest group."""
    order = order_by_group(scores, groups)
    _, counts = groups[order].unique_consecutive(return_counts=True)
    column = torch.arange(int(counts.max()), device=scores.device)
    filled = column < counts[:, None]
    first = counts.cumsum(0) - counts
    slots = order[(first[:, None] + column).clamp(max=order.shape[0] - 1)]
    return slots, filled


def _overlap_with(head: Tensor, segments: Tensor, offset: float) -> Tensor:
    """IoU of each group's head segment (G, 1) with all of its segments, (G, S)."""
    chosen = segments.gather(1, head[..., None].expand(-1, -1, 2))
    return temporal_iou(chosen, segments, offset).squeeze(1)


def _settle_once(
    segments: Tensor, scores: Tensor, alive: Tensor, threshold: float, method: str, sigma: float, offset: float
) -> tuple[Tensor, Tensor]:
    """hard and decay_once: a segment is kept, or settled by its first suppressor. Returns (turn, scores).

    Turns: kept ones 0, 1, ...; decayed ones follow after all kept ones, in the order of their suppressors;
    -1 for what is suppressed for good.
    """
    kept_turn = torch.full_like(alive, -1, dtype=torch.long)
    decay_turn = kept_turn.clone()
    column = torch.arange(alive.shape[1], device=alive.device)
    alive = alive.clone()
    turn = 0
    while bool(alive.any()):
        head = alive.int().argmax(1, keepdim=True)  # scores fall within a row: the first alive is the best
        at_head = alive & (column == head)
        iou = _overlap_with(head, segments, offset)
        beaten = alive & ~at_head & (iou >= threshold)
        kept_turn = kept_turn.masked_fill(at_head, turn)
        if method == "decay_once":
            scores = torch.where(beaten, scores * torch.exp(-iou.square() / sigma), scores)
            decay_turn = decay_turn.masked_fill(beaten, turn)
        alive &= ~(at_head | beaten)
        turn += 1
    return torch.where(decay_turn >= 0, decay_turn + turn, kept_turn), scores


def _decay_all(
    segments: Tensor,
    scores: Tensor,
    alive: Tensor,
    threshold: float,
    method: str,
    sigma: float,
    min_score: float,
    offset: float,
) -> tuple[Tensor, Tensor]:
    """linear and gaussian soft-NMS: every pick decays all that remain; below min_score a segment is dropped."""
    turns = torch.full_like(alive, -1, dtype=torch.long)
    column = torch.arange(alive.shape[1], device=alive.device)
    alive = alive & (scores >= min_score)
    turn = 0
    while bool(alive.any()):
        head = scores.masked_fill(~alive, -torch.inf).argmax(1, keepdim=True)
        at_head = alive & (column == head)
        turns = turns.masked_fill(at_head, turn)
        alive = alive & ~at_head
        iou = _overlap_with(head, segments, offset)
        factor = (
            torch.exp(-iou.square() / sigma) if method == "gaussian" else torch.where(iou >= threshold, 1 - iou, 1.0)
        )
        scores = torch.where(alive, scores * factor, scores)
        alive = alive & (scores >= min_score)
        turn += 1
    return turns, scores


def _top(scores: Tensor, count: int) -> Tensor:
    """Marks the ``count`` highest of each row, ties to the earlier slot."""
    order = scores.argsort(dim=1, descending=True, stable=True)
    column = torch.arange(scores.shape[1], device=scores.device).expand_as(order)
    return torch.empty_like(order).scatter_(1, order, column) < count
