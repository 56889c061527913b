"""The command line: from data to results, and every kind of bad input in one line with exit code 2."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from case import __version__
from case.cli import COMMANDS, main
from case.data import SyntheticConfig, write

GOLDEN = Path(__file__).parent / "golden"
SMALL = [
    "--num-segments", "40", "--num-clusters", "4", "--hidden", "16", "--batch-size", "4", "--max-steps", "4",
    "--eval-every", "2", "--lr", "1e-2", "--pictures", "1", "--protocol", "corrected",
]  # fmt: skip
Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def case(capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs ``case`` in this process: (exit code, stdout, stderr)."""

    def run(*args: object) -> tuple[int, str, str]:
        capsys.readouterr()
        try:
            code = main([str(a) for a in args])
        except SystemExit as stop:
            code = int(stop.code or 0)
        out, err = capsys.readouterr()
        return code, out, err

    return run


def error_of(result: tuple[int, str, str]) -> str:
    """The one error line of a run that must have failed with code 2 and without a traceback."""
    code, out, err = result
    assert code == 2, (out, err)
    assert "Traceback" not in err
    lines = [line for line in err.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1, err
    return lines[0]


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("source") / "data"
    write(SyntheticConfig(num_train=8, num_test=4, num_classes=3, width=8, seed=5), folder)
    return folder


@pytest.fixture
def data(source: Path, tmp_path: Path) -> Path:
    """A copy that a test may spoil."""
    return Path(shutil.copytree(source, tmp_path / "data"))


@pytest.fixture(scope="module")
def trained(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("runs") / "run"
    assert main(["train", "--data", str(source), "--output", str(output), *SMALL]) == 0
    return output


def test_help_is_quick_and_does_not_load_torch() -> None:
    command = "import sys; from case.cli import main; main(['--help']); assert 'torch' not in sys.modules"
    times = []
    for _ in range(3):
        started = time.perf_counter()
        done = subprocess.run([sys.executable, "-c", command], capture_output=True, text=True, check=True)
        times.append(time.perf_counter() - started)
    assert min(times) < 0.5, times
    assert all(name in done.stdout for name in COMMANDS)


@pytest.mark.parametrize("command", [*(c for c in COMMANDS if c != "data"), "data check"])
def test_every_command_has_help(case: Run, command: str) -> None:
    code, out, _ = case(*command.split(), "--help")
    assert code == 0
    assert command in out
    assert "None}" not in out  # a flag that may be left out says what it takes, not how that is stored


def test_the_command_can_be_typed_into_a_shell() -> None:
    """``case`` is a reserved word of every POSIX shell; README's commands must not begin with it."""
    folder = Path(sys.executable).parent
    for line in (f"{folder}/case-wtal --version", f"{folder}/python -m case --version"):
        done = subprocess.run(["bash", "-c", line], capture_output=True, text=True, check=True)
        assert done.stdout.startswith("case 0.")
    readme = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")
    for block in readme.split("```bash")[1:]:
        commands = block.split("```")[0]
        assert subprocess.run(["bash", "-n", "-c", commands], capture_output=True, check=False).returncode == 0, (
            commands
        )


def test_version_and_unknown_command(case: Run) -> None:
    assert case("--version")[1].startswith("case 0.")
    assert "unknown command 'trian'; one of: train" in error_of(case("trian"))


def test_train_leaves_results_and_pictures(trained: Path) -> None:
    for name in (
        "config.toml",
        "metrics.jsonl",
        "results.json",
        "detections.json",
        "report.md",
        "ap.png",
        "curve_map.png",
    ):
        assert (trained / name).stat().st_size > 0, name
    assert len(list((trained / "timelines").glob("*.png"))) == 1
    assert list((trained / "tensorboard").iterdir())
    results = json.loads((trained / "results.json").read_text())
    assert results["kept"] == "last"
    assert set(results["last"]) >= {"mAP", "tiou", "ap_per_tiou", "ap_per_class", "step", "video_accuracy"}
    assert results["last"]["step"] == 4
    report = (trained / "report.md").read_text()
    for line in ("date", "command", "seed", f"versions | case {__version__}"):
        assert f"| {line}" in report


def test_evaluate_of_a_run_agrees_with_its_results(case: Run, trained: Path, tmp_path: Path) -> None:
    out = tmp_path / "score.json"
    assert case("evaluate", trained, "--json", out)[0] == 0
    results = json.loads((trained / "results.json").read_text())["last"]
    assert json.loads(out.read_text())["mAP"] == pytest.approx(results["mAP"], abs=1e-12)


def test_evaluate_of_files_agrees_with_the_run(case: Run, trained: Path, source: Path, tmp_path: Path) -> None:
    out = tmp_path / "score.json"
    files = ("--ground-truth", source / "gt.json", "--predictions", trained / "detections.json")
    assert case("evaluate", *files, "--subset", "test", "--tiou", "0.1:0.1:0.7", "--json", out)[0] == 0
    results = json.loads((trained / "results.json").read_text())["last"]
    found = json.loads(out.read_text())
    assert found["mAP"] == pytest.approx(results["mAP"], abs=1e-12)
    assert set(found) >= {"mAP", "tiou", "ap_per_tiou", "ap_per_class"}


def test_evaluate_golden_files(case: Run, tmp_path: Path) -> None:
    out = tmp_path / "score.json"
    files = ("--ground-truth", GOLDEN / "gt.json", "--predictions", GOLDEN / "detections.json")
    code, text, _ = case("evaluate", *files, "--subset", "test", "--tiou", "0.1:0.1:0.7", "--json", out)
    assert code == 0
    assert "0.1:0.7" in text
    with np.load(GOLDEN / "inference.npz") as golden:
        np.testing.assert_allclose(json.loads(out.read_text())["ap_per_tiou"], golden["ap_per_tiou"], atol=1e-9)


def small_files(folder: Path) -> tuple[str, Path, str, Path]:
    """Ground truth with a stretch labelled Ambiguous and an annotation twice; one detection is there, one is right."""
    truth = {
        "a": {
            "subset": "test",
            "annotations": [
                {"label": "dive", "segment": [0, 10]},
                {"label": "dive", "segment": [0, 10]},
                {"label": "Ambiguous", "segment": [20, 30]},
            ],
        }
    }
    found = {
        "a": [
            {"label": "dive", "score": 0.9, "segment": [22, 28]},
            {"label": "dive", "score": 0.8, "segment": [0, 10]},
        ]
    }
    (folder / "gt.json").write_text(json.dumps({"database": truth}))
    (folder / "found.json").write_text(json.dumps({"results": found}))
    return "--ground-truth", folder / "gt.json", "--predictions", folder / "found.json"


def test_evaluate_under_each_choice(case: Run, tmp_path: Path) -> None:
    files, out = small_files(tmp_path), tmp_path / "score.json"
    code, text, _ = case("evaluate", *files, "--tiou", "0.5", "--protocol-report", "--json", out)
    assert code == 0
    assert "change in points" in text
    found = json.loads(out.read_text())
    protocols = found["protocols"]
    assert next(iter(protocols)) == "released rules"
    assert protocols["released rules"] == {"mAP": found["mAP"], "ap_per_tiou": found["ap_per_tiou"], "change": 0.0}
    assert found["mAP"] == pytest.approx(1 / 8)  # dive 1/4, Ambiguous 0
    assert protocols["class Ambiguous dropped"]["mAP"] == pytest.approx(1 / 4)
    assert protocols["ambiguous forgiven (THUMOS14)"]["mAP"] == pytest.approx(1 / 2)
    assert protocols["duplicates dropped"]["mAP"] == pytest.approx(1 / 4)
    assert protocols["duplicates dropped"]["change"] == pytest.approx(1 / 8)
    assert f"{100 / 8:+.2f}" in text
    assert (
        case("evaluate", *files, "--tiou", "0.5", "--ambiguous", "forgive", "--drop-duplicates", "--json", out)[0] == 0
    )
    assert json.loads(out.read_text())["mAP"] == 1.0


def test_evaluate_says_what_has_no_effect(case: Run, tmp_path: Path) -> None:
    files, stretches = small_files(tmp_path), tmp_path / "ambiguous.txt"
    stretches.write_text("a 20 30\n")
    assert "--ambiguous forgive" in error_of(case("evaluate", *files, "--ambiguous-file", stretches))
    assert "--data is for a run" in error_of(case("evaluate", *files, "--data", tmp_path))
    truth = json.loads((tmp_path / "gt.json").read_text())
    del truth["database"]["a"]["annotations"][2]
    (tmp_path / "gt.json").write_text(json.dumps(truth))
    code, _, warnings = case("evaluate", *files, "--ambiguous", "forgive")
    assert code == 0
    assert "--ambiguous forgive changes nothing" in warnings


def test_evaluate_with_ambiguous_stretches_of_a_file(case: Run, tmp_path: Path) -> None:
    files, out, stretches = small_files(tmp_path), tmp_path / "score.json", tmp_path / "ambiguous.txt"
    stretches.write_text("a  0 2\nelsewhere 0 1\n")
    flags = ("--ambiguous-file", stretches, "--ambiguous", "remove", "--tiou", "0.5", "--json", out)
    assert case("evaluate", *files, *flags)[0] == 0
    assert json.loads(out.read_text())["mAP"] == 0.0
    stretches.write_text("a 0\n")
    assert "line 1 must be a video, a start and an end, got 'a 0'" in error_of(case("evaluate", *files, *flags))
    stretches.write_text("a 0 nan\n")
    assert "line 1 must be a video, a start and an end" in error_of(case("evaluate", *files, *flags))
    stretches.unlink()
    assert "ambiguous.txt: file not found" in error_of(case("evaluate", *files, *flags))


def test_evaluate_with_unseen_labels(case: Run, tmp_path: Path) -> None:
    files, out = small_files(tmp_path), tmp_path / "score.json"
    content = json.loads((tmp_path / "found.json").read_text())
    content["results"]["a"].append({"label": "unicorn", "score": 1, "segment": [0, 1]})
    (tmp_path / "found.json").write_text(json.dumps(content))
    assert "lacks: unicorn; rename or drop them" in error_of(case("evaluate", *files))
    assert case("evaluate", *files, "--ignore-unseen-labels", "--tiou", "0.5", "--json", out)[0] == 0
    assert json.loads(out.read_text())["mAP"] == pytest.approx(1 / 8)
    code, _, err = case("evaluate", *files, "--protocol-report", "--errors", "--tiou", "0.5", "--json", out)
    assert code == 0
    assert "warning: detections have labels that the ground truth lacks: unicorn" in err
    found = json.loads(out.read_text())
    assert found["protocols"]["refused: unseen labels"] is None
    assert found["protocols"]["unseen labels ignored"]["mAP"] == found["mAP"] == pytest.approx(1 / 8)


def test_evaluate_errors(case: Run, tmp_path: Path) -> None:
    files, out = small_files(tmp_path), tmp_path / "score.json"
    code, text, _ = case("evaluate", *files, "--errors", "--ambiguous", "drop", "--json", out)
    assert code == 0
    assert "AR@100" in text
    assert "double detection" in text
    found = json.loads(out.read_text())
    assert found["errors"]["per_class"]["dive"]["true positive"] == 1
    assert found["errors"]["per_class"]["dive"]["background"] == 1
    assert found["average_recall"]["AR"][-1] == 1.0
    assert "the 10 G first of each class: " in " ".join(text.split())
    code, text, _ = case("evaluate", *files, "--errors", "--ambiguous", "drop", "--errors-top", "0.001")
    assert code == 0
    assert "the 0.001 G first of each class: 0 of " in " ".join(text.split())
    stretches = tmp_path / "ambiguous.txt"
    stretches.write_text("a 0 1000\n")
    forgiving = ("--ambiguous-file", stretches, "--ambiguous", "forgive", "--json", out)
    code, text, _ = case("evaluate", *files, "--errors", *forgiving)
    assert code == 0
    assert "1 of them forgiven" in " ".join(text.split())
    found = json.loads(out.read_text())
    assert found["errors"]["per_class"]["dive"]["true positive"] == 1
    assert found["errors"]["per_class"]["dive"]["background"] == 0
    assert found["errors"]["forgiven"] == 1
    for flag, value in (("--errors-tiou", "0"), ("--errors-tiou", "nan"), ("--errors-top", "-1")):
        assert flag[2:].replace("-", "_") in error_of(case("evaluate", *files, "--errors", flag, value))


def test_evaluate_a_run_as_released_and_as_corrected(case: Run, trained: Path, tmp_path: Path) -> None:
    """The run is ``corrected``: what differs is how the released code would localize from the same activations."""
    out = tmp_path / "score.json"
    code, text, _ = case("evaluate", trained, "--protocol-report", "--errors", "--json", out)
    assert code == 0
    assert "3 proposal score released" in text
    found = json.loads(out.read_text())
    names = [name for name in found["protocols"] if "released" in name.split()[-1:] or "corrected" in name]
    assert names == [f"{what} released" for what in ("3 proposal score", "4 NMS lengths", "5 first sample", "3, 4, 5")]
    results = json.loads((trained / "results.json").read_text())["last"]
    assert found["mAP"] == pytest.approx(results["mAP"], abs=1e-12)


def test_localize_agrees_with_training(case: Run, trained: Path, source: Path, tmp_path: Path) -> None:
    out = tmp_path / "found.json"
    assert case("localize", trained, "--features", source / "features" / "test", "--output", out)[0] == 0
    mine, theirs = (json.loads(p.read_text())["results"] for p in (out, trained / "detections.json"))
    assert {k: v for k, v in mine.items() if v} == {k: v for k, v in theirs.items() if v}


def test_localize_in_bf16(case: Run, trained: Path, source: Path, tmp_path: Path) -> None:
    """About the same detections: products lose digits, nothing else does."""
    found = {}
    for precision in ("fp32", "bf16"):
        output = tmp_path / f"{precision}.json"
        given = ("--features", source / "features" / "test", "--output", output, "--precision", precision)
        assert case("localize", trained, *given)[0] == 0
        found[precision] = json.loads(output.read_text())["results"]
    assert found["fp32"].keys() == found["bf16"].keys()
    assert found["fp32"] != found["bf16"]
    for video, wanted in found["fp32"].items():
        best, got = (max((d["score"] for d in r), default=0) for r in (wanted, found["bf16"][video]))
        assert got == pytest.approx(best, abs=0.1)


def test_localize_at_another_rate(case: Run, trained: Path, source: Path, tmp_path: Path) -> None:
    """Half as many frames per second, or twice as many frames a row: the same detections, of twice the times."""
    features = source / "features" / "test"
    found = []
    for number, flags in enumerate(((), ("--fps", "12.5"), ("--snippet-stride", "32"))):
        out = tmp_path / f"{number}.json"
        settings = ("--features", features, "--output", out, *flags)
        assert case("localize", trained, *settings)[0] == 0
        found.append(json.loads(out.read_text())["results"])
    for video, plain in found[0].items():
        assert found[1][video] == found[2][video]
        for slow, one in zip(found[1][video], plain, strict=True):
            assert slow["segment"] == pytest.approx([2 * t for t in one["segment"]])
    for flag in ("--fps", "--snippet-stride"):
        name = flag[2:].replace("-", "_")
        line = error_of(case("localize", trained, "--features", features, flag, "0"))
        assert f"{name} must be greater than 0, got 0" in line


def test_resume_goes_on(case: Run, trained: Path, tmp_path: Path) -> None:
    output = Path(shutil.copytree(trained, tmp_path / "run"))
    assert case("train", "--resume", "--output", output, "--max-steps", "6")[0] == 0
    assert json.loads((output / "results.json").read_text())["last"]["step"] == 6
    assert "started with protocol corrected" in error_of(
        case("train", "--resume", "--output", output, "--protocol", "released")
    )


def test_the_configuration_of_a_resumed_run_starts_another(case: Run, trained: Path, tmp_path: Path) -> None:
    output = Path(shutil.copytree(trained, tmp_path / "run"))
    assert case("train", "--resume", "--output", output, "--max-steps", "5")[0] == 0
    file = output / "config.toml"
    assert "resume" not in tomllib.loads(file.read_text())
    file.write_text(file.read_text() + "resume = true\n")  # as earlier versions left it
    args = ("train", "--config", file, "--max-steps", "1", "--pictures", "0", "--output", tmp_path / "again")
    assert case(*args)[0] == 0
    assert not {"resume", "config"} & tomllib.loads((tmp_path / "again" / "config.toml").read_text()).keys()
    assert "already holds a run" in error_of(case(*args))


def test_config_file_and_flags(case: Run, source: Path, tmp_path: Path) -> None:
    file = tmp_path / "c.toml"
    file.write_text(f'data = "{source}"\nnum_clusters = 5\nlr = 1e-3\nprotocol = "corrected"\nprior_sigma = 0.2\n')
    small = [s for s in SMALL if s not in ("--lr", "1e-2", "--protocol", "corrected")]
    args = ["train", "--config", file, "--output", tmp_path / "run", *small, "--num-clusters", "3"]
    assert case(*args, "--max-steps", "1", "--pictures", "0")[0] == 0
    saved = (tmp_path / "run" / "config.toml").read_text()
    for line in ("num_clusters = 3", "lr = 0.001", "prior_sigma = 0.2", 'protocol = "corrected"', "outer_ratio = 0.25"):
        assert line in saved.splitlines()


def spoil_array(change: Callable[[np.ndarray], Any]) -> Callable[[Path], None]:
    def spoil(data: Path) -> None:
        path = next(iter(sorted((data / "features" / "train" / "rgb").glob("*.npy"))))
        np.save(path, change(np.load(path)), allow_pickle=True)

    return spoil


def cut_file(data: Path) -> None:
    path = next(iter(sorted((data / "features" / "train" / "rgb").glob("*.npy"))))
    path.write_bytes(path.read_bytes()[:100])


def rewrite_truth(change: Callable[[dict[str, Any]], None]) -> Callable[[Path], None]:
    def spoil(data: Path) -> None:
        path = data / "gt.json"
        content = json.loads(path.read_text())
        video = (data / "split_train.txt").read_text().split()[0]
        change(content["database"][video])
        path.write_text(json.dumps(content))

    return spoil


def name_a_ghost(data: Path) -> None:
    path = data / "split_train.txt"
    path.write_text(path.read_text() + "ghost\n")


def set_nan(x: np.ndarray) -> np.ndarray:
    x[1, 2] = np.nan
    return x


def past_the_end(entry: dict[str, Any]) -> None:
    entry["annotations"][0]["segment"][1] = entry["duration"] + 60


def unknown_label(entry: dict[str, Any]) -> None:
    entry["annotations"][0]["label"] = "unicorn"


SPOILED = {
    "missing folder": (lambda d: shutil.rmtree(d), "feature folder not found"),
    "missing ground truth": (lambda d: (d / "gt.json").unlink(), "gt.json"),
    "missing split": (lambda d: (d / "split_test.txt").unlink(), "split_test.txt"),
    "video without features": (name_a_ghost, "ghost"),
    "zero length": (spoil_array(lambda x: x[:0]), "no features"),
    "NaN": (spoil_array(set_nan), "NaN"),
    "other width": (spoil_array(lambda x: x[:, :5]), "numbers per row"),
    "not 2-D": (spoil_array(lambda x: x[None]), r"shape (rows, width)"),
    "pickled": (spoil_array(lambda x: x.astype(object)), "pickled"),
    "corrupt": (cut_file, "npy"),
    "unknown label": (rewrite_truth(unknown_label), "unicorn"),
    "segment past the end": (rewrite_truth(past_the_end), "ends past the video"),
    "streams far apart": (spoil_array(lambda x: x[: len(x) // 2]), "too far apart"),
    "no label": (rewrite_truth(lambda e: e["annotations"].clear()), "no label"),
}


@pytest.mark.parametrize("kind", SPOILED)
def test_bad_data_is_told_before_anything_is_written(case: Run, data: Path, tmp_path: Path, kind: str) -> None:
    spoil, expected = SPOILED[kind]
    spoil(data)
    line = error_of(case("train", "--data", data, "--output", tmp_path / "run", *SMALL))
    assert expected in line
    assert not (tmp_path / "run").exists()
    code, out, err = case("data", "check", data)
    assert code == 2
    assert expected in out + err


def test_streams_one_row_apart_are_trimmed_with_a_warning(case: Run, data: Path, tmp_path: Path) -> None:
    spoil_array(lambda x: x[:-1])(data)
    code, _, err = case("train", "--data", data, "--output", tmp_path / "run", *SMALL, "--max-steps", "1")
    assert code == 0
    assert "warning: " in err
    assert "streams differ in length" in err


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        (["--num-segments", "0"], "num_segments must be greater than 0"),
        (["--device", "tpu0"], "device"),
        (["--device", "cuda"], "device"),
        (["--fps", "-1"], "fps"),
        (["--tiou", "0.7:0.1:0.1"], "tiou"),
        (["--log-every", "0"], "log_every"),
        (["--threads", "-1"], "threads"),
        (["--pictures", "-1"], "pictures"),
        (["--seed", str(2**70)], "seed"),
        (["--betas", "0.9", "1.5"], "betas"),
        (["--score-weight", "nan"], "score_weight"),
    ],
)
def test_bad_flags(case: Run, source: Path, tmp_path: Path, flags: list[str], expected: str) -> None:
    import torch

    if flags[-1] == "cuda" and torch.cuda.is_available():
        pytest.skip("a CUDA device is present")
    result = case("train", "--data", source, "--output", tmp_path / "run", *SMALL, *flags)
    assert expected in error_of(result)
    assert not (tmp_path / "run").exists()


def test_an_unknown_subset_is_told_before_training(case: Run, data: Path, tmp_path: Path) -> None:
    described = json.loads((data / "dataset.json").read_text())
    (data / "dataset.json").write_text(json.dumps({**described, "test_subset": "elsewhere"}))
    line = error_of(case("train", "--data", data, "--output", tmp_path / "run", *SMALL))
    assert "no annotation in subset 'elsewhere'" in line
    assert not (tmp_path / "run").exists()


def test_training_on_test_videos_is_refused(case: Run, data: Path, tmp_path: Path) -> None:
    video = (data / "split_test.txt").read_text().split()[0]
    for stream in ("rgb", "flow"):
        shutil.copy(data / "features" / "test" / stream / f"{video}.npy", data / "features" / "train" / stream)
    with open(data / "split_train.txt", "a") as file:
        file.write(f"{video}\n")
    line = error_of(case("train", "--data", data, "--output", tmp_path / "run", *SMALL))
    assert f"training videos are in the test split too: {video}" in line


def test_what_cannot_change_on_resume(case: Run, trained: Path, tmp_path: Path) -> None:
    output = Path(shutil.copytree(trained, tmp_path / "run"))
    line = error_of(case("train", "--resume", "--output", output, "--num-clusters", "5"))
    assert "num_clusters is 5" in line
    assert "leave --config out" in error_of(case("train", "--resume", "--output", output, "--config", "c.toml"))


def test_a_run_works_from_anywhere(case: Run, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(source.parent)
    assert case("train", "--data", source.name, "--output", tmp_path / "run", *SMALL, "--pictures", "0")[0] == 0
    monkeypatch.chdir(tmp_path)
    assert case("evaluate", "run")[0] == 0
    assert case("train", "--resume", "--output", "run", "--max-steps", "5")[0] == 0


def test_stopped_before_any_evaluation_a_run_can_be_finished(case: Run, source: Path, tmp_path: Path) -> None:
    output = tmp_path / "run"
    assert case("train", "--data", source, "--output", output, *SMALL, "--max-steps", "0")[0] == 0
    assert json.loads((output / "results.json").read_text())["last"]["step"] == 0


def test_names_in_any_script(case: Run, data: Path, tmp_path: Path) -> None:
    for name in ("gt.json", "dataset.json"):
        text = (data / name).read_text(encoding="utf-8")
        (data / name).write_text(text.replace("action_1", "跳 \U0001f642"), encoding="utf-8")
    output = tmp_path / "run"
    assert case("train", "--data", data, "--output", output, *SMALL, "--pictures", "0")[0] == 0
    assert case("train", "--resume", "--output", output, "--max-steps", "5")[0] == 0


def test_the_demo_deletes_only_a_demo(case: Run, tmp_path: Path) -> None:
    (tmp_path / "mine" / "data").mkdir(parents=True)
    (tmp_path / "mine" / "data" / "precious.npy").touch()
    assert "is not an earlier demo" in error_of(case("demo", "--output", tmp_path / "mine"))
    assert (tmp_path / "mine" / "data" / "precious.npy").exists()
    (tmp_path / "file").touch()
    assert "is not an earlier demo" in error_of(case("demo", "--output", tmp_path / "file"))


def test_json_into_a_missing_folder(case: Run, tmp_path: Path) -> None:
    files = ("--ground-truth", GOLDEN / "gt.json", "--predictions", GOLDEN / "detections.json")
    line = error_of(case("evaluate", *files, "--json", tmp_path / "none" / "x.json"))
    assert "make its folder first" in line


def test_localize_into_a_pipe(trained: Path, source: Path) -> None:
    command = [sys.executable, "-m", "case.cli", "localize", trained, "--features", source / "features" / "test"]
    done = subprocess.run([*map(str, command), "--output", "/dev/stdout"], capture_output=True, text=True, check=True)
    assert '"results"' in done.stdout


def test_flags_that_do_not_exist(case: Run, source: Path) -> None:
    code, out, err = case("train", "--data", source, "--learning-rate", "1")
    assert code == 2
    assert "learning-rate" in out + err


def test_no_data_folder(case: Run) -> None:
    assert "no data folder given" in error_of(case("train"))


def test_wrong_checkpoints(case: Run, trained: Path, source: Path, tmp_path: Path) -> None:
    features = source / "features" / "test"
    assert "no such run folder" in error_of(case("localize", tmp_path / "none", "--features", features))
    short = tmp_path / "short.safetensors"
    short.write_bytes((trained / "last.safetensors").read_bytes()[:1000])
    assert "truncated or corrupt" in error_of(case("localize", short, "--features", features))
    wide = tmp_path / "wide"
    for stream in ("rgb", "flow"):
        (wide / stream).mkdir(parents=True)
        np.save(wide / stream / "v.npy", np.ones((20, 9), np.float32))
    output = tmp_path / "out.json"
    line = error_of(case("localize", trained, "--features", wide, "--output", output))
    assert "width (9, 9)" in line
    assert "(8, 8)" in line
    assert not output.exists()


def test_detections_with_strange_labels(case: Run, tmp_path: Path) -> None:
    path = tmp_path / "d.json"
    path.write_text(json.dumps({"results": {"v": [{"label": "Unicorn", "score": 1.0, "segment": [0, 1]}]}}))
    files = ("--ground-truth", GOLDEN / "gt.json", "--predictions", path)
    assert "Unicorn" in error_of(case("evaluate", *files, "--subset", "test"))
    path.write_text("{")
    assert "not valid JSON" in error_of(case("evaluate", *files, "--subset", "test"))


def test_info_names_every_op(case: Run) -> None:
    code, out, _ = case("info")
    assert code == 0
    for op in (
        "sinkhorn",
        "prototypes",
        "cosine_logits",
        "clustering_losses",
        "temporal_iou",
        "batched_nms",
        "propose",
    ):
        assert f"op {op}" in out


def test_a_stopped_run_says_how_to_go_on(source: Path, tmp_path: Path) -> None:
    """Ctrl-C in a real process: code 130, a checkpoint, and the command to resume with."""
    command = [sys.executable, "-m", "case.cli", "train", "--data", source, "--output", tmp_path / "run", *SMALL]
    command += ["--max-steps", "100000", "--eval-every", "0"]
    process = subprocess.Popen([str(c) for c in command], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    metrics = tmp_path / "run" / "metrics.jsonl"
    deadline = time.monotonic() + 120
    while not (metrics.exists() and metrics.stat().st_size) and time.monotonic() < deadline:
        time.sleep(0.1)
    process.send_signal(2)
    out, err = process.communicate(timeout=120)
    assert process.returncode == 130, err
    assert f"case-wtal train --resume --output {tmp_path / 'run'}" in out
    assert (tmp_path / "run" / "last.safetensors").exists()
