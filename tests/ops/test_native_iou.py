"""The compiled gradient of ``temporal_iou``: shared ends, no union, sizes, threads, against the float64 reference."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from case import ops
from case.ops import _backend

pytestmark = [
    pytest.mark.skipif("native/cpu" not in _backend.table()["temporal_iou"], reason="no native module"),
    pytest.mark.usefixtures("poisoned", "on_native"),
]
DTYPES = [torch.float32, torch.float64]


def run(a: Tensor, b: Tensor, cotangent: Tensor, offset: float) -> list[Tensor]:
    leaves = [a.detach().requires_grad_(), b.detach().requires_grad_()]
    found = ops.temporal_iou(*leaves, length_offset=offset)
    return [found.detach(), *torch.autograd.grad(found, leaves, cotangent.to(found))]


def exact(a: Tensor, b: Tensor, cotangent: Tensor, offset: float) -> list[Tensor]:
    with ops.backend("reference"):
        return run(a.double(), b.double(), cotangent, offset)


@pytest.mark.parametrize("offset", [0.0, 1.0])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("sizes", [(1, 1), (0, 3), (3, 0), (65, 33), (7, 1025), (200, 2100)], ids=str)
def test_gradients(draw, close, sizes, dtype, offset):
    """Ends in quarters: many are shared, some segments touch, some are of no or negative length."""
    for lead in ((), (2,), (2, 0)):
        a, b = (draw.integers(-16, 32, *lead, n, 2).to(dtype) / 4 for n in sizes)
        cotangent = draw.normal(*lead, *sizes)
        found, wanted = run(a, b, cotangent, offset), exact(a, b, cotangent, offset)
        for got, value in zip(found, wanted, strict=True):
            close(got, value, 1e-11 if dtype == torch.float64 else 2e-5)


def test_without_a_union_there_is_no_gradient(draw):
    point = torch.tensor([[1.0, 1.0], [2.0, 1.0]])
    for backend in ("native", "reference"):
        with ops.backend(backend):
            found = run(point, point, draw.normal(2, 2), 0.0)
        assert all((x == 0).all() for x in found), backend


def test_nan_goes_where_it_does_in_the_reference(draw):
    for row, column in ((0, 0), (3, 1)):
        a, b = (draw.uniform(n, 2).cumsum(1) for n in (5, 7))
        a[row, column] = torch.nan
        for first, second, cotangent in ((a, b, draw.normal(5, 7)), (b, a, draw.normal(7, 5))):
            found, wanted = run(first.float(), second.float(), cotangent, 0.0), exact(first, second, cotangent, 0.0)
            assert all(torch.equal(x.isnan(), y.isnan()) for x, y in zip(found, wanted, strict=True))


def test_either_gradient_alone_and_any_strides(draw):
    a, b, cotangent = draw.uniform(3, 9, 2).cumsum(2), draw.uniform(3, 6, 2).cumsum(2), draw.normal(3, 9, 6)
    _, of_a, of_b = run(a, b, cotangent, 0.0)
    turned = [x.transpose(1, 2).contiguous().transpose(1, 2) for x in (a, b, cotangent)]
    for got, wanted in zip(run(*turned, 0.0), run(a, b, cotangent, 0.0), strict=True):
        assert torch.equal(got, wanted)
    leaf = a.clone().requires_grad_()
    assert torch.equal(torch.autograd.grad(ops.temporal_iou(leaf, b), leaf, cotangent)[0], of_a)
    leaf = b.clone().requires_grad_()
    assert torch.equal(torch.autograd.grad(ops.temporal_iou(a, leaf), leaf, cotangent)[0], of_b)


def test_threads_give_the_same_bits(draw, over_threads):
    a, b = (draw.uniform(2, n, 2).cumsum(2).float() for n in (321, 1300))
    cotangent = draw.normal(2, 321, 1300)
    over_threads(lambda: run(a, b, cotangent, 0.5))
