"""mAP: golden AP of published detections, and an evaluator written as plainly as METHOD.md."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from case.data import load_detections, load_ground_truth
from case.errors import CaseError
from case.metrics import Instances, average_precision, evaluate, mean_ap, parse_tiou

GOLDEN = Path(__file__).parent / "golden"


def plain_ap(truth: Instances, found: Instances, threshold: float) -> float:
    """One class, one threshold, one prediction at a time."""
    claimed: set[int] = set()
    hits = []
    for p in sorted(range(len(found.score)), key=lambda i: -found.score[i]):
        best, best_iou = None, threshold
        for g in range(len(truth.video)):
            if truth.video[g] != found.video[p] or g in claimed:
                continue
            (a, b), (c, d) = found.segment[p], truth.segment[g]
            inter = max(0.0, min(b, d) - max(a, c))
            union = (b - a) + (d - c) - inter
            if union > 0 and inter / union >= best_iou:
                best, best_iou = g, inter / union
        if best is not None:
            claimed.add(best)
        hits.append(best is not None)
    area, total = 0.0, len(truth.video)
    precision = [sum(hits[: i + 1]) / (i + 1) for i in range(len(hits))]
    for i, hit in enumerate(hits):
        if hit:
            area += max(precision[i:]) / total
    return area


def random_instances(rng: np.random.Generator, n: int, videos: int, classes: int) -> Instances:
    start = rng.uniform(0, 50, n)
    return Instances(
        video=rng.integers(0, videos, n),
        label=rng.integers(0, classes, n),
        segment=np.stack([start, start + rng.uniform(0.5, 12, n)], 1),
        score=rng.permutation(n) / n,
    )


@pytest.mark.parametrize("n", [1, 7, 300])
def test_against_plain_evaluator(rng: np.random.Generator, n: int) -> None:
    truth, found = random_instances(rng, 40, 6, 1), random_instances(rng, n, 7, 1)
    thresholds = (0.1, 0.3, 0.5, 0.7)
    expected = [plain_ap(truth, found, t) for t in thresholds]
    np.testing.assert_allclose(average_precision(truth, found, thresholds), expected, atol=1e-12)


def test_classes_of_the_truth_alone_count(rng: np.random.Generator) -> None:
    truth, found = random_instances(rng, 30, 4, 2), random_instances(rng, 90, 4, 5)
    result = mean_ap(truth, found, "abcde", (0.5,))
    assert result.classes == tuple("abcde"[c] for c in np.unique(truth.label))
    assert result.mean == pytest.approx(float(np.mean(result.per_class)))


def test_perfect_and_absent_predictions(rng: np.random.Generator) -> None:
    truth = random_instances(rng, 25, 3, 3)
    perfect = mean_ap(truth, Instances(truth.video, truth.label, truth.segment, rng.random(25)), "abc", (0.1, 1.0))
    np.testing.assert_allclose(perfect.ap, 1.0)
    nothing = Instances(truth.video[:0], truth.label[:0], truth.segment[:0], truth.score[:0])
    np.testing.assert_array_equal(mean_ap(truth, nothing, "abc", (0.5,)).ap, 0.0)


def test_golden_detections() -> None:
    truth = load_ground_truth(GOLDEN / "gt.json")
    result = evaluate(truth, load_detections(GOLDEN / "detections.json"), parse_tiou("0.1:0.1:0.7"), subset="test")
    with np.load(GOLDEN / "inference.npz") as golden:
        np.testing.assert_allclose(result.per_tiou, golden["ap_per_tiou"], atol=1e-9)
        np.testing.assert_allclose(result.mean, golden["mAP"], atol=1e-9)


def test_published_detections(shared_data: Path) -> None:
    folder = shared_data / "thumos14"
    with np.load(GOLDEN / "pmil_ap.npz") as golden:
        expected, names, tiou = golden["ap"], [str(c) for c in golden["classes"]], golden["tiou"]
    truth = load_ground_truth(folder / "gt.json")
    found = evaluate(truth, load_detections(folder / "pmil_base_test_detections.json"), tuple(tiou), subset="test")
    order = [found.classes.index(name) for name in names]
    np.testing.assert_allclose(found.ap[:, order], expected, rtol=0, atol=2e-14)


def test_equal_ious_are_claimed_the_same_way_everywhere() -> None:
    """One prediction over two instances of one length: which is claimed decides whether the next one hits."""
    truth = Instances(np.zeros(2, int), np.zeros(2, int), np.array([[1.0, 2.0], [3.0, 4.0]]), np.zeros(2))
    segments = np.array([[0.0, 5.0], [3.0, 4.0]])
    found = Instances(np.zeros(2, int), np.zeros(2, int), segments, np.array([0.9, 0.8]))
    # The later instance goes first: the second prediction finds its own claimed.
    np.testing.assert_array_equal(average_precision(truth, found, (0.1, 0.2)), [0.5, 0.5])


def test_tiou_ranges() -> None:
    assert parse_tiou("0.1:0.1:0.7") == (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7)
    assert len(parse_tiou("0.5:0.05:0.95")) == 10
    assert parse_tiou("0.5") == (0.5,)
    for bad in ("", "a:b:c", "0.1:0:0.7", "0.7:0.1:0.1", "0.5:0.1:1.5", "0:0.1:0.5"):
        with pytest.raises(CaseError, match="START:STEP:STOP"):
            parse_tiou(bad)
    for bad in ("1e-7", "0.1:1e-9:0.7"):
        with pytest.raises(CaseError, match=r"0\.000001"):
            parse_tiou(bad)
    with pytest.raises(CaseError, match="at most 1000 thresholds"):
        parse_tiou("0.1:0.0001:0.7")


def test_unknown_labels_and_subsets(tmp_path: Path) -> None:
    truth = load_ground_truth(GOLDEN / "gt.json")
    with pytest.raises(CaseError, match="no annotation in subset 'nowhere'; its subsets: test"):
        evaluate(truth, {}, (0.5,), subset="nowhere")
    path = tmp_path / "d.json"
    path.write_text(json.dumps({"results": {"v": [{"label": "Unicorn", "score": 1.0, "segment": [0, 1]}]}}))
    with pytest.raises(CaseError, match="labels that the ground truth lacks: Unicorn"):
        evaluate(truth, load_detections(path), (0.5,), subset="test")
