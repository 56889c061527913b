"""Sizes, precisions and launch forms of the Sinkhorn kernels, each against the float64 reference; every backend."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from case import ops
from case.ops.reference.sinkhorn import rank_positions

OPS = ("sinkhorn", "sinkhorn_potentials")
# Both launch forms, one column, odd and padded numbers of columns, one row, none.
SIZES = [
    (0, 16), (1, 1), (1, 33), (2, 5), (2, 128), (97, 2), (97, 33), (1000, 1), (1000, 5), (1000, 16), (1000, 128),
    (4099, 2), (4099, 16),
]  # fmt: skip


def problem(draw: Any, n: int, k: int, *, lead: tuple[int, ...] = (), scale: float = 2.0) -> dict[str, Tensor]:
    return {
        "logits": draw.normal(*lead, n, k, scale=scale),
        "scores": draw.normal(*lead, n),
        "centers": draw.uniform(*lead, k),
        "rows": draw.uniform(*lead, n, low=0.2, high=3.0),
        "columns": draw.uniform(*lead, k, low=0.2, high=3.0),
    }


def run(x: dict[str, Tensor], *, potentials: bool = False, marginals: bool = True, **options: Any) -> list[Tensor]:
    given: dict[str, Any] = {"scale": 1.7}
    if x["logits"].shape[-2] < 300:  # the interpreter sorts slowly
        given["prior"] = ops.RankPrior(x["scores"], x["centers"], 0.2)
    if marginals:
        given |= {"row_marginal": x["rows"], "col_marginal": x["columns"]}
    given |= options
    if potentials:
        return list(ops.sinkhorn_potentials(x["logits"], **given))
    return [ops.sinkhorn(x["logits"], **given)]


def compare(
    checks: tuple[Any, Any, Any], device: torch.device, x: dict[str, Tensor], dtype: torch.dtype,
    leaves: tuple[str, ...], tolerances: tuple[float, float], **options: Any,
) -> None:  # fmt: skip
    """Results and the gradients of ``leaves`` for random cotangents; ``checks``: (draw, close, gradient_sizes)."""
    draw, close, gradient_sizes = checks
    rounded = {name: value.to(dtype) for name, value in x.items()}
    exact = {name: value.double().requires_grad_(name in leaves) for name, value in rounded.items()}
    moved = {name: value.detach().to(device).requires_grad_(name in leaves) for name, value in rounded.items()}
    with ops.backend("reference"):
        expected = run(exact, **{k: v.cpu() if isinstance(v, Tensor) else v for k, v in options.items()})
    found = run(moved, **options)
    for got, wanted in zip(found, expected, strict=True):
        # Potentials are differences of logarithms of about 1, and can cancel.
        close(got, wanted, tolerances[0], floor=1.0 if len(found) == 2 else 0.0)
    if leaves and expected[0].numel():
        cotangents = [draw.normal(*y.shape) for y in expected]
        exact_leaves = [exact[name] for name in leaves]
        sizes = gradient_sizes(expected, exact_leaves)
        wanted_gradients = torch.autograd.grad(expected, exact_leaves, cotangents)
        gradients = torch.autograd.grad(
            found, [moved[name] for name in leaves], [c.to(y) for c, y in zip(cotangents, found, strict=True)]
        )
        # The plan of a single row or column is the same whatever its logits: what is left of its gradient is rounding.
        # Of a few rows it can be as good as a permutation, and its gradient nearly that.
        floor = 1.0 if 1 in x["logits"].shape[-2:] else 0.3 / max(x["logits"].shape[-2:])
        for got, wanted, size in zip(gradients, wanted_gradients, sizes, strict=True):
            close(got, wanted, tolerances[1], floor=max(floor, size))


@pytest.fixture
def checks(draw: Any, close: Any, gradient_sizes: Any) -> tuple[Any, Any, Any]:
    return draw, close, gradient_sizes


@pytest.mark.op(*OPS, kernels=True)
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_float32_sizes(draw, checks, device, size):
    n, k = size
    # The largest only forward: the interpreter needs seconds for them.
    leaves = ("logits", "centers", "rows", "columns") if n < 1000 else ("logits",) if n < 4099 else ()
    x = problem(draw, n, k)
    compare(checks, device, x, torch.float32, leaves, (2e-6, 1e-5))
    if 0 < n <= 97:
        compare(checks, device, x, torch.float32, leaves, (2e-6, 1e-5), potentials=True)


@pytest.mark.op(*OPS, kernels=True)
@pytest.mark.parametrize("dtype, tolerance", [(torch.bfloat16, 1e-2), (torch.float16, 2e-3)], ids=str)
@pytest.mark.parametrize("size", [(2, 5), (300, 16)], ids=str)
def test_half_precision(draw, checks, device, size, dtype, tolerance):
    x = problem(draw, *size)
    # A plan's own rounding, and in the gradient that of the cotangent.
    compare(checks, device, x, dtype, ("logits",), (tolerance, 2 * tolerance))


@pytest.mark.op(*OPS, kernels=True)
@pytest.mark.parametrize("n", [40, 300])
def test_problems_side_by_side(draw, checks, device, n):
    x = problem(draw, n, 5, lead=(2, 2))
    mask = draw.keep(0.7, 2, 2, n)
    mask[0, 1] = False
    mask[1, 0, : n // 2] = False
    compare(checks, device, x, torch.float32, ("logits", "rows"), (2e-6, 1e-5), mask=mask.to(device))
    entries = draw.keep(0.7, n, 5).expand(2, 2, n, 5).to(device)
    compare(checks, device, x, torch.float32, ("logits",), (2e-6, 1e-5), mask=entries, tol=0.03, n_iters=5)


@pytest.mark.op("sinkhorn", kernels=True)
@pytest.mark.parametrize("n", [50, 300])
def test_prior_matrix(draw, close, device, n):
    x = problem(draw, n, 4)
    prior = draw.uniform(n, 4, low=0.1)
    prior[0] = 0
    prior[1:, 2] = 0
    options = {"prior": prior, "marginals": False}
    exact = {**x, "logits": x["logits"].requires_grad_()}
    with ops.backend("reference"):
        (expected,) = run(exact, **options)
    moved = {name: value.detach().float().to(device) for name, value in x.items()}
    moved["logits"].requires_grad_()
    given = prior.float().to(device).requires_grad_()
    (found,) = run(moved, prior=given, marginals=False)
    close(found, expected)
    cotangent = draw.normal(n, 4)
    found_gradients = torch.autograd.grad(found, [moved["logits"], given], cotangent.to(found))
    (wanted,) = torch.autograd.grad(expected, exact["logits"], cotangent)
    close(found_gradients[0], wanted, 1e-5)
    inverse = torch.where(prior > 0, 1 / prior, torch.zeros_like(prior))
    close(found_gradients[1], wanted / 1.7 * inverse, 1e-5)


@pytest.mark.op(*OPS, kernels=True)
@pytest.mark.parametrize("n", [30, 400])
def test_marginals_of_zero(draw, checks, device, n):
    x = problem(draw, n, 5)
    x["columns"][3] = 0
    x["rows"][: n // 3] = 0
    compare(checks, device, x, torch.float32, ("logits", "rows", "columns"), (2e-6, 1e-5))


@pytest.mark.op("sinkhorn", kernels=True)
@pytest.mark.parametrize("n", [40, 400])
def test_extreme_logits(draw, device, n):
    logits = draw.uniform(n, 6, low=-1e4, high=1e4)
    logits[:3, 1:4] = -torch.inf
    logits[5] = -torch.inf
    logits[:, 2] = -torch.inf
    x = logits.float().to(device).requires_grad_()
    q = ops.sinkhorn(x, scale=1.0)
    (gradient,) = torch.autograd.grad(q, x, torch.randn_like(q))
    assert gradient.isfinite().all()
    sums = q.sum(-1).detach().cpu()
    torch.testing.assert_close(sums, (torch.arange(n) != 5).float(), rtol=0, atol=1e-5)
    assert (q.detach().cpu()[logits.isneginf()] == 0).all()


@pytest.mark.op("sinkhorn", kernels=True)
def test_bit_equal_on_repeat(draw, device):
    x = {name: value.float().to(device) for name, value in problem(draw, 500, 7, lead=(2,)).items()}
    x["logits"].requires_grad_()
    cotangent = draw.normal(2, 500, 7).to(x["logits"])
    results = []
    for _ in range(2):
        (q,) = run(x)
        results.append((q, torch.autograd.grad(q, x["logits"], cotangent)[0]))
    for first, second in zip(*results, strict=True):
        assert torch.equal(first, second)


@pytest.mark.op("sinkhorn", kernels=True)
def test_many_iterations(draw, checks, device):
    x = problem(draw, 200, 4)
    compare(checks, device, x, torch.float32, ("logits",), (1e-5, 1e-4), n_iters=20)


@pytest.mark.op("rank_prior")
@pytest.mark.parametrize("ranks", ["true", "argsort"])
@pytest.mark.parametrize("n", [1, 16, 17, 97, 300])
def test_ranks_with_ties_zeros_and_infinities(draw, close, device, n, ranks):
    scores = torch.round(draw.normal(2, n) * 4).float() / 4
    scores[0, n // 2], scores[1, 0], scores[1, -1] = torch.inf, -torch.inf, -0.0
    # Positions can be read off a prior with two centres: log p_0 - log p_1 is linear in the position.
    prior = ops.rank_prior(scores.to(device), torch.tensor([[0.0, 1.0]] * 2, device=device), 0.7, ranks=ranks)
    ratio = (prior[..., 1] / prior[..., 0]).double().log().cpu()
    close(ratio * 0.7**2 + 0.5, rank_positions(scores.double(), ranks), 2e-6)
