"""Cross entropies where a kernel has tiles and edges to get wrong, and of plans, against the float64 reference."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from case import ops
from case.kernels.config import MAX_ROW, Device, row_tile

TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 1e-2, torch.float16: 2e-3}  # of gradients
# (B, N, K): below, at and above a tile
SIZES = [(2, 0, 5), (1, 1, 1), (2, 2, 2), (1, 97, 128), (3, 60, 16), (1, 1000, 33), (1, 4099, 5), (20, 1, 3)]
HALF = [(torch.bfloat16, (2, 97, 16)), (torch.float16, (2, 97, 16))]
CASES = [(torch.float32, size) for size in SIZES] + HALF
soft = lambda x, t: ops.soft_cross_entropy(x, t, reduction="none")  # noqa: E731
generalized = lambda p, t: ops.generalized_cross_entropy(p, t, q=0.7, reduction="none")  # noqa: E731


def check(close: Callable[..., None], function: Callable[..., Tensor], cotangent: Tensor, *inputs: Tensor) -> None:
    """Losses, and gradients of the inputs that want one."""

    def run(leaves: list[Tensor]) -> tuple[Tensor, ...]:
        losses = function(*leaves)
        wanted = [x for x in leaves if x.requires_grad]
        return losses.detach(), *torch.autograd.grad(losses, wanted, cotangent.to(losses))

    found = run([x.detach().requires_grad_(x.requires_grad) for x in inputs])
    with ops.backend("reference"):
        expected = run([x.detach().cpu().double().requires_grad_(x.requires_grad) for x in inputs])
    assert found[0].dtype == torch.float32
    close(found[0], expected[0], floor=1.0)
    # A gradient of a row's only entry is all rounding: what cancels are terms of about 1.
    dtypes = [x.dtype for x in inputs if x.requires_grad]
    for got, wanted, dtype in zip(found[1:], expected[1:], dtypes, strict=True):
        assert got.dtype == dtype
        close(got, wanted, TOLERANCE[dtype], floor=1.0 if inputs[0].dim() and inputs[0].shape[-1] == 1 else 0.1)


@pytest.mark.op("soft_cross_entropy", "generalized_cross_entropy")
@pytest.mark.parametrize("dtype, size", CASES, ids=str)
def test_sizes(draw, close, device, dtype, size):
    for function, x in ((soft, draw.normal(*size, scale=3.0)), (generalized, draw.uniform(*size, low=0.01))):
        x = x.to(device, dtype).requires_grad_()
        # Losses are divided by the sum of targets, and that of one alone cancels: not by next to nothing.
        targets = draw.uniform(*size, low=0.3 if size[-1] == 1 else 0.0).to(device, dtype).requires_grad_()
        check(close, function, draw.normal(*size[:-1]), x, targets)


@pytest.mark.op("soft_cross_entropy", "generalized_cross_entropy")
def test_any_strides_and_either_gradient(draw, close, device):
    x = draw.uniform(3, 2, 5, 20).to(device, torch.float32).transpose(0, 1).transpose(-1, -2)
    wide = draw.uniform(2, 3, 20, 11).to(device, torch.float32)
    t = wide[..., 1::2]
    for function in (soft, generalized):
        for first, second in ((x.detach().requires_grad_(), t), (x, t.detach().requires_grad_())):
            for cotangent in (draw.normal(2, 3, 20), draw.normal(1, 1, 1).expand(2, 3, 20)):
                check(close, function, cotangent, first, second)
        check(close, function, draw.normal(), x[0, 0, 0].detach().requires_grad_(), t[0, 0, 0])
    # Neither input's dtype is the other's.
    check(close, soft, draw.normal(2, 3, 20), x.bfloat16().requires_grad_(), t.detach().requires_grad_())


@pytest.mark.op("soft_cross_entropy", "generalized_cross_entropy")
def test_the_same_twice(draw, device):
    x, t = draw.uniform(300, 9).to(device, torch.float32), draw.uniform(300, 9).to(device, torch.float32)
    for function in (soft, generalized):
        results = []
        for _ in range(2):
            leaf = x.detach().requires_grad_()
            losses = function(leaf, t)
            results.append((losses, *torch.autograd.grad(losses.sum(), leaf)))
        assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


@pytest.mark.op("soft_cross_entropy")
def test_extreme_logits(draw, close, device):
    x, t = draw.normal(50, 6).float(), draw.uniform(50, 6).float()
    x[:10] *= 1e4
    x[10:20] += 1e4
    x[20:30] -= 1e4
    x[25:40, 2], t[25:40, 2] = -torch.inf, 0
    x[35:40, 3], t[35:40, 3] = -1e4, 0
    x[45], t[45] = -torch.inf, 0  # a row that takes no part
    t[46] = 0
    assert soft(x.to(device), t.to(device))[45] == 0
    rest = torch.arange(50) != 45
    check(close, soft, draw.normal(49), x[rest].to(device).requires_grad_(), t[rest].to(device))


@pytest.mark.op("soft_cross_entropy", "generalized_cross_entropy")
def test_half_precision_does_not_round_what_gradients_are_made_of(draw, close, device):
    """A unit gradient beyond float16, times the cotangent of a mean below it."""
    p = torch.full((3, 4), 0.0, dtype=torch.float16, device=device).requires_grad_()
    t = torch.tensor([[1.0, 0.0, 0.0, 0.0]], dtype=torch.float16, device=device).expand(3, 4)
    (found,) = torch.autograd.grad(ops.generalized_cross_entropy(p, t, q=0.1, reduction="none").sum() * 1e-6, p)
    expected = torch.zeros(3, 4, dtype=torch.float64)
    expected[:, 0] = -(1e-7 ** (0.1 - 1)) * 1e-6
    close(found, expected)


@pytest.mark.op("soft_cross_entropy", "generalized_cross_entropy")
def test_rows_longer_than_a_program_holds(draw, close, device):
    x, t = (draw.uniform(2, MAX_ROW + 1).to(device, torch.float32) for _ in range(2))
    for function in (soft, generalized):
        check(close, function, draw.normal(2), x.requires_grad_(), t)


def plans(draw: Any, b: int, n: int, k: int) -> list[dict[str, Any]]:
    """What a plan may be made of."""
    prior = draw.uniform(b, n, k)
    prior[prior < 0.1] = 0
    mask = draw.keep(0.7, b, n, k)
    mask[:, :1] = False
    rank = ops.RankPrior(draw.normal(b, n), draw.uniform(b, k), 0.3)
    return [
        {},
        {"scale": 2.0, "prior": rank, "mask": draw.keep(0.7, b, n)},
        {"scale": 0.5, "prior": prior, "mask": mask},
        {"prior": rank._replace(ranks="argsort", centers=draw.uniform(k))},
        {"prior": draw.uniform(1, k), "scale": 3.0},
    ]


def moved(value: Any, device: torch.device, dtype: torch.dtype) -> Any:
    if isinstance(value, Tensor):
        return value.to(device, dtype if value.is_floating_point() else None)
    if isinstance(value, ops.RankPrior):
        return value._replace(scores=moved(value.scores, device, dtype), centers=moved(value.centers, device, dtype))
    return value


@pytest.mark.op("soft_cross_entropy_of_plan")
@pytest.mark.parametrize("which", range(5))
@pytest.mark.parametrize("size", [(2, 0, 5), (1, 1, 1), (2, 150, 16), (1, 1000, 33)], ids=str)
def test_plans(draw, close, device, size, which):
    b, n, k = size
    given = plans(draw, b, n, k)[which]
    x, logits = draw.normal(b, n, k, scale=2.0).float(), draw.normal(b, n, k).float()
    given = {name: moved(value, torch.device("cpu"), torch.float32) for name, value in given.items()}
    with ops.backend("reference"):
        u, v = ops.sinkhorn_potentials(logits, **given)
    wide = {name: moved(value, torch.device("cpu"), torch.float64) for name, value in given.items()}
    exact = ops.Plan(logits.double(), u.double(), v.double(), **wide)
    q = exact.dense()
    plan = ops.Plan(*(moved(part, device, torch.float32) for part in ops.Plan(logits, u, v, **given)))
    leaf, exact_leaf = x.to(device, copy=True).requires_grad_(), x.double().requires_grad_()
    found = soft(leaf, plan)
    with ops.backend("reference"):
        expected = soft(exact_leaf, q)
    # The plan's exponents are about 10 in size.
    close(found, expected, 1e-5)
    cotangent = draw.normal(b, n)
    (gradient,) = torch.autograd.grad(found, leaf, cotangent.to(found))
    (wanted,) = torch.autograd.grad(expected, exact_leaf, cotangent)
    close(gradient, wanted, 1e-5, floor=0.1)


@pytest.mark.op("soft_cross_entropy_of_plan")
def test_plans_of_any_layout_and_dtype(draw, close, device):
    x = draw.normal(3, 2, 5, 20).to(device).transpose(0, 1).transpose(-1, -2)  # (2, 3, 20, 5)
    logits, prior = draw.normal(2, 3, 20, 11).to(device)[..., 1::2], draw.uniform(20, 1).to(device)
    u, v = draw.normal(1, 3, 20).to(device).expand(2, 3, 20), draw.normal(2, 3, 5).to(device)
    mask = draw.keep(0.6, 3, 20).to(device)[None].expand(2, 3, 20)
    plan = ops.Plan(logits, u, v, 0.5, prior, mask)
    expected = soft(x, plan.dense())
    close(soft(x, plan), expected)
    for dtype in (torch.float32, torch.bfloat16):
        rounded = plan._replace(logits=logits.to(dtype), prior=prior.to(dtype))
        exact = rounded._replace(logits=rounded.logits.double(), prior=rounded.prior.double())
        found = soft(x.to(dtype), rounded._replace(u=u.float(), v=v.float()))
        close(found, soft(x.to(dtype).double(), exact.dense()), 1e-5)


@pytest.mark.op("soft_cross_entropy_of_plan")
def test_gradients_of_what_a_plan_is_made_of(draw, check_gradients, device):
    scores = draw.distinct(5)

    def loss(x: Tensor, logits: Tensor, u: Tensor, v: Tensor, centers: Tensor) -> Tensor:
        prior = ops.RankPrior(scores.to(x), centers, 0.3)
        return soft(x, ops.Plan(logits, u, v, 2.0, prior))

    x, logits = draw.normal(5, 3), draw.normal(5, 3)
    check_gradients(loss, x, logits, draw.normal(5, scale=0.1), draw.normal(3, scale=0.1), draw.uniform(3))


@pytest.mark.op("soft_cross_entropy_of_plan")
def test_plan_compiles(draw, check_compiles, device):
    x, logits, u, v = (draw.normal(*s).float().to(device) for s in ((9, 4), (9, 4), (9,), (4,)))
    check_compiles(lambda a: ops.soft_cross_entropy(a, (logits, u, v)), x.requires_grad_(), tolerance=1e-5)


@pytest.mark.parametrize("arch", [0, 80, 90, 100])
def test_launches(arch):
    """Whole rows, a number of threads that exists, and two programs at least where interpreted."""
    device = Device(arch, 2 if arch == 0 else 132)
    for b, n, k in (*SIZES[1:], (1, 12_000, 16), (2, 5, MAX_ROW)):
        tile = row_tile(b, n, k, device)
        assert tile.columns >= k
        assert tile.rows >= 1
        assert tile.num_warps in (1, 2, 4, 8, 16)
        assert tile.rows * tile.columns <= 32 * tile.num_warps * 16 or arch == 0
        assert -(-n // tile.rows) >= 2 or n == 1 or arch != 0
