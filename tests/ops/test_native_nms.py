"""What is the compiled NMS's own: groups large enough for its index, of all lengths, against the reference."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from case import _native, ops
from case.ops import _backend
from case.ops._native_ops import nms_blocks, nms_soft_rounds, nms_vote_blocks
from case.ops._native_ops._common import Emulation
from case.ops.reference.nms import pad

pytestmark = pytest.mark.skipif("native/cpu" not in _backend.table()["batched_nms"], reason="no native module")
DTYPES = [torch.float32, torch.float64]
SIGMA = 0.35


def uniform(rng: np.random.Generator, n: int) -> tuple[np.ndarray, np.ndarray]:
    return rng.uniform(0, n / 20, n), rng.uniform(0.5, 20, n)


def crowded(rng: np.random.Generator, n: int) -> tuple[np.ndarray, np.ndarray]:
    return rng.uniform(0, 3, n), rng.uniform(0.1, 6, n)


def on_a_grid(rng: np.random.Generator, n: int) -> tuple[np.ndarray, np.ndarray]:
    """IoUs on the thresholds, identical and nested segments, some of no or of negative length."""
    return rng.integers(-40, 400, n) / 4, rng.choice([-0.5, 0, 0, 0.25, 0.5, 1, 1, 2, 4, 8, 64], n)


def many_scales(rng: np.random.Generator, n: int) -> tuple[np.ndarray, np.ndarray]:
    length = np.exp2(rng.uniform(-40, 20, n))
    near = length[rng.permutation(n)] * rng.normal(size=n)
    return near, length


def far_away(rng: np.random.Generator, n: int) -> tuple[np.ndarray, np.ndarray]:
    """Coordinates that leave a length few of its digits, and one segment that stretches the range of starts."""
    start = np.where(rng.random(n) < 0.01, -1e30, 1e6) + rng.uniform(0, 60, n)
    return start, rng.uniform(0, 10, n)


def cancelled(rng: np.random.Generator, n: int) -> tuple[np.ndarray, np.ndarray]:
    """With an offset of 1, lengths of 1e-9 to 1 of which the sum has lost most digits."""
    return rng.uniform(0, 1e-3, n), -1 + np.exp(rng.uniform(-20, 0, n))


KINDS = [uniform, crowded, on_a_grid, many_scales, far_away, cancelled]


def problem(rng: np.random.Generator, kind: Any, n: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Segments, and scores of which some are equal."""
    start, length = kind(rng, n)
    scores = np.where(rng.random(n) < 0.3, rng.integers(1, 5, n) / 5, rng.random(n))
    return torch.from_numpy(np.stack([start, start + length], 1)).to(dtype), torch.from_numpy(scores).to(dtype)


def both(function: Any) -> tuple[Any, Any]:
    with ops.backend("native"):
        found = function()
    with ops.backend("reference"):
        return found, function()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("n", [40, 256, 400])
def test_hard_and_decay_once_are_the_reference(rng, kind, n, dtype):
    for threshold in rng.choice([0.0, 1e-7, 1e-5, 0.02, 0.25, 0.4, 0.5, 0.7, 0.95, 1.0], 3, replace=False).tolist():
        segments, scores = problem(rng, kind, n, dtype)
        offset = 1.0 if kind is cancelled else float(rng.choice([0.0, 0.0, 1.0, -0.25]))
        options = {"length_offset": offset, "sigma": SIGMA, "max_num": int(rng.choice([1, 20, 10_000]))}
        for method in ("hard", "decay_once"):
            found, wanted = both(lambda m=method: ops.nms(segments, scores, threshold, method=m, **options))  # noqa: B023
            tolerance = {"rtol": 1e-6 if dtype == torch.float32 else 1e-14, "atol": 0}
            if method == "hard" or options["max_num"] >= n:
                assert torch.equal(found.keep, wanted.keep)
                torch.testing.assert_close(found.scores, wanted.scores, **tolerance)
            else:  # which of two is among the best can hang on the last bit of a decayed score
                torch.testing.assert_close(found.scores.sort().values, wanted.scores.sort().values, **tolerance)


