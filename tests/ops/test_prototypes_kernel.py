"""Prototypes of many rows, wide embeddings and plans, and their gradients, against the float64 reference."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from case import ops
from case.kernels import config
from case.kernels.config import Device
from case.ops import _backend

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
GRADIENT = {torch.float32: 1e-5, torch.bfloat16: 1e-2, torch.float16: 2e-3}


@pytest.fixture
def check(draw: Any, close: Callable[..., None], gradient_sizes: Callable[..., list[float]]) -> Callable[..., None]:
    """Values and gradients of ``function`` against the reference in float64, for random cotangents."""

    def run(
        function: Callable[..., Tensor], *inputs: Tensor, floor: float = 0.0, tolerance: float | None = None
    ) -> None:
        exact = [x.detach().double().cpu().requires_grad_() for x in inputs]
        with ops.backend("reference"):
            expected = function(*exact)
        cotangent = draw.normal(*expected.shape)
        found = function(*inputs)
        assert found.dtype == inputs[0].dtype
        close(found, expected, tolerance)
        cotangent = cotangent.to(found.dtype)
        sizes = gradient_sizes([expected], exact)
        wanted = torch.autograd.grad(expected, exact, cotangent.double())
        gradients = torch.autograd.grad(found, inputs, cotangent.to(found.device))
        for got, value, x, size in zip(gradients, wanted, inputs, sizes, strict=True):
            assert got.dtype == x.dtype
            # What the embeddings have been rounded to decides the precision of products with them.
            close(got, value, max(GRADIENT[got.dtype], GRADIENT[found.dtype] / 10), floor=max(floor, size))

    return run


def leaf(x: Tensor, dtype: torch.dtype, device: torch.device) -> Tensor:
    return x.to(dtype).to(device).requires_grad_()


def is_reference(device: torch.device) -> bool:
    return _backend.select("prototypes", device) is _backend.reference("prototypes")


@pytest.mark.op("prototypes")
@pytest.mark.parametrize(
    "n, k, d, lead, kind, weights_kind, normalize",
    [
        (0, 2, 8, (2,), "float32", "float32", "mean"),
        (1, 1, 8, (), "float32", "float32", "mean"),
        (1, 33, 32, (), "bfloat16", "float32", "l2"),
        (2, 2, 100, (2, 2), "float16", "float16", "l2"),
        (2, 5, 512, (), "float32", "bfloat16", "sum"),
        (97, 1, 100, (), "bfloat16", "bfloat16", "mean"),
        (97, 16, 32, (3,), "float32", "float32", "l2"),
        (97, 33, 8, (), "float16", "float32", "mean"),
        (97, 128, 100, (), "float32", "float32", "mean"),
        (97, 128, 8, (), "bfloat16", "float16", "sum"),
        (1000, 5, 512, (), "bfloat16", "float32", "l2"),
        (1000, 16, 512, (), "float32", "float32", "mean"),
        (1000, 16, 100, (2,), "float16", "bfloat16", "mean"),
        (1000, 2, 32, (2,), "float32", "float16", "l2"),
        (4099, 16, 8, (), "float32", "float32", "sum"),
        (4099, 5, 32, (), "float16", "float32", "l2"),
    ],
)
def test_values_and_gradients(draw, check, device, n, k, d, lead, kind, weights_kind, normalize):
    if n > 1000 and kind == "float32" and is_reference(device):
        pytest.skip("adds rows up one by one, and loses 3e-6")
    e = leaf(draw.normal(*lead, n, d) + 0.5, DTYPES[kind], device)  # long sums that do not cancel
    w = leaf(draw.uniform(*lead, n, k, low=0.1), DTYPES[weights_kind], device)
    # A single row's prototype does not depend on its weight: that gradient is rounding noise.
    check(lambda a, b: ops.prototypes(a, b, normalize=normalize), e, w, floor=1.0 if n == 1 else 0.0)


@pytest.mark.op("prototypes")
@pytest.mark.parametrize("kind", ["bfloat16", "float16"])
def test_weights_keep_their_precision_and_range(draw, close, device, kind):
    """Embeddings whose columns sum to 0 leave the low bits of the weights, which half precision has not, to decide."""
    w = (1 + draw.uniform(60, 3) / 64) * torch.tensor([1e-9, 1.0, 1e9])
    e = torch.where(draw.uniform(60, 4).argsort(0) < 30, 1.0, -1.0)
    expected = torch.nn.functional.normalize(w.T @ e.double(), dim=-1)
    close(ops.prototypes(e.to(device, DTYPES[kind]), w.float().to(device), normalize="l2"), expected)


@pytest.mark.op("prototypes")
def test_every_row_counts_once(draw, close, device):
    e = draw.normal(1000, 12).float()
    picked = torch.tensor([0, 249, 250, 255, 256, 499, 500, 511, 512, 767, 768, 999])
    w = torch.zeros(1000, len(picked))
    w[picked, torch.arange(len(picked))] = 3.0
    close(ops.prototypes(e.to(device), w.to(device), normalize="sum"), 3 * e[picked])
    every = torch.ones(1000, 1, device=device)
    close(ops.prototypes(e.to(device), every, normalize="sum"), e.double().sum(0, keepdim=True))


@pytest.mark.op("prototypes")
@pytest.mark.parametrize("tile", [(16, 16, 32, 48), (32, 32, 16, 32)], ids=str)
def test_any_tiling(draw, check, device, monkeypatch, tile):
    """More splits, blocks of columns and blocks of D than the settings for these sizes have."""
    if is_reference(device):
        pytest.skip("has no tiles")
    kernels = pytest.importorskip("case.kernels.prototypes")
    backward_kernels = pytest.importorskip("case.kernels.prototypes_backward")
    block_n, block_k, block_d, rows = tile

    def forward(*args: Any) -> Any:
        splits = -(-args[1] // rows)
        launch = config.prototypes_launch(*args)
        return replace(launch, block_n=block_n, block_k=block_k, block_d=block_d, splits=splits, rows_per_split=rows)

    def backward(*args: Any) -> Any:
        launch = config.prototypes_backward_launch(*args)
        return replace(launch, block_n=4 * block_n, block_k=block_k, block_d=block_d)

    monkeypatch.setattr(kernels, "prototypes_launch", forward)
    monkeypatch.setattr(backward_kernels, "prototypes_backward_launch", backward)
    e, w = leaf(draw.normal(101, 40), torch.float32, device), leaf(draw.uniform(101, 35), torch.float32, device)
    check(ops.prototypes, e, w)


@pytest.mark.op("prototypes")
def test_strides(draw, check, lay_out, device):
    e, w = (lay_out(x.float().to(device)).detach() for x in (draw.normal(2, 70, 9), draw.uniform(2, 70, 6, low=0.1)))
    check(lambda a, b: ops.prototypes(a, b, normalize="l2"), e.requires_grad_(), w.requires_grad_())
    (found,) = torch.autograd.grad(ops.prototypes(e, w, normalize="sum").sum(), [e])  # a cotangent of stride 0
    torch.testing.assert_close(found, w.sum(-1, keepdim=True).expand_as(e))


@pytest.mark.op("prototypes")
def test_only_one_gradient_wanted(draw, close, device):
    e, w = draw.normal(50, 8).float().to(device), draw.uniform(50, 3).float().to(device)
    both = [e.clone().requires_grad_(), w.clone().requires_grad_()]
    wanted = torch.autograd.grad(ops.prototypes(*both).square().sum(), both)
    for i, expected in enumerate(wanted):
        inputs = [e, w]
        inputs[i] = inputs[i].clone().requires_grad_()
        (found,) = torch.autograd.grad(ops.prototypes(*inputs).square().sum(), [inputs[i]])
        close(found, expected)


def plan_of(draw: Any, kind: str, lead: tuple[int, ...], n: int, k: int) -> dict[str, Any]:
    given: dict[str, Any] = {"scale": 2.0}
    if "prior" in kind:
        prior = draw.uniform(*lead, n, k)
        prior[..., ::7, :] = 0  # whole rows
        given["prior"] = prior
    if "rank" in kind:
        given["prior"] = ops.RankPrior(draw.normal(*lead, n), draw.uniform(*lead, k), 0.3)
    if "mask" in kind:
        given["mask"] = draw.keep(0.7, *lead, n, k)
        given["mask"][..., 1::5, :] = False
    if "rows" in kind:
        given["mask"] = draw.keep(0.5, *lead, n)
    return given


def moved(given: dict[str, Any], move: Callable[[Tensor], Tensor]) -> dict[str, Any]:
    found = dict(given)
    if isinstance(prior := given.get("prior"), ops.RankPrior):
        found["prior"] = prior._replace(scores=move(prior.scores), centers=move(prior.centers))
    elif prior is not None:
        found["prior"] = move(prior)
    if "mask" in given:
        found["mask"] = given["mask"].to(move(torch.zeros(())).device)
    return found


@pytest.mark.op("prototypes", "prototypes_of_plan")
@pytest.mark.parametrize(
    "parts, n, k, d, lead, kind, normalize",
    [
        ("", 97, 5, 8, (), "float32", "mean"),
        ("prior", 97, 16, 100, (2,), "float32", "l2"),
        ("rank rows", 300, 16, 32, (), "float32", "mean"),
        ("prior mask", 40, 33, 8, (2,), "bfloat16", "mean"),
        ("rank mask", 97, 2, 512, (), "float16", "l2"),
        ("rank", 1000, 128, 8, (), "float32", "sum"),
        ("rows", 0, 3, 8, (2,), "float32", "mean"),
    ],
)
def test_plans(draw, check, device, parts, n, k, d, lead, kind, normalize):
    x, u, v = draw.normal(*lead, n, k), draw.normal(*lead, n, scale=0.5) - 2, draw.normal(*lead, k, scale=0.5)
    given = plan_of(draw, parts, lead, n, k)
    e = leaf(draw.normal(*lead, n, d), DTYPES[kind], device)

    def function(a: Tensor) -> Tensor:
        move = lambda t: t.to(a.device, torch.float64 if a.dtype == torch.float64 else torch.float32)  # noqa: E731
        plan = ops.Plan(*(move(t.float()) for t in (x, u, v)), **moved(given, lambda t: move(t.float())))
        return ops.prototypes(a, plan, normalize=normalize)

    # The exponents of a plan are about 10 in size: float32 knows their exponential to ten times its own precision.
    check(function, e, tolerance=1e-5 if kind == "float32" else None)


@pytest.mark.op("prototypes", "prototypes_of_plan")
def test_a_plan_with_gradients(draw, check, device):
    inputs = draw.normal(30, 6), draw.normal(30, 3), draw.normal(30) - 1, draw.normal(3), draw.uniform(30, 3, low=0.1)
    mask = draw.keep(0.7, 30, 3)

    def function(e: Tensor, x: Tensor, u: Tensor, v: Tensor, prior: Tensor) -> Tensor:
        return ops.prototypes(e, ops.Plan(x, u, v, 2.0, prior, mask.to(e.device)), normalize="sum")

    check(function, *(leaf(x, torch.float32, device) for x in inputs))


@pytest.mark.op("prototypes", "prototypes_of_plan")
def test_repeats_bit_for_bit(draw, device):
    e, w = leaf(draw.normal(700, 24), torch.float32, device), leaf(draw.normal(700, 7), torch.float32, device)
    u, v = draw.normal(700).float().to(device), draw.normal(7).float().to(device)
    for weights, leaves in ((w, [e, w]), (ops.Plan(w.detach(), u, v), [e])):
        runs = []
        for _ in range(2):
            z = ops.prototypes(e, weights)
            runs.append([z, *torch.autograd.grad(z.square().sum(), leaves)])
        assert all(torch.equal(a, b) for a, b in zip(*runs, strict=True))


WRONG: list[tuple[Any, type[Exception], str, str]] = [
    (ops.Plan(torch.zeros(5, 2), torch.zeros(5), torch.zeros(2)), ValueError, "weights.logits", "(5, 2)"),
    (ops.Plan(torch.zeros(4, 2), torch.zeros(5), torch.zeros(2)), ValueError, "weights.u", "(5,)"),
    ((torch.zeros(4, 2), torch.zeros(4), torch.zeros(3)), ValueError, "weights.v", "(3,)"),
    ((torch.zeros(4, 2), torch.zeros(4)), TypeError, "weights", "tuple"),
]


@pytest.mark.parametrize("weights, kind, argument, got", WRONG, ids=[a for _, _, a, _ in WRONG])
def test_refuses(fails, weights, kind, argument, got):
    with fails(kind, "prototypes", argument, got):
        ops.prototypes(torch.zeros(4, 3), weights)


@pytest.mark.parametrize("arch", [0, 80, 90, 100])
@pytest.mark.parametrize("element_size", [2, 4])
def test_launch_settings_cover_all_rows(arch, element_size):
    device = Device(arch, 2 if arch == 0 else 132)
    sizes = ((1, 10**6, 16, 512), (1, 0, 1, 8), (2, 12_000, 18, 512), (300, 97, 5, 100), (1, 7, 300, 9))
    for problems, n, k, d in sizes:
        launch = config.prototypes_launch(problems, n, k, d, element_size, device)
        assert launch.splits * launch.rows_per_split >= n
        assert (launch.splits - 1) * launch.rows_per_split < max(n, 1)
        assert launch.rows_per_split % launch.block_n == 0
        assert min(launch.block_n, launch.block_k, launch.block_d) >= 16  # what tensor cores multiply at least
        # All programs at once on the device: 8 of 128 threads each would be 32 of its 64 warps.
        programs = problems * launch.splits * -(-k // launch.block_k) * -(-d // launch.block_d)
        assert arch == 0 or programs <= max(9 * device.multiprocessors, problems * -(-k // 128) * -(-d // 16))
        backward = config.prototypes_backward_launch(k, d, element_size, device)
        assert min(backward.block_n, backward.block_k, backward.block_d) >= 16
