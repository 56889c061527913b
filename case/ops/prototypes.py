"""Cluster prototypes as weighted averages: public op ``prototypes``."""

from __future__ import annotations

from torch import Tensor

from case.ops import _check as check
from case.ops._registration import call, register
from case.ops.plan import Plan, as_matrix
from case.ops.reference import prototypes as reference

NORMALIZATIONS = ("mean", "l2", "sum")


def prototypes(
    embeddings: Tensor, weights: Tensor | Plan | tuple[Tensor, Tensor, Tensor], *, normalize: str = "mean"
) -> Tensor:
    """z_k = sum_n weights_nk embeddings_n, normalised (METHOD.md, CCC).

    Args:
        embeddings: (..., N, D), float32, bfloat16, float16 (accumulated in float32) or float64.
        weights: (..., N, K), or a transport plan as ``Plan`` or (logits, u, v).
        normalize: "mean" divides by the column's weight (0 where it has none), "l2" by the prototype's length,
            "sum" by nothing.

    Returns:
        (..., K, D) in the dtype of embeddings. Differentiable in both.
    """
    op = "prototypes"
    check.floating(op, "embeddings", embeddings, at_least=2)
    weights = as_matrix(op, "weights", weights)
    check.floating(op, "weights", weights, at_least=2)
    check.same_device(op, "weights", weights, "embeddings", embeddings)
    check.shape(op, "weights", weights, (*embeddings.shape[:-1], weights.shape[-1]), "to match embeddings")
    check.choice(op, "normalize", normalize, NORMALIZATIONS)
    return call(op, embeddings, weights, normalize)


def _fake(embeddings: Tensor, weights: Tensor, normalize: str) -> Tensor:
    return embeddings.new_empty((*embeddings.shape[:-2], weights.shape[-1], embeddings.shape[-1]))


register(
    "prototypes", "Tensor embeddings, Tensor weights, str normalize", "Tensor", reference.prototypes, _fake,
    differentiable=("embeddings", "weights"),
)  # fmt: skip

__all__ = ["prototypes"]
