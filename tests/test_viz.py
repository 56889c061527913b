import dataclasses
import logging
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from case.errors import CaseError
from case.viz import Timeline, draw_ap, draw_curve, draw_timeline

pytest.importorskip("matplotlib")


def timeline(t: int = 100, **changed) -> Timeline:
    wave = 0.5 + 0.4 * np.sin(np.arange(t) / 5)
    values = {
        "video": "video_test_0000004",
        "duration": 60.0,
        "classes": ("CricketBowling", "CricketShot"),
        "truth": [(0, 5.0, 9.0), (1, 20.0, 24.0)],
        "detections": [(0, 0.9, 5.2, 9.3), (1, 0.7, 19.0, 24.0), (0, 0.01, 40.0, 50.0)],
        "attention": wave,
        "foreground": wave**2,
        "clusters": np.arange(t) % 4,
        "cluster_foreground": np.array([0.9, 0.6, 0.3, 0.1]),
    }
    return Timeline(**(values | changed))


def pixels(path: Path) -> NDArray[np.float32]:
    from matplotlib.image import imread

    return imread(path)


def drawn(tmp_path: Path, shown: Timeline) -> NDArray[np.float32]:
    draw_timeline(tmp_path / "a.png", shown)
    image = pixels(tmp_path / "a.png")
    assert image.shape[1] == 1400
    assert image.shape[0] > 200
    assert image.var() > 0.005
    assert [p.name for p in tmp_path.iterdir()] == ["a.png"]
    return image


def test_what_is_found_is_what_is_drawn(tmp_path) -> None:
    shown = timeline()
    first = drawn(tmp_path, shown)
    assert np.array_equal(first, drawn(tmp_path, shown))
    moved = [(0, 0.9, 30.0, 34.0), *shown.detections[1:]]
    for change in (
        {"detections": moved},
        {"truth": [(0, 5.0, 12.0), (1, 20.0, 24.0)]},
        {"attention": shown.attention * 0.5},
        {"foreground": shown.foreground * 0.5},
        {"clusters": shown.clusters[::-1]},
        {"cluster_foreground": np.array([0.1, 0.3, 0.6, 0.9])},
    ):
        other = drawn(tmp_path, dataclasses.replace(shown, **change))
        assert other.shape == first.shape
        assert not np.array_equal(first, other), change.keys()


def test_a_class_has_one_colour_in_truth_and_detections(tmp_path) -> None:
    blue = np.array([0x00, 0x72, 0xB2]) / 255
    for absent in ({"truth": []}, {"detections": []}):
        image = drawn(tmp_path, timeline(**absent))[:, 250:1300, :3]
        assert np.isclose(image, blue, atol=0.1).all(-1).any()


def test_low_scores_are_left_out() -> None:
    ranked = timeline().best_detections()
    assert [d[1] for d in ranked] == [0.9, 0.7]
    many = timeline(detections=[(0, 0.9 - i / 1000, 1.0 * i, 1.0 * i + 1) for i in range(50)])
    assert len(many.best_detections()) == 20
    assert len(dataclasses.replace(many, truth=[(0, 1.0, 2.0)] * 10).best_detections()) == 30
    negative = timeline(detections=[(0, -0.2, 1.0, 2.0), (1, -0.1, 1.0, 2.0)])
    assert [d[1] for d in negative.best_detections()] == [-0.1]


@pytest.mark.parametrize(
    "changed",
    [
        {"detections": []},
        {"truth": []},
        {"truth": [], "detections": []},
        {"truth": [], "detections": [], "activation": np.zeros((100, 2))},
        {"classes": ("Diving",), "truth": [(0, 1.0, 2.0)], "detections": [(0, 0.0, 1.0, 2.0)]},
        {"foreground": np.zeros(100), "cluster_foreground": np.zeros(0)},
        {"duration": 7200.0},
        {"activation": np.random.default_rng(0).random((100, 2))},
        {"video": "price_$5$_50%_{x", "classes": ("a_b^c$", "[bold]" * 20)},
        {"video": "视频", "classes": ("跳水", "台球")},
        {"cluster_foreground": [0.5, 0.5, 0.5, 0.5], "clusters": [0] * 100},
    ],
    ids=lambda changed: "+".join(changed),
)
def test_unusual_videos(tmp_path, changed) -> None:
    drawn(tmp_path, timeline(**changed))


def test_one_snippet(tmp_path) -> None:
    drawn(tmp_path, timeline(1, activation=np.array([[0.2, 0.7]]), duration=0.64, truth=[(1, 0.0, 0.64)]))


