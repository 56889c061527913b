"""The evaluation loop: a split's features to detections, video scores and mAP."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.profiler import record_function

from case.config import Settings
from case.data import GroundTruth
from case.engine.heldout import SplitPart
from case.engine.sampling import uniform_positions
from case.engine.store import ResidentSplit
from case.errors import CaseError
from case.inference import Activations, Detections, activate, localize, to_results, video_accuracy
from case.metrics import Instances, MeanAP, Problem, pose_arrays, score
from case.model import CASE

# What a chunk of videos may take beside its results; see localize_split.
CHUNK_BYTES = 1 << 29


@dataclass(frozen=True, eq=False)
class Localized:
    """What the network says of a split's videos, of ``lengths`` (V,) rows; ``detections.video`` counts ``videos``."""

    videos: tuple[str, ...]
    lengths: Tensor
    activations: Activations
    detections: Detections

    def results(self, settings: Settings) -> dict[str, Any]:
        """Detections in ActivityNet form."""
        return to_results(self.detections, list(self.videos), settings.labels)

    @property
    def scores(self) -> dict[str, list[float]]:
        """(C,) class scores of each video."""
        return dict(zip(self.videos, self.activations.video_scores.tolist(), strict=True))


@torch.inference_mode()
def localize_split(
    model: CASE,
    cluster_labels: Tensor,
    split: ResidentSplit | SplitPart,
    settings: Settings,
    *,
    progress: Callable[[int], object] | None = None,
) -> Localized:
    """Localize in every video of a split; ``progress`` is called with videos done.

    As many videos go at once as take ``CHUNK_BYTES`` in all, one at least: with M streams, each of a video's distinct
    rows, T at most, takes 4 (widths + 2 M (H + C + K)) bytes, and each of its T positions 4 C (M + 8 upsample + 2), of
    which the samples, 4 times in float64, are plain torch's alone. Results stay on the device, some 4 T (C + 4) bytes a
    video, until the last chunk is done, and then are copied to the host at once.
    """
    model.eval()
    lengths = split.lengths
    rows_of = lengths.tolist()
    streams = len(model.widths)
    row = 4 * (sum(model.widths) + 2 * streams * (settings.hidden + settings.num_classes + settings.num_clusters))
    others = _position_bytes(settings, streams) * settings.num_segments
    parts: list[Activations] = []

    def chunks() -> Iterator[tuple[slice, Activations]]:
        for videos in _within(CHUNK_BYTES, [row * min(n, settings.num_segments) + others for n in rows_of]):
            with record_function("case: rows"):
                chosen = torch.arange(videos.start, videos.stop, device=lengths.device)
                rows, index = split.distinct(chosen, uniform_positions(lengths[videos], settings.num_segments))
            with record_function("case: network"):
                heads = model(rows)
            with record_function("case: activations"):
                parts.append(activate(heads, index, cluster_labels, settings))
            del rows, heads
            yield videos, parts[-1]
            if progress is not None:
                progress(videos.stop)

    found = _detections(chunks(), lengths, settings)
    activations = Activations(*(torch.cat(part) for part in zip(*parts, strict=True)))
    moved = _to_host((*activations, *found))
    kept, found = Activations(*moved[: len(activations)]), Detections(*moved[len(activations) :])
    return Localized(split.videos, torch.tensor(rows_of), kept, found)


@torch.inference_mode()
def relocalize(localized: Localized, settings: Settings) -> Localized:
    """The same activations localized with other settings (METHOD.md, Inference, 3 and 4)."""
    activations = localized.activations
    size = _position_bytes(settings, streams=0) * activations.fused.shape[1]
    chunks = _within(CHUNK_BYTES, [size] * len(localized.videos))
    found = _detections(
        ((videos, Activations(*(part[videos] for part in activations))) for videos in chunks),
        localized.lengths,
        settings,
    )
    return Localized(localized.videos, localized.lengths, activations, found)


def _within(limit: int, sizes: Sequence[int]) -> Iterator[slice]:
    """Stretches of neighbours whose sizes add up to the limit at most, or of one."""
    start = total = 0
    for i, size in enumerate(sizes):
        if i > start and total + size > limit:
            yield slice(start, i)
            start, total = i, 0
        total += size
    yield slice(start, len(sizes))


def _position_bytes(settings: Settings, streams: int) -> int:
    """Of one position: class logits of each stream, the fused ones twice, and their float64 samples four times."""
    return 4 * settings.num_classes * (streams + 2 + 8 * settings.upsample)


def _detections(chunks: Iterable[tuple[slice, Activations]], lengths: Tensor, settings: Settings) -> Detections:
    """Detections in neighbouring stretches of videos as those of one split."""
    found = []
    for videos, activations in chunks:
        with record_function("case: detections"):
            detections = localize(activations, lengths[videos], settings)
        found.append(detections._replace(video=detections.video + videos.start))
    return Detections(*(torch.cat(column) for column in zip(*found, strict=True)))


def _to_host(tensors: Sequence[Tensor]) -> list[Tensor]:
    """All of them with one wait for the device."""
    moved = [tensor.to("cpu", non_blocking=True) for tensor in tensors]
    if tensors[0].is_cuda:
        torch.cuda.current_stream(tensors[0].device).synchronize()
    return moved


@dataclass(frozen=True)
class Score:
    """mAP and video-level accuracy of a localized split."""

    mean_ap: MeanAP
    video_accuracy: float


def pose_split(
    localized: Localized,
    truth: GroundTruth,
    subset: str,
    ambiguous: Mapping[str, Sequence[tuple[float, float]]] | None = None,
) -> Problem:
    """The evaluation of a localized split against the annotations of ``subset``.

    Raises ``CaseError`` for a subset without annotations, and where the network's scores are NaN.
    """
    ids = {video: i for i, video in enumerate(dict.fromkeys([*localized.videos, *truth.videos]))}
    video, label, confidence, segment = (column.numpy() for column in localized.detections)
    if np.isnan(confidence).any():
        raise CaseError(f"{np.isnan(confidence).sum()} detections have the score NaN: training diverged; lower lr")
    found = Instances(video, label, segment, confidence)
    return pose_arrays(truth, ids, found, subset=subset, ambiguous=ambiguous)


def score_split(localized: Localized, labels: Tensor, truth: GroundTruth, subset: str, settings: Settings) -> Score:
    """mAP against the annotations of ``subset``, and the share of videos whose classes are all right."""
    with record_function("case: mAP"):
        mean = score(pose_split(localized, truth, subset), settings.tiou)
    return Score(mean, video_accuracy(localized.activations.kept, labels.cpu()))
