"""What is the compiled cosines' own: tiles, panels, chunks, strides and threads; against float64 torch."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import Tensor

from case import ops
from case.ops import _backend
from case.ops._native_ops.cosine import MOST_COLUMNS

pytestmark = [
    pytest.mark.skipif("native/cpu" not in _backend.table()["cosine_logits"], reason="no native module"),
    pytest.mark.usefixtures("poisoned", "on_native"),
]
DTYPES = [(torch.float32, 1e-5), (torch.float64, 1e-12)]
OPS = [pytest.param(ops.cosine_logits, id="logits"), pytest.param(ops.cosine_softmax, id="softmax")]
# (groups, rows, columns, width): tiles of 1 to 8 rows and 1 to 3 vectors, panels whole and not, blocks, chunks.
SIZES = [
    (1, 0, 3, 8), (2, 5, 0, 8), (2, 5, 3, 0), (1, 1, 1, 1), (3, 47, 2, 7), (2, 48, 8, 16), (1, 49, 9, 33),
    (2, 97, 16, 129), (1, 301, 25, 40), (1, 130, 50, 31), (2, 14_000, 2, 3), (1, 60, MOST_COLUMNS, 24),
    (1, 20, MOST_COLUMNS + 1, 24), (70, 9, 4, 20),
]  # fmt: skip


def run(op: Callable[..., Tensor], x: Tensor, y: Tensor, cotangent: Tensor, unit_y: bool = False) -> list[Tensor]:
    """The result and both gradients."""
    leaves = [x.detach().requires_grad_(), y.detach().requires_grad_()]
    found = op(*leaves, scale=5.0, unit_y=unit_y)
    return [found.detach(), *torch.autograd.grad(found, leaves, cotangent.to(found))]


def exact(*args: object) -> list[Tensor]:
    op, x, y, *rest = args
    with ops.backend("reference"):
        return run(op, x.double(), y.double(), *rest)


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("dtype, tolerance", DTYPES)
def test_sizes(draw, close, op, size, dtype, tolerance):
    groups, rows, columns, width = size
    x, y = draw.normal(groups, rows, width).to(dtype), draw.normal(groups, columns, width).to(dtype)
    cotangent, unit_y = draw.normal(groups, rows, columns).to(dtype), bool(rows % 2)
    found = run(op, x, y, cotangent, unit_y)
    assert [g.dtype for g in found] == [dtype] * 3
    for got, wanted in zip(found, exact(op, x, y, cotangent, unit_y), strict=True):
        close(got, wanted, tolerance, floor=1.0)


@pytest.mark.parametrize("op", OPS)
def test_strides(draw, op):
    """Of rows and groups; what has other ones is copied. Leading dimensions are groups."""
    x, y = draw.normal(2, 3, 50, 20).float(), draw.normal(2, 3, 5, 20).float()
    between = torch.full((2, 3, 50, 41), torch.nan)
    between[..., 2:22] = x
    wide = between[..., 2:22]
    columns = x.mT.contiguous().mT
    turned = x.transpose(0, 1).contiguous().transpose(0, 1)
    given = draw.normal(2, 3, 50, 5).float()
    for cotangent in (given, given.mT.contiguous().mT, given[:, :, :1, :1].expand(2, 3, 50, 5)):
        plain = run(op, x, y, cotangent.contiguous())
        for other in (wide, columns, turned):
            found = run(op, other, y.mT.contiguous().mT, cotangent)
            assert all(torch.equal(a, b) for a, b in zip(found, plain, strict=True))
    apart = [run(op, x[i], y[i], given[i]) for i in range(2)]
    for got, parts in zip(run(op, x, y, given), zip(*apart, strict=True), strict=True):
        torch.testing.assert_close(got, torch.stack(parts))


@pytest.mark.parametrize("op", OPS)
def test_either_gradient_alone(draw, op):
    x, y, cotangent = draw.normal(2, 70, 33).float(), draw.normal(2, 5, 33).float(), draw.normal(2, 70, 5).float()
    _, of_x, of_y = run(op, x, y, cotangent)
    leaf = x.clone().requires_grad_()
    assert torch.equal(torch.autograd.grad(op(leaf, y, scale=5.0), leaf, cotangent)[0], of_x)
    leaf = y.clone().requires_grad_()
    assert torch.equal(torch.autograd.grad(op(x, leaf, scale=5.0), leaf, cotangent)[0], of_y)


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("shape", [(2, 5003, 16, 40), (1, 20_001, 3, 17)], ids=str)
def test_threads_give_the_same_bits(draw, over_threads, op, shape):
    groups, rows, columns, width = shape
    x, y = draw.normal(groups, rows, width).float(), draw.normal(groups, columns, width).float()
    over_threads(partial(run, op, x, y, draw.normal(groups, rows, columns)))


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("unit_y", [False, True])
def test_rows_of_zeros_and_what_is_not_finite(draw, op, unit_y):
    """As in the reference, result and gradients; each in rows of its own."""
    x, y, cotangent = draw.normal(2, 60, 20), draw.normal(2, 4, 20), draw.normal(2, 60, 4)
    x[0, 3], y[0, 1] = 0, 0
    x[0, 4] *= 1e-14  # below the least length
    x[1, 5, 2], x[1, 50, 7] = torch.nan, torch.inf
    for got, wanted in zip(run(op, x, y, cotangent, unit_y), exact(op, x, y, cotangent, unit_y), strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-10, atol=1e-10, equal_nan=True)


def test_a_softmax_whose_terms_vanish(draw, close):
    """The logarithm of what underflowed counts for nothing."""
    x, y, cotangent = draw.normal(1, 40, 8).float(), draw.normal(1, 6, 8).float(), draw.normal(1, 40, 6)
    steep = partial(_steep, 400.0)  # logits of up to 2000, known to 1e-4
    for got, wanted in zip(run(steep, x, y, cotangent), exact(steep, x, y, cotangent), strict=True):
        close(got, wanted, 3e-3, floor=1.0)


def _steep(factor: float, x: Tensor, y: Tensor, *, scale: float, unit_y: bool) -> Tensor:
    return ops.cosine_softmax(x, y, scale=factor * scale, unit_y=unit_y)


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(draw, op, dtype):
    """Computed in float32, then rounded."""
    x, y, cotangent = draw.normal(30, 20).to(dtype), draw.normal(4, 20).to(dtype), draw.normal(30, 4).to(dtype)
    found = run(op, x, y, cotangent)
    for got, wanted in zip(found, run(op, x.float(), y.float(), cotangent.float()), strict=True):
        assert torch.equal(got, wanted.to(dtype))
