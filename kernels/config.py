"""Launch settings as pure functions of sizes, element size and device: no GPU is asked, so a CPU can test them.

The numbers are argued from registers (64 Ki of 32 bits per multiprocessor), bytes in flight and launches; what has been
measured stands in benchmarks/results, what has not in benchmarks/GPU_TODO.md.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Device:
    """What launch settings depend on. ``arch``: 80, 90, 100, ...; 0 is the interpreter."""

    arch: int
    multiprocessors: int

    @property
    def interpreted(self) -> bool:
        return self.arch == 0


# Few programs: each costs milliseconds; more than one, so that reductions over programs are exercised.
INTERPRETER = Device(arch=0, multiprocessors=2)


def device_of(x: torch.Tensor) -> Device:
    return INTERPRETER if x.device.type == "cpu" else _cuda_device(x.device.index or 0)


@functools.cache
def _cuda_device(index: int) -> Device:
    found = torch.cuda.get_device_properties(index)
    return Device(found.major * 10 + found.minor, found.multi_processor_count)


def next_power_of_2(n: int) -> int:
    return 1 << max(0, n - 1).bit_length()


def ceil_div(n: int, d: int) -> int:
    return -(-n // d)


@dataclass(frozen=True)
class SinkhornLaunch:
    """``whole``: a program per problem. Else ``parts`` programs a problem, each over ``rows_per_part`` rows."""

    whole: bool
    block_n: int
    block_k: int
    num_warps: int
    parts: int = 1
    rows_per_part: int = 0
    block_parts: int = 1
    stages: int = 1

    def options(self) -> dict[str, int]:
        return {"num_warps": self.num_warps, "maxnreg": MAX_REGISTERS}


MAX_COLUMNS = 2048  # a program holds whole rows

# Left alone, ptxas aims at round occupancies (64 or 80 registers) and spills a value or two to reach them.
MAX_REGISTERS = 255


def sinkhorn_launch(
    problems: int, n: int, k: int, device: Device, *, ranked: bool = False, with_prior: bool = False
) -> SinkhornLaunch:
    """For ``problems`` of n rows and k <= MAX_COLUMNS columns.

    ranked: ranks are found in the first read. with_prior: a matrix is read beside the logits.
    """
    block_k = max(2, next_power_of_2(k))
    whole = max(1, next_power_of_2(n)) * block_k
    # 32 elements a thread for each of the three tiles that live at once: some 130 of 255 registers. Ranking needs the
    # searches of all rows at once: no single program does that.
    if whole <= (256 if device.interpreted else 8192) and not ranked:
        return SinkhornLaunch(True, whole // block_k, block_k, num_warps=4 if whole <= 2048 else 8)
    if device.interpreted:
        # Large tiles, since every operation costs the same; two parts of two tiles, so that loops and sums are tried.
        block_n = max(1, min(16384 // block_k, next_power_of_2(ceil_div(n, 4))))
        rows_per_part = ceil_div(ceil_div(n, 2), block_n) * block_n
        return SinkhornLaunch(False, block_n, block_k, 4, ceil_div(n, rows_per_part), rows_per_part, 2)
    # Small problems are bound by latency: one tile of 8 elements a thread for each program, one wave of programs:
    # four a multiprocessor. Large ones by memory: two programs a multiprocessor (16 elements a thread, under 128
    # registers), each with two tiles of 16 KiB on their way while a third is worked on; of two matrices, half as much
    # of each. More programs would only mean more partial sums, which every program of the next launch reads.
    room, small_room = (max(1, programs * device.multiprocessors // problems) for programs in (2, 4))
    small = ceil_div(n * block_k, 2048) <= small_room
    elements = 2048 if small or with_prior else 4096
    block_n = max(1, elements // block_k)
    if ranked:
        block_n = min(block_n, 256)  # a row a thread: each is searched for in every chunk of scores
    tiles = ceil_div(n, block_n)
    rows_per_part = ceil_div(tiles, min(tiles, small_room if small else room)) * block_n
    parts = ceil_div(n, rows_per_part)
    block_parts = max(1, min(next_power_of_2(parts), elements // block_k))
    return SinkhornLaunch(False, block_n, block_k, 8, parts, rows_per_part, block_parts, stages=1 if small else 3)


@dataclass(frozen=True)
class RowTile:
    """``rows`` whole rows a program, padded to ``columns``."""

    rows: int
    columns: int
    num_warps: int


MAX_ROW = 8192  # columns of a row that a program can hold


def row_tile(problems: int, n: int, k: int, device: Device) -> RowTile:
    """For ``problems`` of n rows of k <= MAX_ROW columns that are read once, with two inputs and up to two results."""
    columns = next_power_of_2(k)
    if device.interpreted:
        # At least two programs, of few operations each.
        return RowTile(min(next_power_of_2(ceil_div(n, 2)), max(1, 65536 // columns)), columns, 4)
    # 16 elements a thread of each of four tiles that live at once: 64 registers and as many for addresses. Eight such
    # programs fit a multiprocessor and keep 2 x 8 KiB each in flight, more than latency times bandwidth asks for.
    # Small problems get a quarter of that a program, until every multiprocessor has one.
    elements = 2048
    while elements > 512 and ceil_div(n * columns, elements) * problems < device.multiprocessors:
        elements //= 2
    num_warps = min(16, max(1, max(elements, columns) // 512))
    return RowTile(max(1, elements // columns), columns, num_warps)


@dataclass(frozen=True)
class PrototypesLaunch:
    """``splits`` programs a problem, each over ``rows_per_split`` rows, for each block of columns and of D."""

    block_n: int
    block_k: int
    block_d: int
    splits: int
    rows_per_split: int
    num_warps: int
    num_stages: int


def prototypes_launch(problems: int, n: int, k: int, d: int, element_size: int, device: Device) -> PrototypesLaunch:
    """For ``problems`` of n rows, k weight columns and embeddings of ``d`` elements of ``element_size`` bytes."""
    block_k = max(16, min(128, next_power_of_2(k)))
    half = element_size == 2
    if device.interpreted:
        # Large tiles, since every operation costs the same; two splits, and two blocks of wide problems.
        block_k, block_d = min(64, block_k), max(16, min(256, next_power_of_2(d)))
        block_n, num_warps, num_stages, resident = max(16, min(512, next_power_of_2(ceil_div(n, 4)))), 4, 1, 2
    else:
        # Each warp holds all weights of a tile, split in two (block_n * block_k / 32 registers in half precision, twice
        # that in TF32), and its share of the sums, block_k * block_d / threads: with addresses 130 to 250 registers,
        # which leaves room for ``resident`` programs a multiprocessor. In flight are num_stages - 1 tiles of each, of
        # embeddings and weights: 48 to 96 KiB.
        old = device.arch < 90
        block_n, full_d, num_warps, num_stages, resident = {
            16: (32, 256, 4, 4 if half else 3, 2),
            32: (32, 256, 4, 4, 2) if half else (16, 128, 4, 4, 3),
            64: (32, 128, 4, 4, 2) if half else (32, 128, 8, 4, 1),
            128: (16 if old else 32, 64 if old and not half else 128, 8, 4, 1),
        }[block_k]
        # One wave of programs, three times as many where narrow embeddings make small tiles. More would mean more
        # partial sums.
        block_d = max(16, min(full_d, next_power_of_2(d)))
        resident *= min(3, full_d // block_d)
    blocks = problems * ceil_div(k, block_k) * ceil_div(d, block_d)
    splits = max(1, ceil_div(resident * device.multiprocessors, max(1, blocks)))
    rows_per_split = max(1, ceil_div(n, splits * block_n)) * block_n
    splits = max(1, ceil_div(n, rows_per_split))
    return PrototypesLaunch(block_n, block_k, block_d, splits, rows_per_split, num_warps, num_stages)


@dataclass(frozen=True)
class PrototypesBackwardLaunch:
    """A program takes ``block_n`` rows and ``block_k`` columns through all of D, ``block_d`` at a time."""

    block_n: int
    block_k: int
    block_d: int
    num_warps: int
    num_stages: int


def prototypes_backward_launch(k: int, d: int, element_size: int, device: Device) -> PrototypesBackwardLaunch:
    """For k weight columns and embeddings of ``d`` elements of ``element_size`` bytes."""
    half, block_k = element_size == 2, max(16, next_power_of_2(k))
    if device.interpreted:
        return PrototypesBackwardLaunch(512, min(64, block_k), max(16, min(256, next_power_of_2(d))), 4, 1)
    shared = 90 <= device.arch < 110  # multiply from shared memory what others must hold in registers
    # Each program reads all of dS, so it takes many rows; it holds weights and their gradient, block_n * block_k
    # elements, so it takes few: with all columns in one block, 100 to 245 registers a thread. Two of three stages in
    # flight are 32 to 64 KiB a multiprocessor.
    block_n, block_d, num_warps = {
        16: (128, 64, 8) if half else (64, 64, 4),
        32: (128, 64, 8) if half else (64, 32, 4),
        64: (64, 32 if half or not shared else 16, 8),
    }.get(block_k, (64, 32, 8))
    if block_k > (32 if not shared else 128 if half else 64):
        block_k = 32  # many columns: blocks of them, or registers spill
    return PrototypesBackwardLaunch(block_n, block_k, min(block_d, max(16, next_power_of_2(d))), num_warps, 3)


@dataclass(frozen=True)
class CosineLaunch:
    """Tiles of rows, columns and D; in the backward, ``rows_per_split`` rows a program."""

    block_m: int
    block_p: int
    block_d: int
    num_warps: int
    num_stages: int
    rows_per_split: int = 0


MAX_COSINE_COLUMNS = 128  # columns whose softmax a forward program can take


def cosine_forward_launch(problems: int, m: int, p: int, d: int, element_size: int, device: Device) -> CosineLaunch:
    """For ``problems`` of m rows of x and p of y, with d elements each."""
    block_p = max(16, min(MAX_COSINE_COLUMNS, next_power_of_2(p)))
    if device.interpreted:
        # Large tiles, since every operation costs the same; two of rows and two of D, so that loops are tried.
        block_m, block_d = next_power_of_2(ceil_div(m, 2)), next_power_of_2(ceil_div(d, 2))
        return CosineLaunch(max(16, min(512, block_m)), block_p, max(16, min(512, block_d)), 4, 1)
    # Rows of 128 bytes, three of four stages in flight: 6 to 12 KiB of x a program, of which registers (60 to 170 a
    # thread) let four and more share a multiprocessor. Fewer rows a program where not every multiprocessor would have
    # one. Warps: float32 operands, held as high and low, spill with 4 at 32 columns and with 8 at 64.
    block_m = 32 if problems * ceil_div(m, 32) >= device.multiprocessors else 16
    few_warps = block_p == 16 or block_p == (64 if element_size == 4 else 32)
    return CosineLaunch(block_m, block_p, 128 // element_size, 4 if few_warps else 8, 4)


def cosine_backward_launch(problems: int, m: int, p: int, d: int, element_size: int, device: Device) -> CosineLaunch:
    """As ``cosine_forward_launch``, of programs that hold a block of D of y and of dy and pass over ranges of rows."""
    # Columns a launch are as many as registers allow: the sums dy and the operands, most of them held as high and low,
    # take 130 to 250 a thread. Hopper and data-center Blackwell multiply from shared memory what others must hold.
    block_p = max(16, min(64 if 90 <= device.arch < 110 else 32, next_power_of_2(p)))
    if device.interpreted:
        block_m, block_d = next_power_of_2(ceil_div(m, 4)), next_power_of_2(ceil_div(d, 2))
        block_m, block_d = max(16, min(512, block_m)), max(16, min(512, block_d))
        return CosineLaunch(block_m, block_p, block_d, 4, 1, ceil_div(ceil_div(m, 2), block_m) * block_m)
    # Tiles of 4 KiB (2 KiB at 64 columns of half precision), two of three stages in flight.
    block_m, block_d = 16, 64
    if element_size == 2 and block_p < 64:
        block_m, block_d = (32, 64) if block_p == 16 else (16, 128)
    # Three programs a multiprocessor, unless their partial sums (P rows each) come to more than a quarter of x.
    splits = max(1, 3 * device.multiprocessors // (problems * ceil_div(d, block_d)))
    rows_per_split = ceil_div(max(ceil_div(m, splits), 4 * block_p), block_m) * block_m
    return CosineLaunch(block_m, block_p, block_d, 8 if block_p == 64 else 4, 3, rows_per_split)


MAX_CHAIN_CLUSTERS = 254  # of which programs hold whole columns, and two more, without spilling


@dataclass(frozen=True)
class ChainLaunch:
    """Of the kernels around the prototypes in ``kernels.clustering``. c: padded number of weight columns, K + 2."""

    block_c: int
    block_k: int
    block_h: int  # of the products, by a program each
    blocks_h: int
    block_n: int  # rows of a program of L_C
    row_tiles: int
    block_e: int  # columns and rows of a tile of dE, and weight columns at a time
    blocks_e: int
    block_e_n: int
    block_e_c: int
    parts: int  # programs a stream and block of dE, over rows_per_part rows each
    rows_per_part: int
    num_warps: int


def chain_launch(streams: int, rows: int, k: int, width: int, device: Device) -> ChainLaunch:
    """For ``streams`` of ``rows`` distinct rows, k <= MAX_CHAIN_CLUSTERS, embeddings of ``width`` elements."""
    block_c = max(16, next_power_of_2(k + 2))
    block_k = max(2, next_power_of_2(k))
    if device.interpreted:
        block_h, block_n, block_e, block_e_n, block_e_c, parts = 64, 64, 64, 32, 16, 2
    else:
        # Blocks of 32 columns (a 128-byte line) spread the few sums over many programs, which each read all splits.
        block_h = 32
        # 16 elements a thread, as for other losses of rows.
        block_n = max(1, 2048 // block_k)
        # dE: a (block_e_n, block_e) accumulator of 32 to 64 registers a thread beside the (block_e_c, block_e) operand
        # in shared memory; about four programs a multiprocessor hide each other's stores.
        # More weight columns than fit one block are made anew for each tile of rows: narrower, for the registers.
        block_e_c = min(32, block_c)
        block_e = max(16, min(128 if block_e_c == block_c else 64, next_power_of_2(width)))
        block_e_n = 64 if block_k <= 128 else 32  # dS: rows of several tiles of all clusters
        parts = max(1, 4 * device.multiprocessors // (streams * ceil_div(width, block_e)))
    rows_per_part = ceil_div(ceil_div(rows, parts), block_e_n) * block_e_n
    return ChainLaunch(
        block_c, block_k, block_h, ceil_div(width, block_h), block_n, ceil_div(rows, block_n), block_e,
        ceil_div(width, block_e), block_e_n, block_e_c, ceil_div(rows, rows_per_part), rows_per_part,
        num_warps=4 if block_e_c == block_c else 8,
    )  # fmt: skip
