"""Sinkhorn at the method's size, 16 videos of 750 snippets and 16 clusters, ten and a hundred times that, and wide."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import normalize

from benchmarks import peers
from benchmarks.work import Work, bench
from case import ops

N, K = 12_000, 16
PEERS = {
    "eager torch": peers.eager_sinkhorn,
    "POT sinkhorn_log": peers.pot_sinkhorn_log,
    "POT ot.batch": peers.pot_batch,
}


def with_prior(n: int, k: int) -> Work:
    torch.manual_seed(0)
    return Work(
        lambda logits, prior: ops.sinkhorn(logits, prior=prior, scale=peers.SCALE),
        {"logits": torch.randn(n, k), "prior": torch.rand(n, k) + 0.1},
        moved=4 * 3 * n * k,
        sizes={"n": n, "k": k},
        leaves=("logits",),
        peers=PEERS,
        oracle=peers.streamed_sinkhorn if n > N else None,
    )


@bench("sinkhorn", peers=tuple(PEERS), scales=(1, 10, 100), dtypes=("float32", "bfloat16"), backward=True)
def test_sinkhorn_with_prior(scale: int) -> Work:
    return with_prior(scale * N, K)


@bench("sinkhorn", peers=tuple(PEERS), scales=(1, 10, 100))
def test_sinkhorn(scale: int) -> Work:
    """Without a prior the packages take the cost as it is: nothing has to be folded into it."""
    n = scale * N
    torch.manual_seed(0)
    return Work(
        lambda logits: ops.sinkhorn(logits, scale=peers.SCALE),
        {"logits": torch.randn(n, K)},
        moved=4 * 2 * n * K,
        sizes={"n": n, "k": K},
        peers=PEERS,
        oracle=peers.streamed_sinkhorn if n > N else None,
    )


@bench("sinkhorn", peers=tuple(PEERS), scales=(10, 100), quick=())
def test_sinkhorn_of_wide_rows(scale: int) -> Work:
    return with_prior(10_000 * scale, 128)


@bench(
    "sinkhorn",
    peers=("POT sinkhorn_log", "geomloss ot.solve"),
    left_out="the float64 reference makes a hundred iterations",
)
def test_sinkhorn_to_convergence(scale: int) -> Work:
    """All within 2e-3 of the converged plan's largest entry, each by the fewest iterations seen to give it here."""
    n = scale * N
    torch.manual_seed(0)
    return Work(
        lambda logits: ops.sinkhorn(logits, scale=peers.SCALE, n_iters=100 if logits.dtype == torch.float64 else 4),
        {"logits": torch.randn(n, K)},
        moved=4 * 2 * n * K,
        sizes={"n": n, "k": K},
        peers={
            "POT sinkhorn_log": lambda logits: peers.pot_converged(logits, 4),
            "geomloss ot.solve": lambda logits: peers.geomloss_solve(logits, 80),
        },
        tolerance=2e-3,
    )


@bench(
    "sinkhorn",
    peers=("eager torch", "flash-sinkhorn"),
    scales=(1, 10),
    left_out="the features are 2.5 GB, and twice that in float64 for the proof",
)
def test_sinkhorn_of_features(scale: int) -> Work:
    """From unit vectors of 512 numbers to the plan; the tolerance is that of flash-sinkhorn's TF32, its default."""
    n = scale * N
    torch.manual_seed(0)
    return Work(
        lambda embeddings, prototypes: ops.sinkhorn(10.0 * embeddings @ prototypes.T, scale=peers.SCALE),
        {"embeddings": normalize(torch.randn(n, 512), dim=-1), "prototypes": normalize(torch.randn(K, 512), dim=-1)},
        moved=4 * (n * 512 + K * 512 + n * K),
        sizes={"n": n, "d": 512, "k": K},
        operations=2 * n * 512 * K,
        peers={
            "eager torch": peers.eager_sinkhorn_of_features,
            "flash-sinkhorn": peers.flash_sinkhorn_of_features,
        },
        tolerance=2e-2,
    )


@bench("sinkhorn_potentials", scales=(1, 10, 100), backward=True)
def test_sinkhorn_potentials(scale: int) -> Work:
    """The plan as two vectors, with the rank prior: no peer holds it so."""
    n = scale * N
    torch.manual_seed(0)

    def run(logits: Tensor, scores: Tensor, centers: Tensor) -> tuple[Tensor, Tensor]:
        return ops.sinkhorn_potentials(logits, prior=ops.RankPrior(scores, centers, 0.3), scale=peers.SCALE)

    scores = torch.linspace(0, 1, n)[torch.randperm(n)]
    return Work(
        run,
        {"logits": torch.randn(n, K), "scores": scores, "centers": torch.linspace(0, 1, K)},
        moved=4 * (n * K + 2 * n + 2 * K),
        sizes={"n": n, "k": K},
        leaves=("logits",),
    )


@bench("rank_prior", peers=("eager torch",), scales=(1, 10, 100))
def test_rank_prior(scale: int) -> Work:
    n = scale * N
    torch.manual_seed(0)

    return Work(
        lambda scores, centers: ops.rank_prior(scores, centers, 0.3),
        {"scores": torch.linspace(0, 1, n)[torch.randperm(n)], "centers": torch.rand(K)},
        moved=4 * (n + K + n * K),
        sizes={"n": n, "k": K},
        peers={"eager torch": peers.eager_rank_prior},
    )
