"""Ops in a captured CUDA graph: no call waits for the host; a replay computes from what the inputs hold by then."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from case.ops import _backend

# Positions of the arguments that get a gradient.
LEAVES = {
    "sinkhorn": (0, 1),
    "sinkhorn_potentials": (0, 1),
    "rank_prior": (),
    "prototypes": (0, 1),
    "prototypes_of_plan": (0,),
    "cosine_logits": (0, 1),
    "cosine_softmax": (0, 1),
    "soft_cross_entropy": (0,),
    "soft_cross_entropy_of_plan": (0,),
    "generalized_cross_entropy": (0,),
    "clustering_losses": (0, 1),
}


def results(function: Callable[..., Any], name: str, given: list[Any]) -> list[Tensor]:
    """Outputs of the op, and gradients of their sum of squares."""
    found = function(*given)
    outputs = [found] if isinstance(found, Tensor) else list(found)
    leaves = [given[position] for position in LEAVES[name]]
    if leaves:
        outputs += torch.autograd.grad(sum(y.square().sum() for y in outputs if y.requires_grad), leaves)
    return [y.detach() for y in outputs]


@pytest.mark.gpu
@pytest.mark.parametrize("name", LEAVES)
def test_replay_reads_its_inputs_again(sample_arguments, close, name):
    kernel = _backend.select(name, torch.device("cuda"))
    drawn = [sample_arguments(name) for _ in range(2)]
    sets = [
        [
            x.to("cuda", torch.float32 if x.is_floating_point() else x.dtype) if isinstance(x, Tensor) else x
            for x in given
        ]
        for given in drawn
    ]
    static = [x.clone() if isinstance(x, Tensor) else x for x in sets[0]]
    for position in LEAVES[name]:
        static[position].requires_grad_()
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(2):
            results(kernel, name, static)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = results(kernel, name, static)
    for given, exact in zip(sets, drawn, strict=True):
        with torch.no_grad():
            for to, x in zip(static, given, strict=True):
                if isinstance(to, Tensor):
                    to.copy_(x)
        for y in captured:
            y.fill_(torch.nan)
        graph.replay()
        leaves = [
            x.detach().requires_grad_(i in LEAVES[name]) if isinstance(x, Tensor) else x for i, x in enumerate(exact)
        ]
        for got, wanted in zip(captured, results(_backend.reference(name), name, leaves), strict=True):
            close(got, wanted, 1e-5)
