"""Scaled cosine similarity against loops over rows in float64."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from case import ops

OPS = ["cosine_logits", "cosine_softmax"]
SIZES = [(0, 5, 8), (1, 1, 8), (2, 5, 100), (97, 16, 32)]


def by_loops(
    x: NDArray[np.float64], y: NDArray[np.float64], scale: float, unit_y: bool, op: str
) -> NDArray[np.float64]:
    out = np.zeros((*x.shape[:-1], y.shape[-2]))
    for at in np.ndindex(x.shape[:-1]):
        row = x[at]
        for p, other in enumerate(y[at[:-1]]):
            length = math.sqrt(row @ row) * (1.0 if unit_y else math.sqrt(other @ other))
            out[(*at, p)] = scale * (row @ other) / length if length > 0 else 0.0
        if op == "cosine_softmax":
            exponents = np.exp(out[at])
            out[at] = exponents / exponents.sum()
    return out


def expected(x: Tensor, y: Tensor, scale: float, unit_y: bool, op: str) -> NDArray[np.float64]:
    return by_loops(x.double().numpy(force=True), y.double().numpy(force=True), scale, unit_y, op)


@pytest.mark.op(*OPS)
@pytest.mark.parametrize("unit_y", [False, True])
@pytest.mark.parametrize("lead", [(), (3,), (2, 3)], ids=str)
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_values(draw, close, device, size, lead, unit_y):
    m, p, d = size
    for dtype in (torch.float64, torch.float32, torch.bfloat16, torch.float16):
        x, y = draw.normal(*lead, m, d).to(dtype), draw.normal(*lead, p, d).to(dtype)
        if unit_y:
            y = torch.nn.functional.normalize(y.double(), dim=-1).to(dtype)
        for op in OPS:
            found = getattr(ops, op)(x.to(device), y.to(device), scale=3.0, unit_y=unit_y)
            assert found.dtype == dtype
            # A single cosine may be near 0; errors are of products of lengths 1.
            close(found, expected(x, y, 3.0, unit_y, op), floor=1.0)


@pytest.mark.op(*OPS)
@pytest.mark.parametrize("requires_grad", [False, True])
def test_memory_layouts(draw, close, device, lay_out, requires_grad):
    x, y = lay_out(draw.normal(3, 9, 7).to(device)), lay_out(draw.normal(3, 4, 7).to(device))
    for op in OPS:
        found = getattr(ops, op)(x.detach().requires_grad_(requires_grad), y, scale=10.0)
        assert found.requires_grad == requires_grad
        close(found, expected(x, y, 10.0, False, op))


@pytest.mark.op("cosine_logits")
def test_lengths_do_not_matter(draw, close, device):
    x, y = draw.normal(5, 8).to(device), draw.normal(3, 8).to(device)
    similarity = ops.cosine_logits(x, y, scale=1.0)
    close(ops.cosine_logits(x * 1e3, y / 1e3, scale=1.0), similarity)
    close(ops.cosine_logits(x, x, scale=7.0).diagonal(), np.full(5, 7.0))
    assert similarity.abs().max() <= 1 + 1e-12
    assert (ops.cosine_logits(x, y * 2.0, scale=1.0, unit_y=True) - similarity).abs().max() > 1e-2


@pytest.mark.op(*OPS)
def test_rows_of_zeros_are_similar_to_nothing(draw, close, device):
    x, y = draw.normal(4, 6), draw.normal(3, 6)
    x[1], y[2] = 0, 0
    for op in OPS:
        a, b = x.to(device).requires_grad_(), y.to(device).requires_grad_()
        found = getattr(ops, op)(a, b, scale=2.0)
        close(found, expected(x, y, 2.0, False, op))
        found.sum().backward()
        assert a.grad.isfinite().all()
        assert b.grad.isfinite().all()


@pytest.mark.op(*OPS)
@pytest.mark.parametrize("op", OPS)
def test_gradients(draw, check_gradients, device, op):
    function = getattr(ops, op)
    x, y = draw.normal(2, 4, 5), draw.normal(2, 3, 5)
    check_gradients(lambda a, b: function(a, b, scale=3.0), x, y)
    unit = torch.nn.functional.normalize(y, dim=-1)
    check_gradients(lambda a, b: function(a, b, scale=3.0, unit_y=True), x, unit)


@pytest.mark.op("cosine_logits")
def test_unit_rows_have_the_gradient_of_the_plain_product(draw, close, device):
    x = draw.normal(6, 5).to(device)
    y = torch.nn.functional.normalize(draw.normal(3, 5), dim=-1).to(device).requires_grad_()
    cotangent = draw.normal(6, 3).to(device)
    (found,) = torch.autograd.grad(ops.cosine_logits(x, y, scale=10.0, unit_y=True), y, cotangent)
    close(found, 10.0 * cotangent.T @ (x / x.norm(dim=-1, keepdim=True)))


@pytest.mark.op(*OPS)
@pytest.mark.parametrize("op", OPS)
def test_compiles(draw, check_compiles, device, op):
    x, y = (draw.normal(*shape).float().to(device).requires_grad_() for shape in ((2, 9, 8), (2, 4, 8)))
    check_compiles(lambda a, b: getattr(ops, op)(a, b, scale=3.0), x, y)


X, Y = torch.zeros(4, 3), torch.zeros(2, 3)
WRONG: list[tuple[dict[str, Any], type[Exception], str, str]] = [
    ({"x": [1.0]}, TypeError, "x", "list"),
    ({"x": X.int()}, TypeError, "x", "torch.int32"),
    ({"x": torch.zeros(3)}, ValueError, "x", "(3,)"),
    ({"y": torch.zeros(2, 4)}, ValueError, "y", "(2, 4)"),
    ({"y": torch.zeros(1, 2, 3)}, ValueError, "y", "(1, 2, 3)"),
    ({"y": Y.double()}, TypeError, "y", "torch.float64"),
    ({"y": Y.to("meta")}, ValueError, "y", "meta"),
    ({"scale": math.inf}, ValueError, "scale", "inf"),
]


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("given, kind, argument, got", WRONG, ids=[f"{a}-{g}" for _, _, a, g in WRONG])
def test_refuses(fails, op, given, kind, argument, got):
    with fails(kind, op, argument, got):
        getattr(ops, op)(**{"x": X, "y": Y, "scale": 1.0, **given})
