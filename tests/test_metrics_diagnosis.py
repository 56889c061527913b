"""Average recall and kinds of errors against their definitions written as plain loops."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from case.metrics import ERRORS, Instances, Rules, average_recall, diagnose, mean_ap, pairs
from case.metrics.reference import segment_iou

NAMES = "abcdef"
TIOU = (0.3, 0.5, 0.9)


def draw(rng: np.random.Generator, n: int, *, videos: int = 6, classes: int = 3) -> Instances:
    """Ends on a coarse grid, few different scores: ties, and segments of length 0."""
    start = rng.integers(0, 20, n)
    segment = np.stack([start, start + rng.integers(0, 8, n)], 1).astype(float)
    return Instances(rng.integers(0, videos, n), rng.integers(0, classes, n), segment, rng.integers(0, 20, n) / 19)


def iou(a: np.ndarray, b: np.ndarray) -> float:
    return float(segment_iou(a, b))


def plain_recall(truth: Instances, found: Instances, largest: float, points: int) -> np.ndarray:
    """(thresholds, points), video by video and instance by instance, after ActivityNet's eval_proposal.py."""
    videos = sorted(set(truth.video.tolist()))
    ratio = largest * len(videos) / max(len(found.video), 1)
    kept = {}
    for v in videos:
        mine = sorted((i for i in range(len(found.video)) if found.video[i] == v), key=lambda i: -found.score[i])
        kept[v] = mine[: min(int(len(mine) * ratio), len(mine))]
    total = sum(map(len, kept.values()))
    recall = np.zeros((len(TIOU), points))
    for t, threshold in enumerate(TIOU):
        for j in range(points if total else 0):
            share = (j + 1) / points * (largest * len(videos) / total)
            for g, v in enumerate(truth.video.tolist()):
                taken = kept[v][: min(int(len(kept[v]) * share), len(kept[v]))]
                met = any(iou(found.segment[i], truth.segment[g]) >= threshold for i in taken)
                recall[t, j] += met / len(truth.video)
    return recall


@pytest.mark.parametrize("n", [0, 1, 40, 300])
@pytest.mark.parametrize("largest", [1.0, 7.5, 100.0])
def test_average_recall(rng: np.random.Generator, n: int, largest: float) -> None:
    truth, found = draw(rng, 15), draw(rng, n, videos=8)
    result = average_recall(truth, found, TIOU, largest=largest, points=20)
    np.testing.assert_allclose(result.recall, plain_recall(truth, found, largest, 20), atol=1e-12)
    np.testing.assert_allclose(result.number, largest * np.arange(1, 21) / 20)
    assert (np.diff(result.recall, axis=1) >= 0).all()
    assert 0 <= result.auc <= 1


def test_average_recall_is_read_off_its_curve() -> None:
    """Two instances in one video: the first proposal meets one of them, the third both."""
    truth = Instances(np.zeros(2, int), np.zeros(2, int), np.array([[0.0, 10.0], [20.0, 30.0]]), np.zeros(2))
    segment = np.array([[0.0, 10.0], [50.0, 60.0], [20.0, 30.0], [70.0, 80.0]])
    found = Instances(np.zeros(4, int), np.zeros(4, int), segment, np.array([0.9, 0.8, 0.7, 0.6]))
    result = average_recall(truth, found, (0.5,), largest=4, points=4)
    assert result.average.tolist() == [0.5, 0.5, 1.0, 1.0]
    assert result.auc == pytest.approx((0.5 + 0.75 + 1.0) / 4)
    assert [result.at(n) for n in (0, 0.5, 1, 2.5, 4, 9)] == pytest.approx([0, 0.25, 0.5, 0.75, 1.0, 1.0])
    content = result.to_json()
    assert content["AR"] == result.average.tolist()
    assert set(content) == {"AUC", "tiou", "AN", "AR", "recall"}


def test_average_recall_refuses_what_has_no_meaning(rng: np.random.Generator) -> None:
    truth, found = draw(rng, 3), draw(rng, 4)
    with pytest.raises(ValueError, match="truth must hold at least one instance"):
        average_recall(truth[:0], found)
    with pytest.raises(ValueError, match="largest and points must be at least 1, got 0 and 100"):
        average_recall(truth, found, largest=0)
    with pytest.raises(ValueError, match=r"found\.score must not be NaN"):
        average_recall(truth, Instances(found.video, found.label, found.segment, np.full(4, np.nan)))


