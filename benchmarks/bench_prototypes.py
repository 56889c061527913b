"""Cluster prototypes of both modalities, as weighted sums of all embeddings of a batch."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from case import ops

M, N, K, H = 2, 12_000, 16, 512


@pytest.mark.bench("prototypes", backward=True)
def test_prototypes(measure: Callable[..., None]) -> None:
    torch.manual_seed(0)
    inputs = {"embeddings": torch.rand(M, N, H), "weights": torch.rand(M, N, K)}
    measure(
        lambda embeddings, weights: ops.prototypes(embeddings, weights, normalize="l2"),
        inputs,
        leaves=("embeddings", "weights"),
        moved=4 * M * (N * H + N * K + K * H),
        # Sums over 12,000 rows in float32; the gradient of a normalised sum is a difference of large numbers.
        tolerance=1e-4,
        modalities=M,
        n=N,
        k=K,
        h=H,
    )
