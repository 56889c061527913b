"""Held-out training videos: which they are, that they are never trained on, and what is selected on them."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from case.commands.train import configure
from case.config import TrainConfig
from case.data import GroundTruth, VideoTruth
from case.engine import train as training
from case.engine.checkpoint import load_checkpoint
from case.engine.evaluate import Score
from case.engine.finish import finish_run
from case.engine.heldout import heldout_truth, hold_out
from case.engine.resolve import kept_checkpoint
from case.engine.runlog import read_entries
from case.engine.selection import BEST, BEST_HELDOUT, LAST, Evaluation, Evaluator
from case.engine.store import ResidentSplit
from case.metrics import MeanAP

Told = Callable[[Callable[[], object]], str]


def config(data: Path, output: Path, **values: Any) -> TrainConfig:
    base = {"num_segments": 40, "num_clusters": 4, "hidden": 16, "batch_size": 3, "lr": 1e-2, "max_steps": 6}
    run = {"eval_every": 2, "log_every": 1, "class_threshold": 0.2, "protocol": "corrected", "val_fraction": 0.3}
    return configure({**base, **run, "pictures": 0, "data": data, "output": output, **values})


def split_of(labels: Tensor) -> ResidentSplit:
    """Videos of 1, 2, ... rows; every row holds its video's number."""
    lengths = torch.arange(1, len(labels) + 1)
    offsets = torch.cat([torch.zeros(1, dtype=torch.int64), lengths.cumsum(0)])
    rows = torch.arange(len(labels)).repeat_interleave(lengths).float().unsqueeze(1)
    return ResidentSplit(tuple(f"v{i}" for i in range(len(labels))), (rows,), offsets[:-1], lengths, labels)


