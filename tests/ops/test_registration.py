"""Every registered op ``torch.ops.case.<name>``: opcheck, and the gradients of eager mode."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from case.ops import _backend


def _sinkhorn(draw: Any) -> list[tuple[Any, ...]]:
    x, rows, columns = draw.normal(2, 5, 3), draw.uniform(2, 5, low=0.2), draw.uniform(2, 3, low=0.2)
    tail = (2.0, 2, None)
    return [
        (x, None, None, None, 1.0, "true", None, None, None, *tail),
        (
            x,
            draw.uniform(2, 5, 3, low=0.2),
            None,
            None,
            1.0,
            "true",
            rows,
            columns,
            draw.keep(0.7, 2, 5, 3),
            2.0,
            4,
            0.05,
        ),
        (x[0].T.contiguous().T, None, draw.distinct(5), draw.uniform(3), 0.2, "argsort", None, columns[0], None, *tail),
        (x[:, :0], None, None, None, 1.0, "true", None, None, None, *tail),
    ]


def _segments(draw: Any, n: int) -> Tensor:
    start = draw.uniform(n, high=8.0)
    return torch.stack([start, start + draw.uniform(n, low=0.5, high=4.0)], dim=1)


def _nms(draw: Any) -> list[tuple[Any, ...]]:
    found = []
    for n, method, max_num in (
        (9, "hard", 0),
        (9, "decay_once", 2),
        (9, "linear", 0),
        (9, "gaussian", 1),
        (0, "hard", 0),
    ):
        inputs = (_segments(draw, n), draw.uniform(n), draw.integers(0, 3, n))
        found.append((*inputs, 0.4, method, 0.35, -math.inf if max_num else 0.1, max_num, 1.0))
    return found


def _nms_padded(draw: Any) -> list[tuple[Any, ...]]:
    return [(*arguments, capacity) for arguments, capacity in zip(_nms(draw), (2, 50, 9, 4, 3))]


def _vote(draw: Any) -> list[tuple[Any, ...]]:
    rest = (_segments(draw, 6), draw.uniform(6), draw.integers(0, 2, 6), 0.3, 0.0)
    return [(torch.tensor([0, 4]), *rest), (torch.zeros(0, dtype=torch.int64), *rest)]


def _propose(draw: Any) -> list[tuple[Any, ...]]:
    found = []
    for videos, mask in (
        (2, draw.keep(0.7, 2, 3)),
        (2, torch.zeros(2, 3, dtype=torch.bool)),
        (0, torch.ones(0, 3).bool()),
    ):
        inputs = (draw.uniform(videos, 6, 3), draw.uniform(4), 4, 0.25, 0.2, draw.uniform(videos, 3), mask)
        found.append((*inputs, draw.uniform(videos), True))
    return found


def _propose_padded(draw: Any) -> list[tuple[Any, ...]]:
    return [(*arguments, capacity) for arguments, capacity in zip(_propose(draw), (5, 200, 3))]


def _clustering(draw: Any) -> list[tuple[Any, ...]]:
    x, e, labels = draw.normal(2, 6, 3), draw.uniform(2, 6, 4), draw.uniform(3, 2)
    tail = (0.3, "true", 2.0, 10.0, 3)
    return [
        (x, e, draw.uniform(6), draw.uniform(6), labels, None, *tail),
        (x, e, draw.uniform(6), draw.uniform(9), labels, draw.integers(0, 6, 9), *tail),
    ]


def _cosine(draw: Any) -> list[tuple[Any, ...]]:
    x, y = draw.normal(2, 5, 4), draw.normal(2, 3, 4)
    return [(x, y, 3.0, False), (x[:, ::2], y, 3.0, True), (x[:, :0], y, 3.0, False)]


def _prototypes(draw: Any) -> list[tuple[Any, ...]]:
    e, w = draw.normal(2, 5, 4), draw.uniform(2, 5, 3, low=0.2)
    return [(e, w, "mean"), (e[0], w[0], "l2"), (e[:, :0], w[:, :0], "sum")]


def _prototypes_of_plan(draw: Any) -> list[tuple[Any, ...]]:
    e, x, u, v = draw.normal(2, 5, 4), draw.normal(2, 5, 3), draw.normal(2, 5, scale=0.3), draw.normal(2, 3, scale=0.3)
    prior, ranked = (draw.uniform(2, 5, 3, low=0.2), None, None, 1.0, "true"), (None, draw.distinct(2, 5))
    return [
        (e, x, u, v, *prior, draw.keep(0.7, 2, 5, 3), 2.0, "mean"),
        (e, x, u, v, *ranked, draw.uniform(2, 3), 0.3, "true", None, 1.0, "l2"),
        (e[0], x[0].T.contiguous().T, u[0], v[0], None, None, None, 1.0, "true", None, 1.0, "sum"),
    ]


def _pooling(draw: Any) -> list[tuple[Any, ...]]:
    selector, values = draw.distinct(2, 6, 3), draw.normal(2, 6, 3)
    index = draw.integers(0, 6, 2, 6)
    return [*((selector, values, k, None) for k in (1, 4)), *((selector, x, 3, index) for x in (values, values[0]))]


def _soft(draw: Any) -> list[tuple[Any, ...]]:
    return [
        (draw.normal(4, 3), draw.uniform(4, 3)),
        (draw.normal(3, 4).T, draw.uniform(4, 3)),
        (draw.normal(0, 3),) * 2,
    ]


def _soft_of_plan(draw: Any) -> list[tuple[Any, ...]]:
    plans = [arguments[1:-1] for arguments in _prototypes_of_plan(draw)]
    return [(draw.normal(*plan[0].shape), *plan) for plan in plans]


def _generalized(draw: Any) -> list[tuple[Any, ...]]:
    return [(draw.uniform(4, 3, low=0.1), draw.uniform(4, 3, low=0.1), q) for q in (0.7, 1.0)]


def _rank_prior(draw: Any) -> list[tuple[Any, ...]]:
    scores = draw.distinct(2, 5)
    return [(scores, draw.uniform(2, 3), 0.2, ranks) for ranks in ("true", "argsort")] + [
        (scores[:, :0], draw.uniform(2, 3), 0.2, "true")
    ]


def _iou(draw: Any) -> list[tuple[Any, ...]]:
    return [(_segments(draw, 4), _segments(draw, 3), offset) for offset in (0.0, 1.0)] + [
        (_segments(draw, 0), _segments(draw, 3), 0.0)
    ]


ARGUMENTS = {
    "sinkhorn": _sinkhorn,
    "sinkhorn_potentials": _sinkhorn,
    "rank_prior": _rank_prior,
    "prototypes": _prototypes,
    "prototypes_of_plan": _prototypes_of_plan,
    "cosine_logits": _cosine,
    "cosine_softmax": _cosine,
    "soft_cross_entropy": _soft,
    "soft_cross_entropy_of_plan": _soft_of_plan,
    "generalized_cross_entropy": _generalized,
    "clustering_losses": _clustering,
    "topk_pool": _pooling,
    "temporal_iou": _iou,
    "batched_nms": _nms,
    "batched_nms_padded": _nms_padded,
    "score_vote": _vote,
    "propose": _propose,
    "propose_padded": _propose_padded,
}
DIFFERENTIABLE = {
    "sinkhorn": (0, 1, 3, 6, 7),
    "sinkhorn_potentials": (0, 1, 3, 6, 7),
    "rank_prior": (1,),
    "prototypes": (0, 1),
    "prototypes_of_plan": (0, 1, 2, 3, 4, 6),
    "cosine_logits": (0, 1),
    "cosine_softmax": (0, 1),
    "soft_cross_entropy": (0, 1),
    "soft_cross_entropy_of_plan": (0, 1, 2, 3, 4, 6),
    "generalized_cross_entropy": (0, 1),
    "clustering_losses": (0, 1),
    "topk_pool": (1,),
    "temporal_iou": (0, 1),
}


def _leaves(name: str, arguments: tuple[Any, ...], device: torch.device) -> tuple[list[Any], list[Tensor]]:
    """The arguments on ``device`` with a gradient where the op has one, and those leaves."""
    moved = [x.detach().to(device) if isinstance(x, Tensor) else x for x in arguments]
    leaves = []
    for position in DIFFERENTIABLE.get(name, ()):
        if isinstance(moved[position], Tensor):
            moved[position] = moved[position].requires_grad_()
            leaves.append(moved[position])
    return moved, leaves


def _floating(result: Any) -> list[Tensor]:
    return [x for x in ([result] if isinstance(result, Tensor) else result) if x.is_floating_point()]


def test_all_ops_are_here():
    registered = {
        name.removeprefix("case::") for name in torch._C._dispatch_get_all_op_names() if name.startswith("case::")
    }
    assert registered == {*ARGUMENTS, *(f"{name}_backward" for name in DIFFERENTIABLE)}
    assert set(_backend.table()) == set(ARGUMENTS)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """``device`` for each op on its own backends."""
    if "name" not in metafunc.fixturenames:
        return
    names = DIFFERENTIABLE if metafunc.function.__name__.endswith("gradients") else ARGUMENTS
    params = []
    for name in names:
        for implementation in _backend.table()[name]:
            backend, where = implementation.split("/")
            for kind in ("cpu", "cuda") if where == "any" else (where,):
                marks = [pytest.mark.gpu] if kind == "cuda" else []
                params.append(pytest.param(name, (backend, kind), id=f"{name}-{backend}-{kind}", marks=marks))
    metafunc.parametrize("name, device", params, indirect=["device"])


def test_opcheck(draw, device, name):
    op = getattr(torch.ops.case, name).default
    for arguments in ARGUMENTS[name](draw):
        moved, leaves = _leaves(name, arguments, device)
        torch.library.opcheck(op, moved)
        if leaves:
            plain = [x.detach() if isinstance(x, Tensor) else x for x in moved]
            cotangents = [torch.ones_like(x) for x in _floating(op(*plain))]
            needed = [isinstance(moved[position], Tensor) for position in DIFFERENTIABLE[name]]
            backward = getattr(torch.ops.case, f"{name}_backward").default
            torch.library.opcheck(backward, (cotangents, needed, *plain))


def test_gradients(draw, close, device, name):
    """The registered op passes gradcheck and has the gradients of the eager path, whatever the cotangents."""
    op = getattr(torch.ops.case, name)
    for arguments in ARGUMENTS[name](draw):
        registered, leaves = _leaves(name, arguments, device)
        eager, eager_leaves = _leaves(name, arguments, device)
        expected = _floating(_backend.select(name, device)(*eager))
        reached = [i for i, x in enumerate(expected) if x.requires_grad]  # not the labels of clustering_losses
        expected = [expected[i] for i in reached]
        outputs = [_floating(op(*registered))[i] for i in reached]
        cotangents = [draw.normal(*x.shape).to(x) for x in expected]
        found = torch.autograd.grad(outputs, leaves, cotangents, materialize_grads=True)
        wanted = torch.autograd.grad(expected, eager_leaves, cotangents, materialize_grads=True)
        for got, value in zip(found, wanted, strict=True):
            close(got, value)
        # The losses of the fused chain are constant in their transport plans by definition: not what differences see.
        if device.type == "cpu" and name != "clustering_losses" and all(x.numel() for x in leaves):
            tensors = iter(range(len(leaves)))
            slots = [next(tensors) if any(x is leaf for leaf in leaves) else None for x in registered]

            def run(*inputs: Tensor, slots: Any = slots, fixed: Any = registered, reached: Any = reached) -> Any:
                given = [f if slot is None else inputs[slot] for f, slot in zip(fixed, slots, strict=True)]
                found = _floating(op(*given))
                return tuple(found[i] for i in reached)

            assert torch.autograd.gradcheck(run, leaves, fast_mode=True)