def plain_kinds(
    truth: Instances,
    found: Instances,
    tiou: float,
    background: float,
    top: float | None,
    forgive: np.ndarray,
    best_only: bool,
) -> list[int]:
    """Place in ERRORS of each detection, -1 where it is not looked at or is forgiven; one class after another."""
    kinds = [-1] * len(found.video)
    for label in set(truth.label.tolist()):
        instances = [g for g in range(len(truth.video)) if truth.label[g] == label]
        mine = sorted((i for i in range(len(found.video)) if found.label[i] == label), key=lambda i: -found.score[i])
        claimed: set[int] = set()
        for i in mine if top is None else mine[: int(top * len(instances))]:
            here = [g for g in range(len(truth.video)) if truth.video[g] == found.video[i]]
            overlap = {g: iou(found.segment[i], truth.segment[g]) for g in here}
            of_class = {g: o for g, o in overlap.items() if g in instances}
            free = {g: o for g, o in of_class.items() if o >= tiou and g not in claimed}
            if best_only:
                free = {g: o for g, o in free.items() if o == max(of_class.values())}
            if free:
                highest = [g for g, o in free.items() if o == max(free.values())]
                assert len(highest) == 1, "the draw must leave no choice"
                claimed.add(highest[0])
                kinds[i] = ERRORS.index("true positive")
                continue
            if forgive[i]:
                continue
            best = max(overlap.values(), default=0.0)
            own = any(o == best and g in instances for g, o in overlap.items())
            if best >= tiou:
                kinds[i] = ERRORS.index("double detection" if own else "wrong label")
            elif best >= background:
                kinds[i] = ERRORS.index("localization" if own else "confusion")
            else:
                kinds[i] = ERRORS.index("background")
    return kinds


def draw_without_ties(rng: np.random.Generator, n: int, videos: int = 6) -> Instances:
    start = rng.uniform(0, 20, n)
    segment = np.stack([start, start + rng.uniform(1, 8, n)], 1)
    return Instances(rng.integers(0, videos, n), rng.integers(0, 3, n), segment, rng.integers(0, 20, n) / 19)


@pytest.mark.parametrize("n", [0, 1, 30, 250])
@pytest.mark.parametrize("top", [None, 1.0, 2.5, 10.0])
@pytest.mark.parametrize("chunk", [1, 7, pairs.CHUNK])
@pytest.mark.parametrize("rules", [Rules(), Rules(best_only=True, interpolate=False)], ids=["ActivityNet", "VOC"])
def test_kinds_of_errors(
    rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch, n: int, top: float | None, chunk: int, rules: Rules
) -> None:
    monkeypatch.setattr(pairs, "CHUNK", chunk)
    truth, found = draw_without_ties(rng, 20), draw_without_ties(rng, n, videos=8)
    # Every instance of the first class is one of the second too, as CliffDiving is Diving.
    twice = truth[truth.label == 0]
    truth = Instances(*(np.concatenate(pair) for pair in zip(
        (truth.video, truth.label, truth.segment, truth.score),
        (twice.video, twice.label + 1, twice.segment, twice.score), strict=True,
    )))  # fmt: skip
    forgive = rng.random(n) < 0.2
    given: dict[str, Any] = {"best_only": rules.best_only, "interpolate": rules.interpolate}
    result = diagnose(truth, found, NAMES, 0.4, background=0.15, top=top, forgive=forgive, **given)
    assert result.kind.tolist() == plain_kinds(truth, found, 0.4, 0.15, top, forgive, rules.best_only)
    if top is None:
        known = np.isin(found.label, truth.label)
        assert result.forgiven == ((result.kind < 0) & known).sum()
        assert result.forgiven <= forgive.sum()
    classes = np.unique(truth.label)
    for row, label in zip(result.counts, classes, strict=True):
        of_class = result.kind[(found.label == label) & (result.kind >= 0)]
        assert row.tolist() == np.bincount(of_class, minlength=len(ERRORS)).tolist()
    assert result.instances.tolist() == [int((truth.label == label).sum()) for label in classes]
    looked = found[result.kind >= 0]
    base = mean_ap(truth, looked, NAMES, (0.4,), **given).mean
    for error in range(1, len(ERRORS)):
        without = mean_ap(truth, found[(result.kind >= 0) & (result.kind != error)], NAMES, (0.4,), **given).mean
        assert result.gain[error] == pytest.approx(without - base, abs=1e-13)
        assert result.gain[error] >= -1e-12


