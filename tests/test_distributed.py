"""Several processes do what one does: training, evaluation, localization, going on; and none hangs when one is lost."""

from __future__ import annotations

import json
import multiprocessing
import os
import runpy
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import case
from case import console
from case.cli import main
from case.commands.train import configure
from case.data import SyntheticConfig, write
from case.engine import train as training
from case.engine.checkpoint import load_checkpoint
from case.engine.distributed import Ranks, joined
from case.engine.runlog import read_entries
from case.errors import CaseError

pytestmark = pytest.mark.skipif(not torch.distributed.is_gloo_available(), reason="torch was built without gloo")

SETTINGS = {
    "num_segments": 40, "num_clusters": 4, "hidden": 16, "batch_size": 4, "lr": 1e-3, "class_threshold": 0.2,
    "protocol": "corrected", "log_every": 1, "pictures": 0, "threads": 1, "device": "cpu",
}  # fmt: skip
WORKER = str(Path(__file__).with_name("rank_worker.py"))
LIMIT = 100.0
"""Seconds after which processes count as hanging."""


@pytest.fixture(scope="module")
def forks() -> Any:
    """Processes forked from one that has imported everything: that would be most of this file's time."""
    context = multiprocessing.get_context("forkserver")
    # torch imports its compiler with the first optimizer.
    context.set_forkserver_preload(["case.engine.finish", "torch._dynamo", "tensorboard.summary.writer.record_writer"])
    return context


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("synthetic") / "data"
    write(SyntheticConfig(num_train=10, num_test=5, num_classes=3, width=8, seed=3), folder)
    return folder


@dataclass
class Team:
    """Processes of one run and what they printed; they meet at a store of this process, as they would at torchrun's."""

    processes: list[BaseProcess]
    outputs: list[Path]
    store: torch.distributed.TCPStore

    def wait(self, *, dead: bool = False) -> list[int | None]:
        """Exit codes; all 0 unless some are to be ``dead``."""
        until = time.monotonic() + LIMIT
        try:
            for process in self.processes:
                process.join(max(0, until - time.monotonic()))
            codes = [process.exitcode for process in self.processes]
        finally:
            self.kill()
        assert None not in codes, f"still running: {self.printed()}"
        assert dead or codes == [0] * len(codes), self.printed()
        return codes

    def kill(self) -> None:
        for process in self.processes:
            process.kill()
            process.join()

    def printed(self) -> list[str]:
        return [path.read_text() for path in self.outputs]


def start(forks: Any, folder: Path, size: int, jobs: dict[str, Any] | list[dict[str, Any]]) -> Team:
    """``size`` processes with the same job, or each with its own."""
    store = torch.distributed.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    team = Team([], [], store)
    for rank in range(size):
        environment = {
            "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(size), "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(store.port), "TORCHELASTIC_USE_AGENT_STORE": "True", "CASE_RANK_TIMEOUT": "60",
        }  # fmt: skip
        own = jobs if isinstance(jobs, dict) else jobs[rank]
        team.outputs.append(folder / f"printed-{time.monotonic_ns()}-{rank}.txt")
        environment |= own.get("environment", {})
        job = {**own, "environment": environment, "output": str(team.outputs[-1])}
        process = forks.Process(target=runpy.run_path, args=(WORKER, {"job": job}, "__main__"))
        process.start()
        team.processes.append(process)
    return team


def flags(values: dict[str, Any]) -> list[str]:
    """Settings as the command line takes them; the protocol's defaults come first."""
    words: list[str] = []
    for name, value in values.items():
        flag = f"--{name.replace('_', '-')}"
        words += [flag] if value is True else [flag, str(value)]
    return words


def alone(values: dict[str, Any]) -> training.TrainingRun:
    """The same in this process."""
    run = training.open_run(configure(values))
    console.mute(True)
    try:
        training.run_training(run)
    finally:
        console.mute(False)
    return run


def losses(run: Path) -> np.ndarray:
    """(steps, 5) of metrics.jsonl."""
    names = ("total", "video", "attention", "scc", "ccc")
    return np.array([[e[name] for name in names] for e in read_entries(run / "metrics.jsonl") if e["kind"] == "train"])


def close(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    """Weights, moments of Adam and labels agree to 1e-5."""
    assert set(found) == set(expected)
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-5, atol=1e-5, msg=lambda m, n=name: f"{n}: {m}")


@dataclass
class Outcomes:
    folder: Path
    one: dict[str, training.TrainingRun]

    def ranks(self, name: str, size: int) -> list[dict[str, Any]]:
        return [torch.load(self.folder / str(size) / f"{name}-{rank}.pt") for rank in range(size)]


