"""Gradients of gradients: kernels write numbers without a graph, whose derivatives would silently be zero."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from case.ops import _backend

OPS = (
    "sinkhorn", "sinkhorn_potentials", "rank_prior", "prototypes", "prototypes_of_plan", "cosine_logits",
    "cosine_softmax", "soft_cross_entropy", "soft_cross_entropy_of_plan", "generalized_cross_entropy",
    "clustering_losses", "temporal_iou",
)  # fmt: skip


def penalties(function: Callable[..., Any], arguments: tuple[Any, ...], device: torch.device) -> list[Tensor]:
    """Gradients of gradients' squares: with a cotangent that asks for no gradient itself, and with one that does."""
    given = [x.detach().to(device) if isinstance(x, Tensor) else x for x in arguments]
    leaves = [x.requires_grad_() for x in given if isinstance(x, Tensor) and x.is_floating_point()]
    results = function(*given)
    outputs = [y for y in ((results,) if isinstance(results, Tensor) else results) if y.requires_grad]
    assert outputs
    generator = torch.Generator().manual_seed(0)
    weights = [torch.rand(y.shape, generator=generator, dtype=y.dtype).to(device) for y in outputs]
    found: list[Tensor] = []
    for power in (1, 2):
        loss = sum(((w * y**power).sum() for w, y in zip(weights, outputs, strict=True)), torch.zeros(()).to(device))
        first = torch.autograd.grad(loss, leaves, create_graph=True, allow_unused=True)
        total = torch.stack([g.square().sum() for g in first if g is not None]).sum()
        found += torch.autograd.grad(total, leaves, retain_graph=True, materialize_grads=True)
    return found


@pytest.mark.op(*OPS)
def test_second_derivatives_are_those_of_the_reference(sample_arguments, device, name):
    arguments = sample_arguments(name)
    wanted = penalties(_backend.reference(name), arguments, torch.device("cpu"))
    found = penalties(_backend.select(name, device), arguments, device)
    assert any(x.any() for x in wanted)
    for mine, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(mine.cpu(), other, rtol=1e-9, atol=1e-10)


@pytest.mark.op("topk_pool")
@pytest.mark.parametrize("indexed", [False, True])
def test_top_k_pooling_is_linear_in_its_values(draw, device, name, indexed):
    """So that only a cotangent with a graph has second derivatives."""
    selector, values = draw.normal(9, 4), draw.normal(2, 5 if indexed else 9, 4)
    index = draw.integers(0, 5, 9) if indexed else None
    here = None if index is None else index.to(device)
    wanted = penalties(lambda x: _backend.reference(name)(selector, x, 3, index)[0], (values,), torch.device("cpu"))
    found = penalties(lambda x: _backend.select(name, device)(selector.to(x), x, 3, here)[0], (values,), device)
    assert wanted[1].any()
    for mine, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(mine.cpu(), other)
    leaf, cotangents = values.to(device).requires_grad_(), draw.normal(6, 2, 4).to(device)
    pooled = _backend.select(name, device)(selector.to(device), leaf, 3, here)[0]
    (batched,) = torch.autograd.grad(pooled, leaf, cotangents, is_grads_batched=True, retain_graph=True)
    for mine, cotangent in zip(batched, cotangents, strict=True):
        torch.testing.assert_close(mine, torch.autograd.grad(pooled, leaf, cotangent, retain_graph=True)[0])


@pytest.mark.op("cosine_logits", "prototypes", "soft_cross_entropy", "sinkhorn")
def test_inputs_that_are_made_from_each_other(draw, device, name):
    """A gradient with a graph is the gradient: what one input owes to another is passed on once, as are hooks."""
    x = draw.normal(12, 12)
    rest: dict[str, tuple[Any, ...]] = {
        "cosine_logits": (10.0, False), "prototypes": ("mean",), "soft_cross_entropy": (),
        "sinkhorn": (None, None, 1.0, "true", None, None, None, 2.0, 3, None),
    }  # fmt: skip
    weight = draw.normal(12, 12)

    def gradient(create_graph: bool, function: Callable[..., Any], where: torch.device) -> list[Tensor]:
        found = []
        for make in (lambda y: y, lambda y: y.softmax(-1)):
            leaf = x.to(where).requires_grad_()
            inner = leaf * 1
            inner.register_hook(lambda g: g * 10)
            out = function(inner, make(inner).abs(), *rest[name])
            loss = (out * weight.to(where)[: out.shape[0], : out.shape[-1]]).square().sum()
            (first,) = torch.autograd.grad(loss, leaf, create_graph=create_graph)
            found += [first, *(torch.autograd.grad(first.square().sum(), leaf) if create_graph else ())]
        return [g.detach().cpu() for g in found]

    kernel = _backend.select(name, device)
    once, both = gradient(False, kernel, device), gradient(True, kernel, device)
    wanted = gradient(True, _backend.reference(name), torch.device("cpu"))
    for mine, other in zip((*once, *both), (*wanted[::2], *wanted), strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-8, atol=1e-9)


@pytest.mark.op(*OPS)
def test_batches_of_cotangents(sample_arguments, device, name):
    """As ``torch.autograd.functional.jacobian(vectorize=True)`` has them."""
    arguments = sample_arguments(name)

    def jacobian(function: Callable[..., Any], where: torch.device) -> list[Tensor | None]:
        given = [x.detach().to(where) if isinstance(x, Tensor) else x for x in arguments]
        leaves = [x.requires_grad_() for x in given if isinstance(x, Tensor) and x.is_floating_point()]
        results = function(*given)
        first = results if isinstance(results, Tensor) else results[0]
        cotangents = torch.randn(3, *first.shape, generator=torch.Generator().manual_seed(0), dtype=first.dtype)
        kept = {"retain_graph": True, "allow_unused": True}
        found = torch.autograd.grad(first, leaves, cotangents.to(where), is_grads_batched=True, **kept)
        return [g if g is None else g.cpu() for g in found]

    wanted = jacobian(_backend.reference(name), torch.device("cpu"))
    assert any(g is not None and g.abs().max() > 1e-6 for g in wanted)
    for mine, other in zip(jacobian(_backend.select(name, device), device), wanted, strict=True):
        if mine is None or other is None:  # nothing, or zeros
            assert not any(g is not None and g.any() for g in (mine, other))
        else:
            torch.testing.assert_close(mine, other, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("name", ["cosine_logits", "sinkhorn", "clustering_losses"])
def test_registered_ops_called_as_such(sample_arguments, name):
    arguments, cpu = sample_arguments(name), torch.device("cpu")
    found = penalties(getattr(torch.ops.case, name), arguments, cpu)
    for mine, other in zip(found, penalties(_backend.reference(name), arguments, cpu), strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-9, atol=1e-10)


@pytest.mark.op("cosine_logits", kernels=True)
def test_logits_may_be_masked_in_place(draw, device):
    if device.type == "cuda" or _backend._current.get() == "triton":
        pytest.skip("the Triton kernel keeps the result itself: autograd says so in a line")
    x, y = draw.normal(9, 7).requires_grad_(), draw.normal(4, 7)
    gradients = []
    for function in (_backend.select("cosine_logits", device), _backend.reference("cosine_logits")):
        logits = function(x, y, 10.0, False)
        logits.masked_fill_(logits < 0, -5.0)
        gradients += torch.autograd.grad(logits.square().sum(), x)
    torch.testing.assert_close(*gradients)
