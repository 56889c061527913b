"""The network's one autograd node against its formulas (METHOD.md, Network), layer by layer under autograd."""

from __future__ import annotations

import copy
import itertools
import pickle
from collections.abc import Sequence

import pytest
import torch
from torch import Tensor
from torch.nn.functional import normalize

from case import heads
from case.config import make_settings
from case.engine.learner import Learner
from case.network import Heads, Weights, network
from case.ops import backend
from case.scratch import Scratch

WIDTHS = (9, 14)
ROWS, HIDDEN, CLASSES, CLUSTERS, SCALE = 23, 11, 5, 4, 10.0


def written_out(rows: Sequence[Tensor], weights: Sequence[Weights]) -> Heads:
    parts = []
    for x, w in zip(rows, weights, strict=True):
        hidden = (x @ w.cas_hidden.mT + w.cas_hidden_bias.unsqueeze(-2)).relu()
        embedding = (x @ w.base.mT + w.base_bias.unsqueeze(-2)).relu()
        parts.append((
            hidden @ w.cas.mT + w.cas_bias.unsqueeze(-2), embedding,
            (embedding @ w.attention.mT).squeeze(-1).add(w.attention_bias).sigmoid(),
            SCALE * normalize(embedding, dim=-1) @ w.prototypes.mT,
        ))  # fmt: skip
    return Heads(*(torch.stack(part) for part in zip(*parts, strict=True)))


def inputs(seed: int, runs: tuple[int, ...], dtype: torch.dtype) -> tuple[list[Tensor], list[Weights]]:
    g = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*runs, *shape, generator=g, dtype=torch.float64)

    rows = [draw(ROWS, width) for width in WIDTHS]
    weights = []
    for width in WIDTHS:
        unit = normalize(draw(CLUSTERS, HIDDEN), dim=-1)
        given = (
            draw(HIDDEN, width), draw(HIDDEN), draw(HIDDEN, width), draw(HIDDEN), draw(CLASSES, HIDDEN), draw(CLASSES),
            draw(1, HIDDEN), draw(1), unit,
        )  # fmt: skip
        weights.append(Weights(*(x.to(dtype).requires_grad_() for x in given)))
    return [x.to(dtype) for x in rows], weights


def flat(weights: Sequence[Weights]) -> list[Tensor]:
    return [x for w in weights for x in w]


def gradients(heads: Heads, leaves: Sequence[Tensor], used: Sequence[bool] = (True,) * 4) -> list[Tensor | None]:
    g = torch.Generator().manual_seed(7)
    cotangents = [torch.randn(x.shape, generator=g, dtype=torch.float64).to(x.dtype) for x in heads]
    pairs = [(x, c) for x, c, wanted in zip(heads, cotangents, used, strict=True) if wanted]
    outputs, given = zip(*pairs, strict=True)
    return list(torch.autograd.grad(outputs, leaves, given, allow_unused=True))


def as_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(heads, "backward_by_rows", lambda *arguments: heads.backward(*arguments[:-1]))


@pytest.mark.parametrize("passes", ["auto", "reference"])
def test_rows_without_a_class_gradient_are_not_looked_at(seed: int, passes: str) -> None:
    rows, weights = inputs(seed, (), torch.float64)
    rows[0][7, 3] = torch.nan
    with backend("auto" if passes == "auto" else "reference"):
        cas = network(rows, weights, SCALE).cas
        given = torch.zeros_like(cas)
        given[:, ::5] = 1  # not row 7
        (found,) = torch.autograd.grad(cas, weights[0].cas_hidden, given)
    assert found.isfinite().all()
    assert found.any()


