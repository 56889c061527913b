"""``prototypes`` of a matrix and of a plan, on kernels/prototypes.py and kernels/prototypes_backward.py."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from case.kernels import prototypes as kernels
from case.kernels import prototypes_backward as backward_kernels
from case.ops import _backend
from case.ops._registration import gradients_with_graph, kernels_cannot
from case.ops._triton_ops._common import batch, needs_gradient
from case.ops._triton_ops._plan import plan_weights


def prototypes(embeddings: Tensor, weights: Tensor, normalize: str) -> Tensor:
    return _run(embeddings, normalize, weights)


def prototypes_of_plan(embeddings: Tensor, *plan_and_normalize: Any) -> Tensor:
    """A plan with a gradient takes the reference: its gradient is as large as the plan, which may be written too."""
    *plan, normalize = plan_and_normalize
    if needs_gradient(*plan):
        return _backend.reference("prototypes_of_plan")(embeddings, *plan, normalize)
    return _run(embeddings, normalize, *plan)


def _run(embeddings: Tensor, normalize: str, *weights: Any) -> Tensor:
    """``weights``: a matrix, or the arguments of a plan."""
    if needs_gradient(embeddings, *weights):
        return _Prototypes.apply(embeddings, normalize, *weights)
    return _shaped(embeddings, _forward(embeddings, normalize, weights)[0])


def _forward(
    embeddings: Tensor, normalize: str, weights: tuple[Any, ...]
) -> tuple[kernels.Prototypes, kernels.Weights]:
    given = kernels.of_matrix(batch(weights[0], 2)) if len(weights) == 1 else plan_weights(embeddings, *weights)
    return kernels.prototypes(batch(embeddings, 2), given, weights[0].shape[-1], normalize), given


def _shaped(embeddings: Tensor, found: kernels.Prototypes) -> Tensor:
    return found.z.view(*embeddings.shape[:-2], *found.z.shape[1:])


class _Prototypes(torch.autograd.Function):
    """Backward from the inputs, the prototypes and their sizes: one pass over the embeddings, none without dW."""

    @staticmethod
    def forward(ctx: Any, embeddings: Tensor, normalize: str, *weights: Any) -> Tensor:
        found, ctx.weights = _forward(embeddings, normalize, weights)
        # The weights for autograd's check that nothing was changed in place; kernels read them through ctx.weights.
        ctx.save_for_backward(embeddings, found.exact, found.sizes, *(x for x in weights if isinstance(x, Tensor)))
        ctx.normalize, ctx.given = normalize, weights
        return _shaped(embeddings, found)

    @staticmethod
    def backward(ctx: Any, cotangent: Tensor) -> tuple[Tensor | None, ...]:
        embeddings, exact, sizes, weights, *_ = ctx.saved_tensors
        if kernels_cannot(cotangent):
            function = _backend.reference("prototypes" if len(ctx.given) == 1 else "prototypes_of_plan")
            needed = (ctx.needs_input_grad[0], *ctx.needs_input_grad[2:], False)
            of_embeddings, *others, _ = gradients_with_graph(
                function, (embeddings, *ctx.given, ctx.normalize), needed, cotangent
            )
            return of_embeddings, None, *others
        needs_embeddings, _, needs_weights, *others = ctx.needs_input_grad
        of_embeddings = embeddings.new_empty(embeddings.shape) if needs_embeddings else None
        of_weights = weights.new_empty(weights.shape) if needs_weights else None
        backward_kernels.gradients(
            batch(embeddings, 2), ctx.weights, exact, sizes, batch(cotangent, 2), ctx.normalize,
            of_embeddings, of_weights,
        )  # fmt: skip
        return of_embeddings, None, of_weights, *(None for _ in others)
