"""The cross entropies, and the whole clustering chain, at the sizes of one training step."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from case import ops

B, T, K, H, M = 16, 750, 16, 512, 2
N = B * T
ROWS = 4_560  # distinct rows among N samples: 38 % on THUMOS14


@pytest.mark.bench("soft_cross_entropy", backward=True)
def test_soft_cross_entropy(measure: Callable[..., None]) -> None:
    torch.manual_seed(0)
    inputs = {"logits": torch.randn(M, N, K), "targets": torch.rand(M, N, K).softmax(-1)}
    measure(ops.soft_cross_entropy, inputs, leaves=("logits",), moved=4 * M * 2 * N * K, modalities=M, n=N, k=K)


@pytest.mark.bench("generalized_cross_entropy", backward=True)
def test_generalized_cross_entropy(measure: Callable[..., None]) -> None:
    torch.manual_seed(0)
    inputs = {"p": torch.rand(B, T), "target": (torch.rand(B, T) < 0.4).float()}
    measure(
        lambda p, target: ops.generalized_cross_entropy(p, target, q=0.7),
        inputs,
        leaves=("p",),
        moved=4 * 2 * B * T,
        b=B,
        t=T,
    )


def chain_by_separate_ops(
    logits: Tensor, embeddings: Tensor, attention: Tensor, foreground: Tensor, cluster_labels: Tensor, index: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """The chain as one writes it with nothing fused: all embeddings gathered, every matrix written."""
    s, e = logits[:, index], embeddings[:, index]
    g = torch.stack([foreground, 1 - foreground], dim=1)
    with torch.no_grad():
        prior = ops.rank_prior(attention[index], 1 - cluster_labels[:, 0], 0.3)
        q = ops.sinkhorn(s.mean(0), prior=prior, scale=2.0).expand(M, -1, -1)
    z = ops.prototypes(e, q, normalize="l2")
    f = ops.prototypes(e, g.expand(M, -1, -1), normalize="l2")
    u = ops.cosine_logits(z, f, scale=10.0)
    with torch.no_grad():
        labels = ops.sinkhorn(u.mean(0), col_marginal=g.mean(0), scale=2.0)
    return M * ops.soft_cross_entropy(s, q), M * ops.soft_cross_entropy(u, labels.expand(M, -1, -1)), labels


@pytest.mark.bench("clustering_losses", backward=True, peers=("separate ops",))
def test_clustering_losses(measure: Callable[..., None]) -> None:
    torch.manual_seed(0)
    foreground, first = (torch.rand(N) < 0.4).float(), torch.rand(K, 1)
    inputs = {
        "logits": torch.randn(M, ROWS, K),
        "embeddings": torch.rand(M, ROWS, H),
        "attention": torch.linspace(0, 1, ROWS)[torch.randperm(ROWS)],
        "foreground": foreground,
        "cluster_labels": torch.cat([first, 1 - first], dim=1),
        "index": torch.randint(0, ROWS, (N,)),
    }
    measure(
        lambda **given: ops.clustering_losses(**given, sigma=0.3),
        inputs,
        leaves=("logits", "embeddings"),
        peers={"separate ops": chain_by_separate_ops},
        moved=4 * M * ROWS * (K + H) + 8 * N,
        tolerance=2e-3,  # prototypes of 12,000 rows point almost the same way: their cosine in float32
        modalities=M,
        rows=ROWS,
        n=N,
        k=K,
        h=H,
    )
