"""NaN in an input comes out where the mathematics says that it does: it is neither hidden nor spread to other rows."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from case import ops
from case.ops import _backend

# numpy's, in the interpreter
pytestmark = [
    pytest.mark.filterwarnings("ignore:All-NaN:RuntimeWarning"),
    pytest.mark.filterwarnings("ignore:invalid value encountered in log:RuntimeWarning"),
]

OPS = (
    "sinkhorn", "sinkhorn_potentials", "prototypes", "prototypes_of_plan", "cosine_logits", "cosine_softmax",
    "soft_cross_entropy", "soft_cross_entropy_of_plan", "generalized_cross_entropy", "clustering_losses",
)  # fmt: skip


def nans(results: list[Tensor]) -> list[Tensor]:
    return [x.detach().cpu().isnan() for x in results]


def run(function, args, where, dtype):
    """Where NaN is in the results, and in the gradients of all that has one, for the same cotangents every time."""
    args = [
        x.detach().to(where, dtype).requires_grad_() if isinstance(x, Tensor) and x.is_floating_point() else x
        for x in args
    ]
    args = [x.to(where) if isinstance(x, Tensor) else x for x in args]
    results = function(*args)
    results = [results] if isinstance(results, Tensor) else list(results)
    generator = torch.Generator().manual_seed(0)
    cotangents = [torch.randn(y.shape, generator=generator) for y in results]
    leaves = [x for x in args if isinstance(x, Tensor) and x.requires_grad]
    pairs = [(y, c.to(y)) for y, c in zip(results, cotangents, strict=True) if y.requires_grad]
    outputs, given = zip(*pairs, strict=True)
    found = torch.autograd.grad(outputs, leaves, given, allow_unused=True, materialize_grads=True)
    return nans(results), nans(list(found))


def compare(name, args, device):
    wanted = run(_backend.reference(name), args, torch.device("cpu"), torch.float64)
    found = run(_backend.select(name, device), args, device, torch.float32)
    for kind, expected, got in zip(("results", "gradients"), wanted, found, strict=True):
        for at, (w, f) in enumerate(zip(expected, got, strict=True)):
            assert torch.equal(w, f), f"{kind}[{at}] has {f.sum()} NaN, not {w.sum()}"
    return found


@pytest.mark.op(*OPS)
def test_nan_goes_where_it_does_in_the_reference(sample_arguments, draw, device, name):
    clean = sample_arguments(name)
    for place, x in enumerate(clean):
        if isinstance(x, Tensor) and x.is_floating_point():
            bad = x.clone()
            bad.view(-1)[int(draw.integers(0, x.numel(), 1))] = torch.nan
            compare(name, (*clean[:place], bad, *clean[place + 1 :]), device)


@pytest.mark.op("clustering_losses", kernels=True)
def test_a_row_that_nobody_sampled_takes_no_part(sample_arguments, device):
    logits, embeddings, attention, foreground, labels, index, *rest = sample_arguments("clustering_losses")
    index[index == 7] = 8
    logits[0, 7, 2] = torch.nan
    (results, (of_logits, *_)) = compare(
        "clustering_losses", (logits, embeddings, attention, foreground, labels, index, *rest), device
    )
    assert not any(x.any() for x in (*results, of_logits))
    foreground[3] = torch.nan
    ((scc, ccc, _), _) = compare(
        "clustering_losses", (logits, embeddings, attention, foreground, labels, index, *rest), device
    )
    assert (scc, ccc) == (False, True), "the pseudo-labels enter L_R alone"


@pytest.mark.op("sinkhorn")
@pytest.mark.parametrize("argument", ["prior", "row_marginal", "col_marginal"])
def test_negative_weights_are_nan(draw, device, argument):
    given = {"prior": draw.uniform(9, 5), "row_marginal": draw.uniform(9), "col_marginal": draw.uniform(5)}
    given[argument].view(-1)[2] = -0.5
    found = ops.sinkhorn(draw.normal(9, 5).to(device), **{name: x.to(device) for name, x in given.items()})
    assert found.isnan().any()


@pytest.mark.op("soft_cross_entropy")
def test_rows_without_a_softmax(device):
    """NaN where there are targets; no part, gradient included, where there are none."""
    inf, nan = torch.inf, torch.nan
    logits = torch.tensor([[-inf, -inf, -inf], [nan, -inf, -inf], [-inf, -inf, -inf], [nan, 1.0, 2.0], [-inf, 1.0, 0]])
    targets = torch.tensor([[0.5, 0.5, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 0.0], [0.0, 0.0, 0.0], [0.0, 0.5, 0.5]])

    ((losses,), (of_logits, _)) = compare("soft_cross_entropy", (logits, targets), device)
    assert losses.tolist() == [True, True, False, False, False]
    assert of_logits.tolist() == [[row in (0, 1)] * 3 for row in range(5)]
    x = logits.to(device).requires_grad_()
    found = _backend.select("soft_cross_entropy", device)(x, targets.to(device))
    found.sum().backward()
    assert x.grad is not None
    assert found[2:4].tolist() == [0.0, 0.0]
    assert x.grad[2:4].tolist() == [[0.0] * 3] * 2
