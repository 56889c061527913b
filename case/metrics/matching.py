"""AP of every class and threshold at once, by ``csrc/map.cpp`` where the native module is there, else in numpy."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from case import _native
from case.metrics import reference
from case.metrics.arrays import Bools, Floats, Instances, Ints, checked

# A table of videos or labels may have this many places an entry in use before numbers are searched instead.
_SPARSE = 64


def match(
    truth: Instances,
    found: Instances,
    classes: Ints,
    tiou: Sequence[float] | Floats,
    *,
    forgive: Bools | None = None,
    best_only: bool = False,
    interpolate: bool = True,
    claims: bool = False,
) -> tuple[Floats, Ints | None]:
    """AP (thresholds, C) of ``classes`` (C,), which are sorted; 0 without predictions, NaN without instances.

    Beside it, if ``claims`` is set, the index of the instance that each prediction claims at each threshold,
    (n, thresholds) int64, -1 for none. forgive (n,): a prediction that does not count unless it claims an instance.
    Raises ``ValueError``, one line, where a time is not finite, a score is NaN or a threshold is not a number.
    """
    truth, found = checked("truth", truth), checked("found", found)
    thresholds = np.ascontiguousarray(tiou, dtype=np.float64)
    if np.isnan(thresholds).any():
        raise ValueError("tiou must hold numbers, got NaN; give thresholds in (0, 1]")
    if forgive is not None and forgive.shape != found.score.shape:
        raise ValueError(f"forgive must have a value for each of {len(found.score)} detections, got {forgive.shape}")
    module = _native.load()
    if module is None:
        return _match_numpy(truth, found, classes, thresholds, forgive, best_only, interpolate, claims)
    videos = np.unique(truth.video)
    tables = [
        (places(videos, x.video), places(classes, x.label), x.segment) for x in (truth, found)
    ]  # kept alive until the call is over
    marks = None if forgive is None else np.ascontiguousarray(forgive, dtype=np.uint8)
    ap = np.empty((len(thresholds), len(classes)))
    claimed = np.empty((len(found.score), len(thresholds)), dtype=np.int64) if claims else None
    module.mean_ap_cpu(
        *((*(_address(column) for column in table), len(table[0])) for table in tables),
        _address(found.score),
        0 if marks is None else _address(marks),
        (_address(thresholds), len(thresholds)),
        len(classes),
        len(videos),
        _address(ap),
        0 if claimed is None else _address(claimed),
        best_only,
        interpolate,
    )
    return ap, claimed


def places(numbers: Ints, wanted: Ints) -> Ints:
    """Place of each of ``wanted`` (n,) in the sorted ``numbers``, -1 where it is not among them."""
    if len(numbers) == 0:
        return np.full(len(wanted), -1, dtype=np.int64)
    low, high = int(numbers[0]), int(numbers[-1])
    if high - low >= _SPARSE * (len(numbers) + len(wanted)):
        found = np.minimum(np.searchsorted(numbers, wanted), len(numbers) - 1)
        return np.where(numbers[found] == wanted, found, -1)
    table = np.full(high - low + 3, -1, dtype=np.int64)
    table[numbers - low + 1] = np.arange(len(numbers))
    return np.asarray(table[np.clip(wanted, low - 1, high + 1) - (low - 1)])


def _match_numpy(
    truth: Instances,
    found: Instances,
    classes: Ints,
    thresholds: Floats,
    forgive: Bools | None,
    best_only: bool,
    interpolate: bool,
    claims: bool,
) -> tuple[Floats, Ints | None]:
    ap = np.empty((len(thresholds), len(classes)))
    claimed = np.full((len(found.score), len(thresholds)), -1, dtype=np.int64)
    for column, label in enumerate(classes):
        instances, mine = np.flatnonzero(truth.label == label), np.flatnonzero(found.label == label)
        ap[:, column], local = reference.average_precision(
            truth[instances],
            found[mine],
            thresholds,
            forgive=None if forgive is None else forgive[mine],
            best_only=best_only,
            interpolate=interpolate,
        )
        claimed[mine] = np.where(local >= 0, instances[local] if len(instances) else local, -1)
    return ap, claimed if claims else None


def _address(array: np.ndarray) -> int:
    return int(array.ctypes.data)
