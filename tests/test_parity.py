"""The released computation, replayed: golden vectors in float32 on a CPU (case.testing)."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from case.errors import CaseError
from case.testing import replay_inference, replay_training

GOLDEN = Path(__file__).parent / "golden"
SETTINGS = {"num_classes": 20, "num_clusters": 6, "num_segments": 96, "lr": 1e-3, "class_threshold": 0.06}


@pytest.fixture(scope="module")
def golden() -> dict[str, np.ndarray]:
    with np.load(GOLDEN / "train.npz") as file:
        return {name: file[name] for name in file.files}


def weights(golden: dict[str, np.ndarray], prefix: str) -> dict[str, torch.Tensor]:
    return {k.removeprefix(prefix): torch.from_numpy(v) for k, v in golden.items() if k.startswith(prefix)}


@pytest.fixture(scope="module")
def run(golden: dict[str, np.ndarray]) -> dict[str, Any]:
    x, y = torch.from_numpy(golden["x"]), torch.from_numpy(golden["y"])
    return replay_training(weights(golden, "init/"), x, y, settings=SETTINGS)


def test_losses_of_all_steps(run: dict[str, Any], golden: dict[str, np.ndarray]) -> None:
    np.testing.assert_allclose(run["losses"], golden["losses"], rtol=2e-6)


@pytest.mark.parametrize("part", ["baseline", "baseline_scc", "total"])
def test_first_step_parts(run: dict[str, Any], golden: dict[str, np.ndarray], part: str) -> None:
    np.testing.assert_allclose(run["parts"][part], golden[f"step1_loss_{part}"], rtol=2e-6)


def test_first_step_gradients(run: dict[str, Any], golden: dict[str, np.ndarray]) -> None:
    expected = weights(golden, "step1_grad/")
    assert set(run["first_step_grad"]) == set(expected)
    for name, grad in expected.items():
        found = run["first_step_grad"][name]
        assert found.shape == grad.shape, name
        assert (found - grad).norm() <= 1e-4 * grad.norm(), name


def test_cluster_labels_of_all_steps(run: dict[str, Any], golden: dict[str, np.ndarray]) -> None:
    np.testing.assert_allclose(np.stack(run["cls_gt"]), golden["cls_gt"], atol=5e-5, rtol=0)


def test_final_weights(run: dict[str, Any], golden: dict[str, np.ndarray]) -> None:
    for name, value in weights(golden, "final/").items():
        torch.testing.assert_close(run["state"][name], value, atol=1e-3, rtol=0, msg=name)


def test_weights_move(run: dict[str, Any], golden: dict[str, np.ndarray]) -> None:
    """A replay that returned its input would meet the loose bound on the final weights' small entries."""
    for name, value in weights(golden, "init/").items():
        assert not torch.equal(run["state"][name], value), name


@pytest.mark.parametrize(
    ("name", "weight"), [("baseline", {"w_clu": 0.0, "w_cls": 0.0}), ("baseline_scc", {"w_cls": 0.0})]
)
def test_first_step_losses_of_the_ablations(golden: dict[str, np.ndarray], name: str, weight: dict[str, float]) -> None:
    x, y = torch.from_numpy(golden["x"][:1]), torch.from_numpy(golden["y"][:1])
    found = replay_training(weights(golden, "init/"), x, y, settings={**SETTINGS, **weight})
    np.testing.assert_allclose(found["losses"], golden[f"step1_loss_{name}"], rtol=2e-6)


@pytest.fixture(scope="module")
def inference() -> Iterator[dict[str, np.ndarray]]:
    with np.load(GOLDEN / "inference.npz") as file:
        yield {name: file[name] for name in file.files}


def test_detections(golden: dict[str, np.ndarray], inference: dict[str, np.ndarray]) -> None:
    features = {k.removeprefix("features/"): v for k, v in inference.items() if k.startswith("features/")}
    found, scores = replay_inference(weights(golden, "final/"), inference["cls_gt"], features, SETTINGS)
    expected = json.loads((GOLDEN / "detections.json").read_text())["results"]
    assert set(found["results"]) == set(expected)
    for video, rows in expected.items():
        mine = found["results"][video]
        assert [d["label"] for d in mine] == [d["label"] for d in rows], video
        np.testing.assert_allclose([d["score"] for d in mine], [d["score"] for d in rows], atol=1e-4, rtol=0)
        np.testing.assert_allclose([d["segment"] for d in mine], [d["segment"] for d in rows], atol=1e-4, rtol=0)
        assert scores[video].shape == (20,)
        np.testing.assert_allclose(scores[video].sum(), 1.0, rtol=1e-5)


def test_settings_that_do_not_fit_the_weights(golden: dict[str, np.ndarray]) -> None:
    x, y = torch.from_numpy(golden["x"]), torch.from_numpy(golden["y"])
    with pytest.raises(CaseError, match="num_clusters = 16, the weights have 6"):
        replay_training(weights(golden, "init/"), x, y, settings={"num_clusters": 16})
    with pytest.raises(CaseError, match=r"x must have shape \(steps, B, T, 64\)"):
        replay_training(weights(golden, "init/"), x[..., :40], y, settings=SETTINGS)
    with pytest.raises(CaseError, match="unknown setting 'clusters'"):
        replay_training(weights(golden, "init/"), x, y, settings={"clusters": 6})


def test_double_precision_agrees_with_single(run: dict[str, Any], golden: dict[str, np.ndarray]) -> None:
    """The released code's own float32 and float64 differ by 1e-7 in the loss; so must ours."""
    x, y = torch.from_numpy(golden["x"][:2]).double(), torch.from_numpy(golden["y"][:2]).double()
    init = {k: v.double() for k, v in weights(golden, "init/").items()}
    previous = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        double = replay_training(init, x, y, settings=SETTINGS)
    finally:
        torch.set_default_dtype(previous)
    np.testing.assert_allclose(double["losses"], run["losses"][:2], rtol=5e-7)


def test_sizes_come_from_the_weights_and_arrays_will_do(golden: dict[str, np.ndarray], run: dict[str, Any]) -> None:
    init = {k.removeprefix("init/"): v for k, v in golden.items() if k.startswith("init/")}
    found = replay_training(init, golden["x"][:1], golden["y"][:1], settings={"lr": 1e-3})
    assert found["losses"] == pytest.approx(run["losses"][:1], rel=1e-6)
