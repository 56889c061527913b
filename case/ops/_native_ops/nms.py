"""``batched_nms`` and ``score_vote`` by ``csrc/nms.h``."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from case.ops._native_ops import _common
from case.ops._native_ops._common import DTYPES, address
from case.ops.reference.nms import pad


def batched_nms(segments: Tensor, scores: Tensor, groups: Tensor, *settings: float | str) -> tuple[Tensor, Tensor]:
    segments, scores, groups = segments.contiguous(), scores.contiguous(), groups.contiguous()
    keep, kept_scores = torch.empty_like(groups), torch.empty_like(scores)
    count = _common.module().nms_cpu(
        address(segments), address(scores), address(groups), groups.shape[0], DTYPES[segments.dtype], settings,
        address(keep), address(kept_scores), torch.get_num_threads(),
    )  # fmt: skip
    # Copies, so that a few survivors do not hold the memory of all.
    return keep[:count].clone(), kept_scores[:count].clone()


def batched_nms_padded(*args: Any) -> tuple[Tensor, Tensor, Tensor]:
    *given, capacity = args
    return pad(*batched_nms(*given), capacity)


def score_vote(
    keep: Tensor, segments: Tensor, scores: Tensor, groups: Tensor, threshold: float, offset: float
) -> Tensor:
    keep, segments, scores, groups = (x.contiguous() for x in (keep, segments, scores, groups))
    out = segments.new_empty((keep.shape[0], 2))
    _common.module().score_vote_cpu(
        address(keep), keep.shape[0], address(segments), address(scores), address(groups), groups.shape[0],
        DTYPES[segments.dtype], threshold, offset, address(out), torch.get_num_threads(),
    )  # fmt: skip
    return out
