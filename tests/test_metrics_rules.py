"""What evaluators count: each rule against what it says, by hand and by plain loops."""

from __future__ import annotations

from dataclasses import fields, replace
from typing import Any

import numpy as np
import pytest

from case.data import GroundTruth, VideoTruth
from case.errors import CaseError
from case.metrics import Rules, evaluate, pose, score
from case.metrics.rules import alternatives, apply

CLASSES = ("dive", "swim", "Ambiguous")
NAMES = {f.name for f in fields(Rules)}
Rows = list[tuple[int, float, float]]


def ground_truth(videos: dict[str, tuple[str, Rows]], classes: tuple[str, ...] = CLASSES) -> GroundTruth:
    known = {}
    for video, (subset, rows) in videos.items():
        segments = np.array([(s, e) for _, s, e in rows], dtype=float).reshape(-1, 2)
        known[video] = VideoTruth(subset, None, segments, np.array([c for c, _, _ in rows], dtype=np.int64))
    return GroundTruth(classes, known)


def row(label: str, score: float, start: float, end: float) -> dict[str, Any]:
    return {"label": label, "score": score, "segment": [start, end]}


PLAIN = ground_truth({"a": ("test", [(0, 0, 10)]), "b": ("train", [(1, 0, 10)])}, CLASSES[:2])


def mean(truth: GroundTruth, results: dict[str, list[dict[str, Any]]], tiou: float = 0.5, **rules: Any) -> float:
    ambiguous = rules.pop("stretches", None)
    return evaluate(truth, results, (tiou,), subset="test", rules=Rules(**rules), ambiguous=ambiguous).mean


def test_duplicates() -> None:
    truth = ground_truth({"a": ("test", [(0, 0, 10), (0, 0, 10), (0, 0, 11), (1, 0, 10)]), "b": ("test", [(0, 0, 10)])})
    found = {"a": [row("dive", 0.9, 0, 10)], "b": [row("dive", 0.8, 0, 10)]}
    assert mean(truth, found) == pytest.approx((2 / 4 + 0) / 2)
    assert mean(truth, found, drop_duplicates=True) == pytest.approx((2 / 3 + 0) / 2)


def test_dropping_duplicates_is_a_loop_over_what_was_seen(rng: np.random.Generator) -> None:
    rows = [(int(c), float(s), float(s + d)) for c, s, d in rng.integers(0, 3, (60, 3))]
    problem = pose(ground_truth({"a": ("test", rows[:30]), "b": ("test", rows[30:])}), {}, subset="test")
    kept = apply(problem, Rules(drop_duplicates=True))[0]
    expected: list[tuple[float, ...]] = []
    truth = problem.truth
    for key in zip(truth.video, truth.label, *truth.segment.T, strict=True):
        if key not in expected:
            expected.append(key)
    assert list(zip(kept.video, kept.label, *kept.segment.T, strict=True)) == expected


def test_videos_outside_the_subset() -> None:
    found = {
        "a": [row("dive", 0.5, 0, 10)],
        "b": [row("dive", 0.9, 0, 10)],
        "unknown": [row("dive", 0.8, 0, 10)],
    }
    assert mean(PLAIN, found) == pytest.approx(1 / 3)
    assert mean(PLAIN, found, only_subset_videos=True) == 1.0


def test_unseen_labels() -> None:
    found = {"a": [row("unicorn", 0.9, 0, 10), row("dive", 0.5, 0, 10), row("griffin", 0.1, 0, 1)]}
    with pytest.raises(CaseError, match=r"lacks: griffin, unicorn; .*ignore_unseen_labels"):
        mean(PLAIN, found)
    assert mean(PLAIN, found, ignore_unseen_labels=True) == 1.0


STRETCHES = {"a": [(20.0, 30.0)], "elsewhere": [(0.0, 99.0)]}
TOUCHING = {"a": [row("dive", 0.9, 25, 40), row("dive", 0.8, 30, 31), row("dive", 0.7, 0, 10)]}


def test_ambiguous_stretches() -> None:
    """Of three detections the first overlaps a stretch, the second touches its end, the third is right."""
    assert mean(PLAIN, TOUCHING, stretches=STRETCHES) == pytest.approx(1 / 3)
    assert mean(PLAIN, TOUCHING, stretches=STRETCHES, ambiguous="drop") == pytest.approx(1 / 3)
    for rule in ("forgive", "remove"):
        assert mean(PLAIN, TOUCHING, stretches=STRETCHES, ambiguous=rule) == pytest.approx(1 / 2)


