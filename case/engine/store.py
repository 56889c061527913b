"""Resident data: a split's rows as one flat tensor per stream, where they fit, and the rows a batch computes with."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from case.data import LoadedSplit
from case.engine.sampling import distinct_rows, random_positions, uniform_positions
from case.scratch import Scratch, empty

Residence = Literal["device", "host", "disk"]
# What features may take of free memory: the rest is for a step's own.
_SHARE = 0.6


class Rows(NamedTuple):
    """On the device that computes: rows (L, width) per stream, samples (B, T) int64 into them, labels (B, C)."""

    features: tuple[Tensor, ...]
    samples: Tensor
    labels: Tensor


@dataclass(frozen=True, eq=False)
class ResidentSplit:
    """Videos of a split where it fits: on the device that computes, or in host memory (or a file mapped into it).

    features: per stream (R, width) in the dtype it is stored in; starts and lengths (V,) int64 beside them: first row
    of each video, and how many; labels (V, C) float32 on ``device``, where batches go in ``dtype``. Videos are numbered
    by their places here, whatever part of the rows they take.
    """

    videos: tuple[str, ...]
    features: tuple[Tensor, ...]
    starts: Tensor
    lengths: Tensor
    labels: Tensor
    dtype: torch.dtype = torch.float32

    @classmethod
    def from_loaded(
        cls,
        split: LoadedSplit,
        device: torch.device,
        *,
        residence: Residence = "device",
        storage: torch.dtype | None = None,
        dtype: torch.dtype = torch.float32,
    ) -> ResidentSplit:
        """``storage``: dtype to keep the rows in; None: as loaded."""
        home = device if residence == "device" else torch.device("cpu")
        features = tuple(torch.from_numpy(f).to(home, storage) for f in split.features)
        offsets, labels = torch.from_numpy(split.offsets).to(home), torch.from_numpy(split.labels).to(device)
        return cls(split.videos, features, offsets[:-1], offsets.diff(), labels, dtype)

    @property
    def device(self) -> torch.device:
        """Where batches go."""
        return self.labels.device

    def part(self, videos: slice | Tensor) -> ResidentSplit:
        """Some of the videos, neighbours or by their numbers (P,) on the host; no row is copied."""
        numbers = torch.arange(len(self.videos))[videos]
        here, there = numbers.to(self.starts.device), numbers.to(self.device)
        names = tuple(self.videos[v] for v in numbers.tolist())
        return replace(
            self, videos=names, starts=self.starts[here], lengths=self.lengths[here], labels=self.labels[there]
        )

    def sampled(
        self, videos: Tensor, segments: int, key: int | Tensor, capacity: int | None = None,
        scratch: Scratch | None = None,
    ) -> Rows:  # fmt: skip
        """What a training step draws from ``videos`` (B,); see ``random_positions`` and ``distinct_rows``.

        With ``scratch`` the next call with it overwrites the features.
        """
        videos = videos.to(self.starts.device)
        positions = random_positions(self.lengths.gather(-1, videos), segments, key, videos)
        return self._rows(videos, positions, capacity, scratch)

    def uniform(self, videos: Tensor, segments: int) -> Rows:
        """What testing looks at in ``videos`` (B,)."""
        videos = videos.to(self.starts.device)
        return self._rows(videos, uniform_positions(self.lengths.gather(-1, videos), segments))

    def _rows(
        self, videos: Tensor, positions: Tensor, capacity: int | None = None, scratch: Scratch | None = None
    ) -> Rows:
        """The distinct rows behind ``positions`` (B, T) within ``videos`` (B,); positions of a video do not fall."""
        rows, index = distinct_rows(positions, self.starts.gather(-1, videos), capacity)
        chosen = self._moved(videos).unsqueeze(-1)
        return Rows(self.gather(rows, scratch), self._moved(index), torch.take_along_dim(self.labels, chosen, dim=-2))

    def gather(self, rows: Tensor, scratch: Scratch | None = None) -> tuple[Tensor, ...]:
        """(..., L, width) per stream of the rows numbered ``rows`` (..., L), on the device that computes."""
        flat = rows.flatten()
        found = (self._moved(self._picked(i, flat, scratch)) for i in range(len(self.features)))
        return tuple(f.to(self.dtype).unflatten(0, rows.shape) for f in found)

    def _picked(self, stream: int, rows: Tensor, scratch: Scratch | None) -> Tensor:
        features = self.features[stream]
        shape = (len(rows), features.shape[1])
        if features.device == self.device:
            return torch.index_select(features, 0, rows, out=empty(scratch, f"rows {stream}", shape, features))
        # Page-locked, so that the copy to the device runs while the host goes on.
        found = torch.empty(shape, dtype=features.dtype, pin_memory=True)
        return torch.index_select(features, 0, rows, out=found)

    def _moved(self, x: Tensor) -> Tensor:
        return x.to(self.device, non_blocking=True)


def stacked(splits: Sequence[ResidentSplit]) -> ResidentSplit:
    """Splits of R runs as one whose tensors have R as their first dimension; all of as many videos, on the same rows.

    ``sampled`` of it takes videos (R, B), keys (R, 1, 1), and gives ``Rows`` with a first dimension R.
    """
    columns = zip(*((s.starts, s.lengths, s.labels) for s in splits), strict=True)
    starts, lengths, labels = (torch.stack(column) for column in columns)
    return replace(splits[0], starts=starts, lengths=lengths, labels=labels)


def fitting_residence(size: int, device: torch.device) -> Residence:
    """The nearest place with room for ``size`` bytes of features."""
    if device.type == "cuda" and size <= _SHARE * torch.cuda.mem_get_info(device)[0]:
        return "device"
    if size > _SHARE * _free_memory():
        return "disk"
    return "device" if device.type == "cpu" else "host"


def most_distinct(lengths: Tensor, segments: int) -> int:
    """Distinct rows that samples of videos of these lengths (..., B) have at most; the most of several batches."""
    return int(lengths.clamp_max(segments).sum(-1).max())


def _free_memory() -> int:
    """Bytes of host memory that can be had without swapping."""
    try:
        with open("/proc/meminfo") as file:
            found = dict(line.split(":", 1) for line in file)
        return 1024 * int(found["MemAvailable"].split()[0])
    except (OSError, KeyError):  # not Linux
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2