def test_every_class_keeps_a_training_video(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    labels = torch.nn.functional.one_hot(torch.randint(6, (40,), generator=generator), 6).float()
    kept, held = hold_out(split_of(labels), 0.5, seed)
    assert held is not None
    assert len(held.videos) == 20
    assert sorted(int(name[1:]) for name in (*kept.videos, *held.videos)) == list(range(40))
    assert torch.equal(kept.labels.sum(0) > 0, labels.sum(0) > 0)
    again = hold_out(split_of(labels), 0.5, seed)[1]
    other = hold_out(split_of(labels), 0.5, seed + 1)[1]
    assert again is not None
    assert other is not None
    assert again.videos == held.videos != other.videos


def test_a_class_is_given_up_only_for_the_share() -> None:
    labels = torch.eye(3)[torch.tensor([0, 0, 1, 2])]
    for seed in range(8):
        one, two = (hold_out(split_of(labels), fraction, seed)[1] for fraction in (0.25, 0.5))
        assert one is not None
        assert two is not None
        assert set(one.videos) <= {"v0", "v1"}
        assert len(two.videos) == 2


def test_a_part_is_the_split_of_its_videos() -> None:
    whole = split_of(torch.eye(5))
    part = whole.part(torch.tensor([1, 4]))
    assert part.videos == ("v1", "v4")
    assert part.lengths.tolist() == [2, 5]
    assert part.labels.argmax(1).tolist() == [1, 4]
    (rows,), index, labels = part.uniform(torch.tensor([1, 0]), 6)
    assert rows[index].squeeze(-1).tolist() == [[4.0] * 6, [1.0] * 6]
    assert labels.argmax(1).tolist() == [4, 1]
    assert torch.equal(whole.part(slice(1, 3)).starts, whole.starts[1:3])


def test_held_out_videos_are_never_trained_on(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = training.open_run(config(data, tmp_path / "run", eval_every=0, max_steps=20))
    held = run.evaluator.heldout
    assert held is not None
    assert len(held.videos) == 3
    assert not set(held.videos) & set(run.train.videos)
    # Rows that tell their video: those of held-out videos are negative.
    for sign, split in ((1, run.train), (-1, held)):
        for number, (start, rows) in enumerate(zip(split.starts.tolist(), split.lengths.tolist(), strict=True), 1):
            for stream in split.features:
                stream[start : start + rows] = sign * number
    seen: set[int] = set()
    step = run.learner.step

    def spied(rows: Sequence[Tensor], *args: Any) -> Any:
        seen.update(int(n) for n in rows[0][:, 0].unique())
        return step(rows, *args)

    monkeypatch.setattr(run.learner, "step", spied)
    training.run_training(run)
    assert seen == set(range(1, 8))


def scripted(monkeypatch: pytest.MonkeyPatch, test: Sequence[float], heldout: Sequence[float]) -> None:
    """Evaluations at steps 2, 4, 6 with these mAPs."""
    evaluate = Evaluator.__call__

    def found(self: Evaluator, step: int, *args: Any) -> Evaluation:
        real = evaluate(self, step, *args)
        tiou = real.score.mean_ap.tiou

        def made(level: float) -> Score:
            return Score(MeanAP(tiou, ("a",), np.full((len(tiou), 1), level)), 0.5)

        at = step // 2 - 1
        return real._replace(score=made(test[at]), heldout=made(heldout[at]))

    monkeypatch.setattr(Evaluator, "__call__", found)


@pytest.mark.parametrize("test", [(0.1, 0.2, 0.3), (0.3, 0.2, 0.1), (0.2, 0.9, 0.0)])
def test_selection_on_held_out_videos_ignores_the_test_split(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, test: tuple[float, ...]
) -> None:
    scripted(monkeypatch, test, (0.4, 0.7, 0.6))
    output = tmp_path / "run"
    run = training.open_run(config(data, output, keep_checkpoint="best-heldout"))
    training.run_training(run)
    assert run.best["best-heldout"] == {"step": 4, "mAP": pytest.approx(0.7)}
    assert load_checkpoint(output / BEST_HELDOUT).steps == 4
    assert load_checkpoint(output / BEST).steps == 2 * (test.index(max(test)) + 1)
    assert kept_checkpoint(output) == output / BEST_HELDOUT


def test_all_three_results_are_reported(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scripted(monkeypatch, (0.3, 0.1, 0.2), (0.4, 0.7, 0.6))
    output = tmp_path / "run"
    run = training.open_run(config(data, output))
    training.run_training(run)
    assert list(finish_run(run)) == ["last", "best-heldout", "best-test"]
    results = json.loads((output / "results.json").read_text())
    assert {name: results[name]["step"] for name in ("last", "best-heldout", "best-test")} == {
        "last": 6, "best-heldout": 4, "best-test": 2,
    }  # fmt: skip
    assert results["best-test"]["selected_on"] == "the test set"
    assert results["best-heldout"]["heldout"]["mAP"] == pytest.approx(0.7)
    assert results["best-heldout"]["mAP"] == pytest.approx(0.1)
    assert results["kept"] == "last"
    report = (output / "report.md").read_text()
    for title in (
        "| last (step 6) | 20.0 |",
        "| best-heldout (step 4, selected on held-out training videos) | 10.0 |",
        "| best-test (step 2, selected on the test set) | 30.0 |",
        "## mAP of the held-out training videos (%)",
        "| best-heldout (step 4, selected on held-out training videos) | 70.0 |",
    ):
        assert title in report
    assert (output / "curve_map.png").stat().st_size > 0


def test_evaluations_as_csv(data: Path, tmp_path: Path) -> None:
    output = tmp_path / "run"
    training.run_training(training.open_run(config(data, output, tiou=(0.3, 0.5))))
    with open(output / "evaluations.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(r["step"], r["split"]) for r in rows] == [(s, k) for s in "246" for k in ("test", "heldout")]
    entries = read_entries(output / "metrics.jsonl")
    losses = {e["step"]: e for e in entries if e["kind"] == "train"}
    for row in rows:
        kind = "eval" if row["split"] == "test" else "heldout"
        entry = next(e for e in entries if e["kind"] == kind and e["step"] == int(row["step"]))
        assert float(row["mAP"]) == entry["mAP"] == pytest.approx((float(row["AP@0.3"]) + float(row["AP@0.5"])) / 2)
        assert float(row["video_accuracy"]) == entry["video_accuracy"]
        for name in ("total", "video", "attention", "scc", "ccc"):
            assert float(row[name]) == losses[entry["step"]][name]
    run = training.open_run(config(data, tmp_path / "again", max_steps=2))
    training.run_training(run)
    held, found = run.evaluator.heldout, run.evaluated
    assert held is not None
    assert found is not None
    assert found.heldout is not None
    present = {run.folder.classes[c] for v in held.videos for c in run.folder.ground_truth.videos[v].labels}
    assert set(found.heldout.mean_ap.classes) == present


def test_resume_keeps_selection_and_evaluations(data: Path, tmp_path: Path, message: Told) -> None:
    training.run_training(training.open_run(config(data, tmp_path / "whole")))
    training.run_training(training.open_run(config(data, tmp_path / "parts", max_steps=4)))
    rest = training.open_run(config(data, tmp_path / "parts", resume=True))
    assert rest.best["best-heldout"]["step"] in (2, 4)
    assert not rest.due
    training.run_training(rest)
    for name in (LAST, BEST, BEST_HELDOUT):
        a, b = (load_checkpoint(tmp_path / run / name) for run in ("whole", "parts"))
        assert a.steps == b.steps
        assert all(torch.equal(a.tensors[k], b.tensors[k]) for k in a.tensors), name
        assert [a.notes[k] for k in ("best", "best_heldout", "heldout")] == [
            b.notes[k] for k in ("best", "best_heldout", "heldout")
        ]
    texts = [(tmp_path / run / "evaluations.csv").read_text() for run in ("whole", "parts")]
    assert texts[0] == texts[1]
    for changed in ({"seed": 1}, {"val_fraction": 0.2}, {"val_fraction": 0.0}):
        told = message(
            lambda changed=changed: training.open_run(
                config(data, tmp_path / "parts", resume=True, max_steps=9, **changed)
            )
        )
        assert "cannot change on --resume" in told


class Killed(BaseException):
    """What no handler of errors sees, as a process that is killed."""


@pytest.mark.parametrize("where", ["evaluation", "save"])
@pytest.mark.parametrize(("step", "eval_every"), [(4, 2), (6, 2), (6, 0)])
def test_an_evaluation_that_was_cut_short_is_made_up(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str, step: int, eval_every: int
) -> None:
    """Killed in it, or after the best checkpoint has been saved and before the last one says so: nothing is missing."""
    scripted(monkeypatch, (0.3, 0.9, 0.5), (0.1, 0.4, 0.6))
    values = {"eval_every": eval_every, "keep_checkpoint": "best-heldout", "pictures": 0}
    whole = training.open_run(config(data, tmp_path / "whole", **values))
    training.run_training(whole)
    evaluate, save = Evaluator.__call__, training.TrainingRun.save

    def evaluating(self: Evaluator, number: int, *args: Any) -> Evaluation:
        if number == step and where == "evaluation":
            raise Killed
        return evaluate(self, number, *args)

    def saving(self: training.TrainingRun, name: str, score: Score | None) -> None:
        if name == LAST and score is not None and self.learner.steps == step:
            raise Killed
        save(self, name, score)

    with monkeypatch.context() as patch:
        patch.setattr(Evaluator, "__call__", evaluating)
        patch.setattr(training.TrainingRun, "save", saving)
        with pytest.raises(Killed):
            training.run_training(training.open_run(config(data, tmp_path / "killed", **values)))
    rest = training.open_run(config(data, tmp_path / "killed", resume=True, **values))
    assert (rest.learner.steps, rest.due) == (step, True)
    training.run_training(rest)
    assert rest.best == whole.best
    for name in (LAST, BEST, BEST_HELDOUT):
        a, b = (load_checkpoint(tmp_path / run / name) for run in ("whole", "killed"))
        assert a.steps == b.steps, name
        assert [a.notes[k] for k in ("best", "best_heldout", "score")] == [
            b.notes[k] for k in ("best", "best_heldout", "score")
        ]
    texts = [(tmp_path / run / "evaluations.csv").read_text() for run in ("whole", "killed")]
    assert texts[0] == texts[1]
    assert not training.open_run(config(data, tmp_path / "killed", resume=True, **values)).due
    assert list(finish_run(rest)) == ["last", "best-heldout", "best-test"]


def test_what_cannot_be_held_out(data: Path, tmp_path: Path, message: Told) -> None:
    for fraction in (-0.1, 1.0, 2.0):
        assert "val_fraction must lie in [0, 1)" in message(
            lambda fraction=fraction: config(data, tmp_path / "run", val_fraction=fraction)
        )
    told = message(lambda: config(data, tmp_path / "run", val_fraction=0.0, keep_checkpoint="best-heldout"))
    assert "needs held-out videos; give --val-fraction" in told
    told = message(lambda: training.open_run(config(data, tmp_path / "run", val_fraction=0.96)))
    assert "val_fraction 0.96 of 10 training videos leaves none to train on" in told
    assert not (tmp_path / "run").exists()
    assert "leaves none" in message(lambda: hold_out(split_of(torch.eye(1)), 0.01, 0))


def test_held_out_videos_without_an_instance_are_refused(message: Told) -> None:
    some = VideoTruth("train", None, np.array([[0.0, 1.0]]), np.array([0]))
    none = replace(some, segments=np.zeros((0, 2)), labels=np.zeros(0, np.int64))
    truth = GroundTruth(("x",), {"a": some, "b": none, "c": replace(some, subset="other")})
    assert list(heldout_truth(truth, ("a", "b"), "train").videos) == ["a", "b"]
    told = message(lambda: heldout_truth(truth, ("b", "c", "d"), "train"))
    assert "none of the 3 held-out videos has an annotated instance in subset 'train'" in told
