"""Several processes, one run: what ``torchrun`` started becomes ``Ranks`` with slices of the work and ways to talk.

Every process opens the same data and holds the same weights; rank 0 alone writes and speaks. Only results of a slice of
the videos differ between them, so a checkpoint knows nothing of ranks and any number of them can go on from it.
"""

from __future__ import annotations

import contextlib
import math
import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch.distributed.rendezvous import rendezvous

from case import console
from case.engine.share import RankLost, Share, contact
from case.errors import CaseError

T = TypeVar("T")

_ENVIRONMENT = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
_TIMEOUT = 600.0
"""Seconds that a process waits for another, CASE_RANK_TIMEOUT in the environment. As long as reading features may take
longer in one process than in another."""
_GRACE = 3.0
"""Seconds in which processes that are still there notice that one is not."""


@dataclass(frozen=True)
class Ranks:
    """The processes of a run and which of them this is; by default the only one.

    Each method is called by all of them, in the same order.
    """

    rank: int = 0
    size: int = 1
    group: dist.ProcessGroup | None = None

    @property
    def first(self) -> bool:
        """Whether this is the process that writes files and prints."""
        return self.rank == 0

    def slice(self, count: int) -> slice:
        """This process's part of ``count`` neighbours; parts differ by one at most, and rank 0's is never smaller."""
        start, stop = (-(-count * r // self.size) for r in (self.rank, self.rank + 1))
        return slice(start, stop)

    def share(self, videos: int, segments: int) -> Share | None:
        """How a batch of so many videos of so many samples is split; None where one process has all of it."""
        if self.group is None:
            return None
        stretches = [Ranks(rank, self.size).slice(videos) for rank in range(self.size)]
        return Share(self.group, tuple(s.stop - s.start for s in stretches), segments)

    def any(self, flag: bool) -> bool:
        """Whether it is true of any process."""
        if self.group is None:
            return flag
        flags = torch.tensor(int(flag))  # on the host: no device has to be waited for
        with contact():
            dist.all_reduce(flags, group=self.group)
        return bool(flags)

    def gather(self, value: T) -> list[T]:
        """Every process's value on rank 0, by rank; elsewhere this one's alone."""
        if self.group is None:
            return [value]
        found: list[Any] | None = [None] * self.size if self.first else None
        with contact():
            dist.gather_object(value, found, dst=0, group=self.group)
        return [value] if found is None else found

    def from_first(self, compute: Callable[[], T]) -> T:
        """What rank 0 computes, everywhere."""
        if self.group is None:
            return compute()
        box: list[Any] = [compute() if self.first else None]
        with contact():
            dist.broadcast_object_list(box, src=0, group=self.group)
        result: T = box[0]
        return result


ALONE = Ranks()


def started() -> int:
    """How many processes ``torchrun`` started; 1 without it."""
    return int(os.environ["WORLD_SIZE"]) if all(name in os.environ for name in _ENVIRONMENT) else 1


@contextmanager
def joined(device: str) -> Iterator[Ranks]:
    """The processes that ``torchrun`` started, or ``ALONE`` without it; all but rank 0 print errors only.

    With CUDA (``device`` "auto" or "cuda") each process takes the device of its local rank, and they talk through NCCL,
    else through gloo. Raises ``CaseError`` where there is no such device, and ``RankLost`` in one line, in every
    process that is left, when another ends or says nothing for ``CASE_RANK_TIMEOUT`` seconds (600).
    """
    size = started()
    if size == 1:
        yield ALONE
        return
    rank, timeout = int(os.environ["RANK"]), _timeout()
    backend = "cpu:gloo,cuda:nccl" if _takes_cuda(device, rank) else "gloo"
    try:
        with contact():
            store, _, _ = next(rendezvous("env://", rank, size, timeout=timeout))
            dist.init_process_group(backend, store=store, rank=rank, world_size=size, timeout=timeout)
    except RankLost as lost:
        raise RankLost(f"rank {rank} of {size} did not find the others ({lost}); see what they say") from lost
    console.mute(rank > 0)
    noticed = dist.PrefixStore("case/noticed", store)
    try:
        yield Ranks(rank, size, dist.group.WORLD)
    except RankLost as lost:
        with contextlib.suppress(ValueError):  # only the main thread may
            signal.signal(signal.SIGTERM, signal.SIG_IGN)  # torchrun sends it now, and there is a line to print
        raise RankLost(f"rank {rank} of {size} lost contact, {_silent(noticed, rank, size)} ({lost})") from lost
    except BaseException as error:
        told = 0
        with contextlib.suppress(RuntimeError):
            noticed.set(str(rank), "ended")
            told = store.add(f"case/told/{error}", 1)
        if isinstance(error, CaseError) and told > 1:
            raise SystemExit(2) from error  # what every process finds is said by one
        raise
    else:
        dist.destroy_process_group()
    finally:
        console.mute(False)


def _takes_cuda(device: str, rank: int) -> bool:
    """Whether the processes compute on CUDA devices; if so, this one's is made the current one."""
    if device.startswith("cuda:"):
        raise CaseError(f"device is '{device}', but each of several processes takes its own; use --device cuda or cpu")
    if device == "cpu" or (device == "auto" and not torch.cuda.is_available()):
        return False
    local, count = int(os.environ.get("LOCAL_RANK", rank)), torch.cuda.device_count()
    if local >= count:
        raise CaseError(
            f"rank {rank} wants CUDA device {local}, this torch finds {count}; start as many processes as there are, "
            "or use --device cpu"
        )
    torch.cuda.set_device(local)
    return True


def _timeout() -> timedelta:
    given = os.environ.get("CASE_RANK_TIMEOUT", str(_TIMEOUT))
    try:
        seconds = float(given)
    except ValueError:
        seconds = math.nan
    if not 0 < seconds < 1e6:
        raise CaseError(f"CASE_RANK_TIMEOUT must be a number of seconds above 0 and below 10^6, got '{given}'")
    return timedelta(seconds=seconds)


def _silent(noticed: dist.Store, rank: int, size: int) -> str:
    """Which ranks are gone: those that within the grace do not say that they noticed."""
    others: list[int] = []
    try:
        noticed.set(str(rank), "lost")
        until = time.monotonic() + _GRACE
        while time.monotonic() < until:
            others = [r for r in range(size) if not noticed.check([str(r)])]
            if not others:
                return "another one ended first"
            time.sleep(0.05)
    except RuntimeError:
        return "and the store that they met at is gone"
    names = ", ".join(map(str, others))
    return f"no word from rank {names}" if len(others) == 1 else f"no word from ranks {names}"
