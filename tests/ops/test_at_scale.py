"""Sizes that take a GPU: the method's own and beyond, where launches differ from those of small problems.

Reads are pipelined there (``num_stages=3``), partial sums are many, sorted chunks are several; in graphs as well.
Inputs are drawn on the device, and results compared there: a CPU takes seconds for each.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from case import ops

pytestmark = [pytest.mark.gpu, pytest.mark.slow]

SIZES = [(12_000, 16), (300_000, 128), (1_200_000, 16), (4_000_000, 2)]


@pytest.fixture(autouse=True)
def seeded(seed: int) -> None:
    torch.manual_seed(seed)


def uniform(*shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.rand(*shape, dtype=dtype, device="cuda")


def normal(*shape: int) -> Tensor:
    return torch.randn(*shape, device="cuda")


def ranked(n: int, k: int) -> dict[str, Any]:
    scores = torch.randperm(n, device="cuda").double() / n  # distinct, also in float32
    return {"prior": ops.RankPrior(scores, uniform(k), 0.3), "scale": 2.0}


def given(n: int, k: int) -> dict[str, Any]:
    return {
        "prior": uniform(n, k) + 0.1, "mask": uniform(n, k) < 0.9, "scale": 2.0,
        "row_marginal": uniform(n), "col_marginal": uniform(k) + 0.1,
    }  # fmt: skip


def cast(x: Any, dtype: torch.dtype) -> Any:
    """Numbers in ``dtype``; inside of tuples as well. Never the tensor that was given."""
    if isinstance(x, Tensor):
        return x.to(dtype if x.is_floating_point() else x.dtype, copy=True)
    return type(x)(*(cast(y, dtype) for y in x)) if isinstance(x, tuple) else x


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
    wide = [cast(x, torch.float64).requires_grad_() for x in leaves]
    with ops.backend("reference"):
        wanted = with_gradients(
            function, wide, cotangents, **{name: cast(x, torch.float64) for name, x in rest.items()}
        )
    narrow = [cast(x, torch.float32).requires_grad_() for x in leaves]
    rest = {name: cast(x, torch.float32) for name, x in rest.items()}

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
    agrees(close, ops.sinkhorn, [normal(n, k)], **inputs(n, k))
    agrees(close, ops.sinkhorn_potentials, [normal(n, k)], **inputs(n, k))


@pytest.mark.parametrize("n, k", SIZES[:3])
def test_row_ops(close, n, k):
    x = normal(n, 512)
    agrees(close, ops.prototypes, [x, uniform(n, k, dtype=torch.float32)], normalize="l2")
    agrees(close, ops.cosine_softmax, [x, normal(k, 512)], scale=10.0)
    agrees(close, ops.soft_cross_entropy, [normal(n, k), uniform(n, k, dtype=torch.float32)])


@pytest.mark.parametrize("rows, samples, k", [(4_560, 12_000, 16), (100_000, 300_000, 16), (20_000, 70_000, 128)])
def test_clustering_losses(close, rows, samples, k):
    first, index = uniform(k, 1), torch.randint(0, rows, (samples,), device="cuda")
    # Embeddings of both signs: prototypes of positive ones point almost the same way, and the float32 reference, too,
    # then has gradients that are off by 4e-5.
    agrees(
        close, ops.clustering_losses, [normal(2, rows, k), normal(2, rows, 512)],
        attention=torch.randperm(rows, device="cuda") / rows, foreground=(uniform(samples) < 0.4).float(),
        cluster_labels=torch.cat([first, 1 - first], 1), index=index, sigma=0.3,
    )  # fmt: skip
