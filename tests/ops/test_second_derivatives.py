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
def test_top_k_pooling_is_linear_in_its_values(draw, device, name):
    """So that only a cotangent with a graph has second derivatives."""
    selector, values = draw.normal(9, 4), draw.normal(2, 9, 4)
    wanted = penalties(lambda x: _backend.reference(name)(selector, x, 3)[0], (values,), torch.device("cpu"))
    found = penalties(lambda x: _backend.select(name, device)(selector.to(x), x, 3)[0], (values,), device)
    assert wanted[1].any()
    for mine, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(mine.cpu(), other)
