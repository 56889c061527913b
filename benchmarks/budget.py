"""How long a run may take: rounds by the length of a call, and calls that are predicted to be too long to wait for."""

from __future__ import annotations

import os
import time
from collections.abc import Hashable

SECONDS_PER_CASE = float(os.environ.get("CASE_BENCH_SECONDS", "0.6"))
# A call that is predicted to take longer is not run but named: at least three pairs of it and a first call to prove it
# would take minutes of a run that has to fit into twelve.
LONGEST = float(os.environ.get("CASE_BENCH_LONGEST", "5"))
# Sizes beyond the method's own are begun within so many seconds: with limits and scaling a run has to end within twelve
# minutes on any machine.
WHOLE_RUN = float(os.environ.get("CASE_BENCH_WHOLE_RUN", "500"))
# The range of six pairs holds the median ratio with 97 %; fewer are reported as what they are.
FEWEST, FEWEST_LONG, LONG = 6, 3, 0.25
MOST = 100


def rounds(once: float) -> int:
    """Of a call that takes so many seconds: as many as fit into a case's time, but never too few for an interval."""
    fewest = FEWEST if once < LONG else FEWEST_LONG
    return max(fewest, min(MOST, int(SECONDS_PER_CASE / max(once, 1e-5))))


def spent(scale: int, begin: float) -> str | None:
    """Why a case of this scale is not begun any more, or None. begin: of the run, by ``time.monotonic``."""
    if scale == 1 or time.monotonic() - begin <= WHOLE_RUN:
        return None
    return f"the {WHOLE_RUN:g} s in which large sizes are begun had been spent"


class Predictions:
    """Seconds a call at the sizes that have been timed, and what they say of larger ones."""

    def __init__(self) -> None:
        self._seen: dict[Hashable, tuple[float, float]] = {}

    def saw(self, key: Hashable, size: float, seconds: float) -> None:
        self._seen[key] = (size, seconds)

    def too_long(self, key: Hashable, size: float) -> str | None:
        """Why a call at this size is not run, or None: times grow at least in proportion to the size."""
        if key not in self._seen:
            return None
        before, seconds = self._seen[key]
        predicted = seconds * size / before
        if predicted <= LONGEST:
            return None
        return f"a call is predicted to take more than {LONGEST:g} s ({predicted:.1f} s)"
