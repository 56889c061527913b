"""``prototypes`` by ``csrc/prototypes.cpp``: the embeddings are read once forward and once backward."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from case.ops._native_ops import _common
from case.ops._native_ops._common import DTYPES, address, placed
from case.ops._registration import gradients_with_graph, kernels_cannot
from case.ops.reference import prototypes as reference
from case.ops.reference._numerics import accumulation_dtype
from case.ops.reference.sinkhorn import dense_plan

# Prototypes beyond which a matrix product is no longer bound by the reading of the embeddings, and torch's is as fast.
MOST_COLUMNS = 128


def prototypes(embeddings: Tensor, weights: Tensor, normalize: str) -> Tensor:
    """Weights may have fewer leading dimensions than the embeddings: the same for all."""
    alike = 2 <= weights.dim() <= embeddings.dim() and weights.shape[:-1] == embeddings.shape[-weights.dim() : -1]
    if not alike or weights.shape[-1] > MOST_COLUMNS:
        return reference.prototypes(embeddings, weights, normalize)
    dtype = accumulation_dtype(embeddings)
    if embeddings.dtype != dtype or weights.dtype != dtype:
        return prototypes(embeddings.to(dtype), weights.to(dtype), normalize).to(embeddings.dtype)
    if weights.dim() < embeddings.dim():
        weights = weights.expand(*embeddings.shape[:-1], -1)
    if torch.is_grad_enabled() and (embeddings.requires_grad or weights.requires_grad):
        return _Prototypes.apply(embeddings, weights, normalize)
    return _fill(_Problem(embeddings, weights, normalize), embeddings.shape, (None, None))


def prototypes_of_plan(embeddings: Tensor, *plan_and_normalize: Any) -> Tensor:
    *plan, normalize = plan_and_normalize
    return prototypes(embeddings, dense_plan(*plan), normalize)


class _Problem:
    """As ``case._C`` takes it; keeps alive what it points to."""

    def __init__(self, embeddings: Tensor, weights: Tensor, normalize: str) -> None:
        rows, width = embeddings.shape[-2:]
        self.columns = weights.shape[-1]
        groups = embeddings.shape[:-2].numel()
        self.embeddings, of_embeddings = placed(embeddings, (groups, rows), width)
        self.weights, of_weights = placed(weights, (groups, rows), self.columns)
        self.description = (
            DTYPES[embeddings.dtype],
            (groups, rows, self.columns, width),
            (address(self.embeddings), *of_embeddings),
            (address(self.weights), *of_weights),
            normalize,
        )


def _fill(problem: _Problem, shape: torch.Size, kept: tuple[Tensor | None, Tensor | None]) -> Tensor:
    z = problem.embeddings.new_empty((*shape[:-2], problem.columns, shape[-1]))
    _common.module().prototypes_cpu(
        problem.description, address(z), (address(kept[0]), address(kept[1])), torch.get_num_threads()
    )
    return z


class _Prototypes(torch.autograd.Function):
    @staticmethod
    def forward(ctx, embeddings: Tensor, weights: Tensor, normalize: str) -> Tensor:  # type: ignore[no-untyped-def]
        problem, shape = _Problem(embeddings, weights, normalize), embeddings.shape
        sizes = embeddings.new_empty((*shape[:-2], problem.columns))
        sums = embeddings.new_empty((*sizes.shape, shape[-1]))
        ctx.save_for_backward(embeddings, weights, sums, sizes)
        ctx.normalize = normalize
        return _fill(problem, shape, (sums, sizes))

    @staticmethod
    def backward(ctx, cotangent: Tensor) -> tuple[Tensor | None, Tensor | None, None]:  # type: ignore[no-untyped-def]
        embeddings, weights, sums, sizes = ctx.saved_tensors
        needed = ctx.needs_input_grad[:2]
        if kernels_cannot(cotangent):
            of_e, of_w = gradients_with_graph(
                lambda e, w: reference.prototypes(e, w, ctx.normalize), (embeddings, weights), needed, cotangent
            )
            return of_e, of_w, None
        problem = _Problem(embeddings, weights, ctx.normalize)
        of_e, of_w = (a.new_empty(a.shape) if want else None for a, want in zip((embeddings, weights), needed))
        sums, sizes, cotangent = sums.contiguous(), sizes.contiguous(), cotangent.contiguous()
        _common.module().prototypes_backward_cpu(
            problem.description, (address(sums), address(sizes)), address(cotangent), (address(of_e), address(of_w)),
            torch.get_num_threads(),
        )  # fmt: skip
        return of_e, of_w, None
