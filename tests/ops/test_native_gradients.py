"""What compiled ops owe autograd beside gradients: the tangents and errors of plain torch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.autograd import forward_ad

from case import ops
from case.ops import _backend

pytestmark = pytest.mark.skipif("native/cpu" not in _backend.table()["topk_pool"], reason="no native module")
Op = Callable[..., Tensor]

INDEX = torch.tensor([0, 0, 1, 2, 2, 2, 4, 4, 4])

OPS: dict[str, tuple[Op, tuple[tuple[int, ...], ...]]] = {
    "soft_cross_entropy": (
        lambda x, t: ops.soft_cross_entropy(x, t.softmax(-1), reduction="none"),
        ((3, 4, 5), (3, 4, 5)),
    ),
    "generalized_cross_entropy": (
        lambda p, t: ops.generalized_cross_entropy(p.sigmoid(), t.sigmoid(), q=0.7),
        ((3, 7), (3, 7)),
    ),
    "cosine_logits": (lambda x, y: ops.cosine_logits(x, y, scale=2.0), ((2, 6, 5), (2, 3, 5))),
    "cosine_of_units": (lambda x, y: ops.cosine_logits(x, y, scale=2.0, unit_y=True), ((2, 6, 5), (2, 3, 5))),
    "cosine_softmax": (lambda x, y: ops.cosine_softmax(x, y, scale=2.0), ((2, 6, 5), (2, 3, 5))),
    **{
        f"prototypes_{normalize}": (
            lambda e, w, normalize=normalize: ops.prototypes(e, w.sigmoid(), normalize=normalize),
            ((2, 7, 5), (2, 7, 3)),
        )
        for normalize in ("mean", "l2", "sum")
    },
    "topk_pool": (lambda x, v: ops.topk_pool(x, v, 3), ((9, 4), (2, 9, 4))),
    "topk_pool_of_rows": (lambda x, v: ops.topk_pool(x, v, 3, index=INDEX), ((9, 4), (2, 5, 4))),
    "temporal_iou": (lambda a, b: ops.temporal_iou(a.cumsum(-1), b.cumsum(-1)), ((2, 5, 2), (2, 3, 2))),
}


@pytest.fixture(params=OPS)
def problem(request: Any, draw: Any) -> tuple[Op, list[Tensor]]:
    op, shapes = OPS[request.param]
    return op, [draw.normal(*shape) for shape in shapes]


def both(function: Callable[[], Any]) -> tuple[Any, Any]:
    with ops.backend("native"):
        found = function()
    with ops.backend("reference"):
        return found, function()


@pytest.mark.filterwarnings("ignore:.*torch.jit.script:DeprecationWarning")  # torch's own, in forward mode
def test_tangents_and_functional_transforms(problem, draw):
    op, inputs = problem
    tangents = [torch.randn_like(x) for x in inputs]

    def forward_mode() -> Tensor | None:
        with forward_ad.dual_level():
            return forward_ad.unpack_dual(op(*map(forward_ad.make_dual, inputs, tangents))).tangent

    def functional() -> Tensor:
        return torch.func.grad(lambda *given: op(*given).sum(), argnums=1)(*inputs)

    for function in (forward_mode, functional):
        found, wanted = both(function)
        torch.testing.assert_close(found, wanted)


@pytest.mark.parametrize("hook", [lambda x: x.contiguous(), lambda x: x.mT.contiguous().mT], ids=["rows", "columns"])
def test_saved_tensors_may_come_back_with_other_strides(problem, draw, hook):
    op, inputs = problem
    inputs = [x.mT.contiguous().mT for x in inputs]

    def gradients(given: list[Tensor]) -> Any:
        leaves = [x.clone().requires_grad_() for x in given]
        out = op(*leaves)
        return out, leaves, torch.Generator().manual_seed(3)

    def finish(out: Tensor, leaves: list[Tensor], generator: torch.Generator) -> list[Tensor]:
        cotangent = torch.randn(out.shape, generator=generator, dtype=out.dtype)
        return list(torch.autograd.grad(out, leaves, cotangent, materialize_grads=True))

    with ops.backend("native"):
        with torch.autograd.graph.saved_tensors_hooks(lambda x: hook(x.detach()), lambda x: x):
            given = gradients(inputs)
        found = finish(*given)
        wanted = finish(*gradients(inputs))
    for mine, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(mine, other)


def test_registered_ops_take_what_the_reference_takes(draw):
    """``torch.ops.case`` has no checks in front of it: other shapes and dtypes give the reference's result or error."""
    many, few = draw.normal(40, 2, 2).cumsum(-1), draw.normal(2, 2).cumsum(-1)
    rows, row = draw.normal(4, 5).sigmoid(), draw.normal(5).sigmoid()
    wide, units, weights = draw.normal(2, 9, 5), draw.normal(2, 3, 5), draw.uniform(2, 9, 4)
    long, short = draw.normal(600, 2), draw.normal(3, 2)
    for call in (
        lambda: torch.ops.case.temporal_iou(many, few, 0.0),
        lambda: torch.ops.case.temporal_iou(few, few.float(), 0.0),
        lambda: torch.ops.case.generalized_cross_entropy(rows, row, 0.7),
        lambda: torch.ops.case.generalized_cross_entropy(row, rows, 0.7),
        lambda: torch.ops.case.soft_cross_entropy(rows, row),
        lambda: torch.ops.case.cosine_logits(wide, units[0], 2.0, False),
        lambda: torch.ops.case.cosine_logits(wide[0], units, 2.0, True),
        lambda: torch.ops.case.cosine_softmax(wide[0, 0], units[0], 2.0, False),
        lambda: torch.ops.case.cosine_logits(wide.float(), units, 2.0, False),
        lambda: torch.ops.case.prototypes(wide, weights[0], "l2"),
        lambda: torch.ops.case.prototypes(wide[0], weights, "mean"),
        lambda: torch.ops.case.prototypes(wide.float(), weights, "sum"),
    ):
        found, wanted = both(call)
        torch.testing.assert_close(found, wanted)
    selector, index = draw.normal(2, 9, 4), draw.integers(0, 6, 2, 9)
    for values, given in ((draw.normal(6, 5), index), (draw.normal(6, 4), index.int()), (draw.normal(6, 4), index[:1])):
        results = []
        for name in ("native", "reference"):
            with ops.backend(name):
                try:
                    results.append(torch.ops.case.topk_pool(selector, values, 2, given)[0])
                except (IndexError, RuntimeError):
                    results.append(None)
        torch.testing.assert_close(*results)
    with ops.backend("native"):
        for call in (
            lambda: torch.ops.case.topk_pool(long, short, 2, None),
            lambda: torch.ops.case.topk_pool(draw.normal(2, 9, 2000), draw.normal(2, 6, 3), 2, index),
        ):
            with pytest.raises((IndexError, RuntimeError)):
                call()


def test_an_index_changed_behind_autograds_back_is_an_error(draw):
    values = draw.normal(9, 4).requires_grad_()
    with ops.backend("native"):
        pooled, indices = ops.topk_pool(values, values, 3, return_indices=True)
        indices.numpy()[0, 0] = 10**9
        with pytest.raises(IndexError, match="must name rows"):
            pooled.sum().backward()
