"""Launch settings are pure functions: what must hold for any sizes, on any device."""

from __future__ import annotations

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

pytest.importorskip("triton", reason="triton is not installed")

from case.kernels import config
from case.kernels.config import INTERPRETER, Device

DEVICES = st.sampled_from([INTERPRETER, Device(80, 108), Device(90, 132), Device(100, 148)])
THREADS = 32


@given(st.integers(1, 300), st.integers(1, 3_000_000), st.integers(1, config.MAX_COLUMNS), DEVICES, st.booleans())
@example(217, 33, 33, Device(80, 108), True)  # two tiles each, and one problem too many for two programs each
def test_sinkhorn_launch_covers_every_row_once(problems, n, k, device, ranked):
    launch = config.sinkhorn_launch(problems, n, k, device, ranked=ranked)
    assert launch.block_k >= k
    if launch.whole:
        assert launch.block_n >= n
        assert not ranked
        return
    assert launch.rows_per_part % launch.block_n == 0
    assert (launch.parts - 1) * launch.rows_per_part < n <= launch.parts * launch.rows_per_part
    if not device.interpreted:
        per_thread = launch.block_n * launch.block_k / (THREADS * launch.num_warps)
        assert per_thread <= 16, "tiles of more elements would not leave room for two programs"
        assert launch.parts * problems <= max(4 * device.multiprocessors, problems)
    # Partial sums of one part more than there are would be read from nowhere; blocks are powers of two.
    for block in (launch.block_n, launch.block_k, launch.block_parts):
        assert block & (block - 1) == 0


def test_the_methods_own_sizes_on_an_h200():
    h200 = Device(90, 132)
    own = config.sinkhorn_launch(1, 12_000, 16, h200)
    assert not own.whole
    assert own.parts <= h200.multiprocessors, "one wave, one tile each"
    assert own.rows_per_part == own.block_n
    large = config.sinkhorn_launch(1, 1_000_000, 128, h200)
    assert large.parts <= 2 * h200.multiprocessors
    assert large.stages > 1
    assert config.sinkhorn_launch(64, 300, 16, h200).whole
    assert not config.sinkhorn_launch(64, 300, 16, h200, ranked=True).whole


@given(st.integers(1, 4), st.integers(1, 500_000), st.integers(1, 512), st.integers(1, 2048), DEVICES)
def test_chain_launch_covers_everything(streams, rows, k, width, device):
    launch = config.chain_launch(streams, rows, k, width, device)
    assert launch.block_c >= k + 2
    assert launch.block_k >= k
    assert launch.blocks_h * launch.block_h >= width > (launch.blocks_h - 1) * launch.block_h
    assert launch.blocks_e * launch.block_e >= width > (launch.blocks_e - 1) * launch.block_e
    assert launch.row_tiles * launch.block_n >= rows > (launch.row_tiles - 1) * launch.block_n
    assert launch.parts * launch.rows_per_part >= rows > (launch.parts - 1) * launch.rows_per_part
    assert launch.rows_per_part % launch.block_e_n == 0
    assert min(launch.block_e_c, launch.block_e, launch.block_e_n) >= 16, "what tl.dot takes"
