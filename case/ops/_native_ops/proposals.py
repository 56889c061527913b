"""``propose`` and ``propose_padded`` by ``csrc/proposals.cpp`` and ``csrc/proposals.cu``.

On a GPU two launches with a running sum between them: how many proposals each group (video, threshold, class) has, then
the proposals. Only the size of ``propose``'s result makes the host wait. ``propose_emulated`` runs the same two kernels
on the CPU, by one thread in any order of theirs; it is for tests.
"""

from __future__ import annotations

from typing import Any, Protocol

import torch
from torch import Tensor

from case.ops._native_ops import _common
from case.ops._native_ops._common import DTYPES, Emulation, address
from case.ops.reference.proposals import padding

Columns = tuple[Tensor, Tensor, Tensor, Tensor, Tensor]
# Of the second launch's memory to work in, 16 bytes a row and block: 8,000 blocks at the method's 750 rows, and beyond
# 65,000 rows still one for each multiprocessor.
WORKSPACE_BYTES = 128 * 2**20


class _Problem:
    """The registered ops' arguments as ``case._C`` takes them; keeps alive what it points to."""

    def __init__(self, args: tuple[Any, ...]) -> None:
        cas, thresholds, upsample, outer_ratio, score_weight, video_scores, class_mask, seconds, keep_first = args
        # Half precision is widened first, which is exact. Strides are taken as they are.
        cas = cas.detach() if cas.dtype in DTYPES else cas.detach().float()
        thresholds, video_scores, seconds = (
            x.detach().double().contiguous() for x in (thresholds, video_scores, seconds)
        )
        mask = class_mask.contiguous()
        self.tensors = (cas, thresholds, video_scores, mask, seconds)
        self.device, (self.videos, self.rows, self.classes) = cas.device, cas.shape
        self.thresholds = thresholds.shape[0]
        self.description = (
            DTYPES[cas.dtype],
            (*cas.shape, self.thresholds),
            address(cas),
            cas.stride(),
            address(thresholds),
            address(video_scores),
            address(mask),
            address(seconds),
            (upsample, outer_ratio, score_weight, keep_first),
        )

    def columns(self, count: int) -> Columns:
        """Empty segments, scores, classes, video and threshold of ``count`` proposals."""
        shapes = ((count, 2), (count,), (count,), (count,), (count,))
        dtypes = (torch.float64,) * 2 + (torch.int64,) * 3
        a, b, c, d, e = (torch.empty(s, dtype=t, device=self.device) for s, t in zip(shapes, dtypes))
        return a, b, c, d, e


def propose(*args: Any) -> Columns:
    problem = _Problem(args)
    if problem.device.type == "cuda":
        with torch.cuda.device(problem.device):
            return _by_blocks(problem, _OnDevice(), None)[0]
    threads = torch.get_num_threads()
    found = _common.module().proposals_cpu(problem.description, threads)
    columns = problem.columns(len(found))
    found.copy(_addresses(columns), len(found), threads)
    return columns


def propose_padded(*args: Any) -> tuple[Tensor, ...]:
    problem, capacity = _Problem(args[:-1]), args[-1]
    if problem.device.type == "cuda":
        with torch.cuda.device(problem.device):
            columns, count = _by_blocks(problem, _OnDevice(), capacity)
        return (*columns, count)
    threads = torch.get_num_threads()
    found = _common.module().proposals_cpu(problem.description, threads)
    columns = padding(problem.tensors[0], capacity)
    found.copy(_addresses(columns), capacity, threads)
    return (*columns, torch.tensor(len(found)))


def propose_emulated(
    args: tuple[Any, ...], emulation: Emulation, capacity: int | None = None
) -> tuple[Columns, Tensor]:
    """The registered op's result by the kernels on the CPU, padded to ``capacity`` if there is one, and its count."""
    return _by_blocks(_Problem(args), _Emulated(emulation), capacity)


class _Launcher(Protocol):
    def blocks(self, wanted: int) -> int: ...

    def count(self, problem: _Problem, counts: Tensor, blocks: int) -> None: ...

    def write(self, problem: _Problem, output: tuple[Any, ...], blocks: int) -> None: ...


class _OnDevice:
    """Launches on the current stream of the current device."""

    def blocks(self, wanted: int) -> int:
        return wanted

    def count(self, problem: _Problem, counts: Tensor, blocks: int) -> None:
        stream = torch.cuda.current_stream().cuda_stream
        _common.module().proposals_count_cuda(problem.description, address(counts), blocks, stream)

    def write(self, problem: _Problem, output: tuple[Any, ...], blocks: int) -> None:
        stream = torch.cuda.current_stream().cuda_stream
        _common.module().proposals_write_cuda(problem.description, output, blocks, stream)


class _Emulated:
    def __init__(self, emulation: Emulation) -> None:
        self.emulation = emulation

    def blocks(self, wanted: int) -> int:
        return self.emulation.blocks

    def count(self, problem: _Problem, counts: Tensor, blocks: int) -> None:
        _common.module().proposals_count_emulated(problem.description, address(counts), tuple(self.emulation))

    def write(self, problem: _Problem, output: tuple[Any, ...], blocks: int) -> None:
        _common.module().proposals_write_emulated(problem.description, output, tuple(self.emulation))


def _by_blocks(problem: _Problem, launcher: _Launcher, capacity: int | None) -> tuple[Columns, Tensor]:
    """The proposals, as many as there are or padded to ``capacity``, and their number (a tensor of no dimensions)."""
    cas = problem.tensors[0]
    groups = problem.videos * problem.classes
    if groups == 0:
        return padding(cas, capacity or 0), torch.zeros((), dtype=torch.int64, device=problem.device)
    blocks = launcher.blocks(min(groups, max(1, WORKSPACE_BYTES // (16 * problem.rows))))
    counts = torch.empty(groups * problem.thresholds, dtype=torch.int32, device=problem.device)
    launcher.count(problem, counts, blocks)
    ends = counts.cumsum(0)
    columns = problem.columns(int(ends[-1])) if capacity is None else padding(cas, capacity)
    x = torch.empty(blocks, problem.rows, dtype=torch.float64, device=problem.device)
    before = torch.empty(blocks, problem.rows, dtype=torch.int64, device=problem.device)
    held = len(columns[1])
    output = (address(counts), address(ends), held, _addresses(columns), address(x), address(before))
    launcher.write(problem, output, blocks)
    return columns, ends[-1]


def _addresses(columns: Columns) -> tuple[int, ...]:
    return tuple(address(x) for x in columns)
