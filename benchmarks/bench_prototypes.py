"""Cluster prototypes of both modalities, as weighted sums of all embeddings of a batch."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import one_hot

from benchmarks import peers
from benchmarks.work import Work, bench
from case import ops

M, N, K, H = 2, 12_000, 16, 512
LARGE = "the embeddings are 4.9 GB, and twice that in float64 for the proof; scaling goes to 32 times"


def work(scale: int, hard: bool) -> Work:
    n = scale * N
    torch.manual_seed(0)
    cluster = torch.randint(0, K, (M, n))
    weights = one_hot(cluster, K).float() if hard else torch.rand(M, n, K)

    def of_clusters(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
        return lambda embeddings, weights, cluster: function(embeddings, cluster, K)

    return Work(
        lambda embeddings, weights, cluster=None: ops.prototypes(embeddings, weights, normalize="l2"),
        # Hard assignments as each contender takes them, numbers or a matrix, made beforehand.
        {"embeddings": torch.rand(M, n, H), "weights": weights} | ({"cluster": cluster} if hard else {}),
        moved=4 * M * (n * H + n * K + K * H),
        operations=2 * M * n * K * H,
        sizes={"modalities": M, "n": n, "k": K, "h": H},
        leaves=("embeddings", "weights"),
        peers={
            "torch.matmul": lambda embeddings, weights, cluster=None: peers.matmul_prototypes(embeddings, weights),
            "torch.index_add": of_clusters(peers.index_add_prototypes),
            "flash-kmeans": of_clusters(peers.flash_kmeans_prototypes),
        },
        # Sums over many rows in float32; the gradient of a normalised sum is a difference of large numbers.
        tolerance=1e-4,
    )


@bench(
    "prototypes", peers=("torch.matmul",), scales=(1, 10), dtypes=("float32", "bfloat16"), backward=True, left_out=LARGE
)
def test_prototypes(scale: int) -> Work:
    return work(scale, hard=False)


@bench("prototypes", peers=("torch.matmul", "torch.index_add", "flash-kmeans"), scales=(1, 10), left_out=LARGE)
def test_prototypes_of_hard_assignments(scale: int) -> Work:
    return work(scale, hard=True)
