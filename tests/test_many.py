"""Many runs at once: each comes out as it would alone, and what cannot be swept is told."""

from __future__ import annotations

import csv
import json
import os
import shlex
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import numpy as np
import pytest
import torch

from case.cli import main
from case.commands.train import configure, run
from case.config import Settings, TrainConfig, make_settings
from case.engine import train as training
from case.engine.checkpoint import load_checkpoint
from case.engine.graphs import StaticSteps
from case.engine.learner import Learner
from case.engine.many import open_many, parse_seeds, parse_sweep, plan_runs, train_many
from case.engine.runlog import read_entries
from case.engine.sampling import batch_videos, distinct_rows, position_key, random_positions
from case.engine.selection import Evaluator
from case.engine.stacked import SWEEPABLE, StackedLearner
from case.engine.store import most_distinct, stacked
from case.engine.summary import finish_many
from case.engine.train import TrainingRun
from case.errors import CaseError

Told = Callable[[Callable[[], object]], str]
LOSSES = ("total", "video", "attention", "scc", "ccc")


def config(data: Path, output: Path, **values: Any) -> TrainConfig:
    base = {"num_segments": 40, "num_clusters": 4, "hidden": 16, "batch_size": 3, "lr": 1e-3, "max_steps": 6}
    run = {"eval_every": 3, "log_every": 1, "class_threshold": 0.2, "protocol": "corrected", "pictures": 0}
    return configure({**base, **run, "data": data, "output": output, **values})


def learners(settings: list[Settings]) -> list[Learner]:
    made = []
    for r, own in enumerate(settings):
        torch.manual_seed(r)
        made.append(Learner((8, 5), own))
    return made


def batch(runs: int, seed: int) -> tuple[list[torch.Tensor], torch.Tensor, torch.Tensor]:
    """Rows of two streams, of which the last ten of each run are only there for the others' sake."""
    g = torch.Generator().manual_seed(seed)
    rows = [torch.randn(runs, 70, width, generator=g) for width in (8, 5)]
    index = torch.randint(60, (runs, 4, 40), generator=g).sort(-1)[0]
    labels = torch.eye(3)[torch.randint(3, (runs, 4), generator=g)]
    return rows, index, labels


@pytest.mark.parametrize("protocol", ["released", "corrected"])
@pytest.mark.parametrize("clustering", [True, False])
def test_a_stacked_step_is_each_runs_own(seed: int, protocol: str, clustering: bool) -> None:
    """Every setting that may be swept, runs with and without neighbours that share Adam's settings."""
    base = make_settings(
        num_classes=3, num_clusters=4, hidden=16, num_segments=40, protocol=protocol, lr=1e-3, clustering=clustering
    )
    others: list[dict[str, Any]] = [
        {"lr": 3e-4, "weight_decay": 0.1, "w_clu": 0.5},
        {"w_cls": 0.9, "prior_sigma": 0.2, "gce_q": 0.4},
        {"ot_scale": 3.0, "ot_iters": 2, "label_momentum": 0.5},
    ]
    assert {name for other in others for name in other} == set(SWEEPABLE)
    settings = [base, base, *(replace(base, **other) for other in others)]
    alone, together = learners(settings), learners(settings)
    many = StackedLearner(together)
    for step in range(6):
        rows, index, labels = batch(len(settings), seed + step)
        losses = many.step(rows, index, labels)
        for r, learner in enumerate(alone):
            expected = learner.step([x[r, :60] for x in rows], index[r], labels[r])
            for name in LOSSES:
                torch.testing.assert_close(getattr(losses, name)[r], getattr(expected, name), rtol=1e-5, atol=1e-6)
            torch.testing.assert_close(losses.cluster_labels[r], expected.cluster_labels, rtol=1e-4, atol=1e-5)
    for one, other_one in zip(alone, together, strict=True):
        mine, theirs = one.state(), other_one.state()
        assert mine["steps"] == theirs["steps"] == 6
        assert set(mine["tensors"]) == set(theirs["tensors"])
        for name, value in mine["tensors"].items():
            torch.testing.assert_close(theirs["tensors"][name], value, rtol=1e-3, atol=2e-5, msg=name)


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def test_stacked_steps_of_static_shapes(data: Path, tmp_path: Path, device: str) -> None:
    """What a graph replays: samples drawn and rows padded for all runs at once, each its own."""
    common = config(data, tmp_path / "many", val_fraction=0.2, lr=1e-2, device=device)
    planned = plan_runs(common, (0, 4, 5), {})
    alone, together = open_many(common, planned), open_many(common, planned)
    count, seeds = len(alone[0].train.videos), [0, 4, 5]
    learner = StackedLearner([run.learner for run in together])
    split = stacked([run.train for run in together])
    static = StaticSteps(learner, split, common.batch_size, seeds, capture=device == "cuda")
    # At this learning rate the last digits, which a GPU adds up in an order of its own, grow.
    tolerance = {"rtol": 1e-4, "atol": 1e-5} if device == "cpu" else {"rtol": 1e-3, "atol": 1e-4}
    for step in range(12):
        videos = torch.stack([batch_videos(count, common.batch_size, seed, step) for seed in seeds])
        found = static.step()
        for r, one in enumerate(alone):
            wanted = one.learner.step(*one.train.sampled(videos[r], common.num_segments, position_key(seeds[r], step)))
            for a, b in zip(found, wanted, strict=True):
                torch.testing.assert_close(a[r], b.detach(), **tolerance)
    assert [one.learner.steps for one in together] == [12] * 3


