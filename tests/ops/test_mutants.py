"""Kernels that are wrong in the ways kernels go wrong must not pass the comparison that the right ones pass."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from case.ops import _backend

# Position of n_iters among the arguments of ops that iterate.
N_ITERS = {"sinkhorn": 10, "sinkhorn_potentials": 10, "clustering_losses": 10}


def as_list(result: Any) -> list[Tensor]:
    return [result] if isinstance(result, Tensor) else list(result)


def the_input(op: str, right: Callable[..., Any], args: tuple[Any, ...]) -> list[Tensor]:
    """The first argument, cut or repeated to the shape of the result."""
    return [args[0].flatten().repeat(1 + y.numel())[: y.numel()].view(y.shape).to(y) for y in as_list(right(*args))]


def zeros(op: str, right: Callable[..., Any], args: tuple[Any, ...]) -> list[Tensor]:
    return [torch.zeros_like(y) for y in as_list(right(*args))]


def stale_memory(op: str, right: Callable[..., Any], args: tuple[Any, ...]) -> list[Tensor]:
    """The last result is never written: what the fixture fills fresh memory with stays there."""
    results = as_list(right(*args))
    return [*results[:-1], torch.empty_like(results[-1])]


def half_written(op: str, right: Callable[..., Any], args: tuple[Any, ...]) -> list[Tensor]:
    results = as_list(right(*args))
    written = [torch.empty_like(y) for y in results]
    for y, part in zip(results, written, strict=True):
        part.view(-1)[: y.numel() // 2] = y.reshape(-1)[: y.numel() // 2]
    return written


def one_iteration_less(op: str, right: Callable[..., Any], args: tuple[Any, ...]) -> list[Tensor]:
    at = N_ITERS[op]
    return as_list(right(*args[:at], args[at] - 1, *args[at + 1 :]))


MUTANTS = (the_input, zeros, stale_memory, half_written, one_iteration_less)
OPS = (
    "sinkhorn", "sinkhorn_potentials", "rank_prior", "prototypes", "prototypes_of_plan", "cosine_logits",
    "cosine_softmax", "soft_cross_entropy", "soft_cross_entropy_of_plan", "generalized_cross_entropy",
    "clustering_losses",
)  # fmt: skip
CASES = [(op, mutant) for op in OPS for mutant in MUTANTS if mutant is not one_iteration_less or op in N_ITERS]


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    params = []
    for op, mutant in CASES:
        for implementation in _backend.table()[op]:
            backend, where = implementation.split("/")
            if where in ("any", "cpu"):  # the poison is the CPU fixture's
                params.append(pytest.param(op, mutant, (backend, "cpu"), id=f"{op}-{mutant.__name__}-{backend}"))
    metafunc.parametrize("name, mutant, device", params, indirect=["device"])


def test_mutant_is_caught(sample_arguments, close, device, name, mutant):
    exact = sample_arguments(name)
    expected = as_list(_backend.reference(name)(*exact))
    given = tuple(x.float() if isinstance(x, Tensor) and x.is_floating_point() else x for x in exact)
    right = _backend.select(name, device)

    def compare(found: list[Tensor]) -> None:
        for got, wanted in zip(found, expected, strict=True):
            close(got, wanted, 1e-5)

    compare(as_list(right(*given)))
    with pytest.raises(AssertionError):
        compare(mutant(name, right, given))
