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

    def distinct(
        self, videos: Tensor, positions: Tensor, capacity: int | None = None
    ) -> tuple[tuple[Tensor, ...], Tensor]:
        """The distinct rows behind ``positions`` (..., B, T) within ``videos`` (..., B), and what restores them.

        Positions of a video do not fall. Returns float32 (..., L, width), one per stream, and int64 (..., B, T) into
        their rows; leading dimensions and ``capacity`` as in ``distinct_rows``.
        """
        rows, index = distinct_rows(positions, self.offsets[videos], capacity)
        return tuple(f[rows].float() for f in self.features), index
