"""Sinkhorn at the method's size, 16 videos of 750 snippets and 16 clusters, and at a million rows."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from case import ops

N, K = 12_000, 16
SIZES = {"n": N, "k": K}
MANY = 1_000_000


def as_wtal_code_does(logits: Tensor, prior: Tensor) -> Tensor:
    """The usual assignment step, in the linear domain: totals, columns, rows, one full pass each."""
    n, k = logits.shape
    q = torch.exp(2.0 * logits) * prior
    q = q / q.sum()
    for _ in range(3):
        q = q / q.sum(dim=0, keepdim=True)
        q = q / k
        q = q / q.sum(dim=1, keepdim=True)
        q = q / n
    return q * n


def matrices(n: int = N, k: int = K) -> dict[str, Tensor]:
    torch.manual_seed(0)
    return {"logits": torch.randn(n, k), "prior": torch.rand(n, k) + 0.1}


def measure_plan(measure: Callable[..., None], n: int, k: int) -> None:
    measure(
        lambda logits, prior: ops.sinkhorn(logits, prior=prior, scale=2.0),
        matrices(n, k),
        leaves=("logits",),
        peers={"eager torch": as_wtal_code_does},
        moved=4 * 3 * n * k,
        n=n,
        k=k,
    )


@pytest.mark.bench("sinkhorn", backward=True, peers=("eager torch",))
def test_sinkhorn(measure: Callable[..., None]) -> None:
    measure_plan(measure, N, K)


# Each size is a function of its own: its name is that of its float64 result, which is computed once.
@pytest.mark.slow
@pytest.mark.bench("sinkhorn", peers=("eager torch",))
def test_sinkhorn_of_a_million_rows(measure: Callable[..., None]) -> None:
    measure_plan(measure, MANY, K)


@pytest.mark.slow
@pytest.mark.bench("sinkhorn", peers=("eager torch",))
def test_sinkhorn_of_a_million_wide_rows(measure: Callable[..., None]) -> None:
    measure_plan(measure, MANY, 128)


@pytest.mark.bench("sinkhorn_potentials", backward=True)
def test_sinkhorn_potentials(measure: Callable[..., None]) -> None:
    scores, centers = torch.linspace(0, 1, N), torch.linspace(0, 1, K)

    def run(logits: Tensor, scores: Tensor, centers: Tensor) -> tuple[Tensor, Tensor]:
        return ops.sinkhorn_potentials(logits, prior=ops.RankPrior(scores, centers, 0.3), scale=2.0)

    inputs = {"logits": matrices()["logits"], "scores": scores[torch.randperm(N)], "centers": centers}
    measure(run, inputs, leaves=("logits",), moved=4 * (N * K + 2 * N + 2 * K), **SIZES)


@pytest.mark.bench("rank_prior")
def test_rank_prior(measure: Callable[..., None]) -> None:
    torch.manual_seed(0)
    inputs = {"scores": torch.linspace(0, 1, N)[torch.randperm(N)], "centers": torch.rand(K)}
    measure(lambda scores, centers: ops.rank_prior(scores, centers, 0.3), inputs, moved=4 * (N + K + N * K), **SIZES)
