"""Which rows a batch samples (METHOD.md, Sampling): vectorised, and a function of numbers alone.

Random numbers come from a counter-based generator in 64-bit integers: the bits for (seed, step, video, segment) are the
same on every device and however a batch is split over processes, and no state has to be saved.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

# Splitmix64's.
_INCREMENT, _FIRST, _SECOND = 0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB
# Streams of random numbers of one seed.
_ORDER, _POSITIONS = 0, 1


def uniform_positions(lengths: Tensor, segments: int) -> Tensor:
    """(..., V, T) int64: row floor(i * L / T) of each video of L rows (testing); lengths (..., V)."""
    return torch.arange(segments, device=lengths.device) * lengths.unsqueeze(-1) // segments


def position_key(seed: int, step: int) -> int:
    """What of a step's samples does not depend on the video: the ``key`` of ``random_positions``."""
    return random_key(seed, _POSITIONS, step)


def random_positions(lengths: Tensor, segments: int, key: int | Tensor, videos: Tensor) -> Tensor:
    """(..., B, T) int64: one row out of each of T stretches of every video (training).

    Stretch i reaches from floor(i L / T) to floor((i + 1) L / T), both ends included, the last to L - 1; a video of
    exactly T rows is taken whole. lengths and videos (..., B) int64, the latter the numbers that name the videos; key
    from ``position_key``, or int64 (..., 1, 1), one for each batch.
    """
    length = lengths.unsqueeze(-1)
    low = uniform_positions(lengths, segments)
    high = torch.cat([low[..., 1:], length - 1], dim=-1)
    segment = torch.arange(segments, device=lengths.device)
    bits = random_bits(key, videos.unsqueeze(-1), segment)
    # 32 bits times a stretch of fewer than 2^31 rows: whole numbers, so every device agrees.
    drawn = low + (_shifted(bits, 32) * (high - low + 1) >> 32)
    return torch.where(length == segments, low, drawn)


def batch_videos(count: int, batch_size: int, seed: int, step: int) -> Tensor:
    """(min(batch_size, count),) int64: videos of a step; an epoch's incomplete last batch is dropped."""
    size = min(batch_size, count)
    epoch, position = divmod(step, count // size)
    order = random_bits(random_key(seed, _ORDER, epoch), torch.arange(count)).argsort(stable=True)
    return order[position * size : (position + 1) * size]


def distinct_rows(positions: Tensor, starts: Tensor, capacity: int | None = None) -> tuple[Tensor, Tensor]:
    """The rows that ``positions`` (..., B, T) name, each once, and the index (..., B, T) that restores them.

    Positions of a video do not fall, so a row is new where it differs from the one before: no sort. Rows (..., L) int64
    count from the start of the split's first video; ``starts`` (..., B) is where each video begins. Leading dimensions
    are batches of their own, L the most that one of them needs. With ``capacity`` there are as many rows, and nothing
    waits for the device; rows beyond the last of a batch are the split's first.
    """
    fresh = torch.ones_like(positions, dtype=torch.bool)
    fresh[..., 1:] = positions[..., 1:] != positions[..., :-1]
    index = fresh.flatten(-2).cumsum(-1) - 1
    count = int(fresh.sum((-2, -1)).max()) if capacity is None else capacity
    rows = torch.zeros(*index.shape[:-1], count, dtype=torch.int64, device=positions.device)
    # Repeats write the same value, so their order does not matter.
    rows.scatter_(-1, index, (positions + starts.unsqueeze(-1)).flatten(-2))
    return rows, index.view(positions.shape)


def random_key(*counters: int) -> int:
    """Splitmix64's finaliser over the numbers one after the other: neighbouring seeds and counters share nothing.

    64 bits as a signed number, computed on the host.
    """
    key, whole = 0, (1 << 64) - 1
    for counter in counters:
        key = (key + counter + _INCREMENT) & whole
        key = ((key ^ key >> 30) * _FIRST) & whole
        key = ((key ^ key >> 27) * _SECOND) & whole
        key ^= key >> 31
    return _signed(key)


def random_bits(key: int | Tensor, *counters: Tensor) -> Tensor:
    """``random_key`` gone on with, on a device: 64 bits as int64 for each combination of numbers, which broadcast."""
    state: Any = key
    for counter in counters:
        state = state + (counter + _signed(_INCREMENT))
        state = (state ^ _shifted(state, 30)) * _signed(_FIRST)
        state = (state ^ _shifted(state, 27)) * _signed(_SECOND)
        state = state ^ _shifted(state, 31)
    found: Tensor = state
    return found


def _shifted(bits: Tensor, by: int) -> Tensor:
    """To the right, zeros from the left."""
    return (bits >> by) & ((1 << (64 - by)) - 1)


def _signed(bits: int) -> int:
    return bits - (1 << 64) if bits >= 1 << 63 else bits
