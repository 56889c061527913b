"""What is the compiled cross entropies' own: pow, tiles, blocks, strides, threads and wide rows; in float64 torch."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from case import _native, ops
from case.ops import _backend

pytestmark = [
    pytest.mark.skipif("native/cpu" not in _backend.table()["soft_cross_entropy"], reason="no native module"),
    pytest.mark.usefixtures("poisoned", "on_native"),
]
DTYPES = [torch.float32, torch.float64]
soft = lambda x, t: ops.soft_cross_entropy(x, t, reduction="none")  # noqa: E731
generalized = lambda p, t: ops.generalized_cross_entropy(p, t, q=0.7, reduction="none")  # noqa: E731
LOSSES = [pytest.param(soft, id="soft"), pytest.param(generalized, id="generalized")]


def run(function: Callable[..., Tensor], x: Tensor, t: Tensor, cotangent: Tensor) -> list[Tensor]:
    """Losses and both gradients."""
    leaves = [x.detach().requires_grad_(), t.detach().requires_grad_()]
    losses = function(*leaves)
    return [losses.detach(), *torch.autograd.grad(losses, leaves, cotangent.to(losses))]


def exact(function: Callable[..., Tensor], x: Tensor, t: Tensor, cotangent: Tensor) -> list[Tensor]:
    with ops.backend("reference"):
        return run(function, x.double(), t.double(), cotangent)


@pytest.mark.parametrize("q", [-0.999, -0.3, -1e-3, 1e-6, 0.3, 0.5, 0.7, 0.999])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_pow(rng, q, dtype):
    info = np.finfo(dtype)
    powers = rng.uniform(np.log2(info.tiny), np.log2(info.max), 200_000)
    x = np.concatenate([np.exp2(powers), rng.uniform(0, 2, 200_000), 1 + rng.uniform(-1e-4, 1e-4, 1_000)]).astype(dtype)

    def found(x: np.ndarray) -> np.ndarray:
        out = np.full_like(x, np.nan)
        _native.load().pow_cpu(x.ctypes.data, q, out.ctypes.data, x.size, dtype)
        return out

    wide = np.longdouble if dtype == "float64" else np.float64
    wanted = np.power(x.astype(wide), wide(q))
    normal = (wanted > 2 * info.tiny) & (wanted < info.max / 4)
    error = np.abs(found(x) - wanted)[normal] / np.spacing(wanted[normal].astype(dtype))
    assert error.max() <= 2
    ends = [0.0, -0.0, np.inf, -np.inf, -1.0, np.nan, 1.0]
    small, large = (0, np.inf) if q > 0 else (np.inf, 0)
    np.testing.assert_array_equal(
        found(np.array(ends, dtype)), np.array([small, small, large, np.nan, np.nan, np.nan, 1], dtype)
    )


@pytest.mark.parametrize("function", LOSSES)
@pytest.mark.parametrize("k", [1, 2, 5, 16, 17, 128, 750, 1025, 2049, 5000])
@pytest.mark.parametrize("dtype", DTYPES)
def test_sizes(draw, close, function, k, dtype):
    """Below, at and above a tile of rows and a block of columns; a third of the targets and some rows of them are 0."""
    for n in (1, 3, 129, 1000):
        if n * k > 200_000:
            continue
        t = draw.uniform(n, k, low=0.3) * draw.keep(0.7, n, k)
        t[0] = 1.0
        t[n // 2] = 0 if n > 1 else 1.0
        x = draw.normal(n, k, scale=4.0) if function is soft else draw.uniform(n, k, low=0.01)
        if function is soft:
            x[t == 0] = -torch.inf
        x, t, cotangent = x.to(dtype), t.to(dtype), draw.normal(n)
        tolerance = 1e-12 if dtype == torch.float64 else 4e-6
        for got, wanted in zip(run(function, x, t, cotangent), exact(function, x, t, cotangent), strict=True):
            assert got.dtype == dtype
            finite = wanted.isfinite()
            assert torch.equal(finite, got.isfinite())
            close(got[finite], wanted[finite], tolerance, floor=0.1)


@pytest.mark.parametrize("function", LOSSES)
def test_rows_without_columns(function):
    x = torch.zeros(4, 0)
    losses, *gradients = run(function, x, x, torch.ones(4))
    assert losses.tolist() == [0.0] * 4
    assert [g.shape for g in gradients] == [x.shape] * 2


@pytest.mark.parametrize("function", LOSSES)
def test_strides(draw, close, function):
    """Of rows, batches and cotangents; what has other ones is copied."""
    x, t = draw.uniform(3, 9, 5, low=0.1).float(), draw.uniform(3, 9, 5).float()
    between = torch.full((3, 9, 8), torch.nan)
    between[..., 2:7] = x
    wide = between.as_strided((3, 9, 5), between.stride(), 2)
    shared = t[:1].expand(3, 9, 5)
    turned = x.transpose(0, 1).contiguous().transpose(0, 1)
    columns = t.transpose(1, 2).contiguous().transpose(1, 2)
    one = torch.tensor(0.25).expand(3, 9)
    for first, second in ((x, t), (wide, shared), (turned, shared), (turned, columns), (wide.half(), t.bfloat16())):
        for cotangent in (draw.normal(3, 9), draw.normal(9, 3).T, draw.normal(1, 9).expand(3, 9), one):
            found = run(function, first, second, cotangent)
            plain = run(function, first.contiguous(), second.contiguous(), cotangent.contiguous())
            assert all(torch.equal(a, b) for a, b in zip(found, plain, strict=True))
    assert found[1].dtype == torch.float16
    assert found[2].dtype == torch.bfloat16


@pytest.mark.parametrize("function", LOSSES)
def test_either_gradient_alone(draw, function):
    x, t, cotangent = draw.uniform(40, 16).float(), draw.uniform(40, 16).float(), draw.normal(40).float()
    _, of_x, of_t = run(function, x, t, cotangent)
    leaf = x.clone().requires_grad_()
    assert torch.equal(torch.autograd.grad(function(leaf, t), leaf, cotangent)[0], of_x)
    leaf = t.clone().requires_grad_()
    assert torch.equal(torch.autograd.grad(function(x, leaf), leaf, cotangent)[0], of_t)


@pytest.mark.parametrize("function", LOSSES)
@pytest.mark.parametrize("shape", [(2, 5003, 16), (1501, 31), (7, 20_001)], ids=str)
def test_threads_give_the_same_bits(draw, over_threads, function, shape):
    x, t, cotangent = draw.uniform(*shape).float(), draw.uniform(*shape).float(), draw.normal(*shape[:-1])
    over_threads(lambda: run(function, x, t, cotangent))


@pytest.mark.parametrize("function", LOSSES)
@pytest.mark.parametrize("case", ["usual", "wide", "far from 0"])
def test_as_exact_as_plain_torch(draw, function, case):
    """In float32, by the largest and by the mean error of losses and gradients."""
    n, k = (50, 40_000) if case == "wide" else (5000, 16)
    x = draw.normal(n, k, scale=3.0) if function is soft else draw.uniform(n, k) ** 4
    if case == "far from 0":
        x = x + 1e4 if function is soft else x * 1e-6
    x, t, cotangent = x.float(), draw.uniform(n, k).float(), draw.normal(n)
    wanted, found = exact(function, x, t, cotangent), run(function, x, t, cotangent)
    with ops.backend("reference"):
        plain = run(function, x, t, cotangent)
    for got, usual, truth in zip(found, plain, wanted, strict=True):
        ours, theirs = (got - truth).abs(), (usual - truth).abs()
        rounding = 2e-7 * truth.abs()
        assert ours.mean() <= 1.1 * theirs.mean() + rounding.mean() / 4
        # The largest of 80,000 depends on the draw, and on whether the build has fused multiply-adds (`make sanitize`).
        assert ours.max() <= 2 * theirs.max() + rounding.max()


def test_edges_of_probabilities():
    """Where a power has no value or none that is finite, as in the reference; q = 1 needs none."""
    p = torch.tensor([[-1e-7, 0.5], [-0.5, 0.5], [torch.inf, 0.5], [torch.nan, 0.5], [0.0, 1.0]])
    t = torch.tensor([[1.0, 0.5]]).expand(5, 2)
    for q in (0.3, 0.7, 1.0):
        function = lambda p, t, q=q: ops.generalized_cross_entropy(p, t, q=q, reduction="none")  # noqa: E731
        found = run(function, p, t, torch.ones(5))
        with ops.backend("reference"):
            wanted = run(function, p, t, torch.ones(5))
        for got, value in zip(found, wanted, strict=True):
            torch.testing.assert_close(got, value, rtol=1e-5, atol=1e-6, equal_nan=True)
