"""The training step as CUDA graphs: from the numbers of a batch's videos to updated weights without the host.

A graph has fixed shapes, and the number of distinct rows is not fixed. But the lengths of a batch's videos bound it,
and the host knows them: so rows are padded to a capacity, the bound rounded up, and there is one graph a capacity.
Padded rows are the split's first; no sample points at them, so they enter no loss.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch

from case.engine.learner import Learner
from case.engine.sampling import batch_videos, position_key
from case.engine.stacked import StackedLearner
from case.engine.store import ResidentSplit, most_distinct
from case.objective import Losses

# Rows a capacity is rounded up to: at most N / 1024 graphs, and half of this computed in vain on average.
GRANULE = 1024


class StaticSteps:
    """Steps of a learner on a split that lies on its device, in static shapes.

    ``seeds`` has one seed; with a ``StackedLearner`` the split is ``stacked``, R runs have one each, shapes R in front.

    The first step of each capacity runs as it is, on the stream that captures: it makes what a capture must find made
    (libraries, kernels, the optimizer's state). The second is captured, and it and all others are replays. Where
    ``capture`` is false nothing is ever captured; that is for tests without a GPU.
    """

    def __init__(
        self, learner: Learner | StackedLearner, split: ResidentSplit, batch_size: int, seeds: Sequence[int],
        *, capture: bool,
    ) -> None:  # fmt: skip
        self.learner, self.split, self.capture = learner, split, capture
        self._seeds = tuple(seeds)
        self._lengths = split.lengths.cpu()
        *lead, count = self._lengths.shape
        # Keys of samples and numbers of videos: one copy to the device a step.
        self._batch = (*lead, min(batch_size, count))
        self._given = torch.zeros(len(seeds) + math.prod(self._batch), dtype=torch.int64, device=split.device)
        self._shown = torch.zeros(len(Losses._fields) - 1, *lead, device=split.device)
        self._graphs: dict[int, Callable[[], None] | None] = {}
        if capture:
            self._stream = torch.cuda.Stream(split.device)
            self._pool = torch.cuda.graph_pool_handle()

    def step(self) -> Losses:
        """The next update of each run, on the videos and samples that its seed and the step number decide.

        The losses are overwritten by the next step.
        """
        segments, (*_, count) = self.learner.settings.num_segments, self._lengths.shape
        drawn = [batch_videos(count, self._batch[-1], seed, self.learner.steps) for seed in self._seeds]
        videos = torch.stack(drawn).view(self._batch)
        capacity = most_distinct(self._lengths.gather(-1, videos), segments)
        capacity = -(-capacity // GRANULE) * GRANULE
        keys = torch.tensor([position_key(seed, self.learner.steps) for seed in self._seeds])
        given = torch.cat([keys, videos.flatten()])
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
        runs = len(self._seeds)
        keys, videos = self._given[:runs].view(*self._batch[:-1], 1, 1), self._given[runs:].view(self._batch)
        rows = self.split.sampled(videos, self.learner.settings.num_segments, keys, capacity)
        losses = self.learner.update(*rows)
        self._shown.copy_(torch.stack(losses[:-1]).detach())
