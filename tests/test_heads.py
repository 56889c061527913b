"""The passes over the network's rows (compiled; rows with a gradient alone) against ``case.heads.backward`` in float64:
sizes, absent cotangents, rows without one, threads."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import normalize

from case import heads, heads_native
from case.heads import HeadCotangents, HeadWeights, Kept, Wide, WideGradients
from case.ops import backend

pytestmark = pytest.mark.usefixtures("native", "poisoned")
SCALE = 10.0
Found = tuple[Tensor, Kept, HeadWeights, list[WideGradients]]
WIDTHS = (6, 3)


class Problem:
    """Hidden layers are exact in float32: no unit is on in one dtype and off in the other. Cotangents of the cluster
    logits shrink with the embedding, whose length their gradients are divided by: otherwise those of a short embedding
    are differences of numbers as large as any, and what is left of them has few digits in any pass."""

    def __init__(self, seed: int, lead: tuple[int, ...], rows: int, hidden: int, classes: int, clusters: int) -> None:
        g = torch.Generator().manual_seed(seed)

        def draw(*shape: int, lead: tuple[int, ...] = lead) -> Tensor:
            return torch.randint(-64, 65, (*lead, *shape), generator=g).double() / 64

        runs = lead[1:]
        self.wide = [
            Wide(*(draw(*shape, lead=runs) for shape in ((rows, width), (hidden, width), (hidden, width))))
            for width in WIDTHS[: lead[0]]
        ]
        directions = torch.cat([normalize(draw(clusters, hidden), dim=-1), draw(1, hidden) / hidden**0.5], -2)
        weights = draw(2 * hidden), draw(classes, hidden), draw(classes), directions, draw(1)
        self.weights = HeadWeights(*(x.float().double() for x in weights))
        products = torch.stack([x.rows @ x.base.mT for x in self.wide])
        lengths = (products + self.weights.hidden_bias[..., None, hidden:]).relu().norm(dim=-1, keepdim=True)
        of_logits = draw(rows, clusters) * lengths.clamp(2**-12, 1)
        self.given = HeadCotangents(draw(rows, classes), draw(rows, hidden), draw(rows), of_logits)
        self.of_rows = [m % 2 == 0 for m in range(lead[0])]

    def run(self, module: ModuleType | None, dtype: torch.dtype, absent: tuple[str, ...] = ()) -> Found:
        """Class logits, what is kept, and the gradients; those of all rows by ``heads.backward`` without a module."""
        wide = [Wide(*(x.to(dtype) for x in each)) for each in self.wide]
        weights = HeadWeights(*(x.to(dtype) for x in self.weights))
        hidden = self.wide[0].rows.new_full((*self.given.attention.shape, weights.hidden_bias.shape[-1]), torch.nan)
        cas, kept = (module or heads).forward(wide, hidden.to(dtype), weights, SCALE)
        given = self.given._replace(**dict.fromkeys(absent))
        given = HeadCotangents(*(None if x is None else x.to(dtype) for x in given))  # type: ignore[arg-type]
        arguments = wide, self.of_rows, kept, weights, SCALE, given, None
        if module is None:
            return cas, kept, *heads.backward(*arguments)
        return cas, kept, *heads.backward_by_rows(*arguments, module.embedding_backward)


def flat(found: Found) -> list[Tensor]:
    cas, kept, of_weights, of_wide = found
    of_wide_flat = [x for each in of_wide for x in each if x is not None]
    return [cas, kept.hidden, kept.attention, kept.logits, *of_weights, *of_wide_flat]


def assert_same(found: Found, wanted: Found, tolerance: float) -> None:
    for a, b in zip(flat(found), flat(wanted), strict=True):
        largest = max(1.0, b.nan_to_num().abs().max().item()) if b.numel() else 1.0
        torch.testing.assert_close(a.double(), b, rtol=0, atol=tolerance * largest, equal_nan=True)


# rows, hidden, classes, clusters: one block of rows or less, several chunks; panels whole and not; many columns.
SIZES = [
    (0, 8, 3, 4), (1, 1, 1, 1), (5, 7, 2, 3), (47, 16, 20, 16), (48, 33, 8, 8), (49, 40, 9, 17), (97, 129, 24, 5),
    (301, 20, 25, 33), (700, 12, 1, 1), (14_000, 3, 2, 2), (60, 300, 200, 16),
]  # fmt: skip


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("lead", [(2,), (1, 3)])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-13)])
def test_any_size(
    seed: int, size: tuple[int, int, int, int], lead: tuple[int, ...], dtype: torch.dtype, tolerance: float
) -> None:
    problem = Problem(seed, lead, *size)
    assert_same(problem.run(heads_native, dtype), problem.run(None, torch.float64), tolerance)


@pytest.mark.parametrize("lead", [(2,), (1, 3)])
@pytest.mark.parametrize("share", [0.0, 0.1, 1.0])
@pytest.mark.parametrize(
    ("module", "dtype", "tolerance"),
    [
        (heads, torch.float32, 1e-5), (heads, torch.float64, 1e-13), (heads, torch.bfloat16, 2e-2),
        (heads_native, torch.float32, 1e-5), (heads_native, torch.float64, 1e-13),
    ],
)  # fmt: skip
def test_rows_without_a_class_cotangent(
    seed: int, module: ModuleType, lead: tuple[int, ...], share: float, dtype: torch.dtype, tolerance: float
) -> None:
    """None of them, some that differ from modality to modality and from run to run, all."""
    problem = Problem(seed, lead, 300, 24, 6, 5)
    g = torch.Generator().manual_seed(seed)
    chosen = torch.rand(problem.given.attention.shape, generator=g) < share
    problem.given = problem.given._replace(cas=problem.given.cas * chosen.unsqueeze(-1))
    assert_same(problem.run(module, dtype), problem.run(None, torch.float64), tolerance)


def test_a_cotangent_that_is_not_a_number_is_one(seed: int) -> None:
    problem = Problem(seed, (2,), 30, 24, 6, 5)
    cas = torch.zeros_like(problem.given.cas)
    cas[0, 7, 2] = torch.nan
    problem.given = problem.given._replace(cas=cas)
    found = problem.run(heads_native, torch.float64)
    assert found[3][0].cas_hidden.isnan().any()
    assert not found[3][1].cas_hidden.any()


@pytest.mark.parametrize("absent", [("embedding",), ("logits",), ("embedding", "logits")])
def test_absent_cotangents(seed: int, absent: tuple[str, ...]) -> None:
    problem = Problem(seed, (2,), 100, 36, 6, 5)
    assert_same(problem.run(heads_native, torch.float32, absent), problem.run(None, torch.float64, absent), 1e-5)


@pytest.mark.parametrize("absent", [(), ("logits",)])
def test_the_number_of_threads_changes_no_bit(seed: int, absent: tuple[str, ...], over_threads: Any) -> None:
    """Of what is C++; the wide products are torch's."""
    problem = Problem(seed, (2,), 3_000, 64, 20, 16)

    def outputs() -> list[Tensor]:
        cas, kept, of_weights, _ = problem.run(heads_native, torch.float32, absent)
        embedding = of_weights.hidden_bias[..., 64:], of_weights.directions, of_weights.attention_bias
        return [cas, kept.attention, kept.logits, *embedding]

    over_threads(outputs)