def test_what_hits_is_not_forgiven_but_removed() -> None:
    found = {"a": [row("dive", 0.9, 0, 10)]}
    stretches = {"a": [(9.0, 12.0)]}
    assert mean(PLAIN, found, stretches=stretches, ambiguous="forgive") == 1.0
    assert mean(PLAIN, found, stretches=stretches, ambiguous="remove") == 0.0


def test_a_class_called_ambiguous() -> None:
    truth = ground_truth({"a": ("test", [(0, 0, 10), (2, 20, 30)])})
    found = {"a": [row("Ambiguous", 0.9, 20, 30), row("dive", 0.8, 22, 25), row("dive", 0.7, 0, 10)]}
    assert evaluate(truth, found, (0.5,)).classes == ("dive", "Ambiguous")
    assert mean(truth, found) == pytest.approx((1 / 2 + 1) / 2)
    dropped = evaluate(truth, found, (0.5,), rules=Rules(ambiguous="drop"))
    assert dropped.classes == ("dive",)
    assert dropped.mean == pytest.approx(1 / 2)
    assert mean(truth, found, ambiguous="forgive") == 1.0
    assert mean(truth, found, ambiguous="remove") == 1.0


def test_detections_called_ambiguous_are_unseen_unless_dropped() -> None:
    found = {"a": [row("Ambiguous", 0.9, 0, 10), row("dive", 0.5, 0, 10)]}
    with pytest.raises(CaseError, match="lacks: Ambiguous"):
        mean(PLAIN, found)
    assert mean(PLAIN, found, ambiguous="drop") == 1.0
    with pytest.raises(CaseError, match="nothing is left"):
        mean(ground_truth({"a": ("test", [(2, 0, 1)])}), {}, ambiguous="drop")


def test_best_only_strict_and_not_interpolated() -> None:
    truth = ground_truth({"a": ("test", [(0, 0, 10), (0, 2, 12)])}, CLASSES[:2])
    found = {"a": [row("dive", 0.9, 0, 10), row("dive", 0.8, 0, 10)]}
    assert mean(truth, found) == 1.0
    assert mean(truth, found, best_only=True) == pytest.approx(1 / 2)
    exact = {"a": [row("dive", 0.9, 0, 5)]}  # IoU 1/2
    assert mean(PLAIN, exact) == 1.0
    assert mean(PLAIN, exact, strict_iou=True) == 0.0
    late = {"a": [row("dive", 0.9, 50, 60), row("dive", 0.8, 0, 10), row("dive", 0.7, 2, 12)]}
    assert mean(truth, late) == pytest.approx(2 / 3)
    assert mean(truth, late, interpolate=False) == pytest.approx((1 / 2 + 2 / 3) / 2)


def test_each_alternative_changes_one_choice(rng: np.random.Generator) -> None:
    problem = pose(PLAIN, TOUCHING, subset="test", ambiguous=STRETCHES)
    for start in (Rules(), Rules(ambiguous="forgive", interpolate=False, strict_iou=True, only_subset_videos=True)):
        changed = alternatives(problem, start)
        for rules in changed.values():
            assert sum(getattr(rules, n) != getattr(start, n) for n in NAMES) == 1
            score(problem, (0.5,), rules)
        named = {n for rules in changed.values() for n in NAMES if getattr(rules, n) != getattr(start, n)}
        assert named == NAMES - {"ignore_unseen_labels"}
    assert "ambiguous forgiven (THUMOS14)" in alternatives(problem, Rules())
    assert not [name for name in alternatives(pose(PLAIN, {}, subset="test"), Rules()) if "mbiguous" in name]


def test_a_rule_that_has_nothing_to_do_changes_nothing(rng: np.random.Generator) -> None:
    start = rng.uniform(0, 50, 30)
    rows = [(int(c), float(s), float(s + 5)) for c, s in zip(rng.integers(0, 2, 30), start, strict=True)]
    found = {"a": [row(CLASSES[c], float(x), s, e) for (c, s, e), x in zip(rows, rng.random(30), strict=True)]}
    problem = pose(ground_truth({"a": ("test", rows)}, CLASSES[:2]), found, subset="test")
    expected = score(problem, (0.3, 0.7)).ap
    for change in ({"drop_duplicates": True}, {"only_subset_videos": True}, {"ambiguous": "remove"}):
        np.testing.assert_array_equal(score(problem, (0.3, 0.7), replace(Rules(), **change)).ap, expected)
