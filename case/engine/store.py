"""Resident data: a split's rows as one flat tensor per stream."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from case.data import LoadedSplit
from case.engine.sampling import distinct_rows


@dataclass(frozen=True, eq=False)
class ResidentSplit:
    """A split on the device that computes with it.

    features: per stream (R, width) in the dtype it is stored in; offsets (V + 1,) int64; labels (V, C) float32.
    """

    videos: tuple[str, ...]
    features: tuple[Tensor, ...]
    offsets: Tensor
    labels: Tensor

    @classmethod
    def from_loaded(cls, split: LoadedSplit, device: torch.device) -> ResidentSplit:
        features = tuple(torch.from_numpy(f).to(device) for f in split.features)
        offsets, labels = torch.from_numpy(split.offsets).to(device), torch.from_numpy(split.labels).to(device)
        return cls(split.videos, features, offsets, labels)

    @property
    def lengths(self) -> Tensor:
        """(V,) rows of each video."""
        return self.offsets.diff()

    def part(self, videos: slice) -> ResidentSplit:
        """A stretch of neighbouring videos; nothing is copied."""
        offsets = self.offsets[videos.start : videos.stop + 1]
        return ResidentSplit(self.videos[videos], self.features, offsets, self.labels[videos])

    def distinct(self, videos: Tensor, positions: Tensor) -> tuple[tuple[Tensor, ...], Tensor]:
        """The distinct rows behind ``positions`` (B, T) within ``videos`` (B,), and the index that restores (B, T).

        Positions of a video do not fall. Returns float32 matrices (L, width), one per stream, and int64 (B, T) into
        their rows.
        """
        rows, index = distinct_rows(positions, self.offsets[videos])
        return tuple(f[rows].float() for f in self.features), index
