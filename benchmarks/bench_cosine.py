"""Cluster logits of both modalities: every embedding of a batch against every cluster prototype."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from case import ops

M, N, K, H = 2, 12_000, 16, 512
SIZES = {"modalities": M, "n": N, "k": K, "h": H}
MOVED = 4 * M * (N * H + K * H + N * K)


def inputs() -> dict[str, Tensor]:
    torch.manual_seed(0)
    return {"x": torch.randn(M, N, H), "y": torch.randn(M, K, H)}


@pytest.mark.bench("cosine_logits", backward=True)
def test_cosine_logits(measure: Callable[..., None]) -> None:
    measure(lambda x, y: ops.cosine_logits(x, y, scale=10.0), inputs(), leaves=("x", "y"), moved=MOVED, **SIZES)


@pytest.mark.bench("cosine_softmax", backward=True)
def test_cosine_softmax(measure: Callable[..., None]) -> None:
    measure(lambda x, y: ops.cosine_softmax(x, y, scale=10.0), inputs(), leaves=("x", "y"), moved=MOVED, **SIZES)