@pytest.mark.parametrize("method", ["linear", "gaussian"])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("n", [200, 400])
def test_soft_methods_are_the_reference(rng, kind, n, method):
    start, length = kind(rng, n)
    segments = torch.from_numpy(np.stack([start, start + length], 1))
    # Distinct scores, and few decays each: products rounded step by step and sums of exponents agree, order included.
    scores = torch.from_numpy(rng.permutation(n) / n + 0.5 * rng.random(n) / n)
    offset = 1.0 if kind is cancelled else 0.5
    for least in (0.3, -1.0):
        shifted = scores if least > 0 else scores - 0.2  # below 0 decays raise a score
        options = {"method": method, "sigma": SIGMA, "min_score": least, "length_offset": offset}
        found, wanted = both(lambda: ops.nms(segments, shifted, 0.4, **options))  # noqa: B023
        # Where many have decayed to about 0 their order is rounding.
        told_apart = int((wanted.scores.diff() < -1e-9).int().cumprod(0).sum())
        assert told_apart >= min(10, len(wanted.scores) - 1)
        assert torch.equal(found.keep[:told_apart], wanted.keep[:told_apart])
        torch.testing.assert_close(found.scores[:told_apart], wanted.scores[:told_apart], rtol=1e-11, atol=1e-13)
        assert sorted(found.keep.tolist()) == sorted(wanted.keep.tolist())


def test_gaussian_picks_the_best_of_what_remains_among_thousands(rng):
    segments, scores = problem(rng, crowded, 5000, torch.float64)
    with ops.backend("native"):
        keep, kept = ops.nms(segments, scores, 0.4, method="gaussian", sigma=SIGMA, max_num=300)
    current = scores.log()
    for pick, score in zip(keep, kept):
        assert current[pick] >= current.max() - 1e-9
        assert score == pytest.approx(current[pick].exp().item(), rel=1e-9)
        iou = ops.temporal_iou(segments[pick][None], segments)[0]
        current = current - iou.square() / SIGMA
        current[pick] = -torch.inf


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", KINDS)
def test_votes_are_the_references(rng, close, kind, dtype):
    segments, scores = problem(rng, kind, 700, dtype)
    groups = torch.from_numpy(rng.choice([3, -8, 11], 700, p=[0.8, 0.19, 0.01]))
    scores -= 0.1  # a sum of weights may be 0 or less
    for vote in (-1.0, 0.0, 0.3, 0.9):
        found, wanted = both(
            lambda: ops.batched_nms(segments, scores, groups, 0.4, vote=vote, length_offset=1.0)  # noqa: B023
        )
        assert torch.equal(found.keep, wanted.keep)
        # Of the size of what a segment meets, since the mean is of those, and of how far its weights cancel.
        iou = ops.temporal_iou(segments[found.keep], segments, length_offset=1.0)
        size = torch.where(iou > 0, segments.abs().amax(1), 0).amax(1).maximum(segments[found.keep].abs().amax(1))
        votes = (iou >= vote) & (groups[found.keep, None] == groups)
        weights = torch.where(votes, iou * scores, 0).double()
        size *= (weights.abs().sum(1) / weights.sum(1).abs()).nan_to_num(nan=1, posinf=math.inf)
        error = (found.segments.double() - wanted.segments.double()).abs().amax(1)
        assert (error <= (2e-5 if dtype == torch.float32 else 1e-12) * size).all()


