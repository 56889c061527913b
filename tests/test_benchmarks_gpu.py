"""What a GPU machine is asked, as far as it can be tested without one: the script, its budgets, times of a device."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import gpu_first, gpu_targets, limits, report, side_by_side, thumos14, timing, work
from case.data import SyntheticConfig

ROOT = Path(__file__).resolve().parents[1]
Script = Callable[..., list[dict[str, Any]]]


class Device:
    """Stands in for torch.cuda: work takes time on a clock of its own, and what happens is written down."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.clock, self.events, self.stream = 0.0, [], "first"
        fakes = {
            "Event": self._event, "synchronize": lambda: None, "set_sync_debug_mode": self.events.append,
            "_sleep": lambda cycles: self.events.append("sleep"), "current_stream": lambda: self.stream,
            "set_stream": lambda stream: setattr(self, "stream", stream), "current_device": lambda: 0,
            "get_device_properties": lambda device: type("Properties", (), {"L2_cache_size": 100}),
        }  # fmt: skip
        for name, fake in fakes.items():
            monkeypatch.setattr(torch.cuda, name, fake)
        monkeypatch.setattr(timing.time, "perf_counter", lambda: self.clock)

    def work(self, seconds: float) -> None:
        self.clock += seconds
        self.events.append("work")

    def _event(self, enable_timing: bool) -> Any:
        device = self

        class Event:
            def record(self) -> None:
                self.at = device.clock
                device.events.append("record")

            def synchronize(self) -> None:
                pass

            def elapsed_time(self, end: Event) -> float:
                return 1e3 * (end.at - self.at)

        return Event()


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch) -> Device:
    return Device(monkeypatch)


@pytest.mark.parametrize("queued", [True, False])
def test_between_events(device: Device, queued: bool) -> None:
    """Many short calls between two events, which wait in a queue if nothing of the host is to be part of it."""
    found = timing.between_events(lambda: device.work(1.1e-4), 2, 1.0, queued=queued)
    assert (found["median_us"], found["least_us"]) == pytest.approx((55, 55))
    measurement = [*(["sleep"] if queued else []), "record", *["work"] * 10, "record"]
    assert device.events[-len(measurement) :] == measurement


@pytest.mark.parametrize("patience, repeats", [(0.001, 3), (0.1, 10), (100.0, timing.MOST_REPEATS)])
def test_measurements_keep_to_their_time(device: Device, patience: float, repeats: int) -> None:
    timing.between_events(lambda: device.work(1e-2), 1, patience * 1.001, queued=False)
    assert device.events.count("record") == 2 * (1 + repeats)


def test_eager_calls_take_all_sets_in_turns(device: Device) -> None:
    """Else a peer would find in the cache what a replay over all sets does not."""
    sets = [{"x": torch.tensor(i)} for i in range(7)]
    seen: list[int] = []
    timing.eager_time(lambda x: (seen.append(int(x["x"])), device.work(1e-3)), sets, 0.01)
    assert seen == [i % 7 for i in range(len(seen))]
    assert set(seen) == set(range(7))


@pytest.mark.parametrize("waits", [True, False])
@pytest.mark.parametrize("fails", [True, False])
def test_what_waits_for_the_host_is_never_captured(
    device: Device, monkeypatch: pytest.MonkeyPatch, waits: bool, fails: bool
) -> None:
    captured = []

    def capture(call: object, sets: Sequence[object]) -> Callable[[], None]:
        captured.append(len(sets))
        device.stream = "of the capture"
        if fails:
            raise RuntimeError("operation not permitted\nwhen a stream is capturing")
        device.stream = "first"
        return lambda: device.work(1e-3)

    def call(x: object) -> None:
        device.work(1e-3)
        if waits and [e for e in device.events if e in ("error", "default")][-1:] == ["error"]:
            raise RuntimeError("called a synchronizing CUDA operation")

    monkeypatch.setattr(timing, "capture", capture)
    found = timing.device_time(call, [{"x": torch.zeros(4)}] * 3, 0.01)
    assert captured == ([] if waits else [3])
    assert device.stream == "first", "a failed capture leaves its stream current"
    assert [e for e in device.events if e in ("error", "default")] == ["error", "default"]
    assert ("replay" in found) == (not waits and not fails)
    told = "called a synchronizing CUDA operation" if waits else "operation not permitted" if fails else None
    assert found.get("not captured") == told
    assert (found["rotated_sets"], found["rotated_bytes"], found["l2_bytes"]) == (3, 48, 100)


