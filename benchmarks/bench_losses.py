"""The cross entropies, and the whole clustering chain, at the sizes of one training step."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, normalize

from benchmarks import peers
from benchmarks.work import Inputs, Work, bench
from case import ops

B, T, K, H, M = 16, 750, 16, 512, 2
N = B * T
ROWS = 4_560  # distinct rows among N samples: 38 % on THUMOS14


@bench("soft_cross_entropy", peers=("eager torch", "torch F.cross_entropy"), scales=(1, 10, 100), backward=True)
def test_soft_cross_entropy(scale: int) -> Work:
    n = scale * N
    torch.manual_seed(0)

    def eager(logits: Tensor, targets: Tensor) -> Tensor:
        return -(targets * logits.log_softmax(-1)).sum(-1).mean()

    def by_torch(logits: Tensor, targets: Tensor) -> Tensor:
        return cross_entropy(logits.flatten(0, 1), targets.flatten(0, 1))

    return Work(
        lambda logits, targets: ops.soft_cross_entropy(logits, targets),
        {"logits": torch.randn(M, n, K), "targets": torch.rand(M, n, K).softmax(-1)},
        moved=4 * M * 2 * n * K,
        sizes={"modalities": M, "n": n, "k": K},
        leaves=("logits",),
        peers={"eager torch": eager, "torch F.cross_entropy": by_torch},
    )


@bench("generalized_cross_entropy", peers=("eager torch",), scales=(1, 10, 100), backward=True)
def test_generalized_cross_entropy(scale: int) -> Work:
    b = scale * B
    torch.manual_seed(0)

    def eager(p: Tensor, target: Tensor) -> Tensor:
        loss = (1 - (p + 1e-7) ** 0.7) / 0.7
        return ((target * loss).sum(-1) / (target.sum(-1) + 1e-7)).mean()

    return Work(
        lambda p, target: ops.generalized_cross_entropy(p, target, q=0.7),
        {"p": torch.rand(b, T), "target": (torch.rand(b, T) < 0.4).float()},
        moved=4 * 2 * b * T,
        sizes={"b": b, "t": T},
        leaves=("p",),
        peers={"eager torch": eager},
    )


def chain_inputs(rows: int, n: int, k: int, h: int) -> Inputs:
    """Of ``ops.clustering_losses``: rows in clusters, half of which are foreground.

    Without any, prototypes of so many rows point almost the same way, and their cosine has no digits in float32.
    """
    centers, cluster = torch.randn(M, k, h), torch.randint(0, k, (rows,))
    embeddings = (centers[:, cluster] + torch.randn(M, rows, h)).relu()
    index, first = torch.randint(0, rows, (n,)), torch.rand(k, 1)
    return {
        "logits": 10 * normalize(embeddings, dim=-1) @ normalize(centers.relu(), dim=-1).mT,
        "embeddings": embeddings,
        "attention": torch.linspace(0, 1, rows)[torch.randperm(rows)],
        "foreground": ((cluster[index] < k // 2) ^ (torch.rand(n) < 0.2)).float(),
        "cluster_labels": torch.cat([first, 1 - first], dim=1),
        "index": index,
    }


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


def chain_as_wtal_code_does(
    logits: Tensor, embeddings: Tensor, attention: Tensor, foreground: Tensor, cluster_labels: Tensor, index: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """The same in plain torch, Sinkhorn in the linear domain."""
    s, e = logits[:, index], embeddings[:, index]
    g = torch.stack([foreground, 1 - foreground], dim=1)
    with torch.no_grad():
        # Stable, so that repeats of a row have the ranks that the op gives them.
        ranks = attention[index].argsort(descending=True, stable=True).argsort()
        gap = ((ranks + 1) / len(index)).unsqueeze(1) - (1 - cluster_labels[:, 0])
        q = peers.eager_sinkhorn(s.mean(0), torch.exp(-gap.square() / (2 * 0.3**2)))
    u = 10.0 * normalize(q.T @ e, dim=-1) @ normalize(g.T @ e, dim=-1).mT
    with torch.no_grad():
        labels = torch.exp(2.0 * u.mean(0))
        for _ in range(3):
            labels = labels * (g.mean(0) / labels.sum(0))
            labels = labels / labels.sum(1, keepdim=True) / K
        labels = labels * K
    scc = -(q * s.log_softmax(-1)).sum(-1).mean(1).sum()
    return scc, -(labels * u.log_softmax(-1)).sum(-1).mean(1).sum(), labels


@bench(
    "clustering_losses",
    peers=("eager torch", "separate ops"),
    scales=(1, 10),
    backward=True,
    left_out="plain torch gathers 4.9 GB of embeddings, with as much again for gradients",
)
def test_clustering_losses(scale: int) -> Work:
    n, rows = scale * N, scale * ROWS
    torch.manual_seed(0)
    return Work(
        lambda **given: ops.clustering_losses(**given, sigma=0.3),
        chain_inputs(rows, n, K, H),
        moved=4 * M * rows * (K + H) + 8 * n,
        operations=2 * M * rows * H * (K + 2),
        sizes={"modalities": M, "rows": rows, "n": n, "k": K, "h": H},
        leaves=("logits", "embeddings"),
        peers={"eager torch": chain_as_wtal_code_does, "separate ops": chain_by_separate_ops},
        tolerance=5e-5,
    )
