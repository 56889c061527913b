"""Proposals of four videos at the method's size: 750 rows upsampled 24 times, 20 classes, 9 thresholds."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import avg_pool1d

from benchmarks.work import Part, Work, bench
from case import ops

VIDEOS, T, C, UPSAMPLE, SECONDS = 4, 750, 20, 24, 0.64
THRESHOLDS = [i / 10 for i in range(1, 10)]
OUTER, WEIGHT = 0.25, 0.2


def numpy_loop(cas: Tensor, video_scores: Tensor) -> tuple[Tensor, ...]:
    """As WTAL code has it: interpolate a class, cut it at each threshold, score run by run."""
    found = []
    for video, (activations, scores) in enumerate(zip(cas.numpy(), video_scores.numpy(), strict=True)):
        rows, classes = activations.shape
        at = np.arange(UPSAMPLE * rows) / UPSAMPLE
        low = np.minimum(at.astype(np.int64), rows - 2)
        signals = activations[low] + (activations[low + 1] - activations[low]) * (at - low)[:, None]
        for number, threshold in enumerate(THRESHOLDS):
            for label in range(classes):
                signal = signals[:, label]
                above = np.flatnonzero((signal >= threshold) & (signal > 0))
                for run in np.split(above, np.flatnonzero(np.diff(above) != 1) + 1) if len(above) else []:
                    first, last = run[0], run[-1]
                    margin = OUTER * len(run)
                    left, right = int(max(first - margin, 0)), int(min(last + margin, len(signal) - 1))
                    outer = np.concatenate([signal[left:first], signal[last + 1 : right + 1]])
                    contrast = signal[first : last + 1].mean() - (outer.mean() if len(outer) else 0.0)
                    step = SECONDS / UPSAMPLE
                    found.append(
                        (first * step, (last + 1) * step, contrast + WEIGHT * scores[label], label, video, number)
                    )
    columns = torch.tensor(np.array(found))
    return columns[:, :2], columns[:, 2], *(column.long() for column in columns[:, 3:].T)


@bench("propose", peers=("numpy loop",), scales=(1, 10, 100), dtypes=("float64",))
def test_propose(scale: int) -> Work:
    videos = scale * VIDEOS
    torch.manual_seed(0)
    # Noise smoothed over some rows, so that runs have the lengths of actions.
    noise = torch.rand(videos, C, T + 8, dtype=torch.float64)
    cas = (2.5 * (avg_pool1d(noise, 9, stride=1) - 0.3)).clamp(0, 1).transpose(1, 2).contiguous()

    def run(cas: Tensor, video_scores: Tensor) -> tuple[Tensor, ...]:
        return ops.propose(
            cas, THRESHOLDS, upsample=UPSAMPLE, outer_ratio=OUTER, score_weight=WEIGHT, video_scores=video_scores,
            seconds_per_row=SECONDS,
        )  # fmt: skip

    inputs = {"cas": cas, "video_scores": torch.rand(videos, C, dtype=torch.float64)}
    chosen = torch.randperm(videos)[:VIDEOS].sort().values

    def of(found: list[Tensor]) -> list[Tensor]:
        *rest, video, number = found
        here = chosen.to(video.device)
        kept = torch.isin(video, here)
        return [*(x[kept] for x in rest), torch.searchsorted(here, video[kept]), number[kept]]

    return Work(
        run,
        inputs,
        moved=8 * videos * T * C,
        sizes={"videos": videos, "t": T, "classes": C, "upsample": UPSAMPLE},
        peers={"numpy loop": numpy_loop},
        tolerance=1e-11,
        part=Part({name: x[chosen] for name, x in inputs.items()}, of) if scale > 1 else None,
    )
