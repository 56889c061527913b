"""The released code's inputs and outputs (tests/golden): the ops give the same, in the same order."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from case import ops

GOLDEN = Path(__file__).parents[1] / "golden"
SINKHORN, NMS, PROPOSALS = (np.load(GOLDEN / f"{name}.npz") for name in ("sinkhorn", "nms", "proposals"))
NMS_OUTPUTS = [key for key in NMS.files if key.startswith("out_")]
WINDOW_SECONDS = 16 / 25  # 16-frame snippets at 25 frames a second


@pytest.mark.op("sinkhorn")
@pytest.mark.parametrize("i", range(3))
def test_sinkhorn(close, device, i):
    def tensor(key: str) -> torch.Tensor:
        return torch.from_numpy(SINKHORN[f"{key}_{i}"]).to(device)

    for inputs, given, output in (
        ("logits", {}, "q_uniform"),
        ("logits", {"prior": tensor("prior")}, "q_prior"),
        ("cls_logits", {"col_marginal": tensor("cls_marginal")}, "q_cls"),
    ):
        # 5e-6: the released code works in float32 in the linear domain and has an error of its own.
        close(ops.sinkhorn(tensor(inputs), scale=2.0, n_iters=3, **given), tensor(output), 5e-6)


@pytest.mark.op("batched_nms")
@pytest.mark.parametrize("key", NMS_OUTPUTS)
def test_nms(device, key):
    _, i, threshold, kind = key.split("_")
    rows = torch.from_numpy(NMS[f"in_{i}"]).to(device)
    method = {"soft": "decay_once", "hard": "hard"}[kind]
    keep, scores = ops.nms(
        rows[:, 2:], rows[:, 1], float(threshold.removeprefix("th")), method=method, sigma=0.35, length_offset=1.0
    )
    expected = NMS[key]
    assert np.array_equal(rows[keep][:, 2:].numpy(force=True), expected[:, 2:])
    assert np.array_equal(rows[keep][:, 0].numpy(force=True), expected[:, 0])
    np.testing.assert_allclose(scores.numpy(force=True), expected[:, 1], rtol=1e-15, atol=0)


@pytest.mark.op("propose")
@pytest.mark.parametrize("i", range(3))
def test_propose(device, i):
    cas, pred, score = (torch.from_numpy(PROPOSALS[f"{key}_{i}"]).to(device) for key in ("cas", "pred", "score"))
    found = ops.propose(
        cas,
        np.arange(1, 10) / 10,
        upsample=24,
        outer_ratio=0.15,
        score_weight=0.2,
        video_scores=score[pred],
        seconds_per_row=float(PROPOSALS[f"num_snippets_{i}"]) * WINDOW_SECONDS / cas.shape[0],
        keep_first_sample=False,
    )
    expected = PROPOSALS[f"proposals_{i}"]
    assert np.array_equal(found.threshold.numpy(force=True), expected[:, 0].astype(int))
    assert np.array_equal(pred[found.classes].numpy(force=True), expected[:, 1].astype(int))
    # The released code multiplies gamma by the video score in float32.
    np.testing.assert_allclose(found.scores.numpy(force=True), expected[:, 2], rtol=0, atol=2e-8)
    np.testing.assert_allclose(found.segments.numpy(force=True), expected[:, 3:], rtol=1e-13, atol=0)
    assert (found.video == 0).all()
