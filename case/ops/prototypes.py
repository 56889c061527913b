"""Cluster prototypes as weighted averages: public op ``prototypes``."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from case.ops import _check as check
from case.ops._registration import call, register
from case.ops.plan import PLAN_ARGUMENTS, PLAN_DIFFERENTIABLE, Plan, plan_arguments
from case.ops.reference import prototypes as reference

NORMALIZATIONS = ("mean", "l2", "sum")


def prototypes(
    embeddings: Tensor, weights: Tensor | Plan | tuple[Tensor, Tensor, Tensor], *, normalize: str = "mean"
) -> Tensor:
    """z_k = sum_n weights_nk embeddings_n, normalised (METHOD.md, CCC).

    Args:
        embeddings: (..., N, D), float32, bfloat16, float16 (accumulated in float32) or float64.
        weights: (..., N, K), or a transport plan as ``Plan`` or (logits, u, v), which is not written out.
        normalize: "mean" divides by the column's weight (0 where it has none), "l2" by the prototype's length,
            "sum" by nothing.

    Returns:
        (..., K, D) in the dtype of embeddings. Differentiable in embeddings and in weights, or the tensors that a plan
        is made of.
    """
    op = "prototypes"
    check.floating(op, "embeddings", embeddings, at_least=2)
    check.choice(op, "normalize", normalize, NORMALIZATIONS)
    if not isinstance(weights, Tensor):
        plan = plan_arguments(op, "weights", weights)
        _check_weights("weights.logits", plan[0], embeddings)
        return call("prototypes_of_plan", embeddings, *plan, normalize)
    check.floating(op, "weights", weights, at_least=2)
    _check_weights("weights", weights, embeddings)
    return call(op, embeddings, weights, normalize)


def _check_weights(name: str, weights: Tensor, embeddings: Tensor) -> None:
    check.same_device("prototypes", name, weights, "embeddings", embeddings)
    check.shape("prototypes", name, weights, (*embeddings.shape[:-1], weights.shape[-1]), "to match embeddings")


def _fake(embeddings: Tensor, weights: Tensor, *_: Any) -> Tensor:
    return embeddings.new_empty((*embeddings.shape[:-2], weights.shape[-1], embeddings.shape[-1]))


register(
    "prototypes", "Tensor embeddings, Tensor weights, str normalize", "Tensor", reference.prototypes, _fake,
    differentiable=("embeddings", "weights"),
)  # fmt: skip
register(
    "prototypes_of_plan", f"Tensor embeddings, {PLAN_ARGUMENTS}, str normalize", "Tensor", reference.prototypes_of_plan,
    _fake, differentiable=("embeddings", *PLAN_DIFFERENTIABLE),
)  # fmt: skip

__all__ = ["prototypes"]