def test_runs_of_other_shapes_or_steps_are_refused(message: Told) -> None:
    base = make_settings(num_classes=3, num_clusters=4, hidden=16)
    told = message(lambda: StackedLearner(learners([base, replace(base, num_segments=90)])))
    assert "runs that differ in num_segments cannot be trained at once; run them apart" in told
    late = learners([base, base])
    late[1].steps = 5
    assert "runs at steps 0 and 5 cannot be trained at once; resume them apart" in message(lambda: StackedLearner(late))


def test_each_run_is_its_single_run(data: Path, tmp_path: Path) -> None:
    """50 steps of two seeds under two rates and weights, each with held-out videos of its own."""
    common = config(data, tmp_path / "many", max_steps=50, eval_every=25, val_fraction=0.2)
    planned = plan_runs(common, (0, 4), {"w_cls": (0.1,)}) + plan_runs(common, (4,), {"lr": (5e-4,)})
    assert len(planned) == 3
    runs = open_many(common, planned)
    assert runs[0].train.videos != runs[1].train.videos
    train_many(common, runs)
    for one in planned[1:]:
        alone = replace(one.config, output=tmp_path / one.config.output.name)
        training.run_training(training.open_run(alone))
        mine, theirs = (read_entries(c.output / "metrics.jsonl") for c in (alone, one.config))
        assert [(e["step"], e["kind"]) for e in mine] == [(e["step"], e["kind"]) for e in theirs]
        for a, b in zip(mine, theirs, strict=True):
            if a["kind"] == "train":
                np.testing.assert_allclose([b[k] for k in LOSSES], [a[k] for k in LOSSES], rtol=1e-5)
            else:
                assert b["mAP"] == pytest.approx(a["mAP"], abs=2e-3)
        a, b = (load_checkpoint(c.output / "last.safetensors") for c in (alone, one.config))
        assert a.settings == b.settings
        for name, value in a.tensors.items():
            torch.testing.assert_close(b.tensors[name], value, rtol=1e-3, atol=1e-4, msg=name)


def test_many_runs_resume_bit_equal(data: Path, tmp_path: Path) -> None:
    sweep = {"lr": (1e-3, 5e-4)}

    def train(name: str, **values: Any) -> list[Path]:
        common = config(data, tmp_path / name, **values)
        planned = plan_runs(common, (0, 1), sweep)
        train_many(common, open_many(common, planned))
        return [one.config.output / "last.safetensors" for one in planned]

    whole = train("whole")
    train("parts", max_steps=4)
    parts = train("parts", resume=True)
    for a, b in zip(map(load_checkpoint, whole), map(load_checkpoint, parts), strict=True):
        assert a.steps == b.steps == 6
        assert all(torch.equal(a.tensors[name], b.tensors[name]) for name in a.tensors)


