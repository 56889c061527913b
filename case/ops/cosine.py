"""Scaled cosine similarity: public ops ``cosine_logits`` and ``cosine_softmax``."""

from __future__ import annotations

from torch import Tensor

from case.ops import _check as check
from case.ops._registration import call, register
from case.ops.reference import cosine as reference


def cosine_logits(x: Tensor, y: Tensor, *, scale: float, unit_y: bool = False) -> Tensor:
    """scale * cos(x_m, y_p) (METHOD.md, Network, CCC). A row of zeros has similarity 0 with everything.

    Args:
        x: (..., M, D), float32, bfloat16, float16 (computed in float32) or float64.
        y: (..., P, D), same leading dimensions and dtype.
        scale: factor on the cosine.
        unit_y: rows of y have length 1 and are taken as they stand, so that the gradient in y is that of the plain
            product (CASE keeps its cluster prototypes normalised outside the gradient).

    Returns:
        (..., M, P) in the dtype of x. Differentiable in both. The Triton kernel keeps it for the gradient: changed in
        place there, it is autograd's usual error in ``backward``.
    """
    _checks("cosine_logits", x, y, scale)
    return call("cosine_logits", x, y, float(scale), bool(unit_y))


def cosine_softmax(x: Tensor, y: Tensor, *, scale: float, unit_y: bool = False) -> Tensor:
    """softmax over P of ``cosine_logits(x, y, scale=scale, unit_y=unit_y)``; arguments and result as there."""
    _checks("cosine_softmax", x, y, scale)
    return call("cosine_softmax", x, y, float(scale), bool(unit_y))


def _checks(op: str, x: Tensor, y: Tensor, scale: float) -> None:
    check.floating(op, "x", x, at_least=2)
    check.floating(op, "y", y, at_least=2)
    check.same_device(op, "y", y, "x", x)
    check.shape(op, "y", y, (*x.shape[:-2], y.shape[-2], x.shape[-1]), "to match x")
    if x.dtype != y.dtype:
        raise TypeError(f"{op}: y must have the dtype of x, {x.dtype}, got {y.dtype}; convert it with y.to(x.dtype)")
    check.finite(op, "scale", scale)


def _fake(x: Tensor, y: Tensor, scale: float, unit_y: bool) -> Tensor:
    return x.new_empty((*x.shape[:-1], y.shape[-2]))


for _name, _reference in (("cosine_logits", reference.cosine_logits), ("cosine_softmax", reference.cosine_softmax)):
    register(
        _name, "Tensor x, Tensor y, float scale, bool unit_y", "Tensor", _reference, _fake, differentiable=("x", "y")
    )

__all__ = ["cosine_logits", "cosine_softmax"]
