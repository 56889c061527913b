"""Prototypes against sums over rows in float64."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from case import ops

NORMALIZATIONS = ["mean", "l2", "sum"]
SIZES = [(0, 8, 5), (1, 8, 1), (2, 100, 5), (97, 32, 16)]


def by_loops(embeddings: Tensor, weights: Tensor, normalize: str) -> NDArray[np.float64]:
    e, w = embeddings.double().numpy(force=True), weights.double().numpy(force=True)
    out = np.zeros((*w.shape[:-2], w.shape[-1], e.shape[-1]))
    for at in np.ndindex(w.shape[:-2]):
        for k in range(w.shape[-1]):
            total = np.zeros(e.shape[-1])
            for n in range(e.shape[-2]):
                total += w[at][n, k] * e[at][n]
            size = {"sum": 1.0, "l2": math.sqrt(total @ total), "mean": w[at][:, k].sum()}[normalize]
            out[at][k] = total / size if size > 0 else 0.0
    return out


@pytest.mark.op("prototypes")
@pytest.mark.parametrize("normalize", NORMALIZATIONS)
@pytest.mark.parametrize("lead", [(), (3,), (2, 3)], ids=str)
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_values(draw, close, device, size, lead, normalize):
    n, d, k = size
    for dtype in (torch.float64, torch.float32, torch.bfloat16, torch.float16):
        # Positive embeddings, as after a relu: sums without cancellation, so that float32 has its full precision.
        embeddings = draw.uniform(*lead, n, d).to(dtype)
        weights = draw.uniform(*lead, n, k).to(dtype)
        found = ops.prototypes(embeddings.to(device), weights.to(device), normalize=normalize)
        assert found.dtype == dtype
        close(found, by_loops(embeddings, weights, normalize))


@pytest.mark.op("prototypes")
@pytest.mark.parametrize("requires_grad", [False, True])
def test_memory_layouts(draw, close, device, lay_out, requires_grad):
    e, w = lay_out(draw.normal(3, 9, 7).to(device)), lay_out(draw.uniform(3, 9, 4).to(device))
    found = ops.prototypes(e.detach().requires_grad_(requires_grad), w)
    assert found.requires_grad == requires_grad
    close(found, by_loops(e, w, "mean"))


@pytest.mark.op("prototypes")
def test_default_is_the_mean(draw, close, device):
    e = draw.normal(31, 5).to(device)
    members = torch.zeros(31, 2, dtype=torch.float64, device=device)
    members[:10, 0], members[10:, 1] = 3.0, 0.5
    close(ops.prototypes(e, members), torch.stack([e[:10].mean(0), e[10:].mean(0)]))


@pytest.mark.op("prototypes")
@pytest.mark.parametrize("normalize", NORMALIZATIONS)
def test_a_cluster_without_weight_is_zero(draw, device, normalize):
    e, w = draw.normal(6, 5).to(device).requires_grad_(), draw.uniform(6, 3).to(device)
    w[:, 1] = 0
    w.requires_grad_()
    z = ops.prototypes(e, w, normalize=normalize)
    assert (z[1] == 0).all()
    assert (z[0] != 0).all()
    gradients = torch.autograd.grad(z, [e, w], torch.ones_like(z))
    assert all(g.isfinite().all() for g in gradients)


@pytest.mark.op("prototypes")
@pytest.mark.parametrize("normalize", NORMALIZATIONS)
def test_gradients(draw, check_gradients, device, normalize):
    check_gradients(
        lambda e, w: ops.prototypes(e, w, normalize=normalize), draw.normal(2, 5, 3), draw.uniform(2, 5, 2, low=0.2)
    )


@pytest.mark.op("prototypes")
def test_compiles(draw, check_compiles, device):
    e, w = draw.normal(2, 9, 6).float().to(device).requires_grad_(), draw.uniform(2, 9, 3).float().to(device)
    check_compiles(lambda a, b: ops.prototypes(a, b, normalize="l2"), e, w.requires_grad_())


E, W = torch.zeros(4, 3), torch.zeros(4, 2)
WRONG: list[tuple[dict[str, Any], type[Exception], str, str]] = [
    ({"embeddings": None}, TypeError, "embeddings", "NoneType"),
    ({"embeddings": E.long()}, TypeError, "embeddings", "torch.int64"),
    ({"embeddings": torch.zeros(4)}, ValueError, "embeddings", "(4,)"),
    ({"weights": W.bool()}, TypeError, "weights", "torch.bool"),
    ({"weights": [W]}, TypeError, "weights", "list"),
    ({"weights": torch.zeros(4)}, ValueError, "weights", "(4,)"),
    ({"weights": torch.zeros(5, 2)}, ValueError, "weights", "(5, 2)"),
    ({"weights": W.to("meta")}, ValueError, "weights", "meta"),
    ({"normalize": "max"}, ValueError, "normalize", "'max'"),
]


@pytest.mark.parametrize("given, kind, argument, got", WRONG, ids=[f"{a}-{g}" for _, _, a, g in WRONG])
def test_refuses(fails, given, kind, argument, got):
    with fails(kind, "prototypes", argument, got):
        ops.prototypes(**{"embeddings": E, "weights": W, **given})
