"""What is the compiled pooling's own: which of equals, NaN and infinities are picked, sizes, strides, threads."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from case import ops
from case.ops import _backend

pytestmark = [
    pytest.mark.skipif("native/cpu" not in _backend.table()["topk_pool"], reason="no native module"),
    pytest.mark.usefixtures("poisoned", "on_native"),
]
DTYPES = [torch.float32, torch.float64]


def stable(selector: Tensor, k: int) -> Tensor:
    """Of the largest k, NaN before all numbers and of equals the first, in the order of time."""
    return selector.sort(dim=-2, descending=True, stable=True).indices[..., :k, :].sort(dim=-2).values


def picked(selector: Tensor, k: int) -> Tensor:
    return ops.topk_pool(selector, torch.zeros_like(selector), k, return_indices=True)[1]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("t", [1, 2, 7, 33, 750, 4099])
def test_sizes(draw, close, t, dtype):
    for batch, classes in ((1, 1), (3, 5), (2, 8), (2, 9), (1, 20)):
        for k in {1, min(2, t), t // 8 or 1, t - 1 or 1, t}:
            selector, values = draw.normal(batch, t, classes).to(dtype), draw.normal(batch, t, classes).to(dtype)
            leaf, cotangent = values.clone().requires_grad_(), draw.normal(batch, classes)
            pooled, indices = ops.topk_pool(selector, leaf, k, return_indices=True)
            assert torch.equal(indices, stable(selector, k))
            exact = values.double().requires_grad_()
            with ops.backend("reference"):
                wanted = ops.topk_pool(selector, exact, k)
            close(pooled, wanted)
            (found,) = torch.autograd.grad(pooled, leaf, cotangent.to(dtype))
            close(found, torch.autograd.grad(wanted, exact, cotangent)[0])


@pytest.mark.parametrize("dtype", DTYPES)
def test_equals(draw, dtype):
    """The first of them, as sampling that repeats rows makes many."""
    for levels in (1, 2, 5, 60):
        selector = (draw.integers(0, levels, 2, 400, 9) - levels // 2).to(dtype) / 7
        for k in (1, 3, 50, 399, 400):
            assert torch.equal(picked(selector, k), stable(selector, k))


@pytest.mark.parametrize("dtype", [*DTYPES, torch.bfloat16, torch.float16])
def test_all_kinds_of_numbers(draw, dtype):
    info = torch.finfo(dtype)
    kinds = [0.0, -0.0, torch.inf, -torch.inf, torch.nan, -torch.nan, info.max, -info.max, info.tiny, -info.tiny,
             info.smallest_normal / 2, -info.smallest_normal / 2, 1.0, -1.0]  # fmt: skip
    selector = torch.tensor(kinds, dtype=dtype)[draw.integers(0, len(kinds), 3, 60, 11)]
    for k in (1, 5, 20, 59, 60):
        assert torch.equal(picked(selector, k), stable(selector, k))


def test_what_is_not_picked_takes_no_part(draw):
    selector, values = draw.normal(2, 50, 9), draw.normal(2, 50, 9)
    chosen = torch.zeros(2, 50, 9).scatter_(1, stable(selector, 7), 1.0).bool()
    found = ops.topk_pool(selector, values.masked_fill(~chosen, torch.nan), 7)
    assert torch.equal(found, ops.topk_pool(selector, values, 7))


@pytest.mark.parametrize("lead", [(), (2,), (2, 3)], ids=str)
def test_leading_dimensions_share_a_ranking(draw, lead):
    selector, values = draw.normal(4, 2, 30, 5), draw.normal(*lead, 4, 2, 30, 5)
    leaf, cotangent = values.clone().requires_grad_(), draw.normal(*lead, 4, 2, 5)
    pooled, indices = ops.topk_pool(selector, leaf, 6, return_indices=True)
    (found,) = torch.autograd.grad(pooled, leaf, cotangent)
    each = values.reshape(-1, 4, 2, 30, 5).clone().requires_grad_()
    alone = torch.stack([ops.topk_pool(selector, x, 6) for x in each])
    assert indices.shape == (4, 2, 6, 5)
    assert torch.equal(pooled, alone.view_as(pooled))
    (wanted,) = torch.autograd.grad(alone, each, cotangent.reshape(alone.shape))
    assert torch.equal(found, wanted.view_as(found))


def test_strides(draw):
    selector, values = draw.normal(3, 2, 40, 6), draw.normal(3, 2, 40, 6)
    for layout in ((0, 1, 3, 2), (1, 0, 2, 3), (3, 2, 1, 0)):
        back = tuple(layout.index(i) for i in range(4))
        laid = [x.permute(layout).contiguous().permute(back) for x in (selector, values)]
        found = ops.topk_pool(*laid, 5, return_indices=True)
        wanted = ops.topk_pool(selector, values, 5, return_indices=True)
        assert all(torch.equal(a, b) for a, b in zip(found, wanted, strict=True))
    one = draw.normal(3, 2, 40, 1)
    assert torch.equal(picked(one.expand(3, 2, 40, 6), 5), stable(one, 5).expand(3, 2, 5, 6))
    leaf = values.clone().requires_grad_()
    pooled = ops.topk_pool(selector, leaf, 5)
    (found,) = torch.autograd.grad(pooled.sum(), leaf, retain_graph=True)  # one number for all
    assert torch.equal(found, torch.autograd.grad(pooled, leaf, torch.ones_like(pooled))[0])


def test_threads_give_the_same_bits(draw, over_threads):
    # Sums of more picks than are one thread's work.
    selector, values, cotangent = draw.normal(5, 1500, 21), draw.normal(4, 5, 1500, 21).float(), draw.normal(4, 5, 21)

    def run() -> list[Tensor]:
        leaf = values.clone().requires_grad_()
        pooled, indices = ops.topk_pool(selector, leaf, 187, return_indices=True)
        return [pooled, indices, *torch.autograd.grad(pooled, leaf, cotangent.float())]

    over_threads(run)


def test_threads_give_the_same_bits_of_rows(draw, over_threads):
    selector, index = draw.normal(9, 1500, 21), draw.integers(0, 4000, 9, 1500)
    values, cotangent = draw.normal(4, 4000, 21).float(), draw.normal(4, 9, 21)

    def run() -> list[Tensor]:
        leaf = values.clone().requires_grad_()
        pooled, indices = ops.topk_pool(selector, leaf, 187, index=index, return_indices=True)
        return [pooled, indices, *torch.autograd.grad(pooled, leaf, cotangent.float())]

    over_threads(run)


@pytest.mark.parametrize("row", [-1, 6, 10**12])
def test_an_index_beyond_the_rows_is_an_error(draw, row):
    index = draw.integers(0, 6, 2, 9)
    index[1, 4] = row
    with pytest.raises(IndexError, match=rf"topk_pool: index must name rows 0\.\.5 of values, got {row}"):
        ops.topk_pool(draw.normal(2, 9, 3), draw.normal(2, 6, 3), 9, index=index)


def test_an_index_with_any_strides(draw):
    selector, values, index = draw.normal(4, 20, 3), draw.normal(2, 6, 3), draw.integers(0, 6, 4, 20)
    wanted = ops.topk_pool(selector, values, 5, index=index)
    for laid in (index.T.contiguous().T, torch.stack([index, index], -1)[..., 1]):
        assert torch.equal(ops.topk_pool(selector, values, 5, index=laid), wanted)
    one = ops.topk_pool(selector, values, 5, index=index[:1].expand(4, 20))
    assert torch.equal(one, ops.topk_pool(selector, values, 5, index=index[:1].repeat(4, 1)))


def test_a_mean_of_many_keeps_its_digits(draw):
    selector, values = draw.normal(200_000, 2), (1e3 + draw.uniform(200_000, 2)).float()
    found = ops.topk_pool(selector, values, 150_000)
    with ops.backend("reference"):
        wanted = ops.topk_pool(selector, values.double(), 150_000)
    assert ((found - wanted).abs() / wanted).max() <= 1e-7


def test_a_row_that_many_picks_share_keeps_its_digits(draw):
    values, index = draw.normal(2, 3).float().requires_grad_(), torch.zeros(40, 3_000, dtype=torch.int64)
    pooled = ops.topk_pool(draw.normal(40, 3_000, 3), values, 2_999, index=index)
    cotangent = draw.uniform(40, 3).float()
    (found,) = torch.autograd.grad(pooled, values, cotangent)
    torch.testing.assert_close(found[0], cotangent.double().sum(0).float(), rtol=2e-7, atol=0)
    assert not found[1].any()
