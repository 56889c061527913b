"""Evaluations during a run, and which checkpoint each of them would select.

A run ends with up to three results: the last checkpoint, the best on held-out training videos (if any are), and the
best on the test set, which published figures of this method are and which is labelled so wherever it is shown.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from case.config import Settings
from case.data import FeatureFolder, GroundTruth, atomic_write
from case.engine.distributed import ALONE, Ranks
from case.engine.evaluate import Localized, Score, concatenate, localize_split, score_split
from case.engine.heldout import heldout_truth
from case.engine.store import ResidentSplit
from case.model import CASE
from case.objective import Losses

LAST, BEST, BEST_HELDOUT = "last.safetensors", "best.safetensors", "best-heldout.safetensors"
CHECKPOINTS = {"last": LAST, "best-heldout": BEST_HELDOUT, "best-test": BEST}
"""The file of each result, in the order in which results are shown."""

SELECTED_ON = {"best-heldout": "held-out training videos", "best-test": "the test set"}
"""What chose a result; the last checkpoint was chosen by nothing."""

EVALUATION = (
    "class_threshold", "act_thresholds", "upsample", "nms_method", "nms_threshold", "nms_sigma", "tiou", "outer_ratio",
    "score_weight", "nms_length_offset", "keep_first_sample",
)  # fmt: skip
"""Settings that change evaluations and nothing that is learnt; mAPs of different ones do not compare."""

EVALUATIONS = "evaluations.csv"
LOSSES = Losses._fields[:-1]
"""What is logged of a step: all but the cluster labels."""


class Evaluation(NamedTuple):
    """One network at one step: its detections and score on the test split, and its score on held-out videos."""

    step: int
    localized: Localized
    score: Score
    heldout: Score | None


class Evaluator:
    """What networks of one run are evaluated on: the test split and, where there are any, held-out training videos.

    Raises ``CaseError`` where held-out videos have no annotated instance.
    """

    def __init__(self, folder: FeatureFolder, test: ResidentSplit, heldout: ResidentSplit | None) -> None:
        self.test, self.heldout = test, heldout
        self._folder = folder
        self._heldout_truth: GroundTruth | None = None
        if heldout is not None:
            self._heldout_truth = heldout_truth(folder.ground_truth, heldout.videos, folder.train_subset)

    def __call__(
        self, step: int, model: CASE, cluster_labels: Tensor, settings: Settings, ranks: Ranks = ALONE
    ) -> Evaluation:
        """Localize and score with ``model`` and R (K, 2) on the device of the splits.

        Each of several processes localizes its stretch of the videos; ``localized`` is of all of them on rank 0, and
        elsewhere of that stretch.
        """
        folder = self._folder

        def evaluated(split: ResidentSplit, truth: GroundTruth, subset: str) -> tuple[Localized, Score]:
            mine = split.part(ranks.slice(len(split.videos)))
            found = concatenate(ranks.gather(localize_split(model, cluster_labels, mine, settings)))
            return found, ranks.from_first(lambda: score_split(found, split.labels, truth, subset, settings))

        localized, score = evaluated(self.test, folder.ground_truth, folder.test_subset)
        if self.heldout is None or self._heldout_truth is None:
            return Evaluation(step, localized, score, None)
        _, held = evaluated(self.heldout, self._heldout_truth, folder.train_subset)
        return Evaluation(step, localized, score, held)


def score_entry(score: Score) -> dict[str, Any]:
    """A score as JSON values."""
    return {
        "mAP": score.mean_ap.mean,
        "video_accuracy": score.video_accuracy,
        "tiou": list(score.mean_ap.tiou),
        "ap_per_tiou": score.mean_ap.per_tiou.tolist(),
    }


def write_evaluations(folder: Path, entries: Sequence[Mapping[str, Any]]) -> None:
    """``evaluations.csv``: a row for each step and split, from the entries of ``metrics.jsonl``.

    Columns: step, split ("test" or "heldout"), mAP, AP@<t> for every IoU threshold that was ever used, video_accuracy,
    and the training losses of that step. Shares, not %; empty where a number is unknown.
    """
    rows = [e for e in entries if e["kind"] in ("eval", "heldout")]
    tiou = list(dict.fromkeys(t for e in rows for t in e["tiou"]))
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["step", "split", "mAP", *(f"AP@{t:g}" for t in tiou), "video_accuracy", *LOSSES])
    for e in rows:
        at = dict(zip(e["tiou"], e["ap_per_tiou"], strict=True))
        losses = e.get("losses", {})
        split = "test" if e["kind"] == "eval" else "heldout"
        aps = [at.get(t, "") for t in tiou]
        writer.writerow(
            [e["step"], split, e["mAP"], *aps, e["video_accuracy"], *(losses.get(name, "") for name in LOSSES)]
        )
    atomic_write(folder / EVALUATIONS, text.getvalue().encode())