@pytest.fixture(scope="module")
def outcomes(forks: Any, data: Path, tmp_path_factory: pytest.TempPathFactory) -> Outcomes:
    """Runs of one, two and three processes: "even" batches of 4, "few" of 2 videos, and one that changes its size."""
    folder = tmp_path_factory.mktemp("runs")

    def runs(size: int) -> dict[str, dict[str, Any]]:
        base = {**SETTINGS, "data": data}
        return {
            "even": {**base, "max_steps": 50, "eval_every": 25, "output": folder / f"even-{size}"},
            "few": {**base, "batch_size": 2, "lr": 1e-2, "max_steps": 20, "eval_every": 0,
                    "protocol": "released", "output": folder / f"few-{size}"},
        }  # fmt: skip

    def several(size: int, steps: int, **more: Any) -> Team:
        wanted = runs(size)
        changing = {**wanted["even"], "output": folder / "changing", "max_steps": steps, **more}
        (folder / str(size)).mkdir()
        job = {"folder": folder / str(size), "runs": [*wanted.items(), ("changing", changing)]}
        return start(forks, folder, size, job)

    two = several(2, 15)
    try:
        one = {name: alone(values) for name, values in runs(1).items()}
    finally:
        two.wait()
    alone({**runs(1)["even"], "output": folder / "changing", "max_steps": 30, "resume": True})
    several(3, 50, resume=True).wait()
    return Outcomes(folder, one)


@pytest.mark.parametrize("size", [2, 3])
@pytest.mark.parametrize("name", ["even", "few"])
def test_losses_weights_and_labels_are_those_of_one_process(outcomes: Outcomes, name: str, size: int) -> None:
    """Batches of 4 over 3 processes, and of 2 over 3, of which one has no video."""
    one, several = losses(outcomes.folder / f"{name}-1"), losses(outcomes.folder / f"{name}-{size}")
    assert one.shape == ({"even": 50, "few": 20}[name], 5)
    np.testing.assert_allclose(several, one, rtol=1e-5, atol=1e-5)
    found = outcomes.ranks(name, size)
    close(found[0]["tensors"], outcomes.one[name].learner.state()["tensors"])
    for other in found[1:]:
        assert all(torch.equal(value, found[0]["tensors"][key]) for key, value in other["tensors"].items())


