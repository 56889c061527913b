"""What an evaluator counts, where public ones differ from one another and from the one behind published figures."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from case.errors import CaseError
from case.metrics.arrays import AMBIGUOUS, Bools, Instances, Problem
from case.metrics.pairs import Overlaps

AmbiguousRule = Literal["count", "drop", "forgive", "remove"]


@dataclass(frozen=True)
class Rules:
    """Choices of an evaluator. The defaults are the ActivityNet evaluator's, as the released code uses it.

    "Ambiguous" are stretches in which an action is neither clearly there nor clearly not. THUMOS14 lists them without
    a class (``Ambiguous_test.txt``); some annotation files have them as a class of that name.
    """

    ambiguous: AmbiguousRule = "count"
    """count: nothing special (ActivityNet): a class of that name is a class, detections there are false positives.
    drop: that class is left out of annotations and detections (loaders of TadTR and others). forgive: also, a
    detection that claims nothing and overlaps such a stretch does not count (THUMOS14's toolkit, TH14evalDet). remove:
    also, every detection that overlaps one is removed first (W-TALC and weakly supervised code after it)."""
    drop_duplicates: bool = False
    """Of annotations alike in video, label, start and end, the first alone counts (TadTR's evaluator)."""
    ignore_unseen_labels: bool = False
    """Detections with a label that the ground truth lacks are left out; else they are an error, as in ActivityNet's."""
    only_subset_videos: bool = False
    """Detections in videos outside the subset are left out; else they are false positives, as in ActivityNet's."""
    best_only: bool = False
    """A detection asks for the instance of highest IoU alone, and is a false positive where that is claimed (PASCAL
    VOC); else it takes the next one that reaches the threshold."""
    strict_iou: bool = False
    """IoU must exceed the threshold (TH14evalDet); else reach it."""
    interpolate: bool = True
    """Precision is made monotone from the right; else AP is the mean of the precision at each hit (TH14evalDet)."""


def apply(problem: Problem, rules: Rules) -> tuple[Instances, Instances, Bools | None]:
    """Truth, detections, and which detections do not count unless they claim an instance (n,), or None.

    Raises ``CaseError``, one line, for unseen labels unless they are ignored, and where no annotation is left.
    """
    truth, found, unseen = problem.truth, problem.found, set(problem.unseen)
    if rules.ambiguous != "count" and AMBIGUOUS in problem.labels:
        label = problem.labels.index(AMBIGUOUS)
        truth, found = truth[truth.label != label], found[found.label != label]
        unseen.discard(AMBIGUOUS)
        if len(truth.label) == 0:
            raise CaseError(f"every annotation of the subset is labelled '{AMBIGUOUS}'; nothing is left to evaluate")
    if unseen and not rules.ignore_unseen_labels:
        raise CaseError(
            f"detections have labels that the ground truth lacks: {', '.join(sorted(unseen))}; rename or drop them, "
            "or leave them out with ignore_unseen_labels"
        )
    if unseen:
        found = found[found.label < problem.known]
    if rules.drop_duplicates:
        truth = truth[first_of_each(truth)]
    if rules.only_subset_videos:
        found = found[problem.inside[found.video]]
    if rules.ambiguous in ("count", "drop") or len(problem.ambiguous.video) == 0:
        return truth, found, None
    touching = overlapping(found, problem.ambiguous)
    if rules.ambiguous == "remove":
        return truth, found[~touching], None
    return truth, found, touching


def first_of_each(truth: Instances) -> Bools:
    """(n,): the first of the instances that are alike in video, label, start and end."""
    # Numbers of videos and labels, which may be any, become places: those fit a float exactly.
    ids = [np.unique(column, return_inverse=True)[1] for column in (truth.video, truth.label)]
    rows = np.column_stack([*ids, truth.segment])
    _, first = np.unique(rows, axis=0, return_index=True)
    mask = np.zeros(len(rows), dtype=bool)
    mask[first] = True
    return mask


def overlapping(found: Instances, stretches: Instances) -> Bools:
    """(n,): which detections share more than a moment with a stretch of their video."""
    _, count = Overlaps(stretches.video, stretches.segment).stretches(found.video, found.segment)
    return np.asarray(count > 0)


def alternatives(problem: Problem, rules: Rules) -> dict[str, Rules]:
    """Each choice by itself changed in ``rules``, by a name for a table; only those that ask something of the data."""
    changed: dict[str, Rules] = {}
    if rules.ambiguous == "count" and (len(problem.ambiguous.video) or AMBIGUOUS in problem.labels):
        if AMBIGUOUS in problem.labels:
            changed["class Ambiguous dropped"] = replace(rules, ambiguous="drop")
        changed["ambiguous forgiven (THUMOS14)"] = replace(rules, ambiguous="forgive")
        changed["ambiguous removed (W-TALC)"] = replace(rules, ambiguous="remove")
    elif rules.ambiguous != "count":
        changed["ambiguous counted"] = replace(rules, ambiguous="count")
    off, on = not rules.drop_duplicates, not rules.only_subset_videos
    changed["duplicates dropped" if off else "duplicates kept"] = replace(rules, drop_duplicates=off)
    changed["subset's videos only" if on else "videos outside count"] = replace(rules, only_subset_videos=on)
    best, strict, monotone = not rules.best_only, not rules.strict_iou, not rules.interpolate
    changed["best instance only (VOC)" if best else "next instance taken"] = replace(rules, best_only=best)
    changed["IoU above threshold" if strict else "IoU at threshold"] = replace(rules, strict_iou=strict)
    changed["precision monotone" if monotone else "precision as it is"] = replace(rules, interpolate=monotone)
    return changed
