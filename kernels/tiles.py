"""Tiles of matrices of any strides."""

from __future__ import annotations

from typing import NamedTuple

import triton
import triton.language as tl
from torch import Tensor


class Matrices(NamedTuple):
    """B matrices of N x K; strides (b, n, k) in elements, 0 broadcasts."""

    base: Tensor  # not ``values``: a name that Triton's tuples have taken
    strides: tuple[int, int, int]


def matrices(x: Tensor) -> Matrices:
    """Of a tensor (B, N, K)."""
    return Matrices(x, (x.stride(0), x.stride(1), x.stride(2)))


@triton.jit
def load_tile(x, problem, rows, cols, inside):
    """x[problem, rows, cols] as stored, 0 where not ``inside``; problem and rows int64, cols any."""
    columns = cols.to(tl.int64)  # of a transposed matrix, columns are far apart
    at = x.base + problem * x.strides[0] + rows[:, None] * x.strides[1] + columns[None, :] * x.strides[2]
    return tl.load(at, mask=inside, other=0.0)