@pytest.mark.parametrize("size", [2, 3])
def test_evaluation_is_that_of_one_process(outcomes: Outcomes, size: int) -> None:
    """5 videos over 2 and 3 processes: activations and detections on rank 0, in order, and the mAP everywhere."""
    assert outcomes.one["even"].evaluated is not None
    expected = outcomes.one["even"].evaluated.localized
    first, *others = outcomes.ranks("even", size)
    assert first["videos"] == expected.videos
    assert tuple(video for part in [*others] for video in part["videos"]) == expected.videos[-(-5 // size) :]
    assert len(expected.detections.score)
    for found, wanted in zip(
        (*first["activations"], *first["detections"]), (*expected.activations, *expected.detections)
    ):
        torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5)
    one, several = (
        [e for e in read_entries(outcomes.folder / f"even-{n}" / "metrics.jsonl") if e["kind"] == "eval"]
        for n in (1, size)
    )
    assert [e["step"] for e in several] == [25, 50]
    np.testing.assert_allclose([e["mAP"] for e in several], [e["mAP"] for e in one], atol=1e-5)
    assert all(other["best"] == first["best"] for other in others)


def test_a_run_goes_on_with_another_number_of_processes(outcomes: Outcomes) -> None:
    """Two processes to step 15, one to 30, three to 50; a checkpoint does not say how many there were."""
    changing = load_checkpoint(outcomes.folder / "changing" / "last.safetensors")
    whole = load_checkpoint(outcomes.folder / "even-1" / "last.safetensors")
    assert changing.steps == whole.steps == 50
    close(changing.tensors, whole.tensors)
    np.testing.assert_allclose(losses(outcomes.folder / "changing"), losses(outcomes.folder / "even-1"), rtol=1e-5)
    assert changing.notes.keys() == whole.notes.keys()
    ours, theirs = ({**c.notes["config"], "output": "", "resume": False} for c in (changing, whole))
    assert ours == theirs


def test_commands_of_several_processes_write_what_one_writes(
    forks: Any, outcomes: Outcomes, data: Path, tmp_path: Path
) -> None:
    """evaluate on two; localize on three, of two videos, so that one process has none, with a remark on the second."""
    run, few = str(outcomes.folder / "even-1"), tmp_path / "few"
    for stream in ("rgb", "flow"):
        (few / stream).mkdir(parents=True)
        for file in sorted((data / "features" / "test" / stream).glob("*.npy"))[:2]:
            shutil.copy(file, few / stream)
    shortened = few / "rgb" / file.name
    np.save(shortened, np.load(shortened)[:-1])
    evaluate, localize = ["evaluate", run, "--device", "cpu", "--json"], ["localize", run, "--features", str(few)]
    teams = [
        start(forks, tmp_path, 2, {"argv": [*evaluate, str(tmp_path / "several.json")]}),
        start(
            forks, tmp_path, 3, {"argv": [*localize, "--device", "cpu", "--output", str(tmp_path / "found-several")]}
        ),
    ]
    assert main([*evaluate, str(tmp_path / "one.json")]) == 0
    assert main([*localize, "--device", "cpu", "--output", str(tmp_path / "found-one")]) == 0
    for team in teams:
        team.wait()
        first, *others = team.printed()
        assert first
        assert not any(others)
    assert f"{shortened.stem}: streams differ in length" in first
    one, several = (json.loads((tmp_path / f"{n}.json").read_text()) for n in ("one", "several"))
    assert several["mAP"] == pytest.approx(one["mAP"], abs=1e-6)
    one, several = (json.loads((tmp_path / f"found-{n}").read_text())["results"] for n in ("one", "several"))
    assert list(several) == list(one)
    assert len(one) == 2
    for video, found in one.items():
        assert found
        assert [d["label"] for d in several[video]] == [d["label"] for d in found]
        for name in ("score", "segment"):
            np.testing.assert_allclose([d[name] for d in several[video]], [d[name] for d in found], atol=1e-5)


@pytest.mark.parametrize("lost, where", [(1, "die"), (0, "fsync"), (1, "freeze")])
def test_a_lost_process_ends_the_others_and_the_run_goes_on(
    forks: Any, outcomes: Outcomes, data: Path, tmp_path: Path, lost: int, where: str
) -> None:
    """kill -9 between two saves or in one, and a process that hangs, at step 25; checkpoints every 10 steps."""
    values = {**SETTINGS, "data": data, "max_steps": 50, "eval_every": 0, "save_every": 10, "output": tmp_path / "run"}
    step = {"die": 25, "fsync": 20, "freeze": 25}[where]
    job = {"argv": ["train", *flags(values)], "environment": {"CASE_RANK_TIMEOUT": "4" if where == "freeze" else "60"}}
    started = time.monotonic()
    team = start(forks, tmp_path, 2, [{**job, "kill": (step, where) if rank == lost else None} for rank in range(2)])
    left = team.processes[1 - lost]
    left.join(LIMIT)
    assert left.exitcode == 2, team.printed()
    assert time.monotonic() - started < 60
    if where != "freeze":
        team.processes[lost].join(LIMIT)
        assert team.processes[lost].exitcode == -signal.SIGKILL
    team.kill()
    told = [line for line in team.printed()[1 - lost].splitlines() if line.startswith("error:")]
    assert len(told) == 1, team.printed()
    assert f"error: rank {1 - lost} of 2 lost contact, no word from rank {lost} (" in told[0]
    assert told[0].endswith("go on from the last checkpoint with the same command and --resume")
    assert "Traceback" not in team.printed()[1 - lost]
    rest = training.open_run(configure({**values, "resume": True}))
    assert rest.learner.steps == (10 if where == "fsync" else 20)
    training.run_training(rest)
    whole = outcomes.one["even"].learner.state()["tensors"]
    close(rest.learner.state()["tensors"], whole)
    assert not list((tmp_path / "run").glob(".tmp*"))


def test_a_killed_process_loses_the_steps_since_its_checkpoint(
    forks: Any, outcomes: Outcomes, data: Path, tmp_path: Path
) -> None:
    """One process, killed again and again, in a step and in saves, ends in the same bits."""
    values = {**SETTINGS, "data": data, "max_steps": 50, "eval_every": 0, "save_every": 10, "output": tmp_path / "run"}
    last = tmp_path / "run" / "last.safetensors"
    torch.set_num_threads(1)
    for step, where, kept in ((20, "fsync", 10), (30, "replace", 20), (34, "die", 30)):
        argv = ["train", *flags(values), *(["--resume"] if last.exists() else [])]
        team = start(forks, tmp_path, 1, {"argv": argv, "kill": (step, where)})
        assert team.wait(dead=True) == [-signal.SIGKILL], team.printed()
        assert load_checkpoint(last).steps == kept
        assert len(list((tmp_path / "run").glob(".tmp*"))) == (where != "die")
    rest = training.open_run(configure({**values, "resume": True}))
    training.run_training(rest)
    whole = outcomes.one["even"].learner.state()["tensors"]
    for name, value in rest.learner.state()["tensors"].items():
        assert torch.equal(value, whole[name]), name


def test_a_signal_to_one_process_stops_all_after_the_same_step(forks: Any, data: Path, tmp_path: Path) -> None:
    values = {**SETTINGS, "data": data, "max_steps": 50, "eval_every": 0, "output": tmp_path / "run"}
    job = {"argv": ["train", *flags(values)]}
    team = start(forks, tmp_path, 2, [{**job, "kill": (10, "stop") if rank == 1 else None} for rank in range(2)])
    assert team.wait(dead=True) == [130, 130], team.printed()
    assert load_checkpoint(tmp_path / "run" / "last.safetensors").steps == 11
    first, second = team.printed()
    assert "stopped after step 11 of 50; go on with: " in first
    assert not second


def test_what_every_process_finds_is_told_once(forks: Any, data: Path, tmp_path: Path) -> None:
    values = {**SETTINGS, "data": data, "output": tmp_path / "run", "num_classes": 3, "class_names": None}
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "last.safetensors").write_bytes(b"")
    argv = ["train", *flags({k: v for k, v in values.items() if v is not None})]
    team = start(forks, tmp_path, 2, {"argv": argv})
    assert team.wait(dead=True) == [2, 2]
    assert "".join(team.printed()).count("already holds a run") == 1


