"""What is the compiled proposals' own: exact runs, sums, threads, sizes, and the GPU's kernels run on a CPU."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor

from case import _native
from case.ops import _backend
from case.ops._native_ops import proposals as native_ops
from case.ops._native_ops._common import Emulation
from case.ops.reference import proposals as reference

pytestmark = pytest.mark.skipif("native/cpu" not in _backend.table()["propose"], reason="no native module")
Arguments = tuple[Any, ...]


def arguments(
    cas: Tensor, thresholds: list[float], factor: int, *, ratio: float = 0.25, keep_first: bool = True, mask: Any = None
) -> Arguments:
    """Of the registered op; video scores and seconds that differ from class to class and from video to video."""
    videos, _, classes = cas.shape
    scores = torch.linspace(-1, 1, videos * classes, dtype=torch.float64).view(videos, classes)
    seconds = torch.linspace(0.5, 1.5, videos, dtype=torch.float64)
    mask = torch.ones(videos, classes, dtype=torch.bool) if mask is None else mask
    return cas, torch.tensor(thresholds, dtype=torch.float64), factor, ratio, 0.3, scores, mask, seconds, keep_first


def same(found: Any, wanted: Any, least: float = 0.0) -> None:
    """Segments and indices are equal, to the last bit; scores to 1e-11 of the largest, or to ``least``."""
    for column, name in enumerate(("segments", "scores", "classes", "video", "threshold")):
        if name != "scores":
            assert torch.equal(found[column], wanted[column]), name
    if len(wanted[1]):
        largest = wanted[1].abs().max().item() or 1.0
        assert (found[1] - wanted[1]).abs().max().item() <= max(1e-11 * largest, least)


def rounding(args: Arguments) -> float:
    """Of the reference's scores. Their means come from differences of prefix sums over samples, each rounded to the
    last place of the largest; and mean, outer mean and video score may cancel."""
    cas, _, factor, *_ = args
    return 3 * float(np.spacing(float(cas.abs().max()) * cas.shape[1] * factor + 1))


def agree(args: Arguments) -> int:
    """Native against reference; how many proposals there were.

    From some 20,000 samples on the reference's rounding is more than 1e-11. ``test_long_videos`` says whose digits
    those are.
    """
    found, wanted = native_ops.propose(*args), reference.propose(*args)
    same(found, wanted, rounding(args))
    return len(wanted[1])


def walk(draw: Any, videos: int, rows: int, classes: int, step: float = 0.15) -> Tensor:
    """Reflected random walks in [-0.1, 1]: runs of all lengths."""
    x = (draw.uniform(videos, 1, classes, high=2.0) + draw.normal(videos, rows, classes, scale=step).cumsum(1)) % 2.2
    return torch.where(x > 1.1, 2.2 - x, x) - 0.1


@pytest.mark.parametrize("keep_first", [True, False])
@pytest.mark.parametrize("factor", [1, 2, 3, 7, 24, 1025])
@pytest.mark.parametrize("rows", [1, 2, 3, 4, 5, 33, 750])
def test_sizes(draw, rows, factor, keep_first):
    cas = walk(draw, 3, min(rows, 40_000 // factor), 4)
    thresholds = [0.5, 0.1, 0.9, 0.5, -0.3, 0.0, 0.3]
    for dtype in (torch.float64, torch.float32, torch.bfloat16, torch.float16):
        agree(arguments(cas.to(dtype), thresholds, factor, keep_first=keep_first, mask=draw.keep(0.7, 3, 4)))


@pytest.mark.parametrize("factor", [1, 3, 24, 2000])
@pytest.mark.parametrize("rows", [1, 2, 3, 40])
def test_thresholds_that_are_samples(draw, rows, factor):
    """A sample that equals the threshold is above it: bit-equal evaluation, in every interval and past the last row."""
    cas = walk(draw, 1, rows, 1, step=0.4) + 0.11
    samples = reference.upsample(cas, factor).flatten()
    chosen = samples[draw.integers(0, len(samples), 12)]
    near = [math.nextafter(float(v), side) for v in chosen[:4] for side in (-math.inf, math.inf)]
    for thresholds in (chosen.tolist(), near):
        assert agree(arguments(cas, thresholds, factor)) > 0


@pytest.mark.parametrize("factor", [3, 24, 1000, 5000])
def test_rows_that_round_alike(factor):
    """Neighbours in floating point: many samples between two rows have one value, and an estimate is far off."""
    up = math.nextafter(0.5, 1)
    rows = [0.5, up, 0.5, math.nextafter(up, 1), 0.5, 0.5, up, 0.7, 0.5, math.nextafter(0.5, 0), up]
    big = [1e15, 1e15 + 0.125, 1e15, 1e15 + 0.25, 1e15]
    tiny = [0.0, 5e-324, 0.0, 1e-310, 5e-324, -5e-324, 2e-308]
    for values, thresholds in (
        (rows, [0.5, up, math.nextafter(up, 1)]),
        (big, [1e15, 1e15 + 0.125]),
        (tiny, [0.0, 5e-324, 1e-310, -1.0]),
    ):
        cas = torch.tensor(values, dtype=torch.float64)[None, :, None]
        assert agree(arguments(cas, thresholds, factor)) > 0


def test_plateaus(draw):
    """Rows that repeat, as the sampling of short videos makes them, at values that are thresholds."""
    cas = (draw.integers(0, 6, 2, 60, 3) / 5.0).repeat_interleave(4, dim=1)
    assert agree(arguments(cas, [0.2, 0.4, 0.6, 0.8, 1.0, 0.0], 24)) > 0


@pytest.mark.parametrize("scale", [1e-250, 1e-30, 1e30, 1e250])
def test_any_scale(draw, scale):
    cas = walk(draw, 2, 50, 2)
    plain = agree(arguments(cas, [0.2, 0.6], 24))
    args = list(arguments(cas * scale, [0.2 * scale, 0.6 * scale], 24))
    args[5] = args[5] * scale
    assert agree(tuple(args)) >= plain - 2


def test_long_videos(draw):
    """20,000 rows: against exact sums of exactly interpolated samples, which neither of the two has."""
    args = arguments(walk(draw, 2, 20_000, 1), [0.3, 0.7], 24)
    found = native_ops.propose(*args)
    assert agree(args) == len(found[1]) > 1000
    rows = args[0][:, :, 0].numpy().astype(np.longdouble)
    steps = np.arange(20_000 * 24)
    low = np.minimum(steps // 24, 20_000 - 2)
    samples = rows[:, low] + (rows[:, low + 1] - rows[:, low]) * ((steps - 24 * low) / np.longdouble(24))
    for i in draw.integers(0, len(found[1]), 40).tolist():
        v = int(found[3][i])
        first, end = (found[0][i] / (args[7][v] / 24)).round().long().tolist()
        length, x = end - first, samples[v]
        left, right = max(0, int(first - 0.25 * length)), min(len(x) - 1, int(end - 1 + 0.25 * length))
        outside = np.concatenate([x[left:first], x[end : right + 1]])
        contrast = x[first:end].mean() - (outside.mean() if len(outside) else 0)
        # Rows are rounded to units of 2^-47: half a unit in the mean inside, half a unit in the other.
        assert abs(contrast + 0.3 * float(args[5][v, 0]) - float(found[1][i])) < 2**-46


def test_one_large_value_costs_a_class_at_most_its_own_digits(draw):
    cas = walk(draw, 1, 40, 2)
    cas[0, 20, 0] = 1e6
    found, wanted = (f(*arguments(cas, [0.4], 8)) for f in (native_ops.propose, reference.propose))
    small = wanted[1].abs() < 10
    assert small.any()
    assert (found[1] - wanted[1])[small].abs().max() < 1e-8
    assert ((found[1] - wanted[1])[small & (found[2] == 1)].abs() < 1e-14).all()  # some seeds give this class nothing


def test_results_are_the_same_for_any_number_of_threads(draw, over_threads):
    videos = 9
    cas = walk(draw, videos, 400, 5)
    cas[::2] = cas[::2] * 1e-3  # ragged: half the videos have nothing
    args = arguments(cas, [0.1, 0.4, 0.7], 24)
    _, scores, *_ = over_threads(lambda: native_ops.propose(*args))
    assert len(scores) > 0


def test_strides(draw):
    """As they come: expanded, reversed in layout, every second class of a wider tensor."""
    wide = walk(draw, 3, 30, 8)
    for cas in (wide[:, :, ::2], wide.transpose(1, 2).contiguous().transpose(1, 2), wide[:, :1].expand(3, 30, 8)):
        args = arguments(cas, [0.2, 0.5], 24)
        plain = (cas.contiguous(), *args[1:])
        for one, other in zip(native_ops.propose(*args), native_ops.propose(*plain), strict=True):
            assert torch.equal(one, other)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_unchecked_values_do_no_harm(draw, bad):
    """Under torch.compile nobody looks for NaN and infinity: what comes of them is not defined, but it comes."""
    cas = walk(draw, 2, 50, 2)
    cas[0, 20:22, 0] = bad
    cas[1, -1, 1] = bad
    args = arguments(cas, [0.2, bad, 0.6], 24)
    for segments, *rest in (native_ops.propose(*args), native_ops.propose_emulated(args, emulation())[0]):
        assert len(segments) == len(rest[0])
        assert ((segments >= 0) & (segments <= 50 * 1.5)).all()
        # Of the class that holds no such value nothing changes.
        clean = (rest[2] == 0) & (rest[1] == 1) & (rest[3] != 1)
        alone = native_ops.propose(*arguments(cas[:1, :, 1:], [0.2, 0.6], 24))
        assert clean.sum() == len(alone[1]) > 0


VALUES = st.one_of(
    st.sampled_from([0.0, 0.1, 0.25, 0.5, 1.0, -0.5]),
    st.floats(-1, 2, allow_nan=False, allow_subnormal=False, width=32),
)


@st.composite
def problems(draw: Any) -> Arguments:
    videos, rows, classes = draw(st.integers(1, 2)), draw(st.integers(1, 12)), draw(st.integers(1, 3))
    count = videos * rows * classes
    cas = torch.tensor(draw(st.lists(VALUES, min_size=count, max_size=count)), dtype=torch.float64)
    thresholds = draw(st.lists(VALUES, min_size=1, max_size=5))
    mask = draw(st.lists(st.booleans(), min_size=videos * classes, max_size=videos * classes))
    return arguments(
        cas.view(videos, rows, classes),
        thresholds,
        draw(st.integers(1, 30)),
        ratio=draw(st.sampled_from([0.0, 0.15, 0.25, 1.0, 1e9])),
        keep_first=draw(st.booleans()),
        mask=torch.tensor(mask).view(videos, classes),
    )


CANCELS = arguments(
    torch.tensor([[[0.0, 0.1]], [[0.0, 0.0]]], dtype=torch.float64), [0.0], 6, ratio=0.0, keep_first=False,
    mask=torch.tensor([[False, True], [False, False]]),
)  # fmt: skip


@given(problems(), st.integers(1, 256), st.integers(0, 2), st.integers(1, 5))
@example(CANCELS, 1, 0, 1)  # a mean of 0.1 less 0.3 times a video score of a third
@settings(max_examples=150, deadline=None)
def test_any_problem(args, threads, order, blocks):
    """All three: reference, C++ and the kernels; the last two bit for bit."""
    wanted, found = reference.propose(*args), native_ops.propose(*args)
    same(found, wanted, rounding(args))
    by_blocks, total = native_ops.propose_emulated(args, emulation(threads, order, blocks))
    assert int(total) == len(wanted[1])
    assert all(torch.equal(a, b) for a, b in zip(by_blocks, found, strict=True))


def emulation(threads: int = 256, order: int = 2, blocks: int = 4) -> Emulation:
    return Emulation(blocks, threads, order, seed=7)


@pytest.mark.parametrize("order", [0, 1, 2])
@pytest.mark.parametrize("threads", [1, 32, 100, 256])
def test_kernels(draw, threads, order):
    """Rows fewer and more than threads, over 32 thresholds, blocks fewer and more than columns."""
    for rows, count, blocks in ((1, 3, 1), (2, 40, 7), (threads + 1, 5, 2), (threads + 2, 5, 50), (300, 33, 5)):
        for dtype, keep_first in ((torch.float32, False), (torch.float64, True), (torch.bfloat16, True)):
            thresholds = draw.uniform(count, low=-0.2).tolist()
            cas, mask = walk(draw, 2, rows, 3).to(dtype), draw.keep(0.7, 2, 3)
            args = arguments(cas, thresholds, 24, keep_first=keep_first, mask=mask)
            found, total = native_ops.propose_emulated(args, emulation(threads, order, blocks))
            wanted = native_ops.propose(*args)
            same(wanted, reference.propose(*args))
            assert int(total) == len(wanted[1])
            assert all(torch.equal(a, b) for a, b in zip(found, wanted, strict=True))


@pytest.mark.parametrize("capacity", [1, 7, 1000])
def test_kernels_stay_within_capacity(draw, capacity):
    args = arguments(walk(draw, 3, 100, 4), [0.2, 0.5, 0.8], 8)
    found, total = native_ops.propose_emulated(args, emulation(), capacity)
    *wanted, wanted_total = reference.propose_padded(*args, capacity)
    assert int(total) == int(wanted_total) > 7
    same([x[: int(total)] for x in found], [x[: int(total)] for x in wanted])
    for one, other in zip(found, wanted, strict=True):
        assert torch.equal(one[int(total) :], other[int(total) :])


def test_kernels_write_nothing_past_their_capacity(draw):
    """Straight to the binding, into arrays with more behind them."""
    args = arguments(walk(draw, 2, 50, 2), [0.2, 0.5], 8)
    problem = native_ops._Problem(args)
    counts = torch.empty(2 * 2 * 2, dtype=torch.int32)
    module = _native.load()
    assert module is not None
    with_ = tuple(emulation(blocks=2))
    module.proposals_count_emulated(problem.description, counts.data_ptr(), with_)
    ends, capacity = counts.cumsum(0), 5
    assert int(ends[-1]) > capacity
    columns = problem.columns(int(ends[-1]))
    for column in columns:
        column.fill_(-7)
    x = torch.empty(2, 50, dtype=torch.float64)
    before = torch.empty(2, 50, dtype=torch.int64)
    addresses = tuple(c.data_ptr() for c in columns)
    output = (counts.data_ptr(), ends.data_ptr(), capacity, addresses, x.data_ptr(), before.data_ptr())
    module.proposals_write_emulated(problem.description, output, with_)
    assert all((c[capacity:] == -7).all() for c in columns)
    assert not (columns[1][:capacity] == -7).any()


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({1: (-1, 4, 3, 1)}, ValueError, "videos must not be negative, got -1"),
        ({1: (2, 0, 3, 1)}, ValueError, "rows must be at least 1, got 0"),
        ({1: (2, 4, 3, 0)}, ValueError, "thresholds must be at least 1, got 0"),
        ({1: (2, 2**27, 3, 1)}, ValueError, r"rows \* factor must be below 2\^31"),
        ({2: 0}, ValueError, "cas must be an address, got 0"),
        ({0: "float16"}, TypeError, "dtype must be 'float32' or 'float64', got 'float16'"),
    ],
)
def test_binding_refuses(change, error, message):
    problem = native_ops._Problem(arguments(torch.zeros(2, 4, 3), [0.5], 24))
    description = tuple(change.get(i, x) for i, x in enumerate(problem.description))
    with pytest.raises(error, match=f"^{message}"):
        native_ops._common.module().proposals_cpu(description)


@pytest.mark.gpu
def test_device_is_bit_equal_to_the_cpu(draw):
    if not _native.has_cuda():
        pytest.skip("case._C was built without CUDA (nvcc)")
    for rows, classes in ((750, 20), (3, 2), (5000, 3)):
        args = arguments(walk(draw, 5, rows, classes).float(), [i / 10 for i in range(-1, 40)], 24, keep_first=False)
        on_device = [x.cuda() if isinstance(x, Tensor) else x for x in args]
        for one, other in zip(native_ops.propose(*on_device), native_ops.propose(*args), strict=True):
            assert torch.equal(one.cpu(), other)


@pytest.mark.gpu
def test_padded_form_in_a_captured_graph(draw):
    if not _native.has_cuda():
        pytest.skip("case._C was built without CUDA (nvcc)")
    drawn = [arguments(walk(draw, 3, 100, 4), [0.2, 0.5, 0.8], 24) for _ in range(2)]
    static = [x.cuda() if isinstance(x, Tensor) else x for x in drawn[0]]
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        native_ops.propose_padded(*static, 2000)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = native_ops.propose_padded(*static, 2000)
    for args in drawn:
        static[0].copy_(args[0])
        graph.replay()
        for one, other in zip(captured, native_ops.propose_padded(*args, 2000), strict=True):
            assert torch.equal(one.cpu(), other)
