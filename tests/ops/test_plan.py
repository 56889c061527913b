"""Potentials, the plan they stand for, and the rank prior, written out or not."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from case import ops

RANKS = ["true", "argsort"]


def loop_rank_prior(
    scores: NDArray[np.float64], centers: NDArray[np.float64], sigma: float, ranks: str
) -> NDArray[np.float64]:
    """One problem by definition: p_n = (rank_n + 1) / N, rank 0 the highest, ties in order of appearance."""
    n = len(scores)
    order = sorted(range(n), key=lambda i: -scores[i])
    rank = {row: place for place, row in enumerate(order)} if ranks == "true" else dict(enumerate(order))
    prior = np.array([[math.exp(-(((rank[i] + 1) / n - c) ** 2) / (2 * sigma**2)) for c in centers] for i in range(n)])
    return prior.reshape(n, len(centers)) / (prior.sum() if prior.size else 1.0)


@pytest.mark.op("rank_prior")
@pytest.mark.parametrize("ranks", RANKS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("n", [0, 1, 2, 97])
def test_rank_prior(draw, close, device, n, dtype, ranks):
    scores, centers = draw.distinct(2, n).to(dtype), draw.uniform(2, 5).to(dtype)
    if n > 2:
        scores[:, n // 2] = scores[:, 0]  # a tie
    found = ops.rank_prior(scores.to(device), centers.to(device), 0.2, ranks=ranks)
    assert found.dtype == dtype
    for problem in range(2):
        s, c = scores[problem].double().numpy(), centers[problem].double().numpy()
        close(found[problem], loop_rank_prior(s, c, 0.2, ranks))


@pytest.mark.op("rank_prior")
def test_true_ranks_and_argsort_differ(draw, device):
    scores, centers = draw.distinct(30).to(device), draw.uniform(4).to(device)
    differences = ops.rank_prior(scores, centers, 0.2) - ops.rank_prior(scores, centers, 0.2, ranks="argsort")
    assert differences.abs().max() > 1e-4


@pytest.mark.op("sinkhorn", "sinkhorn_potentials")
@pytest.mark.parametrize("ranks", RANKS)
def test_rank_prior_need_not_be_written_out(draw, close, device, ranks):
    logits, scores, centers = (
        draw.normal(2, 23, 5).to(device),
        draw.distinct(2, 23).to(device),
        draw.uniform(2, 5).to(device),
    )
    scores[:, 7] = scores[:, 3]
    matrix = ops.rank_prior(scores, centers, 0.15, ranks=ranks)
    implicit = ops.RankPrior(scores, centers, 0.15, ranks)
    expected = ops.sinkhorn(logits, prior=matrix, scale=2.0)
    close(ops.sinkhorn(logits, prior=implicit, scale=2.0), expected)
    assert (expected - ops.sinkhorn(logits, scale=2.0)).abs().max() > 1e-3
    for prior in (matrix, implicit):
        u, v = ops.sinkhorn_potentials(logits, prior=prior, scale=2.0)
        close(ops.Plan(logits, u, v, 2.0, prior).dense(), expected)


@pytest.mark.op("sinkhorn")
def test_rank_prior_ranks_only_rows_that_take_part(draw, close, device):
    logits, scores, centers = draw.normal(23, 5).to(device), draw.distinct(23).to(device), draw.uniform(5).to(device)
    mask = draw.keep(0.6, 23).to(device)
    q = ops.sinkhorn(logits, prior=ops.RankPrior(scores, centers, 0.15), mask=mask)
    alone = ops.sinkhorn(logits[mask], prior=ops.RankPrior(scores[mask], centers, 0.15))
    close(q[mask], alone)
    assert (q[~mask] == 0).all()


@pytest.mark.op("sinkhorn", "sinkhorn_potentials")
def test_a_plan_is_the_sinkhorn_matrix(draw, close, device):
    logits, prior = draw.normal(2, 19, 4).to(device), draw.uniform(2, 19, 4, low=0.1).to(device)
    mask = draw.keep(0.7, 2, 19, 4).to(device)
    mask[0, 3] = False
    options = {"prior": prior, "scale": 1.7, "mask": mask}
    marginals = {
        "row_marginal": draw.uniform(19, low=0.1).to(device),
        "col_marginal": draw.uniform(4, low=0.1).to(device),
    }
    u, v = ops.sinkhorn_potentials(logits, **options, **marginals, n_iters=4)
    assert u.shape == (2, 19)
    assert v.shape == (2, 4)
    close(ops.Plan(logits, u, v, **options).dense(), ops.sinkhorn(logits, **options, **marginals, n_iters=4))


@pytest.mark.op("sinkhorn_potentials")
def test_rows_and_columns_without_mass_have_potential_zero(draw, device):
    mask = torch.ones(6, 4, dtype=torch.bool, device=device)
    mask[2] = False
    mask[:, 1] = False
    u, v = ops.sinkhorn_potentials(draw.normal(6, 4).to(device), mask=mask)
    assert u[2] == 0
    assert v[1] == 0
    assert (u != 0).sum() == 5
    assert (v != 0).sum() == 3


@pytest.mark.op("sinkhorn", "sinkhorn_potentials", "prototypes", "soft_cross_entropy")
def test_consumers_take_potentials_for_a_plan(draw, close, device):
    logits, embeddings = draw.normal(2, 19, 4).to(device), draw.normal(2, 19, 6).to(device)
    prior = ops.RankPrior(draw.distinct(2, 19).to(device), draw.uniform(2, 4).to(device), 0.3)
    for given in ({}, {"prior": prior, "scale": 2.0, "mask": draw.keep(0.7, 2, 19).to(device)}):
        u, v = ops.sinkhorn_potentials(logits, **given)
        forms = [ops.Plan(logits, u, v, **given)] + ([] if given else [(logits, u, v)])
        q = ops.sinkhorn(logits, **given)
        for form in forms:
            close(ops.prototypes(embeddings, form), ops.prototypes(embeddings, q))
            close(ops.soft_cross_entropy(logits + 1, form), ops.soft_cross_entropy(logits + 1, q))
    with pytest.raises(TypeError, match=r"^prototypes: weights .*got list"):
        ops.prototypes(embeddings, [logits, u, v])
    with pytest.raises(TypeError, match=r"^soft_cross_entropy: targets .*got tuple"):
        ops.soft_cross_entropy(logits, (logits, u))


@pytest.mark.op("sinkhorn", "sinkhorn_potentials", "rank_prior", "prototypes")
def test_gradients(draw, check_gradients, device):
    logits, embeddings = draw.normal(6, 3), draw.normal(6, 2)
    scores, centers = draw.distinct(6), draw.uniform(3)
    prior = lambda c: ops.RankPrior(scores.to(c.device, c.dtype), c, 0.3)  # noqa: E731
    check_gradients(lambda c: ops.rank_prior(scores.to(c.device, c.dtype), c, 0.3), centers)
    check_gradients(lambda x, c: ops.sinkhorn(x, prior=prior(c), n_iters=2), logits, centers)
    check_gradients(lambda x, c: ops.sinkhorn_potentials(x, prior=prior(c), scale=2.0), logits, centers)

    def through_a_plan(x: Tensor, e: Tensor) -> Tensor:
        return ops.prototypes(e, ops.Plan(x, *ops.sinkhorn_potentials(x, scale=2.0, n_iters=2), 2.0))

    check_gradients(through_a_plan, logits, embeddings)


@pytest.mark.op("sinkhorn", "sinkhorn_potentials", "rank_prior", "prototypes")
def test_compiles(draw, check_compiles, device):
    logits, scores = draw.normal(7, 3).float().to(device).requires_grad_(), draw.distinct(7).float().to(device)
    centers, embeddings = draw.uniform(3).float().to(device).requires_grad_(), draw.normal(7, 2).float().to(device)
    check_compiles(lambda c: ops.rank_prior(scores, c, 0.3), centers)

    def chain(x: Tensor, c: Tensor) -> Tensor:
        prior = ops.RankPrior(scores, c, 0.3)
        u, v = ops.sinkhorn_potentials(x, prior=prior, scale=2.0)
        return ops.prototypes(embeddings, ops.Plan(x, u, v, 2.0, prior))

    check_compiles(chain, logits, centers)
