"""Scaled cosine similarity where a kernel has tiles, ranges and blocks to get wrong, against the float64 reference."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from case import ops
from case.kernels.config import (
    MAX_COSINE_COLUMNS,
    Device,
    ceil_div,
    cosine_backward_launch,
    cosine_forward_launch,
)

OPS = ["cosine_logits", "cosine_softmax"]
HALF = {torch.bfloat16: 1e-2, torch.float16: 2e-3}
TOLERANCE = {torch.float32: 1e-5, **HALF}  # of gradients; results: see conftest.py
# (B, M, P, D): below, at and above a tile in each; the last has several blocks of columns.
SIZES = [
    (2, 0, 5, 8), (1, 1, 1, 8), (2, 2, 5, 32), (1, 97, 16, 512), (1, 1000, 33, 32), (1, 4099, 2, 8), (1, 60, 128, 100),
    (3, 20, 40, 24), (1, 70, 150, 24),
]  # fmt: skip


def run(op: str, leaves: list[Tensor], cotangent: Tensor, scale: float, unit_y: bool) -> tuple[Tensor, ...]:
    """(result, gradients of the leaves that have one)."""
    found = getattr(ops, op)(*leaves, scale=scale, unit_y=unit_y)
    wanted = [x for x in leaves if x.requires_grad]
    return found.detach(), *torch.autograd.grad(found, wanted, cotangent.to(found))


def check(
    close: Callable[..., None],
    op: str,
    x: Tensor,
    y: Tensor,
    cotangent: Tensor,
    scale: float,
    unit_y: bool,
    needs: tuple[bool, bool],
) -> None:
    cotangent = cotangent.to(x.dtype)
    leaves = [a.detach().requires_grad_(need) for a, need in zip((x, y), needs)]
    found = run(op, leaves, cotangent, scale, unit_y)
    exact = [a.detach().cpu().double().requires_grad_(need) for a, need in zip((x, y), needs)]
    with ops.backend("reference"):
        expected = run(op, exact, cotangent.cpu().double(), scale, unit_y)
    # Of random rows a cosine, and a gradient of its, are about 1 / sqrt(D): where all are less, by chance or because
    # the softmax of one column is constant, they are compared with that.
    usual = scale / math.sqrt(x.shape[-1])
    for i, (got, wanted) in enumerate(zip(found, expected, strict=True)):
        assert got.dtype == x.dtype
        close(got, wanted, TOLERANCE[x.dtype] if i else None, floor=0.1 * usual if i else usual)


@pytest.mark.op(*OPS)
@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_sizes(draw, close, device, size, op):
    b, m, p, d = size
    x, y = draw.normal(b, m, d).to(device, torch.float32), draw.normal(b, p, d).to(device, torch.float32)
    check(close, op, x, y, draw.normal(b, m, p).to(device), 5.0, m % 2 == 0, (True, True))


@pytest.mark.op(*OPS)
@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("dtype", HALF)
@pytest.mark.parametrize("size", [(1, 97, 16, 100), (1, 70, 150, 24)], ids=str)
def test_half_precision(draw, close, device, size, dtype, op):
    b, m, p, d = size
    # Lengths that gradients in half precision must not depend on.
    x, y = draw.normal(b, m, d, scale=20.0).to(device, dtype), draw.normal(b, p, d, scale=0.05).to(device, dtype)
    check(close, op, x, y, draw.normal(b, m, p).to(device), 5.0, False, (True, True))


@pytest.mark.op(*OPS)
@pytest.mark.parametrize("op", OPS)
def test_any_strides_and_either_gradient(draw, close, device, op):
    x = draw.normal(2, 3, 10, 20).to(device, torch.float32)
    y = draw.normal(2, 3, 10, 20).to(device, torch.float32)
    x, y = x.transpose(0, 1).transpose(-1, -2), y.transpose(0, 1)[..., ::2, ::2]  # (3, 2, 20, 10) and (3, 2, 5, 10)
    repeated = draw.normal(1, 1, 1, 5).to(device).expand(3, 2, 20, 5)
    for needs, cotangent in (((True, False), draw.normal(3, 2, 20, 5).to(device)), ((False, True), repeated)):
        check(close, op, x, y, cotangent, 3.0, False, needs)


@pytest.mark.op(*OPS)
@pytest.mark.parametrize("op", OPS)
def test_the_same_twice(draw, device, op):
    x, y = draw.normal(2, 150, 40).to(device, torch.float32), draw.normal(2, 20, 40).to(device, torch.float32)
    cotangent = draw.normal(2, 150, 20).to(device)
    first, second = (
        run(op, [x.detach().requires_grad_(), y.detach().requires_grad_()], cotangent, 3.0, False) for _ in range(2)
    )
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


@pytest.mark.op(*OPS)
@pytest.mark.parametrize("op", OPS)
@pytest.mark.filterwarnings("ignore:(overflow|invalid value) encountered:RuntimeWarning")  # numpy's, interpreting
def test_lengths_from_zero_to_beyond_the_range(draw, close, device, op):
    x, y = draw.normal(40, 16).float(), draw.normal(6, 16).float()
    lengths = torch.tensor([0.0, 1e-30, 1e-13, 1e-6, 1e6, 1e15])
    x[:6] *= lengths[:, None]
    y *= lengths.roll(1)[:, None]
    leaves = [a.clone().to(device).requires_grad_() for a in (x, y)]
    found = run(op, leaves, draw.normal(40, 6).to(device), 1e4, False)
    assert all(a.isfinite().all() for a in found)
    with ops.backend("reference"):
        expected = getattr(ops, op)(x.double(), y.double(), scale=1e4)
    # A logit of 1e4 is known to 1e-3, which is what its softmax is off by.
    close(found[0], expected, 2e-6 if op == "cosine_logits" else 4e-3)

    x[2], y[3] = x[9] * 1e25, y[4] * 1e25  # squares overflow: the reference divides by infinity
    leaves = [a.clone().to(device).requires_grad_() for a in (x, y)]
    found = run(op, leaves, draw.normal(40, 6).to(device), 2.0, False)
    nothing = 0.0 if op == "cosine_logits" else 1 / 6
    assert (found[0][2] - nothing).abs().max() <= 1e-6
    assert all(a.isfinite().all() for a in found)


@pytest.mark.parametrize("arch", [0, 80, 90, 100, 120])
@pytest.mark.parametrize("element_size", [2, 4])
def test_launches(arch, element_size):
    """Blocks that tensor cores take, two ranges of rows at least where interpreted, partial sums smaller than x."""
    device = Device(arch, 2 if arch == 0 else 132)
    for b, m, p, d in (*SIZES[1:], (2, 12_000, 16, 512), (1, 1_000_000, 64, 2048)):
        forward = cosine_forward_launch(b, m, p, d, element_size, device)
        backward = cosine_backward_launch(b, m, p, d, element_size, device)
        for launch in (forward, backward):
            assert all(n >= 16 and n & (n - 1) == 0 for n in (launch.block_m, launch.block_p, launch.block_d))
        assert forward.block_p >= min(p, MAX_COSINE_COLUMNS)
        assert backward.rows_per_split % backward.block_m == 0
        splits = ceil_div(m, backward.rows_per_split)
        if arch == 0:
            assert splits >= 2 or m <= 16
        else:
            assert splits * backward.block_p <= m / 4 + backward.block_p
