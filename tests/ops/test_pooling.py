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
def test_gradients(draw, check_gradients, device):
    selector = draw.distinct(2, 7, 3)
    check_gradients(lambda v: ops.topk_pool(selector.to(v.device), v, 3), draw.normal(2, 7, 3))
    leaf = selector.to(device).clone().requires_grad_()
    assert not ops.topk_pool(leaf, selector.to(device), 3).requires_grad  # the choice has no gradient


@pytest.mark.op("topk_pool")
def test_compiles(draw, check_compiles, device):
    selector, values = draw.distinct(2, 9, 3).float().to(device), draw.normal(2, 9, 3).float().to(device)
    check_compiles(lambda s, v: ops.topk_pool(s, v, 4, return_indices=True), selector, values.requires_grad_())


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
]


@pytest.mark.parametrize("given, kind, argument, got", WRONG, ids=[f"{a}-{g}" for _, _, a, g in WRONG])
def test_refuses(fails, given, kind, argument, got):
    with fails(kind, "topk_pool", argument, got):
        ops.topk_pool(**{"selector": S, "values": S, "k": 2, **given})
