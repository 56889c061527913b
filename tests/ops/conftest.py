"""Fixtures of the op tests: fresh random inputs, every backend and device, and checks that hold for all ops.

A test that takes ``device`` names the ops it exercises, ``@pytest.mark.op("sinkhorn")``, and runs for every backend
and device for which all of them have an implementation; inside it that backend is the current one. With
``kernels=True`` the plain-torch reference is left out.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from case import ops
from case.ops import _backend

TOLERANCE = {torch.float64: 1e-12, torch.float32: 2e-6, torch.bfloat16: 1e-2, torch.float16: 2e-3}


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line(
        "markers", "op(*names, kernels=False): the ops a test exercises; decides the backends that `device` runs on"
    )


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    marker = metafunc.definition.get_closest_marker("op")
    if marker is not None and "name" in metafunc.fixturenames:
        cases = [case for name in marker.args for case in _kernels_of(name)]
        metafunc.parametrize("name, device", cases, indirect=["device"])
    if "device" not in metafunc.fixturenames or "name" in metafunc.fixturenames:
        return
    assert marker is not None, f"{metafunc.function.__name__} takes `device` but names no op: @pytest.mark.op(...)"
    implementations = [set(_backend.table()[name]) for name in marker.args]
    params = []
    for backend in _backend.BACKENDS[1:]:
        if backend == "reference" and marker.kwargs.get("kernels"):
            continue  # held to the precision of kernels
        for kind in ("cpu", "cuda"):
            if all({f"{backend}/{kind}", f"{backend}/any"} & found for found in implementations):
                marks = [pytest.mark.gpu] if kind == "cuda" else []
                params.append(pytest.param((backend, kind), id=f"{backend}-{kind}", marks=marks))
    metafunc.parametrize("device", params, indirect=True)


def _kernels_of(op: str) -> list[Any]:
    """Each implementation of the op beside the reference, as a test that takes its ``name`` and ``device`` runs it."""
    found = [implementation.split("/") for implementation in _backend.table()[op]]
    return [
        pytest.param(op, (b, kind), id=f"{op}-{b}-{kind}", marks=[pytest.mark.gpu] if kind == "cuda" else [])
        for b, kind in found
        if b != "reference"
    ]


@pytest.fixture
def device(request: pytest.FixtureRequest) -> Iterator[torch.device]:
    """The device to put inputs on, while the backend of this run is current and fresh memory is full of NaN."""
    backend, kind = request.param
    if kind == "cuda" and not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    with ops.backend(backend), warnings.catch_warnings():
        # The mode that fills fresh memory. On CUDA it would also refuse ops that the reference path needs.
        warnings.filterwarnings("ignore", ".* does not have a deterministic implementation", UserWarning)
        torch.use_deterministic_algorithms(True, warn_only=kind == "cuda")
        yield torch.device(kind)
        torch.use_deterministic_algorithms(False)


class Draw:
    """Random float64 inputs of one test, made by its ``seed``."""

    def __init__(self, seed: int) -> None:
        self.generator = np.random.default_rng(seed)

    def normal(self, *shape: int, scale: float = 1.0) -> Tensor:
        return torch.from_numpy(np.asarray(self.generator.standard_normal(shape) * scale))

    def uniform(self, *shape: int, low: float = 0.0, high: float = 1.0) -> Tensor:
        return torch.from_numpy(np.asarray(self.generator.uniform(low, high, shape)))

    def distinct(self, *shape: int) -> Tensor:
        """Multiples of 1/256 that differ along every dimension: their order survives rounding to any dtype."""
        count = int(np.prod(shape))
        assert count <= 256, "bfloat16 does not tell more values than that apart"
        return torch.from_numpy(self.generator.permutation(count).reshape(shape) / 256.0)

    def integers(self, low: int, high: int, *shape: int) -> Tensor:
        return torch.from_numpy(np.asarray(self.generator.integers(low, high, shape)))

    def keep(self, share: float, *shape: int) -> Tensor:
        """A bool mask that is on with probability ``share``."""
        return self.uniform(*shape) < share


@pytest.fixture
def draw(seed: int) -> Draw:
    return Draw(seed)


def _lay_out(x: Tensor, layout: str) -> Tensor:
    if layout == "transposed":
        return x.transpose(-1, -2).contiguous().transpose(-1, -2)
    if layout == "sliced":
        wide = x.new_full((*x.shape[:-1], 2 * x.shape[-1] + 1), torch.nan)
        wide[..., 1::2] = x
        return wide[..., 1::2]
    if layout == "expanded":
        return x[:1].expand_as(x)
    raise ValueError(layout)


@pytest.fixture(params=["transposed", "sliced", "expanded"])
def lay_out(request: pytest.FixtureRequest) -> Callable[[Tensor], Tensor]:
    """Rearranges a tensor in memory: transposed, between NaNs, or its first row repeated with stride 0."""
    return lambda x: _lay_out(x, request.param)


def _close(actual: Tensor, expected: Tensor | ArrayLike, tolerance: float | None = None, *, floor: float = 0.0) -> None:
    """Largest error at most ``tolerance`` times the largest expected value; default: by the dtype of ``actual``.

    ``floor``: least value to compare with. A gradient that is 0 in exact arithmetic (of a single row, say) comes out as
    rounding noise of the terms that cancel, which nothing relative can be asked of.
    """
    tolerance = TOLERANCE[actual.dtype] if tolerance is None else tolerance
    got = actual.detach()
    wanted = expected.detach() if isinstance(expected, Tensor) else torch.as_tensor(np.asarray(expected, np.float64))
    if got.device != wanted.device:  # else compared where they lie: at scale they are gigabytes
        got, wanted = got.cpu(), wanted.cpu()
    got, wanted = got.double(), wanted.double()
    assert got.shape == wanted.shape
    if wanted.numel() == 0:
        return
    assert got.isfinite().all(), "not finite"
    scale = max(wanted.abs().max().item(), floor) or 1.0
    error = (got - wanted).abs_().max().item() / scale
    assert error <= tolerance, f"error {error:.3g} of the largest value {scale:.3g} exceeds {tolerance:.3g}"


@pytest.fixture
def close() -> Callable[..., None]:
    return _close


def _outputs(result: Any) -> list[Tensor]:
    return [result] if isinstance(result, Tensor) else [x for x in result if isinstance(x, Tensor)]


def _gradients(outputs: list[Tensor], cotangents: list[Tensor], inputs: list[Tensor]) -> list[Tensor]:
    pairs = [(o, c.to(o)) for o, c in zip(outputs, cotangents, strict=True) if o.requires_grad]
    return list(torch.autograd.grad([o for o, _ in pairs], inputs, [c for _, c in pairs], materialize_grads=True))


@pytest.fixture
def gradient_sizes(draw: Draw) -> Callable[[list[Tensor], list[Tensor]], list[float]]:
    """How large a gradient of each input is for random cotangents, of which one alone may cancel to nearly 0."""

    def sizes(outputs: list[Tensor], inputs: list[Tensor]) -> list[float]:
        largest = [0.0] * len(inputs)
        for _ in range(8):
            cotangents = [draw.normal(*o.shape) for o in outputs]
            found = torch.autograd.grad(
                outputs, inputs, [c.to(o) for c, o in zip(cotangents, outputs)], retain_graph=True
            )
            largest = [max(x, float(g.abs().max()) if g.numel() else 0.0) for x, g in zip(largest, found, strict=True)]
        return largest

    return sizes


@pytest.fixture
def check_gradients(
    draw: Draw, gradient_sizes: Callable[..., list[float]], device: torch.device
) -> Callable[..., None]:
    """Gradients against finite differences in float64, and in float32 against the float64 reference on the CPU."""

    def check(function: Callable[..., Any], *inputs: Tensor, tolerance: float = 2e-5) -> None:
        if device.type == "cpu":
            leaves = [x.double().clone().requires_grad_() for x in inputs]
            # Triton's interpreter takes some 50 ms a call: one random direction there, not every entry.
            fast = _backend._current.get() == "triton"
            assert torch.autograd.gradcheck(lambda *a: tuple(_outputs(function(*a))), leaves, fast_mode=fast)
        exact = [x.double().clone().requires_grad_() for x in inputs]
        with ops.backend("reference"):
            expected = _outputs(function(*exact))
        cotangents = [draw.normal(*o.shape) for o in expected]
        leaves = [x.to(device, torch.float32).requires_grad_() for x in inputs]
        found = _gradients(_outputs(function(*leaves)), cotangents, leaves)
        sizes = gradient_sizes([o for o in expected if o.requires_grad], exact)
        for got, wanted, size in zip(found, _gradients(expected, cotangents, exact), sizes, strict=True):
            _close(got, wanted, tolerance, floor=size)

    return check


@pytest.fixture
def check_compiles(draw: Draw) -> Callable[..., None]:
    """``torch.compile(fullgraph=True)`` gives what eager gives, and the same gradients."""

    def check(
        function: Callable[..., Any], *inputs: Tensor, compiler: str = "aot_eager", tolerance: float = 2e-6
    ) -> None:
        leaves = [x.detach().clone().requires_grad_(x.requires_grad) for x in inputs]
        expected = _outputs(function(*inputs))
        with warnings.catch_warnings():
            # Inductor's own imports still use it.
            warnings.filterwarnings("ignore", "`torch.jit.script_method` is deprecated", DeprecationWarning)
            actual = _outputs(torch.compile(function, fullgraph=True, backend=compiler)(*leaves))
        for got, wanted in zip(actual, expected, strict=True):
            assert got.dtype == wanted.dtype
            _close(got, wanted, tolerance)
        if any(o.requires_grad for o in expected):
            cotangents = [draw.normal(*o.shape).to(o.device) for o in expected]
            wanted_grads = _gradients(expected, cotangents, [x for x in inputs if x.requires_grad])
            found = _gradients(actual, cotangents, [x for x in leaves if x.requires_grad])
            for got, wanted in zip(found, wanted_grads, strict=True):
                _close(got, wanted, tolerance)

    return check


@pytest.fixture
def fails() -> Callable[[type[Exception], str, str, str], AbstractContextManager[Any]]:
    """Expects an error whose one line begins with the op, then names the argument, then what was got."""

    def expect(kind: type[Exception], op: str, argument: str, got: str) -> AbstractContextManager[Any]:
        return pytest.raises(kind, match=rf"^{op}: {re.escape(argument)} [^\n]*{re.escape(got)}[^\n]*$")

    return expect


def _sample_arguments(draw: Draw, op: str) -> tuple[Any, ...]:
    n, k, d = 40, 5, 16
    x, y = draw.normal(n, k), draw.uniform(n, k, low=0.1)
    if op.startswith("sinkhorn"):
        return (x, y, None, None, 1.0, "true", None, None, None, 2.0, 3, None)
    if op == "clustering_losses":
        wide = torch.relu(draw.normal(2, n, d))
        labels = draw.uniform(k, 2)
        tail = (draw.integers(0, n, 2 * n), 0.3, "true", 2.0, 10.0, 3)
        return (draw.normal(2, n, k), wide, draw.uniform(n), draw.uniform(2 * n), labels, *tail)
    plan = (x, draw.normal(n, scale=0.1), draw.normal(k, scale=0.1), y, None, None, 1.0, "true", None, 2.0)
    return {
        "prototypes_of_plan": (draw.normal(n, d), *plan, "mean"),
        "soft_cross_entropy_of_plan": (draw.normal(n, k), *plan),
        "rank_prior": (draw.distinct(n), draw.uniform(k), 0.3, "true"),
        "prototypes": (draw.normal(n, d), y, "mean"),
        "cosine_logits": (draw.normal(n, d), draw.normal(k, d), 10.0, False),
        "cosine_softmax": (draw.normal(n, d), draw.normal(k, d), 10.0, False),
        "soft_cross_entropy": (x, y),
        "generalized_cross_entropy": (y, draw.uniform(n, k), 0.7),
        "temporal_iou": (draw.normal(n, 2).cumsum(-1), draw.normal(k, 2).cumsum(-1), 0.0),
    }[op]


@pytest.fixture
def sample_arguments(draw: Draw) -> Callable[[str], tuple[Any, ...]]:
    """Arguments of a registered op that has kernels and a gradient, float64 on the CPU."""
    return lambda op: _sample_arguments(draw, op)


@pytest.fixture
def on_native() -> Iterator[None]:
    """The compiled ops are the current ones."""
    with ops.backend("native"):
        yield
