"""Top-k pooling against sorting in a loop."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from case import ops


def by_loops(selector: Tensor, values: Tensor, k: int) -> tuple[Any, Any]:
    """(pooled (..., C), sorted time indices (..., k, C))."""
    s, v = selector.double().numpy(force=True), values.double().numpy(force=True)
    pooled = np.zeros((*v.shape[:-2], v.shape[-1]))
    indices = np.zeros((*v.shape[:-2], k, v.shape[-1]), np.int64)
    for at in np.ndindex(v.shape[:-2]):
        for c in range(v.shape[-1]):
            best = sorted(range(v.shape[-2]), key=lambda t: -s[at][t, c])[:k]
            pooled[at][c] = sum(v[at][t, c] for t in best) / k
            indices[at][:, c] = sorted(best)
    return pooled, indices


@pytest.mark.op("topk_pool")
@pytest.mark.parametrize("lead", [(), (3,), (2, 1)], ids=str)
@pytest.mark.parametrize("t, classes, k", [(1, 1, 1), (2, 5, 1), (2, 5, 2), (16, 4, 3), (16, 4, 16), (7, 0, 2)])
def test_values(draw, close, device, t, classes, k, lead):
    for dtype in (torch.float64, torch.float32, torch.bfloat16, torch.float16):
        selector = draw.distinct(*lead, t, classes).to(dtype)
        values = draw.uniform(*lead, t, classes).to(dtype)
        pooled, indices = ops.topk_pool(selector.to(device), values.to(device), k, return_indices=True)
        wanted, best = by_loops(selector, values, k)
        assert pooled.dtype == dtype
        close(pooled, wanted)
        assert indices.dtype == torch.int64
        assert np.array_equal(indices.sort(dim=-2).values.numpy(force=True), best)
        close(ops.topk_pool(selector.to(device), values.to(device), k), wanted)


@pytest.mark.op("topk_pool")
@pytest.mark.parametrize("requires_grad", [False, True])
def test_memory_layouts(draw, close, device, lay_out, requires_grad):
    selector, values = lay_out(draw.distinct(3, 11, 5).to(device)), lay_out(draw.normal(3, 11, 5).to(device))
    pooled = ops.topk_pool(selector, values.detach().requires_grad_(requires_grad), 4)
    assert pooled.requires_grad == requires_grad
    close(pooled, by_loops(selector, values, 4)[0])


@pytest.mark.op("topk_pool")
def test_one_selector_for_all_classes(draw, close, device):
    selector = draw.distinct(2, 12, 1).to(device).expand(2, 12, 6)
    values = draw.normal(2, 12, 6).to(device)
    close(ops.topk_pool(selector, values, 5), by_loops(selector, values, 5)[0])


@pytest.mark.op("topk_pool")
def test_ties_pick_k_rows_of_the_best_values(draw, close, device):
    selector = torch.tensor([1.0, 2.0, 2.0, 2.0, 0.0], device=device)[:, None]
    values = torch.tensor([9.0, 4.0, 4.0, 4.0, 9.0], device=device)[:, None]
    pooled, indices = ops.topk_pool(selector, values, 2, return_indices=True)
    close(pooled, [4.0])
    assert len(set(indices[:, 0].tolist()) & {1, 2, 3}) == 2


@pytest.mark.op("topk_pool")
@pytest.mark.parametrize("copies", [(), (1,), (2,), (3, 2)], ids=str)
@pytest.mark.parametrize("lead, rows", [((), 1), ((3,), 5), ((2, 2), 40), ((0,), 4)], ids=str)
def test_values_at_the_rows_of_an_index(draw, close, device, lead, rows, copies):
    """As of values that are written out; a row may be picked many times, by many, or never."""
    for dtype in (torch.float64, torch.float32, torch.bfloat16):
        selector, index = draw.distinct(*lead, 13, 4).to(dtype), draw.integers(0, rows, *lead, 13)
        values = draw.normal(*copies, rows, 4).to(dtype)
        given = selector.to(device), values.to(device)
        pooled, indices = ops.topk_pool(*given, 5, index=index.to(device), return_indices=True)
        wanted, best = by_loops(selector.expand(*copies, *selector.shape), values[..., index, :], 5)
        assert pooled.dtype == dtype
        close(pooled, wanted)
        assert np.array_equal(indices.sort(dim=-2).values.numpy(force=True), best[(0,) * len(copies)])


@pytest.mark.op("topk_pool")
@pytest.mark.parametrize("copies", [(), (2,)], ids=str)
def test_gradients_at_the_rows_of_an_index(draw, check_gradients, device, copies):
    selector, index = draw.distinct(3, 9, 2), draw.integers(0, 4, 3, 9)

    def pooled(values: Tensor) -> Tensor:
        return ops.topk_pool(selector.to(values.device), values, 4, index=index.to(values.device))

    values = draw.normal(*copies, 4, 2)
    check_gradients(pooled, values)
    leaf, cotangent = values.float().to(device).requires_grad_(), draw.normal(*copies, 3, 2).to(device)
    (found,) = torch.autograd.grad(pooled(leaf), leaf, cotangent.float())
    exact = values.to(device).requires_grad_()
    written_out = ops.topk_pool(selector.to(device), exact[..., index.to(device), :], 4)
    torch.testing.assert_close(found, torch.autograd.grad(written_out, exact, cotangent)[0].float())


@pytest.mark.op("topk_pool")
def test_gradients(draw, check_gradients, device):
    selector = draw.distinct(2, 7, 3)
    check_gradients(lambda v: ops.topk_pool(selector.to(v.device), v, 3), draw.normal(2, 7, 3))
    leaf = selector.to(device).clone().requires_grad_()
    assert not ops.topk_pool(leaf, selector.to(device), 3).requires_grad  # the choice has no gradient


@pytest.mark.op("topk_pool")
def test_compiles(draw, check_compiles, device):
    selector, values = draw.distinct(2, 9, 3).float().to(device), draw.normal(2, 9, 3).float().to(device)
    check_compiles(lambda s, v: ops.topk_pool(s, v, 4, return_indices=True), selector, values.requires_grad_())
    index, rows = draw.integers(0, 5, 2, 9).to(device), draw.normal(3, 5, 3).float().to(device)
    check_compiles(lambda s, v, i: ops.topk_pool(s, v, 4, index=i), selector, rows.requires_grad_(), index)


S = torch.zeros(4, 3)
WRONG: list[tuple[dict[str, Any], type[Exception], str, str]] = [
    ({"selector": 1.0}, TypeError, "selector", "float"),
    ({"selector": S.int()}, TypeError, "selector", "torch.int32"),
    ({"selector": torch.zeros(4)}, ValueError, "selector", "(4,)"),
    ({"values": torch.zeros(3, 3)}, ValueError, "values", "(3, 3)"),
    ({"values": S.bool()}, TypeError, "values", "torch.bool"),
    ({"values": S.to("meta")}, ValueError, "values", "meta"),
    ({"k": 0}, ValueError, "k", "0"),
    ({"k": 5}, ValueError, "k", "5"),
    ({"index": S}, TypeError, "index", "torch.float32"),
    ({"index": torch.zeros(3).long()}, ValueError, "index", "(3,)"),
    ({"index": torch.zeros(4).long().to("meta")}, ValueError, "index", "meta"),
    ({"index": torch.zeros(4).long(), "values": torch.zeros(9, 2)}, ValueError, "values", "(9, 2)"),
    ({"index": torch.zeros(4).long(), "values": torch.zeros(2, 0, 3)}, ValueError, "values", "(2, 0, 3)"),
]


@pytest.mark.parametrize("given, kind, argument, got", WRONG, ids=[f"{a}-{g}" for _, _, a, g in WRONG])
def test_refuses(fails, given, kind, argument, got):
    with fails(kind, "topk_pool", argument, got):
        ops.topk_pool(**{"selector": S, "values": S, "k": 2, **given})
