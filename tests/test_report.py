import dataclasses

import numpy as np
import pytest

from case.config import Settings, make_settings
from case.errors import CaseError
from case.metrics import ERRORS, Instances, MeanAP, average_recall, diagnose
from case.report import (
    ap_rows,
    changed_settings,
    error_rows,
    per_class_rows,
    protocol_changes,
    protocol_rows,
    recall_rows,
    spread_rows,
    write_markdown,
)

THUMOS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7)


def result(*levels: float, tiou: tuple[float, ...] = THUMOS) -> MeanAP:
    """Two classes whose AP lies 0.05 above and below the levels."""
    ap = np.asarray(levels)[:, None] + np.array([-0.05, 0.05])
    return MeanAP(tiou, ("Diving", "Billiards"), ap)


PUBLISHED = result(0.723, 0.659, 0.592, 0.484, 0.377, 0.262, 0.137)


def test_thumos_has_both_averages() -> None:
    columns, rows = ap_rows({"last": PUBLISHED})
    assert columns == ["result", "0.1", "0.2", "0.3", "0.4", "0.5", "0.6", "0.7", "0.1:0.5", "0.1:0.7"]
    assert rows == [["last", "72.3", "65.9", "59.2", "48.4", "37.7", "26.2", "13.7", "56.7", "46.2"]]


def test_thresholds_by_steps_are_found() -> None:
    tiou = tuple(float(t) for t in np.arange(1, 8) * 0.1)  # 0.30000000000000004 among them
    assert ap_rows({"last": result(*[0.5] * 7, tiou=tiou)})[0][-2:] == ["0.1:0.5", "0.1:0.7"]


def test_other_thresholds_have_the_mean() -> None:
    columns, rows = ap_rows({"a": result(0.4, 0.2, tiou=(0.5, 0.75)), "b": result(0.3, 0.1, tiou=(0.5, 0.75))})
    assert columns == ["result", "0.5", "0.75", "mean"]
    assert rows == [["a", "40.0", "20.0", "30.0"], ["b", "30.0", "10.0", "20.0"]]


def test_only_half_of_thumos() -> None:
    tiou = THUMOS[:5]
    assert ap_rows({"last": result(*[0.5] * 5, tiou=tiou)})[0][6:] == ["0.1:0.5"]


def test_different_thresholds_are_refused() -> None:
    with pytest.raises(ValueError, match="same IoU thresholds"):
        ap_rows({"a": PUBLISHED, "b": result(0.4, tiou=(0.5,))})


def test_no_classes_and_no_results() -> None:
    columns, rows = ap_rows({"last": MeanAP((0.5,), (), np.zeros((1, 0)))})
    assert (columns, rows) == (["result", "0.5", "mean"], [["last", "-", "-"]])
    assert ap_rows({})[1] == []


def test_classes_best_first() -> None:
    columns, rows = per_class_rows(result(0.6, 0.3, tiou=(0.3, 0.5)))
    assert columns == ["class", "0.3", "0.5", "mean"]
    assert rows == [["Billiards", "65.0", "35.0", "50.0"], ["Diving", "55.0", "25.0", "40.0"]]


def test_changes_are_those_of_the_last_average() -> None:
    nothing = MeanAP(THUMOS, (), np.zeros((7, 0)))
    better = result(*(level + 0.01 for level in (0.723, 0.659, 0.592, 0.484, 0.377, 0.262, 0.137)))
    results = {"refused": nothing, "base": PUBLISHED, "better": better}
    changes = protocol_changes(results)
    assert changes["refused"] is None
    assert changes["base"] == 0.0
    assert changes["better"] == pytest.approx(0.01)
    columns, rows = protocol_rows(results)
    assert columns[-2:] == ["0.1:0.7", "change"]
    assert [row[-1] for row in rows] == ["-", "+0.00", "+1.00"]
    tail = {"a": result(0.4, 0.2, tiou=(0.5, 0.75)), "b": result(0.3, 0.1, tiou=(0.5, 0.75))}
    assert protocol_changes(tail)["b"] == pytest.approx(-0.1)