@pytest.mark.parametrize("passes", ["auto", "reference", "all rows"])
@pytest.mark.parametrize("runs", [(), (1,), (3,)])
@pytest.mark.parametrize("used", [used for used in itertools.product((0, 1), repeat=4) if any(used)])
def test_outputs_and_gradients_are_the_formulas(
    seed: int, runs: tuple[int, ...], used: tuple[bool, ...], passes: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever of them is used: the baseline has no cluster logits, say; with scratch and without; features as well."""
    if passes == "all rows":
        as_on_a_gpu(monkeypatch)
    rows, weights = inputs(seed, runs, torch.float64)
    for x in rows:
        x.requires_grad_()
    leaves = [*rows, *flat(weights)]
    wanted = written_out(rows, weights)
    expected = gradients(wanted, leaves, used)
    scratch = Scratch()
    # What was there before must not be seen.
    for name, shape in (("hidden", (10_000,)), ("gradient", (10_000,))):
        scratch.empty(name, shape, rows[0]).fill_(torch.nan)
    for lent in (None, scratch, scratch):
        with backend("auto" if passes == "auto" else "reference"):
            found = network(rows, weights, SCALE, lent)
        for a, b in zip(found, wanted, strict=True):
            torch.testing.assert_close(a, b)
        for a, b in zip(gradients(found, leaves, used), expected, strict=True):
            # A weight that nothing depends on has no gradient layer by layer, and zeros here.
            if b is None:
                assert a is None or not a.any()
            else:
                assert a is not None
                torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)


def test_rows_of_zero_embedding_have_a_finite_gradient(seed: int) -> None:
    rows, weights = inputs(seed, (), torch.float64)
    with torch.no_grad():
        weights[0].base_bias.fill_(-1e3)
    for a, b in zip(
        gradients(network(rows, weights, SCALE), flat(weights)),
        gradients(written_out(rows, weights), flat(weights)),
        strict=True,
    ):
        assert a is not None
        assert b is not None
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("all_rows", [False, True])
@pytest.mark.parametrize(("narrow", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 2e-2)])
def test_narrower_rows_and_weights_round_a_little(
    seed: int, narrow: torch.dtype, tolerance: float, all_rows: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Hidden layers of whole numbers and a half, exact in bfloat16: no unit is on in one and off in the other."""
    if all_rows:
        as_on_a_gpu(monkeypatch)
    rows, weights = inputs(seed, (), torch.float32)
    rows = [x.round().clamp(-2, 2) for x in rows]
    with torch.no_grad():
        for w in weights:
            for x in (w.cas_hidden, w.base):
                x.round_().clamp_(-1, 1)
            for x in (w.cas_hidden_bias, w.base_bias):
                x.fill_(0.5)
    exact = [Weights(*(x.detach().double().requires_grad_() for x in w)) for w in weights]
    given, exact_rows = ([x.to(dtype).requires_grad_() for x in rows] for dtype in (narrow, torch.float64))
    found, wanted = network(given, weights, SCALE), written_out(exact_rows, exact)
    pairs = [*zip(found, wanted, strict=True)]
    leaves, exact_leaves = [*flat(weights), *given], [*flat(exact), *exact_rows]
    pairs += zip(gradients(found, leaves), gradients(wanted, exact_leaves), strict=True)
    for i, (a, b) in enumerate(pairs):
        assert a is not None
        assert b is not None
        assert a.dtype == (torch.float32 if i < len(pairs) - len(rows) else narrow)
        size = max(b.abs().max().item(), 0.1)  # sums of 23 terms of some 0.1 can cancel
        torch.testing.assert_close(a.double(), b, rtol=0, atol=tolerance * size)


def test_scratch_that_is_written_too_early_is_an_error(seed: int) -> None:
    rows, weights = inputs(seed, (), torch.float32)
    scratch = Scratch()
    first = network(rows, weights, SCALE, scratch)
    network(rows, weights, SCALE, scratch)
    with pytest.raises(RuntimeError, match="inplace"):
        gradients(first, flat(weights))


def test_scratch_grows_and_keeps() -> None:
    scratch, like = Scratch(), torch.zeros(())
    first = scratch.empty("a", (3, 4), like)
    assert scratch.empty("a", (2, 6), like).data_ptr() == first.data_ptr()
    assert scratch.empty("b", (3, 4), like).data_ptr() != first.data_ptr()
    assert scratch.empty("a", (300, 4), like).shape == (300, 4)
    assert scratch.empty("a", (3, 4), like.double()).dtype == torch.float64
    scratch.empty("a", (10_000,), like)
    assert len(pickle.dumps(scratch)) < 1000
    assert copy.deepcopy(scratch).empty("a", (3, 4), like).data_ptr() != scratch.empty("a", (3, 4), like).data_ptr()


def test_what_a_user_asks_the_model_for_is_theirs(seed: int) -> None:
    """A learner's memory is for its own steps: heads of calls beside them stay as they are."""
    torch.manual_seed(seed)
    learner = Learner((8, 8), make_settings(num_classes=3, num_clusters=4, hidden=16, num_segments=24))
    first, second = ([torch.randn(30, 8) for _ in range(2)] for _ in range(2))
    learner.model.eval().requires_grad_(False)
    heads = learner.model(first)
    before = heads.embedding.clone()
    learner.model(second)
    assert torch.equal(heads.embedding, before)


@pytest.mark.parametrize("field", Weights._fields)
def test_a_weight_of_another_dtype_is_torchs_to_judge(seed: int, field: str) -> None:
    """The C++ reads memory: it takes over only where all is of one dtype."""
    rows, weights = inputs(seed, (), torch.float32)
    given = [w._replace(**{field: getattr(w, field).detach().double()}) for w in weights]
    with backend("reference"):
        try:
            wanted = network(rows, given, SCALE)
        except RuntimeError:
            wanted = None
    if wanted is None:
        with pytest.raises(RuntimeError):
            network(rows, given, SCALE)
        return
    for a, b in zip(network(rows, given, SCALE), wanted, strict=True):
        torch.testing.assert_close(a, b)


def test_saved_tensors_may_come_back_with_other_strides(seed: int) -> None:
    rows, weights = inputs(seed, (), torch.float64)
    expected = gradients(network(rows, weights, SCALE), flat(weights))

    def columns(x: Tensor) -> Tensor:
        return x.detach().mT.contiguous().mT if x.dim() > 1 else x.detach()

    with torch.autograd.graph.saved_tensors_hooks(columns, lambda x: x):
        found = network(rows, weights, SCALE)
    for a, b in zip(gradients(found, flat(weights)), expected, strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("in_bfloat16", [False, True])
@pytest.mark.parametrize("lead", [(), (3,)])
@pytest.mark.parametrize("biased", [True, False])
def test_bfloat16_products_are_rounded_once(
    monkeypatch: pytest.MonkeyPatch, seed: int, in_bfloat16: bool, lead: tuple[int, ...], biased: bool
) -> None:
    monkeypatch.setattr(heads, "multiplies_bfloat16", lambda: in_bfloat16)
    g = torch.Generator().manual_seed(seed)
    x, y = torch.rand(*lead, 37, 129, generator=g).bfloat16(), torch.rand(*lead, 129, 65, generator=g).bfloat16()
    plus = torch.rand(*lead, 65, generator=g).bfloat16() if biased else None
    wide = torch.full((*lead, 37, 80), torch.nan, dtype=torch.bfloat16)
    found = heads.product(x, y, plus, wide[..., 7:72])
    expected = x.double() @ y.double() + (0 if plus is None else plus.double().unsqueeze(-2))
    torch.testing.assert_close(found.double(), expected, rtol=2**-8, atol=0)
    torch.testing.assert_close(wide[..., 7:72], found, rtol=0, atol=0)
    assert wide[..., :7].isnan().all()
    assert wide[..., 72:].isnan().all()
    assert torch.equal(heads.product(x, y, plus), found)


def test_a_second_derivative_is_refused(seed: int) -> None:
    model = Learner(WIDTHS, make_settings(num_classes=CLASSES)).model
    rows = [torch.rand(ROWS, width, requires_grad=True) for width in WIDTHS]
    found = model(rows)
    loss = found.cas.sum()
    with pytest.raises(RuntimeError, match=r"^network: its gradient has no graph; "):
        torch.autograd.grad(loss, rows, create_graph=True)
    torch.autograd.grad(loss, rows)
