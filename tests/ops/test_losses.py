"""Cross entropies against loops in float64."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from case import ops

Array = NDArray[np.float64]
DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]
SHAPES = [(0, 5), (1, 1), (2, 5), (3, 97, 16), (2, 3, 2, 5), (5,)]


def soft_by_loops(logits: Tensor, targets: Tensor) -> Array:
    x, t = logits.double().numpy(force=True), targets.double().numpy(force=True)
    out = np.zeros(x.shape[:-1])
    for at in np.ndindex(x.shape[:-1]):
        peak = x[at].max()
        log_total = peak + math.log(sum(math.exp(v - peak) for v in x[at]))
        out[at] = -sum(w * (v - log_total) for v, w in zip(x[at], t[at], strict=True) if w != 0)
    return out


def generalized_by_loops(p: Tensor, target: Tensor, q: float) -> Array:
    x, g = p.double().numpy(force=True), target.double().numpy(force=True)
    out = np.zeros(x.shape[:-1])
    for at in np.ndindex(x.shape[:-1]):
        terms = [w * (1 - (v + 1e-7) ** q) / q for v, w in zip(x[at], g[at], strict=True)]
        out[at] = sum(terms) / (sum(g[at]) + 1e-7)
    return out


def reduced(values: Array, reduction: str) -> Array:
    return np.asarray({"mean": np.mean, "sum": np.sum, "none": np.asarray}[reduction](values))


def accumulated(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32


@pytest.mark.op("soft_cross_entropy")
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("dtype", DTYPES)
def test_soft_cross_entropy(draw, close, device, dtype, shape):
    logits = draw.normal(*shape, scale=4.0).to(dtype)
    targets = draw.uniform(*shape).to(dtype)
    rows = soft_by_loops(logits, targets)
    for reduction in ("none", "sum", "mean"):
        if rows.size or reduction != "mean":
            found = ops.soft_cross_entropy(logits.to(device), targets.to(device), reduction=reduction)
            assert found.dtype == accumulated(dtype)
            close(found, reduced(rows, reduction))


@pytest.mark.op("soft_cross_entropy")
def test_soft_cross_entropy_of_impossible_classes(draw, close, device):
    logits, targets = draw.normal(6, 4), draw.uniform(6, 4)
    logits[:, 1], targets[:, 1] = -torch.inf, 0
    logits[0, 0] = 1e4
    targets[2] = 0  # a row without weight, as a masked row of a plan
    x = logits.to(device).requires_grad_()
    found = ops.soft_cross_entropy(x, targets.to(device), reduction="none")
    close(found, soft_by_loops(logits, targets))
    (gradient,) = torch.autograd.grad(found.sum(), x)
    assert gradient.isfinite().all()
    assert (gradient[2] == 0).all()


@pytest.mark.op("generalized_cross_entropy")
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("dtype", DTYPES)
def test_generalized_cross_entropy(draw, close, device, dtype, shape):
    p, target = draw.uniform(*shape).to(dtype), draw.keep(0.5, *shape).to(dtype)
    for q in (0.3, 0.7, 1.0):
        rows = generalized_by_loops(p, target, q)
        for reduction in ("none", "sum", "mean"):
            if rows.size or reduction != "mean":
                found = ops.generalized_cross_entropy(p.to(device), target.to(device), q=q, reduction=reduction)
                assert found.dtype == accumulated(dtype)
                # 2e-6 of the terms, which the loss is a difference of: (1 - p^q) / q.
                tolerance = 1e-12 if dtype == torch.float64 else 2e-6
                close(found, reduced(rows, reduction), tolerance, floor=1.0 / q)


@pytest.mark.op("generalized_cross_entropy")
def test_generalized_cross_entropy_at_the_ends(close, device):
    p = torch.tensor([[0.0, 1.0, 0.5]], dtype=torch.float64, device=device).requires_grad_()
    target = torch.tensor([[1.0, 0.0, 0.0]], dtype=torch.float64, device=device)
    loss = ops.generalized_cross_entropy(p, target, q=1.0)
    close(loss, 1.0, 1e-6)  # mean absolute error
    near_log = ops.generalized_cross_entropy(torch.full_like(p, 0.25), target, q=1e-6)
    close(near_log, -math.log(0.25), 1e-5)  # cross entropy
    assert ops.generalized_cross_entropy(p, torch.zeros_like(target), q=0.7) == 0
    (gradient,) = torch.autograd.grad(ops.generalized_cross_entropy(p, target, q=0.7), p)
    assert gradient.isfinite().all()


@pytest.mark.op("soft_cross_entropy", "generalized_cross_entropy")
@pytest.mark.parametrize("requires_grad", [False, True])
def test_memory_layouts(draw, close, device, lay_out, requires_grad):
    x, t = lay_out(draw.uniform(3, 9, 7).to(device)), lay_out(draw.uniform(3, 9, 7).to(device))
    leaf = x.detach().requires_grad_(requires_grad)
    for found, wanted in (
        (ops.soft_cross_entropy(leaf, t, reduction="none"), soft_by_loops(x, t)),
        (ops.generalized_cross_entropy(leaf, t, q=0.7, reduction="none"), generalized_by_loops(x, t, 0.7)),
    ):
        assert found.requires_grad == requires_grad
        close(found, wanted)


@pytest.mark.op("soft_cross_entropy", "generalized_cross_entropy")
def test_gradients(draw, check_gradients, device):
    x, t = draw.normal(2, 4, 3), draw.uniform(2, 4, 3, low=0.1)
    p = draw.uniform(2, 4, low=0.1)
    for reduction in ("none", "mean"):
        check_gradients(lambda a, b, r=reduction: ops.soft_cross_entropy(a, b, reduction=r), x, t)
        check_gradients(lambda a, b, r=reduction: ops.generalized_cross_entropy(a, b, q=0.7, reduction=r), p, t[..., 0])


@pytest.mark.op("soft_cross_entropy", "generalized_cross_entropy")
def test_compiles(draw, check_compiles, device):
    x, t, p = (
        f.float().to(device).requires_grad_() for f in (draw.normal(9, 4), draw.uniform(9, 4), draw.uniform(9, 4))
    )
    check_compiles(lambda a, b: ops.soft_cross_entropy(a, b), x, t)
    check_compiles(lambda a, b: ops.generalized_cross_entropy(a, b, q=0.7, reduction="sum"), p, t)


X = torch.zeros(4, 3)
SOFT: list[tuple[dict[str, Any], type[Exception], str, str]] = [
    ({"logits": [0.0]}, TypeError, "logits", "list"),
    ({"logits": X.int()}, TypeError, "logits", "torch.int32"),
    ({"logits": torch.tensor(0.0)}, ValueError, "logits", "()"),
    ({"targets": torch.zeros(4)}, ValueError, "targets", "(4,)"),
    ({"targets": X.long()}, TypeError, "targets", "torch.int64"),
    ({"targets": X.to("meta")}, ValueError, "targets", "meta"),
    ({"reduction": "max"}, ValueError, "reduction", "'max'"),
]
U, V = torch.zeros(4), torch.zeros(3)
PLANS: list[tuple[Any, type[Exception], str, str]] = [
    ((X, U), TypeError, "targets", "tuple"),
    ([X, U, V], TypeError, "targets", "list"),
    (ops.Plan(X.int(), U, V), TypeError, "targets.logits", "torch.int32"),
    (ops.Plan(torch.zeros(4, 2), U, torch.zeros(2)), ValueError, "targets.logits", "(4, 2)"),
    (ops.Plan(X[:, 0], U, V), ValueError, "targets.logits", "(4,)"),
    (ops.Plan(X.to("meta"), U.to("meta"), V.to("meta")), ValueError, "targets.logits", "meta"),
    ((X, V, V), ValueError, "targets.u", "(3,)"),
    ((X, U, V.long()), TypeError, "targets.v", "torch.int64"),
    ((X, U, V.to("meta")), ValueError, "targets.v", "meta"),
    (ops.Plan(X, U, V, scale=math.nan), ValueError, "targets.scale", "nan"),
    (ops.Plan(X, U, V, prior=1.0), TypeError, "targets.prior", "float"),
    (ops.Plan(X, U, V, prior=torch.ones(2, 3)), ValueError, "targets.prior", "(2, 3)"),
    (ops.Plan(X, U, V, prior=ops.RankPrior(V, V, 0.3)), ValueError, "targets.prior.scores", "(3,)"),
    (ops.Plan(X, U, V, prior=ops.RankPrior(U, U, 0.3)), ValueError, "targets.prior.centers", "(4,)"),
    (ops.Plan(X, U, V, prior=ops.RankPrior(U, V, 0.0)), ValueError, "targets.prior.sigma", "0.0"),
    (ops.Plan(X, U, V, prior=ops.RankPrior(U, V, 0.3, "first")), ValueError, "targets.prior.ranks", "'first'"),
    (ops.Plan(X, U, V, mask=U), TypeError, "targets.mask", "torch.float32"),
    (ops.Plan(X, U, V, mask=V.bool()), ValueError, "targets.mask", "(3,)"),
]
GENERALIZED: list[tuple[dict[str, Any], type[Exception], str, str]] = [
    ({"p": 0.5}, TypeError, "p", "float"),
    ({"p": X.bool()}, TypeError, "p", "torch.bool"),
    ({"target": X.bool()}, TypeError, "target", "torch.bool"),
    ({"target": torch.zeros(4, 2)}, ValueError, "target", "(4, 2)"),
    ({"target": X.to("meta")}, ValueError, "target", "meta"),
    ({"q": 0.0}, ValueError, "q", "0.0"),
    ({"q": 1.5}, ValueError, "q", "1.5"),
    ({"q": math.nan}, ValueError, "q", "nan"),
    ({"reduction": "batchmean"}, ValueError, "reduction", "'batchmean'"),
]


@pytest.mark.parametrize("given, kind, argument, got", SOFT, ids=[f"{a}-{g}" for _, _, a, g in SOFT])
def test_soft_cross_entropy_refuses(fails, given, kind, argument, got):
    with fails(kind, "soft_cross_entropy", argument, got):
        ops.soft_cross_entropy(**{"logits": X, "targets": X, **given})


@pytest.mark.parametrize("plan, kind, argument, got", PLANS, ids=[f"{a}-{g}" for _, _, a, g in PLANS])
def test_soft_cross_entropy_refuses_plans(fails, plan, kind, argument, got):
    with fails(kind, "soft_cross_entropy", argument, got):
        ops.soft_cross_entropy(X, plan)


@pytest.mark.parametrize("given, kind, argument, got", GENERALIZED, ids=[f"{a}-{g}" for _, _, a, g in GENERALIZED])
def test_generalized_cross_entropy_refuses(fails, given, kind, argument, got):
    with fails(kind, "generalized_cross_entropy", argument, got):
        ops.generalized_cross_entropy(**{"p": X, "target": X, "q": 0.7, **given})