def test_train_ends_in_one_report(forks: Any, data: Path, tmp_path: Path) -> None:
    values = {**SETTINGS, "data": data, "output": tmp_path / "run", "max_steps": 2, "pictures": 1}
    team = start(forks, tmp_path, 2, {"argv": ["train", *flags(values)]})
    team.wait()
    first, second = team.printed()
    assert first.count("seed 0: mAP, %") == 1
    assert not second
    assert json.loads((tmp_path / "run" / "results.json").read_text())["last"]["step"] == 2
    assert len(list((tmp_path / "run" / "timelines").iterdir())) == 1


def test_torchrun_starts_it(outcomes: Outcomes, tmp_path: Path) -> None:
    """evaluate, since training would import torch's compiler in each process."""
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m", "case"]
    environment = {**os.environ, "PYTHONPATH": str(Path(case.__file__).parents[1]), "OMP_NUM_THREADS": "1"}
    command = ["evaluate", str(outcomes.folder / "even-1"), "--device", "cpu", "--json", str(tmp_path / "score.json")]
    done = subprocess.run(
        [*launcher, *command], env=environment, capture_output=True, text=True, timeout=LIMIT, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("mAP, %") == 1
    found = json.loads((tmp_path / "score.json").read_text())["mAP"]
    last = outcomes.one["even"].evaluated
    assert last is not None
    assert found == pytest.approx(last.score.mean_ap.mean, abs=1e-6)


@pytest.mark.parametrize("size", [1, 2, 3, 7])
@pytest.mark.parametrize("count", [0, 1, 2, 4, 16])
def test_slices_are_neighbours_of_equal_size(size: int, count: int) -> None:
    slices = [Ranks(rank, size).slice(count) for rank in range(size)]
    assert [i for s in slices for i in range(count)[s]] == list(range(count))
    sizes = [s.stop - s.start for s in slices]
    assert sizes[0] == max(sizes)
    assert max(sizes) - min(sizes) <= 1


@pytest.mark.parametrize(
    "device, environment, wanted",
    [
        ("cuda:1", {}, "device is 'cuda:1', but each of several processes takes its own; use --device cuda or cpu"),
        ("cuda", {"LOCAL_RANK": "99"}, "rank 1 wants CUDA device 99, this torch finds"),
        ("cpu", {"CASE_RANK_TIMEOUT": "soon"}, "CASE_RANK_TIMEOUT must be a number of seconds above 0"),
        ("cpu", {"CASE_RANK_TIMEOUT": "0"}, "CASE_RANK_TIMEOUT must be a number of seconds above 0"),
        ("cpu", {"CASE_RANK_TIMEOUT": "1"}, "rank 1 of 2 did not find the others"),
    ],
)
def test_what_is_said_where_processes_cannot_meet(
    message: Any, monkeypatch: pytest.MonkeyPatch, device: str, environment: dict[str, str], wanted: str
) -> None:
    nobody = torch.distributed.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    meeting = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(nobody.port), "TORCHELASTIC_USE_AGENT_STORE": "True"}
    for name, value in {"RANK": "1", "WORLD_SIZE": "2", **meeting, **environment}.items():
        monkeypatch.setenv(name, value)

    def meet() -> None:
        with joined(device):
            pass

    assert wanted in message(meet)


def test_without_torchrun_there_is_one_process(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    with joined("cpu") as ranks:
        assert ranks == Ranks()
        assert ranks.share(4, 40) is None
        assert ranks.gather("a") == ["a"]
        assert ranks.from_first(lambda: 1) == 1
        assert ranks.any(True) is True
        with pytest.raises(CaseError, match="spoilt"), joined("cpu"):
            raise CaseError("spoilt")
