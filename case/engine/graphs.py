"""The training step as CUDA graphs: from the numbers of a batch's videos to updated weights without the host.

A graph has fixed shapes, and the number of distinct rows is not fixed. But the lengths of a batch's videos bound it,
and the host knows them: so rows are padded to a capacity, the bound rounded up, and there is one graph a capacity.
Padded rows are the split's first; no sample points at them, so they enter no loss.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from case.engine.learner import Learner
from case.engine.sampling import distinct_rows, random_positions
from case.engine.store import ResidentSplit, most_distinct
from case.objective import Losses

# Rows a capacity is rounded up to: at most N / 1024 graphs, and half of this computed in vain on average.
GRANULE = 1024


class StaticSteps:
    """Steps of a learner on a split that lies on its device, in static shapes.

    The first step of each capacity runs as it is, on the stream that captures: it makes what a capture must find made
    (libraries, kernels, the optimizer's state). The second is captured, and it and all others are replays. Where
    ``capture`` is false nothing is ever captured; that is for tests without a GPU.
    """

    def __init__(self, learner: Learner, split: ResidentSplit, batch_size: int, seed: int, *, capture: bool) -> None:
        self.learner, self.split, self.seed = learner, split, seed
        self.capture = capture
        self._lengths, self._starts = split.lengths, split.offsets[:-1]
        self._rows_of = self._lengths.tolist()
        batch_size = min(batch_size, len(self._rows_of))
        # The step's number and its videos: one copy to the device a step.
        self._given = torch.zeros(1 + batch_size, dtype=torch.int64, device=split.device)
        self._shown = torch.zeros(5, device=split.device)
        self._graphs: dict[int, Callable[[], None] | None] = {}
        if capture:
            self._stream = torch.cuda.Stream(split.device)
            self._pool = torch.cuda.graph_pool_handle()

    def step(self, videos: Tensor) -> Losses:
        """One update on ``videos`` (B,), on the host. The losses are overwritten by the next step."""
        segments = self.learner.settings.num_segments
        capacity = most_distinct([self._rows_of[v] for v in videos.tolist()], segments)
        capacity = -(-capacity // GRANULE) * GRANULE
        given = torch.cat([torch.tensor([self.learner.steps]), videos])
        if not self.capture:
            self._given.copy_(given)
            self._run(capacity)
        else:
            self._given.copy_(given.pin_memory(), non_blocking=True)
            self._on_device(capacity)
        self.learner.steps += 1
        total, video, attention, scc, ccc = self._shown.unbind()
        return Losses(total, video, attention, scc, ccc, self.learner.labels)

    def _on_device(self, capacity: int) -> None:
        if capacity in self._graphs:
            graph = self._graphs[capacity] or self._captured(capacity)
            self._graphs[capacity] = graph
            graph()
            return
        self._graphs[capacity] = None
        current = torch.cuda.current_stream(self.split.device)
        self._stream.wait_stream(current)
        with torch.cuda.stream(self._stream):
            self._run(capacity)
        current.wait_stream(self._stream)

    def _captured(self, capacity: int) -> Callable[[], None]:
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._pool, stream=self._stream):
            self._run(capacity)
        return graph.replay

    def _run(self, capacity: int) -> None:
        step, videos = self._given[0], self._given[1:]
        segments = self.learner.settings.num_segments
        positions = random_positions(self._lengths[videos], segments, self.seed, step, videos)
        rows, index = distinct_rows(positions, self._starts[videos], capacity)
        losses = self.learner.update(self.split.gather(rows), index, self.split.labels[videos])
        self._shown.copy_(torch.stack(losses[:5]).detach())
