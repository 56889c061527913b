"""Resident data: a split's rows as one flat tensor per stream, and which of them a batch samples.

The sampling rules are those of METHOD.md, Sampling.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from case.data import LoadedSplit


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

    def distinct(self, videos: Tensor, positions: Tensor) -> tuple[tuple[Tensor, ...], Tensor]:
        """The distinct rows behind ``positions`` (B, T) within ``videos`` (B,), and the index that restores (B, T).

        Returns float32 matrices (L, width), one per stream, and int64 (B, T) into their rows.
        """
        ids, index = torch.unique(self.offsets[videos].unsqueeze(1) + positions, return_inverse=True)
        return tuple(f[ids].float() for f in self.features), index


def uniform_positions(lengths: Tensor, segments: int) -> Tensor:
    """(V, T) int64: row floor(i * L / T) of each video of L rows (testing)."""
    return torch.arange(segments, device=lengths.device) * lengths.unsqueeze(1) // segments


def random_positions(lengths: Tensor, segments: int, generator: torch.Generator) -> Tensor:
    """(B, T) int64: one row out of each of T stretches of every video (training).

    Stretch i reaches from floor(i L / T) to floor((i + 1) L / T), both ends included, the last to L - 1; a video of
    exactly T rows is taken whole.
    """
    length = lengths.unsqueeze(1)
    low = uniform_positions(lengths, segments)
    high = torch.cat([low[:, 1:], length - 1], dim=1)
    # Drawn on the CPU so that a seed gives the same samples on every device.
    draw = torch.rand(low.shape, generator=generator).to(lengths.device)
    drawn = low + (draw * (high - low + 1)).long().clamp(max=high - low)
    return torch.where(length == segments, low, drawn)


def batch_videos(count: int, batch_size: int, seed: int, step: int) -> Tensor:
    """(min(batch_size, count),) int64: videos of a step; an epoch's incomplete last batch is dropped."""
    size = min(batch_size, count)
    epoch, position = divmod(step, count // size)
    order = torch.randperm(count, generator=step_generator(seed, epoch, stream=0))
    return order[position * size : (position + 1) * size]


def step_generator(seed: int, number: int, *, stream: int = 1) -> torch.Generator:
    """The generator of one step (or, stream 0, epoch): a function of the numbers alone, so that a run can resume.

    The three numbers are mixed by splitmix64 steps; neighbouring seeds and steps must not share a sequence.
    """
    state = 0
    for part in (seed, stream, number):
        state = (state + part + 0x9E3779B97F4A7C15) % 2**64
        state = (state ^ (state >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
        state = (state ^ (state >> 27)) * 0x94D049BB133111EB % 2**64
        state ^= state >> 31
    return torch.Generator().manual_seed(state % 2**63)