def test_cotangents_with_any_strides(seed: int) -> None:
    problem = Problem(seed, (2,), 50, 24, 5, 4)
    wanted = problem.run(heads_native, torch.float64)
    strided = (torch.stack([x, x], -1)[..., 0] for x in problem.given if x is not None)
    problem.given = HeadCotangents(*strided)
    assert all(torch.equal(a, b) for a, b in zip(flat(problem.run(heads_native, torch.float64)), flat(wanted)))


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_what_is_not_finite_comes_out(seed: int, value: float) -> None:
    problem = Problem(seed, (2,), 60, 24, 5, 4)
    problem.wide[0].rows[50, 3] = problem.wide[1].rows[7, 1] = value
    assert_same(problem.run(heads_native, torch.float64), problem.run(None, torch.float64), 1e-12)


def test_rows_without_an_embedding(seed: int) -> None:
    problem = Problem(seed, (2,), 60, 24, 5, 4)
    for x in problem.wide:
        x.rows[10:20] = 0
    problem.weights.hidden_bias[..., 24:] = -1
    found = problem.run(heads_native, torch.float64)
    assert_same(found, problem.run(None, torch.float64), 1e-12)
    assert not found[1].logits[..., 10:20, :].any()


def test_who_is_served() -> None:
    def served(rows: torch.dtype, weights: torch.dtype, device: str = "cpu", last: torch.dtype | None = None) -> bool:
        small = [torch.zeros(1, dtype=weights) for _ in range(4)] + [torch.zeros(1, dtype=last or weights)]
        return heads_native.serves(torch.zeros(2, 3, dtype=rows, device=device), HeadWeights(*small))

    assert served(torch.float32, torch.float32)
    assert served(torch.float64, torch.float64)
    assert not served(torch.bfloat16, torch.float32)
    assert not served(torch.bfloat16, torch.bfloat16)
    assert not served(torch.float32, torch.float32, "meta")
    assert not served(torch.float32, torch.float32, last=torch.float64)
    with backend("reference"):
        assert not served(torch.float32, torch.float32)
