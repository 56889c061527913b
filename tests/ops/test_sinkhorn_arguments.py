"""What ``sinkhorn``, ``sinkhorn_potentials`` and ``rank_prior`` refuse, and how they say it."""

from __future__ import annotations

import pytest
import torch

from case import ops

X = torch.zeros(4, 3)
S = torch.zeros(4)
C = torch.zeros(3)

WRONG = [
    ({"logits": [[0.0]]}, TypeError, "logits", "list"),
    ({"logits": X.long()}, TypeError, "logits", "torch.int64"),
    ({"logits": torch.zeros(4)}, ValueError, "logits", "(4,)"),
    ({"logits": torch.zeros(4, 0)}, ValueError, "logits", "(4, 0)"),
    ({"prior": torch.ones(5, 3)}, ValueError, "prior", "(5, 3)"),
    ({"prior": X.bool()}, TypeError, "prior", "torch.bool"),
    ({"prior": 0.5}, TypeError, "prior", "float"),
    ({"prior": torch.ones(4, 3, device="meta")}, ValueError, "prior", "meta"),
    ({"prior": ops.RankPrior(torch.zeros(5), C, 0.1)}, ValueError, "prior.scores", "(5,)"),
    ({"prior": ops.RankPrior(S, torch.zeros(2), 0.1)}, ValueError, "prior.centers", "(2,)"),
    ({"prior": ops.RankPrior(S, C, 0.0)}, ValueError, "prior.sigma", "0.0"),
    ({"prior": ops.RankPrior(S, C, 0.1, "best")}, ValueError, "prior.ranks", "'best'"),
    ({"row_marginal": torch.ones(3)}, ValueError, "row_marginal", "(3,)"),
    ({"col_marginal": torch.ones(4)}, ValueError, "col_marginal", "(4,)"),
    ({"col_marginal": torch.ones(3, dtype=torch.int32)}, TypeError, "col_marginal", "torch.int32"),
    ({"mask": torch.ones(4)}, TypeError, "mask", "torch.float32"),
    ({"mask": torch.ones(2, dtype=torch.bool)}, ValueError, "mask", "(2,)"),
    ({"mask": [True] * 4}, TypeError, "mask", "list"),
    ({"scale": float("nan")}, ValueError, "scale", "nan"),
    ({"n_iters": 0}, ValueError, "n_iters", "0"),
    ({"n_iters": 2.5}, ValueError, "n_iters", "2.5"),
    ({"tol": 0.0}, ValueError, "tol", "0.0"),
    ({"tol": -1e-3}, ValueError, "tol", "-0.001"),
]


@pytest.mark.parametrize("op", ["sinkhorn", "sinkhorn_potentials"])
@pytest.mark.parametrize("given, kind, argument, got", WRONG, ids=[f"{a}-{g}" for _, _, a, g in WRONG])
def test_sinkhorn_refuses(fails, op, given, kind, argument, got):
    with fails(kind, op, argument, got):
        getattr(ops, op)(**{"logits": X, **given})


WRONG_RANK = [
    ((S.int(), C, 0.1, "true"), TypeError, "scores", "torch.int32"),
    ((S, None, 0.1, "true"), TypeError, "centers", "NoneType"),
    ((torch.zeros(2, 4), C, 0.1, "true"), ValueError, "centers", "(3,)"),
    ((S, C.to("meta"), 0.1, "true"), ValueError, "centers", "meta"),
    ((S, C, -2.0, "true"), ValueError, "sigma", "-2.0"),
    ((S, C, float("inf"), "true"), ValueError, "sigma", "inf"),
    ((S, C, 0.1, "sorted"), ValueError, "ranks", "'sorted'"),
]


@pytest.mark.parametrize("arguments, kind, argument, got", WRONG_RANK, ids=[f"{a}-{g}" for _, _, a, g in WRONG_RANK])
def test_rank_prior_refuses(fails, arguments, kind, argument, got):
    scores, centers, sigma, ranks = arguments
    with fails(kind, "rank_prior", argument, got):
        ops.rank_prior(scores, centers, sigma, ranks=ranks)
