"""Checkpoints of the authors' code: names, shapes, and a conversion that localizes."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from case.cli import main
from case.compat import from_released, load_released, released_sizes, to_released
from case.config import make_settings
from case.errors import CaseError
from case.model import CASE
from case.testing import replay_inference

GOLDEN = Path(__file__).parent / "golden"


@pytest.fixture
def files(tmp_path: Path) -> tuple[Path, Path]:
    """best_model.pkl and cls_gt.npy as the authors' code writes them."""
    with np.load(GOLDEN / "train.npz") as golden:
        names = [n for n in golden.files if n.startswith("final/")]
        state = {n.removeprefix("final/"): torch.from_numpy(golden[n]) for n in names}
    torch.save(state, tmp_path / "best_model.pkl")
    with np.load(GOLDEN / "inference.npz") as golden:
        np.save(tmp_path / "cls_gt.npy", golden["cls_gt"])
        for video in ("video_test_0000000", "video_test_0000001"):
            for stream, part in zip(("rgb", "flow"), np.split(golden[f"features/{video}"], 2, axis=1), strict=True):
                (tmp_path / "features" / stream).mkdir(parents=True, exist_ok=True)
                np.save(tmp_path / "features" / stream / f"{video}.npy", part)
    return tmp_path / "best_model.pkl", tmp_path / "cls_gt.npy"


def test_names_round_trip() -> None:
    settings = make_settings(num_classes=3, num_clusters=4, hidden=8)
    state = CASE((5, 7), settings).state_dict()
    released = to_released(state, settings.modalities)
    assert released["cas_module_flow.0.weight"].shape == (8, 7, 1)
    assert released["clu_head_rgb.prototypes.weight"].shape == (4, 8)
    restored = from_released(released, settings.modalities)
    assert set(restored) == set(state)
    assert all(torch.equal(restored[k], state[k]) for k in state)
    widths, sizes = released_sizes(released)
    assert widths == (5, 7)
    assert sizes == {"modalities": ("rgb", "flow"), "hidden": 8, "num_classes": 3, "num_clusters": 4}


def test_missing_and_unknown_weights_are_named() -> None:
    settings = make_settings(num_classes=3, num_clusters=4, hidden=8)
    released = to_released(CASE((5, 7), settings).state_dict(), settings.modalities)
    with pytest.raises(CaseError, match="weights this network lacks: extra"):
        from_released({**released, "extra": torch.zeros(1)}, settings.modalities)
    del released["att_module_flow.bias"]
    with pytest.raises(CaseError, match=r"lacks the weight 'att_module_flow\.bias'"):
        from_released(released, settings.modalities)


def test_a_converted_checkpoint_localizes_as_the_replay(files: tuple[Path, Path], tmp_path: Path) -> None:
    output, found = tmp_path / "released.safetensors", tmp_path / "found.json"
    assert main(["convert", *map(str, files), "--output", str(output)]) == 0
    assert main(["localize", str(output), "--features", str(tmp_path / "features"), "--output", str(found)]) == 0
    with np.load(GOLDEN / "inference.npz") as golden:
        videos = {v: golden[f"features/{v}"] for v in ("video_test_0000000", "video_test_0000001")}
    state, labels = load_released(*files)
    expected, _ = replay_inference(state, labels, videos)
    mine = json.loads(found.read_text())["results"]
    assert mine
    for video, rows in expected["results"].items():
        assert [d["label"] for d in mine[video]] == [d["label"] for d in rows]
        np.testing.assert_allclose([d["score"] for d in mine[video]], [d["score"] for d in rows], atol=1e-6)


class Harmful:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return print, ("this must never run",)


def test_damaged_and_harmful_files(
    files: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    weights, labels = files
    with pytest.raises(CaseError, match="file not found"):
        load_released(tmp_path / "none.pkl", labels)
    np.save(tmp_path / "odd.npy", np.zeros(3))
    with pytest.raises(CaseError, match=r"must have shape \(K, 2\)"):
        load_released(weights, tmp_path / "odd.npy")
    torch.save({"w": Harmful()}, tmp_path / "harmful.pkl")
    with pytest.raises(CaseError, match="not a file of plain weights"):
        load_released(tmp_path / "harmful.pkl", labels)
    assert "this must never run" not in capsys.readouterr().out
    weights.write_bytes(weights.read_bytes()[:500])
    with pytest.raises(CaseError, match="not a file of plain weights"):
        load_released(weights, labels)
