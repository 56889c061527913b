"""What is the compiled Sinkhorn's own: its exp and log, domains, threads, strides and sizes, against float64 torch."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from case import _native, ops
from case.ops import _backend
from case.ops._native_ops import sinkhorn as native_ops

pytestmark = pytest.mark.skipif("native/cpu" not in _backend.table()["sinkhorn"], reason="no native module")
DTYPES = [torch.float32, torch.float64]
NAMES = {torch.float32: "float32", torch.float64: "float64"}


def over_array(name: str, x: np.ndarray) -> np.ndarray:
    out = np.full_like(x, np.nan)
    getattr(_native.load(), name)(x.ctypes.data, out.ctypes.data, x.size, str(x.dtype))
    return out


def ulps(got: np.ndarray, exact: np.ndarray) -> float:
    """Largest error in units of the last place of the exact value; ``exact`` is wider than ``got``."""
    return float((np.abs(got - exact) / np.spacing(np.abs(exact.astype(got.dtype)))).max())


@pytest.mark.parametrize(("dtype", "lowest", "highest"), [("float32", -87.336, 88.0), ("float64", -708.39, 709.0)])
def test_exp(rng, dtype, lowest, highest):
    x = np.concatenate([rng.uniform(lowest, highest, 400_000), rng.uniform(-1, 1, 100_000)]).astype(dtype)
    wide = x.astype(np.float64) if dtype == "float32" else x.astype(np.longdouble)
    assert ulps(over_array("exp_cpu", x), np.exp(wide)) <= 1.5
    edges = np.array([0.0, -0.0, -np.inf, 1.05 * lowest, -1e4, -1e30, np.nan], dtype)
    np.testing.assert_array_equal(over_array("exp_cpu", edges), np.array([1, 1, 0, 0, 0, 0, np.nan], dtype))


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_log(rng, dtype):
    info = np.finfo(dtype)
    powers = rng.uniform(np.log2(info.smallest_subnormal), np.log2(info.max), 400_000)
    x = np.concatenate([np.exp2(powers), rng.uniform(0.5, 2, 100_000)]).astype(dtype)
    x = x[(x > 0) & (x != 1)]
    wide = x.astype(np.float64) if dtype == "float32" else x.astype(np.longdouble)
    assert ulps(over_array("log_cpu", x), np.log(wide)) <= 2.5
    np.testing.assert_array_equal(over_array("log_cpu", np.array([0, 1], dtype)), np.array([-np.inf, 0], dtype))


def problem(draw: Any, n: int, k: int, dtype: torch.dtype, lead: tuple[int, ...] = ()) -> tuple[Tensor, dict[str, Any]]:
    """Logits and every option but the prior, with a masked row, a masked column and a row and a column of weight 0."""
    mask = draw.keep(0.8, *lead, n, k)
    mask[..., : n // 8, :] = False
    rows, columns = draw.uniform(*lead, n, low=0.2, high=3.0), draw.uniform(*lead, k, low=0.2, high=3.0)
    if n > 8 and k > 4:
        mask[..., 1] = False
        rows[..., -1] = columns[..., 2] = 0
    given = {"row_marginal": rows.to(dtype), "col_marginal": columns.to(dtype), "mask": mask}
    return draw.normal(*lead, n, k).to(dtype), given


def double(x: Any) -> Any:
    if isinstance(x, ops.RankPrior):
        return x._replace(scores=x.scores.double(), centers=x.centers.double())
    return x.double() if isinstance(x, Tensor) and x.is_floating_point() else x


def exact(function: Any, logits: Tensor, given: dict[str, Any]) -> Any:
    with ops.backend("reference"):
        return function(logits.double(), **{name: double(x) for name, x in given.items()})


@pytest.mark.parametrize("k", [1, 2, 5, 16, 33, 128, 1000])
@pytest.mark.parametrize("n", [0, 1, 2, 97, 1000, 4099])
@pytest.mark.parametrize("dtype", DTYPES)
def test_sizes(draw, close, n, k, dtype):
    n = min(n, 140_000 // k)
    logits, given = problem(draw, n, k, dtype)
    priors = [
        None,
        draw.uniform(n, k, low=0.1).to(dtype),
        ops.RankPrior(draw.normal(n).to(dtype), draw.uniform(k), 0.3),
    ]
    for prior in priors:
        for options in ({}, given):
            options = {"prior": prior, "scale": 2.0, **options}
            with ops.backend("native"):
                q = ops.sinkhorn(logits, **options)
                u, v = ops.sinkhorn_potentials(logits, **options)
            # Without vector instructions the sums over columns are made one by one.
            close(q, exact(ops.sinkhorn, logits, options), 1.5e-5 if k == 1000 and dtype == torch.float32 else None)
            wanted_u, wanted_v = exact(ops.sinkhorn_potentials, logits, options)
            close(u, wanted_u, floor=1.0)  # of a single row or column the potentials can cancel to 0
            assert torch.equal(v.isinf(), wanted_v.isinf())
            close(v.nan_to_num(neginf=0), wanted_v.nan_to_num(neginf=0), floor=1.0)


def gradients(backend: str, logits: Tensor, given: dict[str, Any], cotangents: list[Tensor]) -> list[Tensor]:
    """Of all that has one, through the plan and through the potentials."""
    leaves = {"logits": logits, **{k: x for k, x in given.items() if isinstance(x, Tensor) and x.is_floating_point()}}
    leaves = {name: x.detach().clone().requires_grad_() for name, x in leaves.items()}
    given = {**given, **{name: x for name, x in leaves.items() if name != "logits"}}
    centers = []
    if isinstance(given.get("prior"), ops.RankPrior):
        centers = [given["prior"].centers.to(logits.dtype).detach().clone().requires_grad_()]
        given["prior"] = given["prior"]._replace(centers=centers[0])
    found = []
    with ops.backend(backend):
        for outputs in ([ops.sinkhorn(leaves["logits"], **given)], ops.sinkhorn_potentials(leaves["logits"], **given)):
            chosen = cotangents[:1] if len(outputs) == 1 else cotangents[1:]
            weights = [c.to(o.dtype) for c, o in zip(chosen, outputs)]
            found += torch.autograd.grad(outputs, [*leaves.values(), *centers], weights)
    return found


@pytest.mark.parametrize("linear_range", [None, 0.0])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("lead", "n", "k"), [((), 4099, 16), ((2,), 97, 5), ((), 1500, 128), ((), 1, 3)], ids=str)
def test_gradients_of_larger_problems(draw, close, monkeypatch, lead, n, k, dtype, linear_range):
    if linear_range is not None:
        monkeypatch.setitem(native_ops.LINEAR_RANGE, dtype, linear_range)
    logits, given = problem(draw, n, k, dtype, lead)
    given["col_marginal"] = given["col_marginal"].clamp(min=0.2)  # a potential of -inf has no gradient to compare
    priors = [draw.uniform(*lead, n, k, low=0.1).to(dtype)]
    priors.append(ops.RankPrior(draw.normal(*lead, n).to(dtype), draw.uniform(*lead, k).to(dtype), 0.3))
    cotangents = [draw.normal(*lead, n, k), draw.normal(*lead, n), draw.normal(*lead, k)]
    for prior in priors:
        for tol in (None, 0.02):
            options = {**given, "prior": prior, "scale": 2.0, "n_iters": 4, "tol": tol}
            found = gradients("native", logits, options, cotangents)
            wanted = gradients("reference", logits.double(), {k: double(x) for k, x in options.items()}, cotangents)
            for got, value in zip(found, wanted, strict=True):
                close(got, value, 1e-10 if dtype == torch.float64 else 5e-5, floor=0.05)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("with_prior", [False, True])
def test_both_domains_agree(draw, close, monkeypatch, with_prior, dtype):
    """Around the range at which the domain changes, and with either forced."""
    limit = native_ops.LINEAR_RANGE[dtype]
    for share in (0.2, 0.5, 0.9, 0.999, 1.001, 1.2):
        logits = draw.uniform(300, 16, low=0.0, high=share * limit).to(dtype)
        logits[0, 0], logits[1, 1] = 0.0, share * limit
        options = {"prior": draw.uniform(300, 16, low=0.5).to(dtype) if with_prior else None, "n_iters": 5}
        wanted = exact(ops.sinkhorn, logits, options)
        wanted_u, wanted_v = exact(ops.sinkhorn_potentials, logits, options)
        for forced in (limit, 0.0):
            monkeypatch.setitem(native_ops.LINEAR_RANGE, dtype, forced)
            with ops.backend("native"):
                # An exponent of size E is known to E eps, in any domain.
                tolerance = {"tolerance": 8 * share * limit * torch.finfo(dtype).eps}
                close(ops.sinkhorn(logits, **options), wanted, **tolerance)
                u, v = ops.sinkhorn_potentials(logits, **options)
                close(u, wanted_u, **tolerance)
                close(v, wanted_v, **tolerance)


@pytest.mark.parametrize("forced", [None, 0.0])
@pytest.mark.parametrize(("lead", "n", "k"), [((), 40_000, 16), ((), 3001, 128), ((5,), 2000, 7)], ids=str)
def test_results_are_the_same_for_any_number_of_threads(draw, over_threads, monkeypatch, lead, n, k, forced):
    if forced is not None:
        monkeypatch.setitem(native_ops.LINEAR_RANGE, torch.float32, forced)
    logits, given = problem(draw, n, k, torch.float32, lead)
    given |= {"prior": ops.RankPrior(draw.normal(*lead, n).float(), draw.uniform(*lead, k).float(), 0.3)}
    cotangents = [draw.normal(*lead, n, k), draw.normal(*lead, n), torch.zeros(*lead, k)]

    def solve():
        with ops.backend("native"):
            outputs = [ops.sinkhorn(logits, **given), *ops.sinkhorn_potentials(logits, **given)]
        return outputs + gradients("native", logits, given, cotangents)

    over_threads(solve)


def test_strides_are_read_in_place(draw, close):
    wide = draw.normal(3, 41, 24).float()
    logits, prior = wide[:, ::2, 3:19], draw.uniform(1, 16, low=0.1).float().expand(3, 21, 16)
    rows, entries = draw.keep(0.8, 3, 21), draw.keep(0.8, 21, 16)
    for mask in (rows.unsqueeze(-1).expand(3, 21, 16), entries.expand(3, 21, 16)):
        args = (logits, prior, None, None, 1.0, "true", None, None, mask, 2.0, 3, None)
        held = native_ops._Problem(args)
        for name, given in (("logits", logits), ("prior", prior), ("mask", mask)):
            assert getattr(held, name).data_ptr() == given.data_ptr()
        with ops.backend("native"):
            q = ops.sinkhorn(logits, prior=prior, mask=mask, scale=2.0)
        close(q, exact(ops.sinkhorn, logits, {"prior": prior, "mask": mask, "scale": 2.0}))


@pytest.mark.parametrize("dtype", DTYPES)
def test_columns_whose_mass_lies_in_rows_of_weight_zero(draw, close, dtype):
    """The column step then weights what the plan of the first one has all but lost."""
    logits = draw.normal(30, 5).to(dtype)
    logits[0, 2] = 300.0 if dtype == torch.float32 else 2000.0
    logits[1:, 4] = -torch.inf
    given = {"row_marginal": torch.ones(30, dtype=dtype).index_fill(0, torch.tensor([0]), 0)}
    for columns in (None, torch.tensor([1.0, 2.0, 1.0, 0.0, 0.0], dtype=dtype)):
        options = {**given, "col_marginal": columns}
        with ops.backend("native"):
            u, v = ops.sinkhorn_potentials(logits, **options)
            q = ops.sinkhorn(logits, **options)
        wanted_u, wanted_v = exact(ops.sinkhorn_potentials, logits, options)
        tolerance = 3e-5 if dtype == torch.float32 else 1e-12
        assert torch.equal(v.isinf(), wanted_v.isinf())
        close(v.nan_to_num(neginf=0), wanted_v.nan_to_num(neginf=0), tolerance)
        close(u, wanted_u, tolerance)
        close(q, exact(ops.sinkhorn, logits, options), 300 * tolerance)
    found = gradients("native", logits, given, [draw.normal(30, 5), draw.normal(30), draw.normal(5)])
    assert all(x.isfinite().all() for x in found)


@pytest.mark.parametrize("dtype", DTYPES)
def test_marginals_over_most_of_their_range(draw, close, dtype):
    exponents = torch.linspace(-30, 30, 64, dtype=torch.float64)
    rows, columns = (10**exponents).to(dtype), (10 ** exponents[::8]).to(dtype)
    logits = draw.normal(64, 8).to(dtype)
    options = {"row_marginal": rows, "col_marginal": columns, "n_iters": 4}
    with ops.backend("native"):
        q, (u, v) = ops.sinkhorn(logits, **options), ops.sinkhorn_potentials(logits, **options)
    close(q, exact(ops.sinkhorn, logits, options), 2e-5 if dtype == torch.float32 else 1e-12)
    for got, wanted in zip((u, v), exact(ops.sinkhorn_potentials, logits, options), strict=True):
        close(got, wanted)


@pytest.mark.parametrize("ranks", ["true", "argsort"])
@pytest.mark.parametrize("dtype", [*DTYPES, torch.float16])
def test_rank_prior_of_special_scores(draw, close, ranks, dtype):
    scores = draw.integers(-3, 4, 2, 3000).to(dtype) / 2  # ties throughout
    scores[0, ::7], scores[0, 1::7], scores[0, 2::7], scores[0, 3::7] = torch.inf, -torch.inf, -0.0, 0.0
    scores[0, 5::501] = torch.nan
    centers = draw.uniform(2, 4).to(dtype)
    with ops.backend("native"):
        found = ops.rank_prior(scores, centers, 0.2, ranks=ranks)
    with ops.backend("reference"):
        close(found, ops.rank_prior(scores.double(), centers.double(), 0.2, ranks=ranks))


def test_a_narrow_rank_prior_keeps_its_mass(draw):
    with ops.backend("native"):
        prior = ops.rank_prior(draw.normal(100).float(), torch.tensor([5.0, 6.0]), 1e-3)
    assert math.isclose(prior.sum().item(), 1.0, rel_tol=1e-6)


def test_nan_is_not_hidden():
    logits = torch.zeros(4, 3)
    logits[2, 1] = torch.nan
    with ops.backend("native"):
        assert ops.sinkhorn(logits)[2].isnan().all()


@pytest.mark.parametrize(
    ("sizes", "settings", "message"),
    [
        ((-1, 2, 3), (1.0, 3, -1.0, 75.0), "batch must not be negative, got -1"),
        ((1, 2, 0), (1.0, 3, -1.0, 75.0), "k must be at least 1, got 0"),
        ((1, 2, 3), (1.0, 0, -1.0, 75.0), "n_iters must be at least 1, got 0"),
        ((1, 2, 3), (1.0, 3, -1.0, 75.0), "logits must be an address, got 0"),
    ],
)
def test_the_module_refuses(native, sizes, settings, message):
    absent = (0, 0, 0)
    problem = ("float32", sizes, absent, absent, (0, *absent), (0, 0, 1.0), (0, 0), settings)
    with pytest.raises(ValueError, match=f"^{message}$"):
        native.sinkhorn_cpu(problem, 0, 0, 0, (0, 0, 0, 0))
