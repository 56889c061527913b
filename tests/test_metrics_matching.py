"""The matcher in C++ and the one in numpy against an evaluator written as plainly as METHOD.md, ties included."""

from __future__ import annotations

from types import ModuleType

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from case import _native
from case.metrics import Instances, average_precision, mean_ap
from case.metrics.matching import match, places
from case.metrics.reference import network_order, segment_iou

TIOU = (0.1, 0.3, 0.5, 0.7, 1.0)


@pytest.fixture(params=["native", "numpy"])
def matcher(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Which implementation answers."""
    if request.param == "numpy":
        monkeypatch.setattr(_native, "load", lambda: None)
    elif _native.load() is None:
        pytest.skip(f"no native module: {_native.reason()}")
    return str(request.param)


def draw(rng: np.random.Generator, n: int, *, videos: int = 5, classes: int = 3, grid: int = 12) -> Instances:
    """Segments with ends on a coarse grid, few different scores: equal IoUs, equal scores and lengths of 0 abound."""
    start = rng.integers(0, grid, n)
    segment = np.stack([start, start + rng.integers(0, grid // 2, n)], 1).astype(float)
    return Instances(rng.integers(0, videos, n), rng.integers(0, classes, n), segment, rng.integers(0, 9, n) / 8)


def plain(
    truth: Instances,
    found: Instances,
    label: int,
    threshold: float,
    forgive: np.ndarray,
    best_only: bool,
    interpolate: bool,
) -> tuple[float, dict[int, int]]:
    """AP of a class at a threshold, and which instance each detection claims: one detection at a time."""
    mine = [i for i in range(len(found.score)) if found.label[i] == label]
    mine.sort(key=lambda i: -found.score[i])  # stable
    claims: dict[int, int] = {}
    hits = []
    for i in mine:
        here = [g for g in range(len(truth.video)) if truth.label[g] == label and truth.video[g] == found.video[i]]
        iou = [plain_iou(found.segment[i], truth.segment[g]) for g in here]
        order = [k for k in plain_network(iou)[::-1] if iou[k] >= threshold]
        if best_only and order and iou[order[0]] < max(iou, default=0):
            order = []
        for k in order[:1] if best_only else order:
            if here[k] not in claims.values():
                claims[i] = here[k]
                break
        if i in claims or not forgive[i]:
            hits.append(i in claims)
    total = sum(truth.label == label)
    precision = [sum(hits[: k + 1]) / (k + 1) for k in range(len(hits))]
    area = 0.0
    for k, hit in enumerate(hits):
        if hit:
            area += (max(precision[k:]) if interpolate else precision[k]) / total
    return area, claims


def plain_iou(a: np.ndarray, b: np.ndarray) -> float:
    inter = max(0.0, min(a[1], b[1]) - max(a[0], b[0]))
    union = (b[1] - b[0]) + (a[1] - a[0]) - inter
    return inter / union if union > 0 else 0.0


def plain_network(values: list[float]) -> list[int]:
    """A bitonic sorter over a power of two places, the rest filled with infinity."""
    size = 1
    while size < len(values):
        size *= 2
    items = [(v, i) for i, v in enumerate(values)] + [(np.inf, -1)] * (size - len(values))

    def compare(a: int, b: int) -> None:
        if items[b][0] < items[a][0]:
            items[a], items[b] = items[b], items[a]

    def clean(low: int, count: int) -> None:
        if count > 1:
            for i in range(count // 2):
                compare(low + i, low + i + count // 2)
            clean(low, count // 2)
            clean(low + count // 2, count // 2)

    def sort(low: int, count: int) -> None:
        if count > 1:
            sort(low, count // 2)
            sort(low + count // 2, count // 2)
            for i in range(count // 2):
                compare(low + i, low + count - 1 - i)
            clean(low, count // 2)
            clean(low + count // 2, count // 2)

    sort(0, size)
    return [i for _, i in items if i >= 0]


@pytest.mark.parametrize("n", [0, 1, 9, 250])
@pytest.mark.parametrize("best_only", [False, True])
@pytest.mark.parametrize("interpolate", [True, False])
def test_against_the_plain_evaluator(
    matcher: str, rng: np.random.Generator, n: int, best_only: bool, interpolate: bool
) -> None:
    truth, found = draw(rng, 40), draw(rng, n, videos=6, classes=4)
    forgive = rng.random(n) < 0.3
    classes = np.unique(truth.label)
    ap, claims = match(
        truth, found, classes, TIOU, forgive=forgive, best_only=best_only, interpolate=interpolate, claims=True
    )
    assert claims is not None
    for column, label in enumerate(classes):
        for level, threshold in enumerate(TIOU):
            area, taken = plain(truth, found, label, threshold, forgive, best_only, interpolate)
            assert ap[level, column] == pytest.approx(area, abs=1e-13)
            of_class = np.flatnonzero(found.label == label)
            assert {i: g for i, g in enumerate(claims[:, level]) if i in of_class and g >= 0} == taken


def test_native_and_numpy_agree_on_many_ties(native: ModuleType, rng: np.random.Generator) -> None:
    """More detections than one thread takes, and up to some hundred instances in a video."""
    for grid in (6, 40):
        truth, found = draw(rng, 500, videos=3, classes=2, grid=grid), draw(rng, 6000, videos=3, classes=2, grid=grid)
        classes = np.unique(truth.label)
        ap, claims = match(truth, found, classes, TIOU, claims=True)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(_native, "load", lambda: None)
            expected_ap, expected = match(truth, found, classes, TIOU, claims=True)
        assert claims is not None
        assert expected is not None
        np.testing.assert_array_equal(claims, expected)
        np.testing.assert_allclose(ap, expected_ap, rtol=1e-13, atol=1e-14)
        assert (claims >= 0).any()


def test_lengths_that_overflow_meet_nothing(matcher: str) -> None:
    """Beside two instances of equal IoU: which of them is claimed depends on all IoUs of the video."""
    largest = np.finfo(np.float64).max
    segment = np.array([[0.0, 1.0], [-largest, largest], [1.0, 2.0], [-largest, largest]])
    truth = Instances(np.zeros(4, np.int64), np.zeros(4, np.int64), segment, np.zeros(4))
    for shuffled in ([0, 1, 2, 3], [1, 0, 3, 2], [2, 3, 1, 0]):
        found = Instances(np.zeros(2, np.int64), np.zeros(2, np.int64), np.array([[0.0, 2.0], segment[1]]), np.ones(2))
        with np.errstate(over="ignore", invalid="ignore"):
            _, claims = match(truth[np.array(shuffled)], found, np.zeros(1, np.int64), [0.5], claims=True)
        assert claims is not None
        wanted = shuffled[network_order(np.where(np.array(shuffled) % 2, 0.0, 0.5))[-1]]
        assert shuffled[claims[0, 0]] == wanted
        assert claims[1, 0] == -1


@pytest.mark.parametrize("threads", [1, 2, 7])
def test_threads_do_not_change_a_bit(native: ModuleType, rng: np.random.Generator, threads: int) -> None:
    truth, found = draw(rng, 300, classes=20), draw(rng, 9000, classes=20)
    videos, classes, tiou = 5, 20, np.array(TIOU)

    def address(x: np.ndarray) -> int:
        return int(x.ctypes.data)

    def solve(count: int) -> np.ndarray:
        ap = np.full((len(tiou), classes), -1.0)
        tables = [(address(x.video), address(x.label), address(x.segment), len(x.video)) for x in (truth, found)]
        native.mean_ap_cpu(
            *tables, address(found.score), 0, (address(tiou), len(tiou)), classes, videos, address(ap), 0,
            num_threads=count,
        )  # fmt: skip
        return ap

    np.testing.assert_array_equal(solve(threads), solve(1))


def test_equal_ious_go_in_the_order_of_the_network(native: ModuleType, rng: np.random.Generator) -> None:
    for n in [0, 1, 2, 3, 4, 5, 31, 32, 33, 256, *rng.integers(6, 400, 40).tolist()]:
        values = rng.integers(0, max(2, int(rng.integers(2, n + 3))), n) / 7
        order = np.full(n, -1, np.int64)
        native.network_order(values.ctypes.data, order.ctypes.data, n)
        assert order.tolist() == network_order(values).tolist() == plain_network(values.tolist())


def test_the_network_is_numpys_sort_where_numpy_has_avx2(rng: np.random.Generator) -> None:
    """What published figures were made with; other CPUs sort otherwise, which is why numpy's own is not used."""
    features = np.show_config(mode="dicts")["SIMD Extensions"]
    found = set(features.get("found", ())) | set(features.get("baseline", ()))
    if not found & {"AVX2", "X86_V3"} or found & {"AVX512_SKX", "X86_V4"}:
        pytest.skip("numpy does not sort with AVX2 here")
    for n in (2, 5, 17, 64, 100, 256):
        for _ in range(20):
            values = rng.integers(0, max(2, n // 3), n) / 7
            assert network_order(values).tolist() == np.argsort(values).tolist()


@settings(deadline=None, max_examples=60)  # a busy machine is not a bug
@given(st.lists(st.integers(-3, 3).map(float), max_size=70))
def test_the_network_sorts(values: list[float]) -> None:
    order = network_order(np.array(values, dtype=float))
    assert sorted(order.tolist()) == list(range(len(values)))
    assert [values[i] for i in order] == sorted(values)


def test_equal_scores_are_first_in_first_out(matcher: str) -> None:
    truth = Instances(np.zeros(1, int), np.zeros(1, int), np.array([[0.0, 1.0]]), np.zeros(1))
    for hit_at in range(3):
        segment = np.tile([5.0, 6.0], (3, 1))
        segment[hit_at] = [0.0, 1.0]
        found = Instances(np.zeros(3, int), np.zeros(3, int), segment, np.full(3, 0.5))
        assert average_precision(truth, found, (0.5,))[0] == pytest.approx(1 / (hit_at + 1))


def test_many_scores_of_every_size_and_sign(native: ModuleType, rng: np.random.Generator) -> None:
    """Enough of one class for the radix sort: ranks of the hits tell the whole order."""
    for n in (500, 511, 512, 513, 4000):
        score = rng.choice([0.0, -0.0, 1.0, -1.0, np.inf, -np.inf, 5e-324, 0.5, 1e300], n)
        other = rng.normal(size=n) * 10.0 ** rng.integers(-30, 30, n)
        score = np.where(rng.random(n) < 0.5, score, other)
        segment = np.tile([0.0, 1.0], (n, 1))
        found = Instances(np.arange(n), np.zeros(n, int), segment, score)
        few = np.sort(rng.choice(n, 20, replace=False))
        truth = Instances(few, np.zeros(20, int), segment[:20], np.zeros(20))
        ranks = np.sort([list(np.argsort(-score, kind="stable")).index(i) + 1 for i in few])
        ap, _ = match(truth, found, np.zeros(1, int), (0.5,), interpolate=False)
        assert ap[0, 0] == pytest.approx((np.arange(1, 21) / ranks).mean(), abs=1e-13)


def test_nothing_to_find_and_nothing_found(matcher: str, rng: np.random.Generator) -> None:
    some, nothing = draw(rng, 20, classes=1), draw(rng, 0, classes=1)
    np.testing.assert_array_equal(average_precision(some, nothing, TIOU), 0.0)
    assert np.isnan(average_precision(nothing, some, TIOU)).all()
    assert mean_ap(nothing, some, "a", TIOU).ap.shape == (len(TIOU), 0)
    elsewhere = Instances(some.video + 1000, some.label, some.segment, some.score)
    np.testing.assert_array_equal(average_precision(some, elsewhere, TIOU), 0.0)
    assert average_precision(some, some, ()).shape == (0,)


def test_videos_and_labels_of_any_number(matcher: str, rng: np.random.Generator) -> None:
    truth, found = draw(rng, 30), draw(rng, 200, videos=7)
    expected = mean_ap(truth, found, "abc", TIOU).ap
    far = {v: int(n) for v, n in enumerate(rng.choice(2**40, 7, replace=False) - 2**39)}

    def moved(x: Instances) -> Instances:
        return Instances(np.array([far[v] for v in x.video]), x.label, x.segment, x.score)

    np.testing.assert_array_equal(mean_ap(moved(truth), moved(found), "abc", TIOU).ap, expected)


def test_places(rng: np.random.Generator) -> None:
    for spread in (10, 2**40):
        numbers = np.unique(rng.integers(-spread, spread, 20))
        wanted = np.concatenate([numbers, rng.integers(-2 * spread, 2 * spread, 50)])
        index = {int(n): i for i, n in enumerate(numbers)}
        assert places(numbers, wanted).tolist() == [index.get(int(w), -1) for w in wanted]
    assert places(np.zeros(0, np.int64), np.arange(3)).tolist() == [-1, -1, -1]


def test_strange_memory_is_read_right(matcher: str, rng: np.random.Generator) -> None:
    truth, found = draw(rng, 30), draw(rng, 100)
    wide = np.zeros((100, 5))
    wide[:, 1:3] = found.segment
    other = Instances(
        found.video.astype(np.int32), np.repeat(found.label, 2)[::2], wide[:, 1:3], found.score.astype(np.float32)
    )
    np.testing.assert_array_equal(mean_ap(truth, other, "abc", TIOU).ap, mean_ap(truth, found, "abc", TIOU).ap)


def test_what_is_no_number_is_told(matcher: str, rng: np.random.Generator) -> None:
    truth, found = draw(rng, 5), draw(rng, 6)
    score, segment = found.score.copy(), found.segment.copy()
    score[2], segment[4, 1] = np.nan, np.inf
    with pytest.raises(ValueError, match=r"found\.score must not be NaN, got NaN at 2"):
        mean_ap(truth, Instances(found.video, found.label, found.segment, score), "abc", TIOU)
    with pytest.raises(ValueError, match=r"found\.segment must hold finite seconds, got \[.*inf\] at 4"):
        mean_ap(truth, Instances(found.video, found.label, segment, found.score), "abc", TIOU)
    with pytest.raises(ValueError, match=r"truth must have as many videos as labels"):
        mean_ap(Instances(truth.video[:2], truth.label, truth.segment, truth.score), found, "abc", TIOU)
    with pytest.raises(ValueError, match=r"tiou must hold numbers"):
        mean_ap(truth, found, "abc", (0.5, np.nan))
    with pytest.raises(ValueError, match=r"forgive must have a value for each of 6"):
        mean_ap(truth, found, "abc", TIOU, forgive=np.zeros(5, bool))


def test_the_module_refuses_what_would_read_elsewhere(native: ModuleType) -> None:
    zeros, tiou, ap = np.zeros(2, np.int64), np.array([0.5]), np.zeros(1)
    segment = np.zeros((2, 2))
    table = (zeros.ctypes.data, zeros.ctypes.data, segment.ctypes.data, 2)
    rest = (segment.ctypes.data, 0, (tiou.ctypes.data, 1))
    with pytest.raises(ValueError, match=r"truth\.video must lie in \[0, videos\), got 0"):
        native.mean_ap_cpu(table, table, *rest, 1, 0, ap.ctypes.data, 0)
    with pytest.raises(ValueError, match=r"found\.segment must be an address"):
        native.mean_ap_cpu(table, (*table[:2], 0, 2), *rest, 1, 1, ap.ctypes.data, 0)
    with pytest.raises(ValueError, match="truth must not be negative, got -1"):
        native.mean_ap_cpu((*table[:3], -1), table, *rest, 1, 1, ap.ctypes.data, 0)


def test_segment_iou(rng: np.random.Generator) -> None:
    a, b = draw(rng, 9).segment, draw(rng, 7).segment
    expected = [[plain_iou(x, y) for y in b] for x in a]
    np.testing.assert_array_equal(segment_iou(a[:, None], b), expected)
