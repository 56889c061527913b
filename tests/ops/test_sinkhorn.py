"""Sinkhorn-Knopp against float64 numpy in the linear domain: M = exp(scale * logits) * prior, columns, then rows."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from case import ops

Array = NDArray[np.float64]
SIZES = [(0, 5), (1, 1), (1, 5), (2, 2), (97, 1), (97, 16)]
LEADS = [(), (2, 2)]
HALVES = [torch.bfloat16, torch.float16]


def ratio(target: Array, total: Array) -> Array:
    return np.divide(target, total, out=np.zeros_like(total), where=total > 0)


def linear_plan(logits: Array, scale: float, n_iters: int, **given: Array) -> Array:
    """One problem (N, K), by definition; ``given``: prior, row_marginal, col_marginal, mask."""
    n, k = logits.shape
    m = np.exp(scale * (logits - np.max(logits, initial=-1e300))) * given.get("prior", 1.0)
    m = np.where(given.get("mask", np.ones((n, k), bool)), m, 0.0)
    rows, columns = given.get("row_marginal", np.full(n, 1 / max(n, 1))), given.get("col_marginal", np.full(k, 1 / k))
    for _ in range(n_iters):
        m = m * ratio(columns, m.sum(0))
        m = m * ratio(rows, m.sum(1))[:, None]
    return m * ratio(np.ones(n), m.sum(1))[:, None]


def plans(logits: Tensor, scale: float, n_iters: int, options: dict[str, Tensor]) -> Array:
    """``linear_plan`` of every leading index."""
    x = logits.double().numpy(force=True)
    out = np.zeros_like(x)
    for at in np.ndindex(x.shape[:-2]):
        chosen = {name: np.asarray(value.double().numpy(force=True)[at]) for name, value in options.items()}
        if "mask" in chosen:
            mask = chosen["mask"] > 0
            chosen["mask"] = np.broadcast_to(mask if mask.ndim == 2 else mask[:, None], x.shape[-2:])
        out[at] = linear_plan(x[at], scale, n_iters, **chosen)
    return out


def options_for(draw: Any, name: str, lead: tuple[int, ...], n: int, k: int) -> dict[str, Tensor]:
    entries = draw.keep(0.7, *lead, n, k)
    entries[..., : n // 4, :] = False
    if k > 2:
        entries[..., 1] = False
    prior = draw.uniform(*lead, n, k, low=0.1)
    if n > 1:
        prior[..., 0, 0] = 0
    choices = {
        "prior": prior,
        "row_marginal": draw.uniform(*lead, n, low=0.2, high=3.0),
        "col_marginal": draw.uniform(*lead, k, low=0.2, high=3.0),
        "mask": draw.keep(0.7, *lead, n) if name == "mask rows" else entries,
    }
    wanted = {"plain": (), "all": tuple(choices), "mask rows": ("mask",), "mask entries": ("mask",)}.get(name, (name,))
    return {name: choices[name] for name in wanted}


OPTIONS = ["plain", "prior", "row_marginal", "col_marginal", "mask rows", "mask entries", "all"]


@pytest.mark.op("sinkhorn")
@pytest.mark.parametrize("lead", LEADS, ids=str)
@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_values(draw, close, device, dtype, size, lead):
    for name in OPTIONS:
        options = options_for(draw, name, lead, *size)
        logits = draw.normal(*lead, *size).to(dtype)
        options = {key: value if key == "mask" else value.to(dtype) for key, value in options.items()}
        moved = {key: value.to(device) for key, value in options.items()}
        q = ops.sinkhorn(logits.to(device), scale=2.0, **moved)
        assert q.dtype == dtype
        close(q, plans(logits, 2.0, 3, options))


@pytest.mark.op("sinkhorn")
@pytest.mark.parametrize("dtype", HALVES)
def test_half_precision_is_computed_in_float32(draw, close, device, dtype):
    logits = draw.normal(2, 97, 16, scale=3.0).to(dtype)  # e^20 and more: overflows float16 in the linear domain
    q = ops.sinkhorn(logits.to(device), scale=2.0)
    assert q.dtype == dtype
    close(q, plans(logits, 2.0, 3, {}))
    u, v = ops.sinkhorn_potentials(logits.to(device), scale=2.0)
    assert u.dtype == v.dtype == torch.float32


@pytest.mark.op("sinkhorn")
@pytest.mark.parametrize("requires_grad", [False, True])
def test_memory_layouts(draw, close, device, lay_out, requires_grad):
    logits, prior = draw.normal(3, 17, 5).float(), draw.uniform(3, 17, 5, low=0.1).float()
    rows, columns = draw.uniform(3, 17, low=0.5).float(), draw.uniform(3, 5, low=0.5).float()
    options = {
        "prior": lay_out(prior),
        "row_marginal": rows[:1].expand(3, 17),
        "col_marginal": columns[:1].expand(3, 5),
    }
    x = lay_out(logits)
    moved = {
        name: lay_out(value.to(device)) if name == "prior" else value.to(device) for name, value in options.items()
    }
    q = ops.sinkhorn(lay_out(logits.to(device)).requires_grad_(requires_grad), scale=2.0, **moved)
    assert q.requires_grad == requires_grad
    close(q, plans(x, 2.0, 3, options))


@pytest.mark.op("sinkhorn")
def test_prior_and_marginals_broadcast(draw, close, device):
    logits, prior, columns = draw.normal(2, 3, 9, 4), draw.uniform(9, 1, low=0.1), draw.uniform(4, low=0.1)
    full = {"prior": prior.expand(2, 3, 9, 4), "col_marginal": columns.expand(2, 3, 4)}
    q = ops.sinkhorn(logits.to(device), prior=prior.to(device), col_marginal=columns.to(device))
    close(q, plans(logits, 1.0, 3, full))


@pytest.mark.op("sinkhorn")
def test_entries_of_prior_0_take_no_part_and_have_no_gradient(draw, device):
    logits, prior = draw.normal(40, 7), draw.uniform(40, 7, low=0.1)
    off = draw.uniform(40, 7) < 0.2
    off[:, 3] |= ~off.any(1)
    leaf = prior.masked_fill(off, 0.0).to(device).requires_grad_()
    found = ops.sinkhorn(logits.to(device), prior=leaf)
    assert not found[off.to(device)].any()
    (slope,) = torch.autograd.grad((found * torch.linspace(-1, 1, 7, dtype=leaf.dtype, device=device)).sum(), leaf)
    assert not slope[off.to(device)].any()
    assert slope.any()


@pytest.mark.op("sinkhorn")
def test_every_iteration_counts(draw, close, device):
    logits = draw.normal(60, 7, scale=2.0)
    found = [ops.sinkhorn(logits.to(device), scale=2.0, n_iters=i) for i in (1, 2, 3, 4)]
    for n_iters, q in enumerate(found, start=1):
        close(q, plans(logits, 2.0, n_iters, {}))
    for earlier, later in itertools.pairwise(found):
        assert (earlier - later).abs().max() > 1e-4


@pytest.mark.op("sinkhorn")
def test_only_ratios_of_marginals_matter(draw, close, device):
    logits, rows, columns = (
        x.to(device) for x in (draw.normal(11, 4), draw.uniform(11, low=0.1), draw.uniform(4, low=0.1))
    )
    q = ops.sinkhorn(logits, row_marginal=rows, col_marginal=columns)
    close(ops.sinkhorn(logits, row_marginal=rows * 37.0, col_marginal=columns / 11.0), q)
    close(ops.sinkhorn(logits, row_marginal=torch.full_like(rows, 5.0)), ops.sinkhorn(logits))


@pytest.mark.op("sinkhorn")
def test_a_shift_of_a_row_matters_and_a_global_one_does_not(draw, close, device):
    logits = draw.normal(31, 5).to(device)
    q = ops.sinkhorn(logits, scale=2.0)
    close(ops.sinkhorn(logits + 100.0, scale=2.0), q, 1e-11)
    rows = torch.zeros(31, 1, dtype=torch.float64, device=device)
    rows[::3] = 2.0
    assert (ops.sinkhorn(logits + rows, scale=2.0) - q).abs().max() > 1e-3


@pytest.mark.op("sinkhorn")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_huge_and_infinite_logits_stay_finite(draw, device, dtype):
    logits = draw.uniform(2, 40, 6, low=-1e4, high=1e4).to(device, dtype)
    logits[0, :3, 1:4] = -torch.inf
    logits[1, 5] = -torch.inf
    logits[1, :, 2] = -torch.inf
    logits.requires_grad_()
    q = ops.sinkhorn(logits, scale=1.0)
    assert q.isfinite().all()
    assert (q[logits.isneginf()] == 0).all()
    sums = torch.ones(2, 40, dtype=dtype, device=device)
    sums[1, 5] = 0
    torch.testing.assert_close(q.sum(-1), sums, rtol=0, atol=1e4 * torch.finfo(dtype).eps * 8)
    (gradient,) = torch.autograd.grad(q, logits, torch.randn_like(q))
    assert gradient.isfinite().all()


@pytest.mark.op("sinkhorn")
def test_extreme_logits_have_the_plan_of_their_limit(device):
    logits = torch.tensor([[1e4, -1e4], [-1e4, 1e4], [1e4, -1e4]], dtype=torch.float32, device=device)
    expected = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 0.0]], device=device)
    torch.testing.assert_close(ops.sinkhorn(logits), expected, rtol=0, atol=5e-3)


@pytest.mark.op("sinkhorn")
@pytest.mark.parametrize("tol", [0.05, 1e-3, 1e-15])
def test_tol_freezes_each_problem_on_its_own(draw, close, device, tol):
    logits = draw.normal(3, 40, 4)
    logits *= torch.tensor([0.1, 1.0, 2.5]).view(3, 1, 1)  # from almost balanced to far from it
    full = 8
    q = ops.sinkhorn(logits.to(device), scale=2.0, n_iters=full, tol=tol)
    for problem in range(3):
        deviation = [np.abs(linear_plan(logits[problem].numpy(), 2.0, i).mean(0) - 1 / 4).max() for i in range(1, full)]
        stop = next((i for i, d in enumerate(deviation, start=1) if d < tol), full)
        close(q[problem], linear_plan(logits[problem].numpy(), 2.0, stop), 1e-11)
    if tol == 0.05:
        assert (q[0] - ops.sinkhorn(logits[0].to(device), scale=2.0, n_iters=full)).abs().max() > 1e-9


@pytest.mark.op("sinkhorn")
def test_gradient_is_that_of_the_iterations_that_ran(draw, close, device):
    logits = (0.1 * draw.normal(20, 4)).to(device).requires_grad_()
    cotangent = draw.normal(20, 4).to(device)
    runs = (ops.sinkhorn(logits, n_iters=9, tol=0.5), ops.sinkhorn(logits, n_iters=1), ops.sinkhorn(logits, n_iters=9))
    stopped, once, full = (torch.autograd.grad(q, logits, cotangent)[0] for q in runs)
    close(stopped, once)
    assert (full - once).abs().max() > 1e-6


@pytest.mark.op("sinkhorn")
def test_gradients(draw, check_gradients, device):
    logits, prior = draw.normal(2, 4, 3), draw.uniform(2, 4, 3, low=0.3)
    rows, columns = draw.uniform(2, 4, low=0.3), draw.uniform(2, 3, low=0.3)

    def run(x: Tensor, p: Tensor, r: Tensor, c: Tensor) -> Tensor:
        return ops.sinkhorn(x, prior=p, row_marginal=r, col_marginal=c, scale=1.3, n_iters=2)

    check_gradients(run, logits, prior, rows, columns)
    mask = draw.keep(0.7, 2, 4, 3)
    check_gradients(lambda x: ops.sinkhorn(x, mask=mask.to(x.device), scale=2.0), logits)
    check_gradients(lambda x: ops.sinkhorn(x, mask=mask[..., 0].to(x.device), tol=0.02, n_iters=6), logits)


@pytest.mark.op("sinkhorn")
def test_compiles(draw, check_compiles, device):
    logits = draw.normal(2, 9, 4).float().to(device).requires_grad_()
    prior = draw.uniform(2, 9, 4, low=0.1).float().to(device).requires_grad_()
    mask = draw.keep(0.8, 2, 9).to(device)
    check_compiles(lambda x, p: ops.sinkhorn(x, prior=p, scale=2.0, mask=mask, tol=1e-3), logits, prior)
    check_compiles(lambda x: ops.sinkhorn(x.transpose(-1, -2), scale=2.0), logits, compiler="inductor")
