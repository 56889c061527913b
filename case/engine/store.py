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
    """A split where it fits: on the device that computes, or in host memory (or a file that maps into it) beside it.

    features: per stream (R, width) in the dtype it is stored in; offsets (V + 1,) int64 beside them; labels (V, C)
    float32 on ``device``, where batches go in ``dtype``.
    """

    videos: tuple[str, ...]
    features: tuple[Tensor, ...]
    offsets: Tensor
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
        return cls(split.videos, features, offsets, labels, dtype)

    @property
    def lengths(self) -> Tensor:
        """(V,) rows of each video."""
        return self.offsets.diff()

    @property
    def device(self) -> torch.device:
        """Where batches go."""
        return self.labels.device

    def part(self, videos: slice) -> ResidentSplit:
        """A stretch of neighbouring videos; nothing is copied."""
        offsets = self.offsets[videos.start : videos.stop + 1]
        return replace(self, videos=self.videos[videos], offsets=offsets, labels=self.labels[videos])

    def sampled(self, videos: Tensor, segments: int, seed: int, step: int) -> Rows:
        """What a training step draws from ``videos`` (B,)."""
        videos = videos.to(self.offsets.device)
        return self.rows(videos, random_positions(self.lengths[videos], segments, seed, step, videos))

    def uniform(self, videos: Tensor, segments: int) -> Rows:
        """What testing looks at in ``videos`` (B,)."""
        videos = videos.to(self.offsets.device)
        return self.rows(videos, uniform_positions(self.lengths[videos], segments))

    def rows(self, videos: Tensor, positions: Tensor) -> Rows:
        """The distinct rows behind ``positions`` (B, T) within ``videos`` (B,); positions of a video do not fall."""
        rows, index = distinct_rows(positions, self.offsets[videos])
        return Rows(self.gather(rows), self._moved(index), self.labels[self._moved(videos)])

    def gather(self, rows: Tensor) -> tuple[Tensor, ...]:
        """(L, width) per stream of the rows numbered ``rows`` (L,), on the device that computes."""
        return tuple(self._moved(self._picked(f, rows)).to(self.dtype) for f in self.features)

    def _picked(self, features: Tensor, rows: Tensor) -> Tensor:
        if features.device == self.device:
            return features[rows]
        # Page-locked, so that the copy to the device runs while the host goes on.
        found = torch.empty((len(rows), features.shape[1]), dtype=features.dtype, pin_memory=True)
        return torch.index_select(features, 0, rows, out=found)

    def _moved(self, x: Tensor) -> Tensor:
        return x.to(self.device, non_blocking=True)


def fitting_residence(size: int, device: torch.device) -> Residence:
    """The nearest place with room for ``size`` bytes of features."""
    if device.type == "cuda" and size <= _SHARE * torch.cuda.mem_get_info(device)[0]:
        return "device"
    if size > _SHARE * _free_memory():
        return "disk"
    return "device" if device.type == "cpu" else "host"


def most_distinct(lengths: Sequence[int], segments: int) -> int:
    """Distinct rows that samples of videos of these lengths have at most."""
    return sum(min(length, segments) for length in lengths)


def _free_memory() -> int:
    """Bytes of host memory that can be had without swapping."""
    try:
        with open("/proc/meminfo") as file:
            found = dict(line.split(":", 1) for line in file)
        return 1024 * int(found["MemAvailable"].split()[0])
    except (OSError, KeyError):  # not Linux
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2