def test_each_kind_by_hand() -> None:
    truth = Instances(np.array([0, 0]), np.array([0, 1]), np.array([[0.0, 10.0], [20.0, 30.0]]), np.zeros(2))
    rows = {
        "true positive": (0, 0, 10),
        "double detection": (0, 0, 9),
        "wrong label": (0, 20, 30),
        "localization": (0, 7, 12),
        "confusion": (0, 26, 40),
        "background": (0, 10, 20),
    }
    segment = np.array([[s, e] for _, s, e in rows.values()], dtype=float)
    found = Instances(np.zeros(6, int), np.zeros(6, int), segment, np.linspace(1, 0.5, 6))
    result = diagnose(truth, found, NAMES, 0.5)
    assert [ERRORS[k] for k in result.kind] == list(rows)
    content = result.to_json()
    assert content["counts"] == dict.fromkeys(ERRORS, 1)
    assert content["per_class"]["a"] == {**dict.fromkeys(ERRORS, 1), "instances": 1}
    assert content["per_class"]["b"] == {**dict.fromkeys(ERRORS, 0), "instances": 1}
    elsewhere = Instances(np.full(6, 9), found.label, found.segment, found.score)
    assert diagnose(truth, elsewhere, NAMES).to_json()["counts"]["background"] == 6


def test_an_instance_at_the_threshold_is_met_unless_iou_must_exceed_it() -> None:
    truth = Instances(np.zeros(1, int), np.zeros(1, int), np.array([[0.0, 10.0]]), np.zeros(1))
    found = Instances(np.zeros(2, int), np.zeros(2, int), np.array([[0.0, 5.0], [0.0, 10.0]]), np.array([1.0, 0.5]))
    names = [ERRORS[k] for k in diagnose(truth, found, NAMES, 0.5).kind]
    assert names == ["true positive", "double detection"]
    names = [ERRORS[k] for k in diagnose(truth, found, NAMES, 0.5, strict_iou=True).kind]
    assert names == ["localization", "true positive"]


def test_overlaps_are_found_in_a_stretch(rng: np.random.Generator) -> None:
    """Times on a grid, lengths of 0 and below among them, and one segment as long as its video."""
    for _ in range(50):
        truth, found = draw(rng, int(rng.integers(0, 30))), draw(rng, int(rng.integers(0, 60)), videos=7)
        truth.segment[: len(truth.segment) // 9] = 0, 100
        truth.segment[rng.random(len(truth.segment)) < 0.1, 1] -= 8
        overlaps = pairs.Overlaps(truth.video, truth.segment)
        first, count = overlaps.stretches(found.video, found.segment)
        for i, (a, n) in enumerate(zip(first, count, strict=True)):
            shared = segment_iou(found.segment[i], truth.segment) > 0
            wanted = set(np.flatnonzero(shared & (truth.video == found.video[i])))
            stretch = overlaps.order[a : a + n]
            assert wanted <= set(stretch)
            assert (truth.video[stretch] == found.video[i]).all()
            assert bool(wanted) == bool(n)


def test_diagnosis_refuses_what_has_no_meaning(rng: np.random.Generator) -> None:
    truth, found = draw(rng, 5), draw(rng, 6)
    with pytest.raises(ValueError, match=r"0 < background <= tiou <= 1, got 0\.6 and 0\.5"):
        diagnose(truth, found, NAMES, 0.5, background=0.6)
    with pytest.raises(ValueError, match="top must be greater than 0 or None, got 0"):
        diagnose(truth, found, NAMES, top=0)
    nothing = diagnose(truth[:0], found, NAMES)
    assert nothing.counts.shape == (0, 6)
    assert (nothing.kind == -1).all()


def test_half_a_million_detections_take_well_under_a_second_each(rng: np.random.Generator) -> None:
    """Bounds that a quadratic way would pass by far; figures are in benchmarks/bench_map.py."""
    import time

    def many(n: int) -> Instances:
        start = rng.uniform(0, 200, n)
        segment = np.stack([start, start + rng.uniform(1, 80, n)], 1)
        return Instances(rng.integers(0, 4728, n), rng.integers(0, 200, n), segment, rng.random(n))

    def in_one_video(n: int) -> Instances:
        start = np.append(rng.uniform(0, 20_000, n - 1), 0)
        segment = np.stack([start, start + np.append(rng.uniform(1, 80, n - 1), 20_000)], 1)
        return Instances(np.zeros(n, np.int64), rng.integers(0, 20, n), segment, rng.random(n))

    truth, found = many(7300), many(500_000)
    one = in_one_video(5_000), in_one_video(100_000)
    for work in (
        lambda: average_recall(truth, found),
        lambda: diagnose(truth, found, range(200), top=None),
        lambda: diagnose(*one, range(20), top=None),
    ):
        started = time.perf_counter()
        work()
        assert time.perf_counter() - started < 20
