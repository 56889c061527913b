"""Stopping between steps when the user or the scheduler asks for it."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from case import console


class Interrupted(Exception):
    """Training was stopped by a signal after a step; the run can be resumed."""


@contextmanager
def stop_signals() -> Iterator[list[int]]:
    """A list that fills when SIGINT or SIGTERM arrives, so that the step in progress ends first.

    A second signal stops at once.
    """
    caught: list[int] = []
    before = {s: signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)}

    def catch(number: int, frame: FrameType | None) -> None:
        if caught:
            raise KeyboardInterrupt
        caught.append(number)
        console.note("stopping after this step; once more to stop at once")

    try:
        for number in before:
            signal.signal(number, catch)
    except ValueError:
        pass  # not in the main thread: signals are somebody else's
    try:
        yield caught
    finally:
        for number, handler in before.items():
            if signal.getsignal(number) is catch:
                signal.signal(number, handler)
