"""The video loss and its pseudo-labels, of rows and an index, against loops over samples in float64."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from case.config import make_settings
from case.objective import pseudo_labels, video_loss

VIDEOS, SAMPLES, ROWS, CLASSES = 3, 20, 17, 4


@pytest.mark.parametrize("lead", [(), (2,)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bool, torch.int64])
def test_pseudo_labels_are_the_picks_of_present_classes(
    rng: np.random.Generator, lead: tuple[int, ...], dtype: torch.dtype
) -> None:
    indices = torch.from_numpy(rng.integers(0, SAMPLES, (*lead, VIDEOS, 5, CLASSES)))
    labels = torch.from_numpy(rng.integers(0, 2, (*lead, VIDEOS, CLASSES))).to(dtype)
    found = pseudo_labels(indices, labels, SAMPLES)
    assert found.shape == (*lead, VIDEOS, SAMPLES)
    for at in np.ndindex(*lead, VIDEOS):
        picks = {int(t) for c in range(CLASSES) if labels[at][c] for t in indices[at][:, c]}
        assert found[at].tolist() == [float(t in picks) for t in range(SAMPLES)]


def test_labels_that_are_not_positive_are_absent() -> None:
    indices = torch.tensor([[0, 1, 2, 3]])
    labels = torch.tensor([1.0, torch.nan, -1.0, 0.0])
    assert pseudo_labels(indices, labels, 5).tolist() == [1, 0, 0, 0, 0]


def test_video_loss_is_that_of_written_out_samples(rng: np.random.Generator) -> None:
    settings = make_settings(num_classes=CLASSES, topk_divisor=4)
    cas = torch.from_numpy(rng.normal(size=(2, ROWS, CLASSES))).requires_grad_()
    attention = torch.from_numpy(rng.uniform(size=(2, ROWS)))
    # No row twice in a video: which of equals is picked is a backend's own.
    index = torch.from_numpy(np.stack([rng.permutation(ROWS)[:12] for _ in range(VIDEOS)]))
    labels = torch.eye(CLASSES, dtype=torch.float64)[:VIDEOS]
    labels[0, 1] = 1
    found, g = video_loss(cas, attention, index, labels, settings, batch=5)
    total, marks = torch.zeros((), dtype=torch.float64), torch.zeros(VIDEOS, 12)
    for v in range(VIDEOS):
        scores = cas[:, index[v]].softmax(-1).mean(0) + attention[:, index[v]].sum(0)[:, None]
        top = scores.detach().topk(3, dim=0).indices
        marks[v, top[:, labels[v] > 0].flatten()] = 1
        target = labels[v] / labels[v].sum() + 1e-10
        for m in range(2):
            pooled = torch.stack([cas[m, index[v][top[:, c]], c].mean() for c in range(CLASSES)])
            total = total - (target * pooled.log_softmax(-1)).sum() / (2 * 5)
    torch.testing.assert_close(found, total)
    assert torch.equal(g, marks)
    gradients = [torch.autograd.grad(loss, cas, retain_graph=True)[0] for loss in (found, total)]
    torch.testing.assert_close(*gradients)