def test_the_command_trains_sums_up_and_leaves_normal_runs(data: Path, tmp_path: Path) -> None:
    output = tmp_path / "many"
    flags = [
        "--num-segments", "40", "--num-clusters", "4", "--hidden", "16", "--batch-size", "4", "--max-steps", "4",
        "--eval-every", "2", "--pictures", "0", "--protocol", "corrected", "--val-fraction", "0.2",
    ]  # fmt: skip
    many = ["--seeds", "0,2-3", "--sweep", "w_cls=0.1,0.3"]
    assert main(["train", "--data", str(data), "--output", str(output), *flags, *many]) == 0
    names = [f"seed-{seed}-w_cls-{value}" for value in (0.1, 0.3) for seed in (0, 2, 3)]
    assert {p.name for p in output.iterdir() if p.is_dir()} == set(names)
    alone = {name: json.loads((output / name / "results.json").read_text()) for name in names}
    assert [alone[name]["seed"] for name in names] == [0, 2, 3] * 2
    summary = json.loads((output / "summary.json").read_text())
    assert [group["swept"] for group in summary["settings"]] == [{"w_cls": 0.1}, {"w_cls": 0.3}]
    for group, members in zip(summary["settings"], (names[:3], names[3:]), strict=True):
        assert list(group["results"]) == ["last", "best-heldout", "best-test"]
        for name, result in group["results"].items():
            values = [alone[member][name]["mAP"] for member in members]
            assert result["n"] == 3
            assert result["mAP_mean"] == pytest.approx(fmean(values))
            assert result["mAP_std"] == pytest.approx(stdev(values))
    with open(output / "summary.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["run"] for row in rows] == [name for name in names for _ in range(3)]
    for row in rows:
        mine = alone[row["run"]][row["result"]]
        assert float(row["mAP"]) == mine["mAP"]
        assert float(row["AP@0.5"]) == mine["ap_per_tiou"][4]
        assert float(row["heldout_mAP"]) == mine["heldout"]["mAP"]
        assert row["w_cls"] == row["run"].split("-")[-1]
    report = (output / "report.md").read_text()
    assert "| w_cls=0.1 | 3 |" in report
    assert "best-test, selected on the test set" in report
    run = output / names[0]
    score = tmp_path / "score.json"
    assert main(["evaluate", str(run), "--json", str(score)]) == 0
    assert json.loads(score.read_text())["mAP"] == pytest.approx(alone[names[0]]["last"]["mAP"], abs=1e-12)
    assert main(["localize", str(run), "--features", str(data / "features" / "test"), "--output", str(score)]) == 0
    assert main(["train", "--resume", "--output", str(run), "--max-steps", "5"]) == 0
    assert json.loads((run / "results.json").read_text())["last"]["step"] == 5


def test_many_runs_that_are_stopped_say_how_to_go_on(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    step = StackedLearner.step

    def interrupted(self: StackedLearner, *args: Any) -> Any:
        if self.learners[0].steps == 2:
            os.kill(os.getpid(), signal.SIGINT)
        return step(self, *args)

    monkeypatch.setattr(StackedLearner, "step", interrupted)
    common = config(data, tmp_path / "many", eval_every=0)
    flags = [
        word for name in ("num_segments", "num_clusters", "hidden", "batch_size", "max_steps", "eval_every", "pictures")
        for word in (f"--{name.replace('_', '-')}", str(getattr(common, name)))
    ]  # fmt: skip
    args = ["--data", str(data), "--output", str(common.output), *flags, "--seeds", "0-1", "--sweep", "gce_q=0.5,0.7"]
    assert main(["train", *args]) == 130
    line = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("stopped after step 3 of 6"))
    command = shlex.split(line.partition("go on with: ")[2])
    monkeypatch.undo()
    assert main(command[command.index("train") :]) == 0
    for folder in ("seed-0-gce_q-0.5", "seed-1-gce_q-0.7"):
        assert load_checkpoint(common.output / folder / "last.safetensors").steps == 6


class Killed(BaseException):
    """What no handler of errors sees, as a process that is killed."""


def saved_steps(common: TrainConfig) -> dict[str, int]:
    return {p.parent.name: load_checkpoint(p).steps for p in sorted(common.output.glob("*/last.safetensors"))}


@pytest.mark.parametrize(("step", "error"), [(2, Killed), (4, CaseError), (6, Killed)])
def test_runs_that_were_saved_at_different_steps_go_on(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: int, error: type[BaseException]
) -> None:
    """The second of three is not saved at that step, nor is the third: killed, or a disk that is full."""

    def start(name: str, **values: Any) -> TrainConfig:
        common = config(data, tmp_path / name, eval_every=4, save_every=2, val_fraction=0.2, **values)
        planned = plan_runs(common, (0, 1, 2), {})
        runs = open_many(common, planned)
        train_many(common, runs)
        summary = finish_many(common, planned, runs)
        assert list(summary["settings"][0]["results"]) == ["last", "best-heldout", "best-test"]
        return common

    whole = start("whole")
    save = TrainingRun.save

    def refused(self: TrainingRun, *args: Any) -> None:
        if self.config.seed == 1 and self.learner.steps == step:
            raise error
        save(self, *args)

    with monkeypatch.context() as patch:
        patch.setattr(TrainingRun, "save", refused)
        with pytest.raises(error):
            start("parts")
    parts = config(data, tmp_path / "parts")
    before = {} if step == 2 else {"seed-1": step - 2, "seed-2": step - 2}
    assert saved_steps(parts) == {"seed-0": step, **before}
    start("parts", resume=True)
    assert saved_steps(parts) == dict.fromkeys(("seed-0", "seed-1", "seed-2"), 6)
    for name in saved_steps(parts):
        mine, theirs = (read_entries(c.output / name / "metrics.jsonl") for c in (whole, parts))
        assert [(e["step"], e["kind"]) for e in mine] == [(e["step"], e["kind"]) for e in theirs]
        a, b = (load_checkpoint(c.output / name / "last.safetensors") for c in (whole, parts))
        for key, value in a.tensors.items():
            torch.testing.assert_close(b.tensors[key], value, rtol=1e-3, atol=1e-4, msg=key)


@pytest.mark.parametrize("eval_every", [0, 3])
def test_runs_killed_in_their_evaluation_are_summed_up(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, eval_every: int
) -> None:
    evaluate, made = Evaluator.__call__, []

    def evaluating(self: Evaluator, step: int, *args: Any) -> Any:
        if step == 6:
            made.append(step)
        if len(made) == 2:
            raise Killed
        return evaluate(self, step, *args)

    common = config(data, tmp_path / "many", eval_every=eval_every)
    planned = plan_runs(common, (0, 1), {})
    with monkeypatch.context() as patch:
        patch.setattr(Evaluator, "__call__", evaluating)
        with pytest.raises(Killed):
            train_many(common, open_many(common, planned))
    resumed = replace(common, resume=True)
    planned = plan_runs(resumed, (0, 1), {})
    runs = open_many(resumed, planned)
    assert [run.due for run in runs] == [False, True]
    train_many(resumed, runs)
    assert list(finish_many(resumed, planned, runs)["settings"][0]["results"]) == ["last", "best-test"]
    (planned[1].config.output / "best.safetensors").unlink()
    assert list(finish_many(resumed, planned, runs)["settings"][0]["results"]) == ["last"]


def test_a_run_that_diverges_leaves_the_others(data: Path, tmp_path: Path, message: Told) -> None:
    """Named with the cure, which works; without it the run diverges again, in the same words."""

    def start(rates: tuple[float, ...], **values: Any) -> None:
        common = config(data, tmp_path / "many", eval_every=0, max_steps=9, **values)
        train_many(common, open_many(common, plan_runs(common, (0,), {"lr": rates})))

    for values in ({}, {"resume": True}):
        told = message(lambda values=values: start((1e-3, 1e30), **values))
        assert f"of {tmp_path / 'many' / 'seed-0-lr-1e+30'}; leave that value or seed out of --sweep" in told
        assert list(saved_steps(config(data, tmp_path / "many"))) == ["seed-0-lr-0.001"]
    start((1e-3,), resume=True)
    assert saved_steps(config(data, tmp_path / "many")) == {"seed-0-lr-0.001": 9}
    assert "; lower --lr, or look at the features" in message(lambda: start((1e29, 1e30)))


def test_no_batch_has_more_rows_than_it_can(seed: int) -> None:
    lengths = torch.tensor([[1, 7, 40, 41], [39, 80, 333, 2]])
    assert most_distinct(lengths, 40) == 39 + 40 + 40 + 2
    starts = torch.cat([torch.zeros(2, 1, dtype=torch.int64), lengths.cumsum(1)[:, :-1]], dim=1)
    for step in range(20):
        positions = random_positions(lengths, 40, position_key(seed, step), torch.arange(8).view(2, 4))
        exact, index = distinct_rows(positions, starts)
        padded, again = distinct_rows(positions, starts, most_distinct(lengths, 40))
        assert exact.shape[1] <= padded.shape[1]
        assert torch.equal(index, again)
        assert torch.equal(padded.gather(1, index.flatten(1)), exact.gather(1, index.flatten(1)))


def test_seeds_and_sweeps_as_text() -> None:
    assert parse_seeds("0-3") == (0, 1, 2, 3)
    assert parse_seeds("0, 3,5-6") == (0, 3, 5, 6)
    assert parse_sweep(["w_cls=0.1,0.3", "ot-iters=3,4"]) == {"w_cls": (0.1, 0.3), "ot_iters": (3, 4)}


@pytest.mark.parametrize("text", ["", "a", "3-1", "1,,2", "-1", "1.5", "1,1", "0-3,2", "0-99999999999"])
def test_seeds_that_are_none(text: str, message: Told) -> None:
    assert message(lambda: parse_seeds(text)).startswith("seeds must be")


@pytest.mark.parametrize(
    ("texts", "expected"),
    [
        (
            ["num_clusters=8,16"],
            "num_clusters is a setting of the method that runs trained at once must share; run them",
        ),
        (["batch_size=8,16"], "batch_size is a setting of the method"),
        (["cosine_scale=5,10"], "--cosine-scale"),
        (["eval_every=5,10"], "eval_every is a setting of the run"),
        (["nms_threshold=0.3,0.4"], "nms_threshold changes evaluation only"),
        (["seed=1,2"], "give them with --seeds"),
        (["learning_rate=1"], "unknown setting 'learning_rate' in --sweep; one of: lr"),
        (["w_cls"], "a sweep must be like w_cls=0.1,0.3, got 'w_cls'"),
        (["w_cls=a,b"], "a sweep must be like"),
        (["w_cls=0.1,0.1"], "w_cls must be finite numbers, each given once"),
        (["w_cls=nan"], "w_cls must be finite numbers"),
        (["w_cls=0.1", "w_cls=0.3"], "w_cls is swept twice"),
    ],
)
def test_what_cannot_be_swept(texts: list[str], expected: str, message: Told) -> None:
    assert expected in message(lambda: parse_sweep(texts))


def test_values_out_of_range_and_folders_in_use(data: Path, tmp_path: Path, message: Told) -> None:
    common = config(data, tmp_path / "many", max_steps=1, eval_every=0)
    for swept, expected in (
        ({"gce_q": (0.5, 2.0)}, "gce_q must lie in (0, 1]"),
        ({"ot_iters": (2.5,)}, "whole number"),
    ):
        assert expected in message(lambda swept=swept: plan_runs(common, (0,), swept))
    planned = plan_runs(common, (0,), {})
    train_many(common, open_many(common, planned))
    assert "seed-0 already holds a run" in message(lambda: open_many(common, planned))
    single = planned[0].config
    assert "give another --output for many" in message(lambda: open_many(single, plan_runs(single, (0,), {})))
    assert "not both" in message(lambda: run(["--data", str(data), "--seed", "1", "--seeds", "1-2"]))
    plain = replace(common, engine="plain", output=tmp_path / "plain")
    assert "engine plain trains one run at a time" in message(lambda: open_many(plain, plan_runs(plain, (0,), {})))


def test_a_folder_of_many_runs_is_no_run(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    common = config(data, tmp_path / "many", max_steps=1, eval_every=0)
    train_many(common, open_many(common, plan_runs(common, (0, 1), {})))
    before = (common.output / "config.toml").read_bytes()
    for flags in (["--resume"], ["--data", str(data)]):
        assert main(["train", *flags, "--output", str(common.output)]) == 2
        told = " ".join(capsys.readouterr().err.split())
        assert "many is the folder of many runs; give --resume with --seeds and --sweep as before" in told
        assert "seed-0) with --resume" in told
    assert (common.output / "config.toml").read_bytes() == before
    assert not (common.output / "last.safetensors").exists()


def test_many_runs_are_for_one_process(
    data: Path, tmp_path: Path, message: Told, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.setenv(name, "2")
    common = config(data, tmp_path / "many")
    told = message(lambda: open_many(common, plan_runs(common, (0,), {})))
    assert "many runs are for one process, got 2; start without torchrun" in told
