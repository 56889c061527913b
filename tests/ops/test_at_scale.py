"""Sizes that take a GPU: the method's own and beyond, where launches differ from those of small problems.

Reads are pipelined there (``num_stages=3``), partial sums are many, sorted chunks are several; in graphs as well.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from case import ops

pytestmark = pytest.mark.gpu

SIZES = [(12_000, 16), (300_000, 128), (1_200_000, 16), (4_000_000, 2)]


def ranked(n: int, k: int) -> dict[str, Any]:
    scores = torch.randperm(n).double() / n  # distinct, also in float32
    return {"prior": ops.RankPrior(scores, torch.rand(k, dtype=torch.float64), 0.3), "scale": 2.0}


def given(n: int, k: int) -> dict[str, Any]:
    return {
        "prior": torch.rand(n, k, dtype=torch.float64) + 0.1, "mask": torch.rand(n, k) < 0.9, "scale": 2.0,
        "row_marginal": torch.rand(n, dtype=torch.float64), "col_marginal": torch.rand(k, dtype=torch.float64) + 0.1,
    }  # fmt: skip


def moved(x: Any, dtype: torch.dtype) -> Any:
    """On the GPU, numbers in ``dtype``; inside of tuples as well."""
    if isinstance(x, Tensor):
        return x.to("cuda", dtype if x.is_floating_point() else x.dtype)
    return type(x)(*(moved(y, dtype) for y in x)) if isinstance(x, tuple) else x


def with_gradients(function: Callable[..., Any], leaves: list[Tensor], cotangents: list[Tensor], **rest: Any) -> Any:
    """(outputs, gradients of the leaves)."""
    found = function(*leaves, **rest)
    outputs = [found] if isinstance(found, Tensor) else [y for y in found if isinstance(y, Tensor) and y.requires_grad]
    if not cotangents:
        cotangents.extend(torch.randn_like(y, dtype=torch.float64) for y in outputs)
    grads = torch.autograd.grad(outputs, leaves, [c.to(y) for c, y in zip(cotangents, outputs, strict=True)])
    return outputs, list(grads)


def agrees(close: Callable[..., None], function: Callable[..., Any], leaves: list[Tensor], **rest: Any) -> None:
    """Kernels in float32, eager and in a replayed graph, against the reference in float64."""
    cotangents: list[Tensor] = []
    wide = [moved(x, torch.float64).requires_grad_() for x in leaves]
    with ops.backend("reference"):
        wanted = with_gradients(
            function, wide, cotangents, **{name: moved(x, torch.float64) for name, x in rest.items()}
        )
    narrow = [moved(x, torch.float32).requires_grad_() for x in leaves]
    rest = {name: moved(x, torch.float32) for name, x in rest.items()}

    def compare(found: tuple[list[Tensor], list[Tensor]]) -> None:
        for tolerance, got, expected in zip((2e-6, 1e-5), found, wanted, strict=True):
            for x, y in zip(got, expected, strict=True):
                close(x, y, tolerance)

    with ops.backend("triton"):
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            eager = with_gradients(function, narrow, cotangents, **rest)
        torch.cuda.current_stream().wait_stream(side)
        compare(eager)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            captured = with_gradients(function, narrow, cotangents, **rest)
        for y in captured[0] + captured[1]:
            y.detach().fill_(torch.nan)
        graph.replay()
        compare(captured)
        for x, y in zip(captured[0] + captured[1], eager[0] + eager[1], strict=True):
            assert torch.equal(x, y), "a replay gives other bits"


@pytest.mark.parametrize("inputs", [ranked, given])
@pytest.mark.parametrize("n, k", SIZES)
def test_sinkhorn(close, n, k, inputs):
    agrees(close, ops.sinkhorn, [torch.randn(n, k)], **inputs(n, k))
    agrees(close, ops.sinkhorn_potentials, [torch.randn(n, k)], **inputs(n, k))


@pytest.mark.parametrize("n, k", SIZES[:3])
def test_row_ops(close, n, k):
    x = torch.randn(n, 512)
    agrees(close, ops.prototypes, [x, torch.rand(n, k)], normalize="l2")
    agrees(close, ops.cosine_softmax, [x, torch.randn(k, 512)], scale=10.0)
    agrees(close, ops.soft_cross_entropy, [torch.randn(n, k), torch.rand(n, k)])


@pytest.mark.parametrize("rows, samples, k", [(4_560, 12_000, 16), (100_000, 300_000, 16), (20_000, 70_000, 128)])
def test_clustering_losses(close, rows, samples, k):
    first = torch.rand(k, 1)
    agrees(
        close, ops.clustering_losses, [torch.randn(2, rows, k), torch.rand(2, rows, 512)],
        attention=torch.randperm(rows) / rows, foreground=(torch.rand(samples) < 0.4).float(),
        cluster_labels=torch.cat([first, 1 - first], 1), index=torch.randint(0, rows, (samples,)), sigma=0.3,
    )  # fmt: skip
