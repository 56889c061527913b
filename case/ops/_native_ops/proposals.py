"""``propose`` by ``csrc/proposals.cpp``."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from case.ops._native_ops import _common
from case.ops._native_ops._common import DTYPES, address

Columns = tuple[Tensor, Tensor, Tensor, Tensor, Tensor]


class _Problem:
    """The registered op's arguments as ``case._C`` takes them; keeps alive what it points to."""

    def __init__(self, args: tuple[Any, ...]) -> None:
        cas, thresholds, upsample, outer_ratio, score_weight, video_scores, class_mask, seconds, keep_first = args
        # Half precision is widened first: exact, and half the reads at most. Strides are taken as they are.
        cas = cas.detach() if cas.dtype in DTYPES else cas.detach().float()
        numbers = [x.detach().double().contiguous() for x in (thresholds, video_scores, seconds)]
        mask = class_mask.contiguous()
        self.tensors = (cas, *numbers, mask)
        self.device = cas.device
        thresholds, video_scores, seconds = numbers
        self.description = (
            DTYPES[cas.dtype],
            (*cas.shape, thresholds.shape[0]),
            address(cas),
            cas.stride(),
            address(thresholds),
            address(video_scores),
            address(mask),
            address(seconds),
            (upsample, outer_ratio, score_weight, keep_first),
        )

    def columns(self, count: int) -> Columns:
        """Empty segments, scores, classes, video and threshold of ``count`` proposals."""
        shapes = ((count, 2), (count,), (count,), (count,), (count,))
        dtypes = (torch.float64,) * 2 + (torch.int64,) * 3
        a, b, c, d, e = (torch.empty(s, dtype=t, device=self.device) for s, t in zip(shapes, dtypes))
        return a, b, c, d, e


def propose(*args: Any) -> Columns:
    problem = _Problem(args)
    threads = torch.get_num_threads()
    found = _common.module().proposals_cpu(problem.description, threads)
    columns = problem.columns(len(found))
    found.copy(tuple(address(x) for x in columns), len(found), threads)
    return columns
