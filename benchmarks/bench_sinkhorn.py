"""Sinkhorn at the method's size: 16 videos of 750 snippets, 16 clusters."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from case import ops

N, K = 12_000, 16
SIZES = {"n": N, "k": K}


def as_wtal_code_does(logits: Tensor, prior: Tensor) -> Tensor:
    """The usual assignment step, in the linear domain: totals, columns, rows, one full pass each."""
    q = torch.exp(2.0 * logits) * prior
    q = q / q.sum()
    for _ in range(3):
        q = q / q.sum(dim=0, keepdim=True)
        q = q / K
        q = q / q.sum(dim=1, keepdim=True)
        q = q / N
    return q * N


def matrices() -> dict[str, Tensor]:
    torch.manual_seed(0)
    return {"logits": torch.randn(N, K), "prior": torch.rand(N, K) + 0.1}


@pytest.mark.bench("sinkhorn", backward=True, peers=("eager torch",))
def test_sinkhorn(measure: Callable[..., None]) -> None:
    measure(
        lambda logits, prior: ops.sinkhorn(logits, prior=prior, scale=2.0),
        matrices(),
        leaves=("logits",),
        peers={"eager torch": as_wtal_code_does},
        moved=4 * 3 * N * K,
        **SIZES,
    )


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