@pytest.mark.gpu
def test_a_capture_succeeds_after_what_waits_for_the_host() -> None:
    sets = [{"x": torch.rand(1000, device="cuda")} for _ in range(3)]
    assert "not captured" in timing.device_time(lambda x: x["x"].nonzero(), sets, 0.02)
    found = timing.device_time(lambda x: x["x"].exp(), sets, 0.02)
    assert 0 < found["replay"]["median_us"] < found["eager"]["median_us"]


def test_cotangents_are_made_once_and_never_zero() -> None:
    first = work.cotangent(torch.Size([3, 400]), torch.float32, torch.device("cpu"))
    assert work.cotangent(torch.Size([3, 400]), torch.float32, torch.device("cpu")) is first
    assert (first > 0).all()
    assert len(first.unique()) > 500
    assert work.cotangent(torch.Size([]), torch.float64, torch.device("cpu")).item() > 0


def test_rows_whose_inputs_stay_in_the_cache_are_told() -> None:
    entry = {"extra_info": {"device_time": {"rotated_bytes": 50, "l2_bytes": 60}}}
    assert report.in_cache(entry)
    entry["extra_info"]["device_time"]["rotated_bytes"] = 61
    assert not report.in_cache(entry)
    assert not report.in_cache({"extra_info": {}})