def test_activation_adds_a_row(tmp_path) -> None:
    plain = drawn(tmp_path, timeline())
    assert drawn(tmp_path, timeline(activation=np.full((100, 2), 0.5))).shape[0] > plain.shape[0]


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"duration": 0.0}, "duration > 0"),
        ({"foreground": np.zeros(3)}, r"foreground of .* shape \(100,\), got \(3,\)"),
        ({"activation": np.zeros((100, 5))}, r"activation of .* shape \(100, 2\)"),
        ({"truth": [(2, 0.0, 1.0)]}, r"truth of .* labels in \[0, 2\), got \[2\]"),
        ({"detections": [(-1, 0.5, 0.0, 1.0)]}, "detections of"),
        ({"clusters": np.full(100, 4)}, r"clusters of .* \[0, 4\)"),
    ],
)
def test_sizes_must_agree(changed, message) -> None:
    with pytest.raises(ValueError, match=message):
        timeline(**changed)


def test_curves(tmp_path) -> None:
    path = tmp_path / "curve.png"
    sparse = [float("nan") if i % 50 else i / 10 for i in range(200)]
    draw_curve(path, range(200), {"total": [8 - i / 50 for i in range(200)], "mAP": sparse}, ylabel="loss", title="t")
    first = pixels(path)
    assert first.shape[:2] == (450, 900)
    assert first.var() > 0.005
    draw_curve(path, range(200), {"total": [8 - i / 90 for i in range(200)], "mAP": sparse}, ylabel="loss", title="t")
    assert not np.array_equal(first, pixels(path))
    draw_curve(path, [], {}, ylabel="loss", title="nothing yet")
    with pytest.raises(ValueError, match="series 'mAP' must have one value per step"):
        draw_curve(path, [1, 2], {"mAP": [1.0]}, ylabel="mAP", title="t")


def test_ap(tmp_path) -> None:
    path = tmp_path / "ap.png"
    draw_ap(path, [0.3, 0.5, 0.7], {"attention only": [50.0, 30.0, 10.0], "CASE": [59.2, 37.7, 13.7]}, "THUMOS14")
    first = pixels(path)
    assert first.var() > 0.005
    draw_ap(path, [0.3, 0.5, 0.7], {"attention only": [50.0, 30.0, 10.0], "CASE": [59.2, 37.7, 23.7]}, "THUMOS14")
    assert not np.array_equal(first, pixels(path))
    draw_ap(path, [0.5], {"CASE": [0.0]}, "one bar")
    with pytest.raises(ValueError, match="series 'CASE' must have one value per threshold"):
        draw_ap(path, [0.5], {"CASE": [1.0, 2.0]}, "t")


def test_failures_leave_nothing_behind(tmp_path, monkeypatch) -> None:
    from matplotlib.figure import Figure

    with pytest.raises(CaseError, match="cannot write"):
        draw_timeline(tmp_path / "missing" / "a.png", timeline())
    draw_timeline(tmp_path / "a.png", timeline())
    before = (tmp_path / "a.png").read_bytes()

    def half(self, file, **_) -> None:
        file.write(b"half")
        raise RuntimeError("stopped half-way")

    monkeypatch.setattr(Figure, "savefig", half)
    with pytest.raises(RuntimeError, match="half-way"):
        draw_timeline(tmp_path / "a.png", timeline(detections=[]))
    assert [p.name for p in tmp_path.iterdir()] == ["a.png"]
    assert (tmp_path / "a.png").read_bytes() == before
    assert logging.getLogger("matplotlib").level == logging.NOTSET


@pytest.mark.slow
def test_first_picture_on_a_machine_is_silent(tmp_path) -> None:
    """No display, no font cache, no home to write to; matplotlib's own settings stay as they were."""
    code = (
        "import sys; import case.viz; assert 'matplotlib' not in sys.modules and 'torch' not in sys.modules\n"
        "case.viz.draw_ap('ap.png', [0.5], {'CASE': [30.0]}, 'mAP')\n"
        "assert 'matplotlib.pyplot' not in sys.modules\n"
    )
    blocked = tmp_path / "file"
    blocked.write_text("")
    environment = {k: v for k, v in os.environ.items() if k not in ("DISPLAY", "MPLBACKEND")}
    environment |= {"MPLCONFIGDIR": str(blocked / "matplotlib"), "PYTHONPATH": str(Path(__file__).parents[1])}
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert pixels(tmp_path / "ap.png").var() > 0.005
