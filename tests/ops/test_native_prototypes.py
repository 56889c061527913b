"""What is the compiled prototypes' own: panels, chunks, strides, threads, few weights that count; in float64 torch."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from torch import Tensor
from torch.nn.functional import one_hot

from case import ops
from case.ops import _backend
from case.ops._native_ops.prototypes import MOST_COLUMNS

pytestmark = [
    pytest.mark.skipif("native/cpu" not in _backend.table()["prototypes"], reason="no native module"),
    pytest.mark.usefixtures("poisoned", "on_native"),
]
DTYPES = [(torch.float32, 2e-5), (torch.float64, 1e-12)]
NORMALIZATIONS = ["mean", "l2", "sum"]
# (groups, rows, columns, width): tiles of 1 to 6 columns, panels whole and not, blocks, chunks.
SIZES = [
    (1, 0, 3, 8), (2, 5, 0, 8), (2, 5, 3, 0), (1, 1, 1, 1), (3, 47, 2, 7), (2, 48, 8, 16), (1, 49, 9, 33),
    (2, 97, 16, 129), (1, 301, 25, 40), (1, 130, 50, 31), (2, 14_000, 2, 3), (1, 60, MOST_COLUMNS, 24),
    (1, 20, MOST_COLUMNS + 1, 24), (70, 9, 4, 20),
]  # fmt: skip


def run(normalize: str, e: Tensor, w: Tensor, cotangent: Tensor) -> list[Tensor]:
    """The result and both gradients; the registered op takes weights that all groups share."""
    leaves = [e.detach().requires_grad_(), w.detach().requires_grad_()]
    z = _backend.select("prototypes", e.device)(*leaves, normalize)
    return [z.detach(), *torch.autograd.grad(z, leaves, cotangent.to(z))]


def exact(normalize: str, e: Tensor, w: Tensor, cotangent: Tensor) -> list[Tensor]:
    with ops.backend("reference"):
        return run(normalize, e.double(), w.double(), cotangent)


@pytest.mark.parametrize("normalize", NORMALIZATIONS)
@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("dtype, tolerance", DTYPES)
def test_sizes(draw, close, normalize, size, dtype, tolerance):
    groups, rows, columns, width = size
    e, w = draw.uniform(groups, rows, width).to(dtype), draw.uniform(groups, rows, columns, low=0.1).to(dtype)
    cotangent = draw.normal(groups, columns, width).to(dtype)
    found = run(normalize, e, w, cotangent)
    assert [g.dtype for g in found] == [dtype] * 3
    for got, wanted in zip(found, exact(normalize, e, w, cotangent), strict=True):
        close(got, wanted, tolerance, floor=1.0 if rows == 1 else 1e-2)  # of one row: 0, but for rounding


@pytest.mark.parametrize("normalize", NORMALIZATIONS)
@pytest.mark.parametrize("share", [0.0, 0.05, 0.3])
@pytest.mark.parametrize("width", [7, 16, 100])
def test_few_weights_that_count(draw, close, normalize, share, width):
    """One a row, or some, in turns with rows where all do."""
    hard = one_hot(draw.integers(0, 11, 2, 700), 11).double() * draw.uniform(2, 700, 1, low=0.5)
    w = torch.where(draw.keep(share, 2, 700, 11), draw.uniform(2, 700, 11), hard)
    w[:, 200:260] = draw.uniform(2, 60, 11)
    e, cotangent = draw.uniform(2, 700, width), draw.normal(2, 11, width)
    for dtype, tolerance in DTYPES:
        found, wanted = (f(normalize, e.to(dtype), w.to(dtype), cotangent) for f in (run, exact))
        for got, truth in zip(found, wanted, strict=True):
            close(got, truth, tolerance)


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
@pytest.mark.parametrize("normalize", NORMALIZATIONS)
def test_what_is_not_finite_counts_where_its_weight_is_zero(draw, normalize, value):
    w = one_hot(draw.integers(0, 6, 200), 6).double()
    for place in (e := draw.normal(200, 20), w):
        given = place.clone()
        given[100, 3] = value
        args = (given, w) if place is e else (e, given)
        cotangent = draw.normal(6, 20)
        for got, wanted in zip(run(normalize, *args, cotangent), exact(normalize, *args, cotangent), strict=True):
            torch.testing.assert_close(got, wanted, rtol=1e-10, atol=1e-10, equal_nan=True)


@pytest.mark.parametrize("normalize", NORMALIZATIONS)
def test_no_weight_at_all(draw, normalize):
    e, w, cotangent = draw.normal(60, 5), draw.uniform(60, 3), draw.normal(3, 5)
    w[:, 1] = 0
    e[:, 0] = 0
    for got, wanted in zip(run(normalize, e, w, cotangent), exact(normalize, e, w, cotangent), strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("normalize", NORMALIZATIONS)
def test_strides_and_shared_weights(draw, normalize):
    e, shared, cotangent = draw.normal(2, 3, 50, 20), draw.uniform(50, 5), draw.normal(2, 3, 5, 20)
    between = torch.full((2, 3, 50, 41), torch.nan, dtype=torch.float64)
    between[..., 2:22] = e
    for other in (between[..., 2:22], e.mT.contiguous().mT, e.transpose(0, 1).contiguous().transpose(0, 1)):
        for w in (shared, shared.expand(3, 50, 5), shared.expand(2, 3, 50, 5), shared.T.contiguous().T):
            found = run(normalize, other, w, cotangent.mT.contiguous().mT)
            for got, wanted in zip(found, exact(normalize, e, w, cotangent), strict=True):
                torch.testing.assert_close(got, wanted, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("shape", [(2, 5003, 16, 40), (1, 20_001, 3, 17)], ids=str)
@pytest.mark.parametrize("hard", [False, True])
def test_threads_give_the_same_bits(draw, over_threads, shape, hard):
    groups, rows, columns, width = shape
    e, w = draw.normal(groups, rows, width).float(), draw.uniform(groups, rows, columns).float()
    if hard:
        w = one_hot(w.argmax(-1), columns).float()
    over_threads(partial(run, "mean", e, w, draw.normal(groups, columns, width)))


def test_either_gradient_alone(draw):
    e, w, cotangent = draw.normal(2, 70, 33), draw.uniform(2, 70, 5), draw.normal(2, 5, 33)
    _, of_e, of_w = run("l2", e, w, cotangent)
    leaf = e.clone().requires_grad_()
    assert torch.equal(torch.autograd.grad(ops.prototypes(leaf, w, normalize="l2"), leaf, cotangent)[0], of_e)
    leaf = w.clone().requires_grad_()
    assert torch.equal(torch.autograd.grad(ops.prototypes(e, leaf, normalize="l2"), leaf, cotangent)[0], of_w)


def test_other_dtypes(draw):
    """Half precision is computed in float32; weights take the embeddings' dtype."""
    e, w, cotangent = draw.normal(30, 20), draw.uniform(30, 4), draw.normal(4, 20)
    for dtype in (torch.bfloat16, torch.float16, torch.float32):
        found = run("l2", e.to(dtype), w.to(dtype).double(), cotangent.to(dtype))
        plain = run("l2", e.to(dtype).float(), w.to(dtype).float(), cotangent.to(dtype).float())
        assert [g.dtype for g in found] == [dtype, dtype, torch.float64]
        assert all(torch.equal(got, wanted.to(got.dtype)) for got, wanted in zip(found, plain, strict=True))
