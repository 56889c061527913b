"""Cluster prototypes of both modalities, as weighted sums of all embeddings of a batch."""

from __future__ import annotations

import torch

from benchmarks import peers
from benchmarks.work import Work, bench
from case import ops

M, N, K, H = 2, 12_000, 16, 512


def work(scale: int, hard: bool) -> Work:
    n = scale * N
    torch.manual_seed(0)
    weights = peers.hard_weights(M, n, K) if hard else torch.rand(M, n, K)
    return Work(
        lambda embeddings, weights: ops.prototypes(embeddings, weights, normalize="l2"),
        {"embeddings": torch.rand(M, n, H), "weights": weights},
        moved=4 * M * (n * H + n * K + K * H),
        operations=2 * M * n * K * H,
        sizes={"modalities": M, "n": n, "k": K, "h": H},
        leaves=("embeddings", "weights"),
        peers={"torch.matmul": peers.matmul_prototypes, "flash-kmeans": peers.flash_kmeans_prototypes},
        # Sums over many rows in float32; the gradient of a normalised sum is a difference of large numbers.
        tolerance=1e-4,
    )


@bench("prototypes", peers=("torch.matmul",), scales=(1, 10), dtypes=("float32", "bfloat16"), backward=True)
def test_prototypes(scale: int) -> Work:
    return work(scale, hard=False)


@bench("prototypes", peers=("torch.matmul", "flash-kmeans"), scales=(1, 10))
def test_prototypes_of_hard_assignments(scale: int) -> Work:
    return work(scale, hard=True)
