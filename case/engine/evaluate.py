"""The evaluation loop: a split's features to detections, video scores and mAP."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.profiler import record_function

from case.config import Settings
from case.data import GroundTruth
from case.engine.store import ResidentSplit, uniform_positions
from case.errors import CaseError
from case.inference import Activations, Detections, activate, localize, to_results, video_accuracy
from case.metrics import Instances, MeanAP, Problem, pose_arrays, score
from case.model import CASE

# Videos at a time: bounds memory (the upsampled activations of a video and class are 144 kB at T = 750).
CHUNK = 32


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
    split: ResidentSplit,
    settings: Settings,
    *,
    progress: Callable[[int], object] | None = None,
) -> Localized:
    """Localize in every video of a split, ``CHUNK`` videos at a time; ``progress`` is called with videos done."""
    model.eval()
    parts: list[Activations] = []
    found: list[Detections] = []
    everyone = torch.arange(len(split.videos), device=split.offsets.device)
    for videos in everyone.split(CHUNK):
        lengths = split.lengths[videos]
        with record_function("case: rows"):
            rows, index = split.distinct(videos, uniform_positions(lengths, settings.num_segments))
        with record_function("case: network"):
            heads = model(rows)
        with record_function("case: activations"):
            activations = activate(heads, index, cluster_labels, settings)
        with record_function("case: detections"):
            detections = localize(activations, lengths, settings)
        parts.append(Activations(*(part.cpu() for part in activations)))
        moved = Detections(*(column.cpu() for column in detections))
        found.append(moved._replace(video=moved.video + int(videos[0])))
        if progress is not None:
            progress(int(videos[-1]) + 1)
    activations = Activations(*(torch.cat(part) for part in zip(*parts, strict=True)))
    detections = Detections(*(torch.cat(column) for column in zip(*found, strict=True)))
    return Localized(split.videos, split.lengths.cpu(), activations, detections)


@torch.inference_mode()
def relocalize(localized: Localized, settings: Settings) -> Localized:
    """The same activations localized with other settings (METHOD.md, Inference, 3 and 4)."""
    found: list[Detections] = []
    for videos in torch.arange(len(localized.videos)).split(CHUNK):
        chunk = Activations(*(part[videos] for part in localized.activations))
        detections = localize(chunk, localized.lengths[videos], settings)
        found.append(detections._replace(video=detections.video + int(videos[0])))
    detections = Detections(*(torch.cat(column) for column in zip(*found, strict=True)))
    return Localized(localized.videos, localized.lengths, localized.activations, detections)


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
