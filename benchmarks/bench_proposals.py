"""Proposals of four videos at the method's size: 750 rows upsampled 24 times, 20 classes, 9 thresholds."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.nn.functional import avg_pool1d

from case import ops

VIDEOS, T, C, UPSAMPLE = 4, 750, 20, 24
THRESHOLDS = [i / 10 for i in range(1, 10)]


@pytest.mark.bench("propose")
def test_propose(measure: Callable[..., None]) -> None:
    torch.manual_seed(0)
    # Noise smoothed over some rows, so that runs have the lengths of actions.
    noise = torch.rand(VIDEOS, C, T + 8, dtype=torch.float64)
    cas = (2.5 * (avg_pool1d(noise, 9, stride=1) - 0.3)).clamp(0, 1).transpose(1, 2).contiguous()

    def run(cas: Tensor, video_scores: Tensor) -> tuple[Tensor, ...]:
        return ops.propose(cas, THRESHOLDS, upsample=UPSAMPLE, video_scores=video_scores, seconds_per_row=0.64)

    inputs = {"cas": cas, "video_scores": torch.rand(VIDEOS, C, dtype=torch.float64)}
    measure(run, inputs, moved=8 * VIDEOS * T * C, tolerance=1e-11, videos=VIDEOS, t=T, classes=C, upsample=UPSAMPLE)
