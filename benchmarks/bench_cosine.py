"""Cluster logits of both modalities: every embedding of a batch against every cluster prototype."""

from __future__ import annotations

import torch

from benchmarks import peers
from benchmarks.work import Work, bench
from case import ops

M, N, K, H = 2, 12_000, 16, 512


def work(scale: int, softmax: bool) -> Work:
    n = scale * N
    torch.manual_seed(0)
    op = ops.cosine_softmax if softmax else ops.cosine_logits
    return Work(
        lambda x, y: op(x, y, scale=10.0),
        {"x": torch.randn(M, n, H), "y": torch.randn(M, K, H)},
        moved=4 * M * (n * H + K * H + n * K),
        operations=2 * M * n * K * H,
        sizes={"modalities": M, "n": n, "k": K, "h": H},
        leaves=("x", "y"),
        peers={
            "eager torch": lambda x, y: peers.eager_cosine(x, y).softmax(-1) if softmax else peers.eager_cosine(x, y)
        },
    )


@bench(
    "cosine_logits",
    peers=("eager torch",),
    scales=(1, 10),
    dtypes=("float32", "bfloat16"),
    backward=True,
    left_out="the embeddings are 4.9 GB, and twice that in float64 for the proof",
)
def test_cosine_logits(scale: int) -> Work:
    return work(scale, softmax=False)


@bench(
    "cosine_softmax",
    peers=("eager torch",),
    dtypes=("float32", "bfloat16"),
    backward=True,
    left_out="cosine_logits has it: what a softmax over 16 clusters adds is small beside the products",
)
def test_cosine_softmax(scale: int) -> Work:
    return work(scale, softmax=True)