def test_limits_of_the_gpu_come_first_and_stay(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def measure(device: str) -> dict[str, Any]:
        if device == "cpu":
            raise KeyboardInterrupt
        return {"copy_bytes_per_second": {"1024": 1e9}, "product_operations_per_second": {"float32": 1e9}}

    monkeypatch.setattr(limits, "machine", lambda: {"gpu": "a GPU"})
    monkeypatch.setattr(limits, "measure", measure)
    monkeypatch.setattr(sys, "argv", ["limits", str(tmp_path)])
    with pytest.raises(KeyboardInterrupt):
        limits.main()
    assert json.loads((tmp_path / "limits.json").read_text())["cuda"]["copy_bytes_per_second"] == {"1024": 1e9}


# -- targets -------------------------------------------------------------------------------------------------------


@pytest.fixture
def targets(monkeypatch: pytest.MonkeyPatch) -> list[gpu_targets.Target]:
    """One that raises, one that is right, one that is not; times are of another test."""
    times = {"eager": {"median_us": 30.0}, "replay": {"median_us": 5.0}, "rotated_sets": 2}
    monkeypatch.setattr(timing, "ROTATED_BYTES", 1)
    monkeypatch.setattr(timing, "device_time", lambda call, sets, patience: [call(x) for x in sets] and dict(times))
    monkeypatch.setattr(timing, "eager_time", lambda call, sets, patience: [call(x) for x in sets] and times["eager"])
    monkeypatch.setattr(gpu_targets, "launches", lambda *_: 5)
    monkeypatch.setattr(torch, "compile", lambda function, mode: function)

    def broken(x: work.Inputs) -> torch.Tensor:
        raise RuntimeError("no kernel")

    def target(name: str, run: Callable[[work.Inputs], Any]) -> gpu_targets.Target:
        inputs = lambda: gpu_targets.matrix(20, 4)  # noqa: E731
        return gpu_targets.Target(name, 12, 10, 1e6, inputs, run, gpu_targets.plain_sinkhorn, leaves=("logits",))

    right = gpu_targets.sinkhorn_of_matrix

    def inexact(x: work.Inputs) -> torch.Tensor:
        return right(x) + (1e-3 if x["logits"].dtype == torch.float32 else 0.0)

    return [target("broken", broken), target("right", right), target("inexact", inexact)]


def test_errors_of_a_target_are_its_own(targets: list[gpu_targets.Target], tmp_path: Path) -> None:
    path = tmp_path / "gpu_targets.json"
    found = gpu_targets.passed(targets, path, "cpu", 0.01, compiled=False)
    assert json.loads(path.read_text()) == found
    broken, right, _ = found
    assert (broken["failed"], broken["right"], broken["limit_us"]) == ("RuntimeError: no kernel", False, 12)
    assert right["right"]
    assert right["replay"]["median_us"] == 5.0
    assert right["eager torch"]["median_us"] == 30.0
    assert [gpu_targets.verdict(x).split(":")[0] for x in found] == ["FAILED", "ok", "WRONG"]
    assert "-" in gpu_targets.row(broken)


def test_compiled_peers_are_a_pass_of_their_own(targets: list[gpu_targets.Target], tmp_path: Path) -> None:
    path = tmp_path / "gpu_targets.json"
    alone = gpu_targets.passed(targets[1:2], path, "cpu", 0.01, compiled=True)
    assert gpu_targets.verdict(alone[0]) == "not proven"
    first = gpu_targets.passed(targets, path, "cpu", 0.01, compiled=False)
    both = gpu_targets.passed(targets, path, "cpu", 0.01, compiled=True)
    for before, after in zip(first, both, strict=True):
        assert after == before | {mode: {"median_us": 30.0} for mode in gpu_targets.COMPILE_MODES}


# -- scripts of stages ---------------------------------------------------------------------------------------------


def test_the_first_question_is_answered_whatever_is_missing(tmp_path: Path) -> None:
    code = (
        "import sys, torch; torch.cuda.is_available = lambda: True; sys.modules['case'] = None\n"
        f"from benchmarks.gpu_first import main; sys.exit(main([{str(tmp_path)!r}]))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2, done.stderr
    answer = json.loads((tmp_path / "gpu_first.json").read_text())
    assert answer["ok"] is False
    assert "case" in answer["error"]


def test_a_wrong_answer_is_told_from_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(gpu_first, "native", lambda: type("C", (), {"build_info": staticmethod(dict)}))
    monkeypatch.setattr(gpu_first, "ask", lambda quick: {"checks": [], "ok": False})
    assert gpu_first.main([str(tmp_path)]) == 1
    assert gpu_first.main([]) == 2


def test_a_whole_run_is_projected_from_its_log() -> None:
    def train(step: int, passed: float) -> dict[str, Any]:
        return {"kind": "train", "step": step, "seconds_per_step": passed / step}

    scored = [{"kind": "eval", "step": n, "seconds": s, "mAP": 0.1} for n, s in ((100, 9.0), (200, 2.0))]
    # 5 s for the first ten steps, 0.1 a step from then on, 9 and a checkpoint's 3 between 100 and 110.
    entries = [train(10, 5), train(100, 14), scored[0], train(110, 27), train(200, 36), scored[1]]
    found = thumos14.summary(entries)
    assert found["seconds_per_step"] == pytest.approx(0.1)
    assert {x["step"]: x["seconds_until"] for x in found["first_steps"]} == pytest.approx({10: 5, 100: 14})
    assert found["whole_run"]["seconds"] == pytest.approx(3600 * 0.1 + 72 * 2.0)
    assert "whole_run" not in thumos14.summary(entries[:4]), "cut short"
    assert thumos14.summary([]) == {"first_steps": [], "evaluations": []}


def test_a_run_without_the_command_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(thumos14, "STEPS", 40)
    monkeypatch.setattr(thumos14, "WARM", 20)
    small = {"num_segments": 20, "num_clusters": 4, "hidden": 16, "batch_size": 4, "device": "cpu"}
    synthetic = SyntheticConfig(num_train=6, num_test=2, num_classes=3, width=8)
    found = json.loads(json.dumps(thumos14.measure(synthetic, tmp_path, **small)))
    assert [x["step"] for x in found["evaluations"]] == [20, 40]
    assert 0 < found["seconds_per_step"] < found["whole_run"]["seconds"]


def written(folder: Path, **files: str) -> list[Path]:
    paths = []
    for name, text in files.items():
        paths.append(folder / f"test_{name}.py")
        paths[-1].write_text(text)
    return paths


def test_shares_of_files_are_of_one_length(tmp_path: Path) -> None:
    files = written(tmp_path, a="a" * 50, b="b" * 20, c="c" * 20, d="d" * 9)
    assert side_by_side.shares(files, 2) == [[files[0]], [files[1], files[2], files[3]]]
    assert side_by_side.shares(files, 9) == [[x] for x in files]


def test_the_worst_process_decides(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    good, none, bad = written(
        tmp_path,
        good="def test_one(): pass",
        none="import pytest\n@pytest.mark.slow\ndef test_two(): pass",
        bad="def test_three(): assert 2 > 3",
    )
    chosen = ["-m", "not slow", "-c", str(ROOT / "pyproject.toml")]
    assert side_by_side.run(tmp_path / "fine", 2, [good, none], chosen) == 0
    assert side_by_side.run(tmp_path / "log", 3, [good, none, bad], chosen) == 1
    assert "assert 2 > 3" in capfd.readouterr().out
    assert len(list(tmp_path.glob("log-*.log"))) == 3


def test_an_interrupt_reaches_all_processes(tmp_path: Path) -> None:
    """As `timeout` gives it, to the whole group; what was done by then is reported."""
    files = written(tmp_path, **dict.fromkeys("xy", "import time\ndef test_a(): pass\ndef test_b(): time.sleep(60)"))
    command = [
        sys.executable,
        "-m",
        "benchmarks.side_by_side",
        str(tmp_path / "log"),
        "2",
        *map(str, files),
        "--",
        "-v",
    ]
    process = subprocess.Popen(command, cwd=ROOT, start_new_session=True, stdout=subprocess.PIPE, text=True)
    logs = [tmp_path / "log-1.log", tmp_path / "log-2.log"]
    end = time.monotonic() + 60
    while not all(x.exists() and "PASSED" in x.read_text() for x in logs):
        assert time.monotonic() < end
        time.sleep(0.1)
    os.killpg(process.pid, signal.SIGINT)
    told, _ = process.communicate(timeout=30)
    assert process.returncode == 2
    assert told.count("1 passed") == 2


# -- gpu.sh --------------------------------------------------------------------------------------------------------


@pytest.fixture
def script(tmp_path: Path) -> Script:
    """Runs gpu.sh with a Python that only writes the summary, and says which of `pip`'s tries succeed."""

    def run(*flags: str, builds: str = "cuda", path: str = "") -> list[dict[str, Any]]:
        python = tmp_path / "python"
        python.write_text(
            f"""#!/usr/bin/env bash
[[ $1 == - ]] && exec {sys.executable} "$@"
echo "$@" >> {tmp_path}/commands
[[ $2 != pip ]] && exit 0
echo "archs=$CASE_CUDA_ARCHS" >> {tmp_path}/commands
case {builds} in
  cuda) [[ ${{CASE_BUILD_CUDA-}} == 1 ]] ;;
  cpu) [[ ${{CASE_BUILD_CUDA-}} == 0 ]] ;;
  none) [[ ${{CASE_BUILD_NATIVE-}} == 0 ]] ;;
  *) false ;;
esac
"""
        )
        python.chmod(0o755)
        environment = os.environ | {"PYTHON": str(python), "PATH": f"{path}:{os.environ['PATH']}"}
        command = ["bash", str(ROOT / "benchmarks" / "gpu.sh"), str(tmp_path / "out"), *flags]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
        stages = json.loads((tmp_path / "out" / "summary.json").read_text())
        assert done.stderr == ""
        assert done.returncode == any(s["status"] not in ("passed", "not there") for s in stages), done.stdout
        return stages

    return run


@pytest.mark.parametrize("flags, most", [((), 540), (("--quick",), 180)])
def test_stages_fit_into_their_time(script: Script, flags: tuple[str, ...], most: int) -> None:
    """Stages at one turn run beside each other."""
    longest: dict[int, int] = {}
    for stage in (stages := script(*flags)):
        longest[stage["turn"]] = max(longest.get(stage["turn"], 0), stage["limit_s"])
    assert sum(longest.values()) < most
    names = [stage["stage"] for stage in stages]
    assert names[:5] == ["header", "install", "tests_first", "gpu_targets", "gpu_first"]
    assert sorted(longest) == list(range(len(longest)))


def test_every_gpu_test_has_a_stage(script: Script, tmp_path: Path) -> None:
    script()
    commands = (tmp_path / "commands").read_text().splitlines()
    words = [word for line in commands if "-m gpu" in line and "-k" not in line.split() for word in line.split()]
    listed = [word for word in words if word.startswith("tests/")]
    assert sorted(listed) == sorted(str(p.relative_to(ROOT)) for p in ROOT.glob("tests/**/test_*.py"))


@pytest.mark.parametrize(
    "builds, status, tries",
    [("cuda", "passed", 1), ("cpu", "fallback", 2), ("none", "fallback", 3), ("no", "failed", 3)],
)
def test_less_is_installed_where_not_all_builds(
    script: Script, tmp_path: Path, builds: str, status: str, tries: int
) -> None:
    smi = tmp_path / "bin" / "nvidia-smi"
    smi.parent.mkdir()
    smi.write_text("#!/usr/bin/env bash\necho 9.0; echo 8.6; echo 9.0")
    smi.chmod(0o755)
    stages = {s["stage"]: s for s in script("--quick", builds=builds, path=str(smi.parent))}
    assert stages["install"]["status"] == status
    assert stages["tests_first"]["status"] == "passed"
    commands = (tmp_path / "commands").read_text()
    assert commands.count("archs=86-real;90-real\n") == tries
    assert commands.count("--no-index") == tries