@pytest.mark.parametrize("kind", KINDS)
def test_votes_by_blocks_are_the_cpus(rng, kind):
    """Sums in another order, of float64."""
    for n, emulation in ((1, Emulation(1, 256, 0, 0)), (300, Emulation(3, 32, 1, 0)), (700, Emulation(2, 5, 2, 9))):
        segments, scores = problem(rng, kind, n, torch.float64)
        groups = torch.from_numpy(rng.choice([3, -8, 11], n, p=[0.8, 0.19, 0.01]))
        keep = torch.from_numpy(rng.permutation(n)[: n // 2 + 1])
        offset = 1.0 if kind is cancelled else float(rng.choice([0.0, 1.0]))
        for threshold in (-1.0, 0.0, 0.3, 0.9):
            given = (keep, segments, scores, groups, threshold, offset)
            found = nms_vote_blocks.by_blocks(
                lambda *args, how=tuple(emulation): _native.load().nms_vote_emulated(*args, how), *given
            )
            wanted = _backend.select("score_vote", segments.device)(*given)
            # Of the size of what a segment meets: the mean is of those.
            meets = ops.temporal_iou(segments[keep], segments, length_offset=offset) > 0
            size = torch.where(meets, segments.abs().amax(1), 0).amax(1).maximum(segments[keep].abs().amax(1))
            assert ((found - wanted).abs().amax(1) <= 1e-13 * size).all()
            assert n < 300 or threshold > 0.5 or not torch.equal(found, segments[keep])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("n", [1, 2, 7, 9, 63, 64, 65, 700, 3100])
def test_blocks_settle_as_threads_do(rng, kind, n, dtype):
    """The kernel of the CUDA half, run on the CPU: groups within and beyond shared memory, in order and not."""
    for order, threads in ((0, 256), (1, 32), (2, 96), (2, 1)):
        segments, scores = problem(rng, kind, n, dtype)
        groups = torch.from_numpy(rng.choice([3, -8, 11, 10**12], n, p=[0.8, 0.1, 0.08, 0.02]))
        if rng.random() < 0.5:
            groups = groups.sort().values
        threshold = float(rng.choice([0.0, 0.25, 0.4, 0.5, 1.0]))
        least, most = float(rng.choice([-math.inf, 0.3])), int(rng.choice([0, 1, 15]))
        offset = 1.0 if kind is cancelled else float(rng.choice([0.0, 1.0]))
        emulation = Emulation(int(rng.integers(1, 6)), threads, order, int(rng.integers(1 << 30)))
        # Groups that are large, and rounds that leave something to the last block, or nothing.
        sizes = {"large": int(rng.choice([1, 30, 10_000])), "most_rounds": int(rng.choice([0, 1, 3, 40]))}
        settle = nms_blocks.emulated(emulation, **sizes)
        for method in ("hard", "decay_once"):
            arguments = (segments, scores, groups, threshold, method, SIGMA, least, most, offset)
            torch.use_deterministic_algorithms(True)  # fresh memory is full of NaN and of the largest integers
            keep, kept = nms_blocks.by_blocks(settle, *arguments)
            capacity = int(rng.choice([1, max(1, len(keep) // 2), n + 3]))
            padded = nms_blocks.padded_by_blocks(settle, *arguments, capacity)
            torch.use_deterministic_algorithms(False)
            with ops.backend("native"):
                wanted, wanted_scores = _backend.select("batched_nms", segments.device)(*arguments)
            assert torch.equal(keep, wanted)
            rtol = 1e-6 if dtype == torch.float32 else 1e-14
            torch.testing.assert_close(kept, wanted_scores, rtol=rtol, atol=0)
            for one, other in zip(padded, pad(keep, kept, capacity), strict=True):
                assert torch.equal(one, other)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("method", ["linear", "gaussian"])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("n", [1, 2, 65, 400])
def test_soft_rounds_pick_as_the_cpu_does(rng, kind, n, method, dtype):
    """Sums of decays in another order: equal but for rounding, order included where keys are told apart. Of 400 scores
    a tenth are 0 and some below, which come last."""
    for order, threads in ((0, 256), (1, 32), (2, 7)):
        start, length = kind(rng, n)
        segments = torch.from_numpy(np.stack([start, start + length], 1)).to(dtype)
        scores = torch.from_numpy((rng.permutation(n) + 1) / (n + 1) - rng.choice([0.0, 0.4])).to(dtype)
        if n > 100:
            scores[rng.permutation(n)[: n // 10]] = 0
        groups = torch.from_numpy(rng.choice([5, -2, 4], n, p=[0.8, 0.1, 0.1]))
        offset = 1.0 if kind is cancelled else 0.5
        least, most = float(rng.choice([-1.0, -0.1, 0.3])), int(rng.choice([0, 1, 9]))
        arguments = (segments, scores, groups, 0.3, method, SIGMA, least, most, offset)
        emulation = Emulation(int(rng.integers(1, 6)), threads, order, int(rng.integers(1 << 30)))
        # One block a group, or rounds of all and a block for what is below 0.
        launcher = nms_blocks.emulated(emulation, soft_large=int(rng.choice([1, 30, 10_000])))
        torch.use_deterministic_algorithms(True)  # fresh memory is full of NaN and of the largest integers
        keep, kept = nms_blocks.by_blocks(launcher, *arguments)
        capacity = int(rng.choice([1, max(1, len(keep) // 2), n + 3]))
        padded = nms_blocks.padded_by_blocks(launcher, *arguments, capacity)
        torch.use_deterministic_algorithms(False)
        for one, other in zip(padded, pad(keep, kept, capacity), strict=True):
            assert torch.equal(one, other)
        wanted = _backend.select("batched_nms", segments.device)(*arguments)
        same_picks((keep, kept), wanted, groups, 1e-9 if dtype == torch.float64 else 1e-6)


def same_picks(found: tuple[Tensor, Tensor], wanted: tuple[Tensor, Tensor], groups: Tensor, eps: float) -> int:
    """Order and scores of each group, up to the first pick that is not told apart from the next; how many those are."""
    compared = 0
    for group in groups.unique():
        (mine, scores), (others, other) = ((k[groups[k] == group], s[groups[k] == group]) for k, s in (found, wanted))
        assert len(mine) == len(others)
        apart = (other.diff().abs() > eps) | ((other[1:] == 0) & (other[:-1] == 0))
        count = int(apart.int().cumprod(0).sum())
        count += count == len(other) - 1
        assert torch.equal(mine[:count], others[:count])
        torch.testing.assert_close(scores[:count], other[:count], rtol=max(1e-12, eps / 1000), atol=eps / 100)
        compared += count
    return compared


@pytest.mark.parametrize("method", ["linear", "gaussian"])
def test_scores_below_zero_are_picked_as_by_the_reference(rng, method):
    """They rise with every decay, so that the best of a group can be the last that was picked."""
    compared = total = 0
    for trial in range(24):
        n = int(rng.integers(1, 60))
        start = rng.uniform(0, 2 * n, n)
        segments = torch.from_numpy(np.stack([start, start + rng.uniform(0.5, 20, n)], 1))
        scores = torch.from_numpy(rng.uniform(-1, (0.0, 0.5)[trial % 2], n))
        groups = torch.from_numpy(rng.choice([5, -2], n))
        least, most = float(rng.choice([-math.inf, -0.5])), int(rng.choice([0, 1, 4]))
        arguments = (segments, scores, groups, 0.1, method, 2.0, least, most, 0.5)
        emulation = Emulation(2, int(rng.choice([1, 2, 32])), 2, trial)
        launcher = nms_blocks.emulated(emulation, soft_large=int(rng.choice([1, 10_000])))
        wanted = _backend.reference("batched_nms")(*arguments)
        total += len(wanted[0])
        same_picks(_backend.select("batched_nms", segments.device)(*arguments), wanted, groups, 1e-9)
        compared += same_picks(nms_blocks.by_blocks(launcher, *arguments), wanted, groups, 1e-9)
    assert compared > total / 2


@pytest.mark.parametrize("kind", [uniform, many_scales])
def test_soft_rounds_over_several_chunks_of_groups(rng, kind):
    segments, scores = problem(rng, kind, 3100, torch.float64)
    groups = torch.from_numpy(rng.choice([0, 1, 7, 9], 3100, p=[0.1, 0.4, 0.49, 0.01]))
    for large in (400, 10_000):
        arguments = (segments, scores, groups, 0.3, "gaussian", SIGMA, 0.1, 0, 0.0)
        launcher = nms_blocks.emulated(Emulation(3, 64, 2, 5), soft_large=large)
        wanted = _backend.select("batched_nms", segments.device)(*arguments)
        same_picks(nms_blocks.by_blocks(launcher, *arguments), wanted, groups, 1e-9)


@pytest.mark.parametrize("method", ["linear", "gaussian"])
def test_what_rounds_leave_of_a_chain_is_one_blocks_work(method, monkeypatch):
    """Each segment waits for the one before it, so that every round takes one pick."""
    monkeypatch.setattr(nms_soft_rounds, "PADDED_ROUNDS", 5)
    start = torch.arange(70, dtype=torch.float64)
    segments, scores = torch.stack([start, start + 1.5], 1), 1 - start / 100
    arguments = (segments, scores, torch.zeros(70, dtype=torch.int64), 0.1, method, 5.0, -1.0, 0, 0.0)
    wanted, wanted_scores = _backend.select("batched_nms", segments.device)(*arguments)
    keep, kept, total = nms_blocks.padded_by_blocks(
        nms_blocks.emulated(Emulation(3, 32, 2, 1), soft_large=1), *arguments, 80
    )
    assert int(total) == 70
    assert torch.equal(keep[:70], wanted)
    torch.testing.assert_close(kept[:70], wanted_scores, rtol=1e-12, atol=0)


@pytest.mark.parametrize("threads", [1, 2, 32])
@pytest.mark.parametrize("large", [1, 100])
@pytest.mark.parametrize("method", ["linear", "gaussian"])
def test_soft_rounds_end_where_there_are_no_numbers(method, large, threads):
    """The padded form does not look for NaN and infinity: what comes of them is not defined, but it comes."""
    nan, inf = torch.nan, torch.inf
    for segments, scores in (
        ([[0, 4], [0, 4], [0, 4], [1, 9], [nan, 2], [0, inf]], [inf, inf, 0.5, nan, 0.7, 0.1]),
        ([[0, 4], [1, 5], [nan, 2], [0, 3]], [-0.1, -0.2, -0.3, -0.4]),
        ([[0, 4], [0, 4], [2, 3], [0, 3]], [-0.1, -inf, -0.3, -0.4]),
        ([[0, 0], [5, 9], [0, 0], [0, 0]], [0.9, 0.5, -inf, -inf]),
    ):
        for offset in (0.0, 1.0):
            rows, given = torch.tensor(segments, dtype=torch.float32), torch.tensor(scores)
            launcher = nms_blocks.emulated(Emulation(2, threads, 0, 1), soft_large=large)
            arguments = (rows, given, torch.zeros(len(rows), dtype=torch.int64), 0.1, method, 0.5, -inf, 0, offset)
            keep, _, total = nms_blocks.padded_by_blocks(launcher, *arguments, 6)
            assert 0 <= int(total) <= len(rows)
            assert len(set(keep[: int(total)].tolist())) == int(total)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("method", ["hard", "decay_once", "gaussian", "linear"])
def test_the_widest_range_of_times_there_is(rng, method, dtype):
    most = torch.finfo(dtype).max / 5
    start = rng.uniform(-most, most, 400)
    segments = torch.from_numpy(np.stack([start, start + rng.uniform(0, most / 50, 400)], 1)).to(dtype)
    scores = torch.from_numpy(rng.permutation(400) / 400 + 0.001).to(dtype)
    found, wanted = both(lambda: ops.nms(segments, scores, 0.3, method=method, min_score=0.2))
    assert torch.equal(found.keep, wanted.keep)
    torch.testing.assert_close(found.scores, wanted.scores)


@pytest.mark.parametrize("method", ["linear", "gaussian"])
def test_negative_scores_and_narrow_decays(method):
    """Segments that are one: the second decays to 0 whatever its sign, and none is lost."""
    segments = torch.tensor([[0.0, 4.0], [0.0, 4.0], [50.0, 60.0]])
    for scores in ([0.9, 0.5, 0.4], [-1.0, -2.0, -3.0]):
        with ops.backend("native"):
            keep, kept = ops.nms(segments, torch.tensor(scores), 0.4, method=method, sigma=1e-310)
        assert sorted(keep.tolist()) == [0, 1, 2]
        assert kept[keep == 1].abs() == 0


def test_blocks_settle_nothing_where_there_is_nothing():
    nothing = torch.empty(0, 2), torch.empty(0), torch.empty(0, dtype=torch.int64)
    settle, settings = nms_blocks.emulated(Emulation(1, 32, 0, 0)), (0.4, "hard", 1.0, 0.0, 0, 0.0)
    assert [len(part) for part in nms_blocks.by_blocks(settle, *nothing, *settings)] == [0, 0]
    keep, kept, total = nms_blocks.padded_by_blocks(settle, *nothing, *settings, 2)
    assert (keep.tolist(), kept.tolist(), int(total)) == ([-1, -1], [-math.inf] * 2, 0)


@given(
    rows=st.lists(
        st.tuples(st.integers(-8, 8), st.sampled_from([-1, 0, 1, 1, 2, 5, 16]), st.integers(-3, 3)), max_size=150
    ),
    heads=st.integers(1, 60),
    threshold=st.sampled_from([0.0, 1e-7, 0.25, 0.5, 1.0]),
    offset=st.sampled_from([0.0, 0.25, -0.5, 1.0]),
    emulation=st.builds(Emulation, st.integers(1, 4), st.integers(1, 256), st.integers(0, 2), st.integers(0, 99)),
    large=st.sampled_from([1, 20, 1000]),
    most_rounds=st.sampled_from([0, 2, 9]),
    dtype=st.sampled_from(DTYPES),
)
@settings(max_examples=200, deadline=None)
def test_blocks_on_any_grid(rows, heads, threshold, offset, emulation, large, most_rounds, dtype):
    """Equal starts, equal scores, nested, of no length: integers, so that IoUs lie on thresholds exactly."""
    start, length, scores = (torch.tensor([row[i] for row in rows], dtype=dtype) for i in range(3))
    segments, groups = torch.stack([start, start + length], 1).reshape(-1, 2), torch.arange(len(rows)) // heads
    arguments = (segments, scores, groups, threshold, "decay_once", SIGMA, -2.0, 0, offset)
    found = nms_blocks.by_blocks(nms_blocks.emulated(emulation, large=large, most_rounds=most_rounds), *arguments)
    with ops.backend("native"):
        wanted = _backend.select("batched_nms", segments.device)(*arguments)
    assert torch.equal(found[0], wanted[0])
    torch.testing.assert_close(found[1], wanted[1], rtol=1e-6, atol=0)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", DTYPES)
def test_device_keeps_what_the_cpu_keeps(rng, dtype):
    if not _native.has_cuda():
        pytest.skip("case._C was built without CUDA (nvcc)")
    for kind in KINDS:
        segments, scores = problem(rng, kind, 30_000, dtype)
        for groups in (torch.arange(30_000) // 1000, torch.from_numpy(rng.choice([3, 9, 27], 30_000))):
            for method in ("hard", "decay_once"):
                arguments = (groups, 0.4, method, SIGMA, 0.1, 500, 1.0)
                keep, kept = nms_blocks.batched_nms(segments.cuda(), scores.cuda(), groups.cuda(), *arguments[1:])
                wanted, wanted_scores = _backend.select("batched_nms", segments.device)(segments, scores, *arguments)
                torch.testing.assert_close(kept.cpu(), wanted_scores, rtol=1e-6, atol=0)
                if method == "hard":
                    assert torch.equal(keep.cpu(), wanted)


@pytest.mark.gpu
@pytest.mark.parametrize("method", ["linear", "gaussian"])
def test_device_picks_what_the_cpu_picks(rng, method):
    if not _native.has_cuda():
        pytest.skip("case._C was built without CUDA (nvcc)")
    for n in (5_000, 30_000):  # a block a group, and rounds of all with a block for what is below 0
        segments, _ = problem(rng, uniform, n, torch.float64)
        scores, groups = torch.from_numpy(rng.permutation(n) / n - 0.1), torch.from_numpy(rng.integers(0, 3, n))
        options = {"method": method, "sigma": SIGMA, "min_score": -0.05}
        found = ops.batched_nms(segments.cuda(), scores.cuda(), groups.cuda(), 0.4, **options)
        wanted = ops.batched_nms(segments, scores, groups, 0.4, **options)
        assert same_picks((found.keep.cpu(), found.scores.cpu()), (wanted.keep, wanted.scores), groups, 1e-9) > 100


@pytest.mark.gpu
def test_a_large_group_on_the_device(rng):
    if not _native.has_cuda():
        pytest.skip("case._C was built without CUDA (nvcc)")
    segments, scores = problem(rng, uniform, 200_000, torch.float32)
    found = ops.nms(segments.cuda(), scores.cuda(), 0.4)
    assert torch.equal(found.keep.cpu(), ops.nms(segments, scores, 0.4).keep)


@pytest.mark.gpu
@pytest.mark.parametrize(("method", "n"), [("decay_once", 5_000), ("gaussian", 3_000), ("linear", 20_000)])
def test_padded_form_in_a_captured_graph(rng, method, n):
    if not _native.has_cuda():
        pytest.skip("case._C was built without CUDA (nvcc)")
    groups = torch.from_numpy(rng.integers(0, 2, n))
    drawn = [problem(rng, uniform, n, torch.float64) for _ in range(2)]
    drawn[1][1][:500] -= 0.6  # some below 0
    static = [x.cuda() for x in (*drawn[0], groups)]
    options = {"method": method, "sigma": SIGMA, "min_score": -0.3, "capacity": 4 * n // 5}
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        ops.batched_nms_padded(*static, 0.4, **options)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = ops.batched_nms_padded(*static, 0.4, **options)
    for segments, scores in drawn:
        static[0].copy_(segments)
        static[1].copy_(scores)
        graph.replay()
        wanted = ops.batched_nms_padded(segments, scores, groups, 0.4, **options)
        assert int(captured.total) == int(wanted.total)
        if method == "decay_once":
            assert torch.equal(captured.keep.cpu(), wanted.keep)
            torch.testing.assert_close(captured.scores.cpu(), wanted.scores, rtol=1e-12, atol=0)
        else:
            found, size = (captured.keep.cpu(), captured.scores.cpu()), min(int(wanted.total), 4 * n // 5)
            first = [tuple(x[:size] for x in both) for both in (found, (wanted.keep, wanted.scores))]
            assert same_picks(*first, groups, 1e-9) > 100


@pytest.mark.parametrize("method", ["hard", "decay_once", "linear", "gaussian"])
def test_results_are_the_same_for_any_number_of_threads(rng, over_threads, method):
    segments, scores = problem(rng, uniform, 30_000, torch.float32)
    groups = torch.from_numpy(rng.integers(0, 40, 30_000) ** 2)
    with ops.backend("native"):
        over_threads(lambda: ops.batched_nms(segments, scores, groups, 0.4, method=method, vote=0.5))


def test_a_hundred_thousand_segments_leave_none_that_should_be_gone(rng):
    """Beyond what the reference can do: no two kept overlap too much, and whoever is gone meets a better kept one."""
    segments, scores = problem(rng, uniform, 100_000, torch.float64)
    with ops.backend("native"):
        keep, kept = ops.nms(segments, scores, 0.4)
        decayed, _ = ops.nms(segments, scores, 0.4, method="decay_once")
    assert (kept.diff() <= 0).all()
    assert torch.equal(decayed[: len(keep)], keep)
    assert torch.equal(decayed.sort().values, torch.arange(100_000))
    by_start = keep[segments[keep, 0].argsort()]
    place = torch.full((100_000,), -1).scatter_(0, keep, torch.arange(len(keep)))
    starts = segments[by_start, 0].contiguous()
    gone = torch.from_numpy(rng.choice(np.setdiff1d(np.arange(100_000), keep.numpy()), 300))
    for i, is_gone in [(int(i), True) for i in gone] + [(int(i), False) for i in keep[:: len(keep) // 300]]:
        # The longest is 20: who overlaps i starts within 20 before it, and before its end.
        low, high = torch.searchsorted(starts, segments[i, 0] - 20.0), torch.searchsorted(starts, segments[i, 1])
        near = by_start[low:high]
        iou = ops.temporal_iou(segments[i][None], segments[near])[0]
        better = near[(iou >= 0.4) & (near != i)]
        if is_gone:
            assert (scores[better] >= scores[i]).any()
        else:
            assert len(better) == 0
            assert place[i] >= 0