def test_mean_and_deviation_over_runs() -> None:
    runs = [result(level, 0.2, tiou=(0.5, 0.75)) for level in (0.4, 0.5, 0.6)]
    columns, rows = spread_rows({"lr=1": runs, "lr=2": runs[:1]})
    assert columns == ["setting", "n", "0.5", "0.75", "mean"]
    assert rows == [["lr=1", "3", "50.0 ± 10.0", "20.0 ± 0.0", "35.0 ± 5.0"], ["lr=2", "1", "40.0", "20.0", "30.0"]]
    with pytest.raises(ValueError, match="same IoU thresholds"):
        spread_rows({"a": [*runs, PUBLISHED]})


def test_errors_and_recall() -> None:
    truth = Instances(np.zeros(2, int), np.arange(2), np.array([[0.0, 10.0], [20.0, 30.0]]), np.zeros(2))
    segments = np.array([[0.0, 10.0], [50.0, 60.0], [0.0, 9.0]])
    found = Instances(np.zeros(3, int), np.zeros(3, int), segments, np.array([0.9, 0.8, 0.7]))
    columns, rows = error_rows(diagnose(truth, found, ("Diving", "Golf")))
    assert columns == ["class", "instances", *ERRORS]
    assert rows[0] == ["all", "2", "1", "1", "0", "0", "0", "1"]
    assert rows[1] == ["Diving", "1", "1", "1", "0", "0", "0", "1"]
    assert rows[2] == ["Golf", "1", "0", "0", "0", "0", "0", "0"]
    assert rows[3] == ["mAP without", "-", "-", "+0.0", "+0.0", "+0.0", "+0.0", "+0.0"]
    assert recall_rows(average_recall(truth, found, (0.5,)), (1, 100)) == (
        ["AR@1", "AR@100", "AUC"],
        [["50.0", "50.0", "49.5"]],
    )


def test_changed_settings() -> None:
    assert changed_settings(Settings()) == []
    names = [row[0] for row in changed_settings(make_settings("demo", "corrected", hidden=64))]
    assert names[0] == "protocol"
    assert {"hidden", "num_segments", "prior_ranks", "keep_checkpoint"} <= set(names)
    many = changed_settings(Settings(num_classes=30, class_names=tuple("abcdefghijklmnopqrstuvwxyzABCD")))
    assert ["class_names", "30 values", "None"] in many


def test_report(tmp_path) -> None:
    picture = tmp_path / "timelines" / "my video.png"
    results = {"last (step 9)": PUBLISHED, "best-test (step 5, selected on the test set)": PUBLISHED}
    write_markdown(
        tmp_path / "report.md",
        make_settings(protocol="corrected"),
        results,
        [picture],
        title="a | b",
        origin={"command": "case-wtal train"},
    )
    text = (tmp_path / "report.md").read_text(encoding="utf-8")
    assert text.startswith("# a \\| b\n")
    assert "the run's result is `last`" in text
    assert "| best-test (step 5, selected on the test set) | 72.3 |" in text
    assert "| prior_sigma | 0.3 | 10.0 |" in text
    assert "![my video](timelines/my%20video.png)" in text
    assert "| Billiards |" in text
    assert "| command | case-wtal train |" in text
    assert str(tmp_path) not in text
    assert [p.name for p in tmp_path.iterdir()] == ["report.md"]


def test_report_of_defaults_and_no_test_selection(tmp_path) -> None:
    write_markdown(tmp_path / "report.md", Settings(), {"last": PUBLISHED})
    text = (tmp_path / "report.md").read_text(encoding="utf-8")
    assert "All at defaults." in text
    assert "Pictures" not in text
    assert "Origin" not in text
    assert "chosen by its score" not in text


def test_where_files_lie_is_no_setting() -> None:
    @dataclasses.dataclass(frozen=True)
    class Run(Settings):
        output: str = "runs/case"
        seed: int = 0

    assert changed_settings(Run(output="elsewhere", seed=3)) == [["seed", "3", "0"]]


def test_unwritable_folder(tmp_path) -> None:
    with pytest.raises(CaseError, match="cannot write"):
        write_markdown(tmp_path / "missing" / "report.md", Settings(), {"last": PUBLISHED})
