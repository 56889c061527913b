"""Sampling, the learner, checkpoints and the training loop."""

from __future__ import annotations

import json
import os
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from case.commands.train import configure
from case.config import TrainConfig, make_settings
from case.data import GroundTruth, SyntheticConfig, VideoTruth, write
from case.engine import checkpoint
from case.engine import train as training
from case.engine.checkpoint import load_checkpoint, step_files
from case.engine.choices import DEVIATIONS, localization_choices
from case.engine.evaluate import Localized, localize_split, pose_split, relocalize
from case.engine.finish import conclude_run
from case.engine.learner import Learner
from case.engine.runlog import read_entries
from case.engine.sampling import (
    batch_videos,
    distinct_rows,
    position_key,
    random_bits,
    random_key,
    random_positions,
    uniform_positions,
)
from case.engine.store import ResidentSplit
from case.errors import CaseError

TINY = SyntheticConfig(num_train=10, num_test=5, num_classes=3, width=8, seed=3)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("synthetic") / "data"
    write(TINY, folder)
    return folder


def config(data: Path, output: Path, **values: Any) -> TrainConfig:
    base = {"num_segments": 40, "num_clusters": 4, "hidden": 16, "batch_size": 4, "lr": 1e-2, "max_steps": 6}
    run = {"eval_every": 3, "log_every": 1, "class_threshold": 0.2, "protocol": "corrected"}
    return configure({**base, **run, "data": data, "output": output, **values})


def plain_positions(rows: int, segments: int) -> list[tuple[int, int]]:
    """METHOD.md's sampling rule, one position at a time: (lowest, highest) row of each."""
    starts = [int(i * rows / segments) for i in range(segments)]
    ends = [*starts[1:], rows - 1]
    return list(zip(starts, ends, strict=True))


@pytest.mark.parametrize("rows", [1, 2, 7, 39, 40, 41, 97, 1000])
def test_random_positions_follow_the_rule(seed: int, rows: int) -> None:
    segments = 40
    drawn = random_positions(torch.full((200,), rows), segments, position_key(seed, 3), torch.arange(200)).numpy()
    if rows == segments:
        np.testing.assert_array_equal(drawn, np.tile(np.arange(rows), (200, 1)))
        return
    for position, (low, high) in enumerate(plain_positions(rows, segments)):
        column = drawn[:, position]
        assert column.min() >= low
        assert column.max() <= high
        if high - low <= 3:
            assert set(column) == set(range(low, high + 1))  # both ends are drawn


def test_uniform_positions() -> None:
    found = uniform_positions(torch.tensor([3, 40, 97]), 40)
    expected = [[int(np.floor(i * rows / 40)) for i in range(40)] for rows in (3, 40, 97)]
    assert found.tolist() == expected


def test_samples_depend_on_seed_and_step_alone() -> None:
    lengths, videos = torch.tensor([100, 300, 100]), torch.tensor([4, 9, 2])
    first = random_positions(lengths, 40, position_key(1, 7), videos)
    assert torch.equal(first, random_positions(lengths, 40, torch.tensor(position_key(1, 7)), videos))
    some = random_positions(lengths[1:], 40, position_key(1, 7), videos[1:])
    assert torch.equal(first[1:], some), "the batch does not matter"
    assert not torch.equal(first[0], first[2]), "videos of equal length differ"
    assert not torch.equal(first, random_positions(lengths, 40, position_key(1, 8), videos))
    assert not torch.equal(first, random_positions(lengths, 40, position_key(2, 7), videos))


def test_random_bits_are_splitmix64s() -> None:
    """The published first number from the state 0, which a counter that takes it back leads to again; fair bits."""
    first = 0xE220A8397B1DCDAF - (1 << 64)
    assert int(random_bits(random_key(0), torch.tensor(-first))) == first
    counters = torch.tensor([0, 1, 5, 2**40])
    for key in (random_key(0), random_key(3, 2**33)):
        assert random_bits(key, counters).tolist() == random_bits(torch.tensor(key), counters).tolist()
    assert random_bits(random_key(9, 8), counters).tolist() == [random_key(9, 8, c) for c in counters.tolist()]
    bits = random_bits(random_key(1, 2), torch.arange(4096))
    share = torch.stack([(bits >> i & 1).float().mean() for i in range(64)])
    assert (share - 0.5).abs().max() < 0.05


def test_distinct_rows(seed: int) -> None:
    lengths = torch.tensor([1, 7, 40, 333, 41])
    starts = torch.cat([torch.zeros(1, dtype=torch.int64), lengths.cumsum(0)[:-1]])
    positions = random_positions(lengths, 40, position_key(seed, 0), torch.arange(5))
    wanted, restored = torch.unique(starts.unsqueeze(1) + positions, return_inverse=True)
    rows, index = distinct_rows(positions, starts)
    assert torch.equal(rows, wanted)
    assert torch.equal(index, restored)
    padded, again = distinct_rows(positions, starts, capacity=200)
    assert torch.equal(padded, torch.cat([wanted, wanted.new_zeros(200 - len(wanted))]))
    assert torch.equal(again, restored)
    batches, indices = distinct_rows(torch.stack([positions, positions.flip(0)]), torch.stack([starts, starts.flip(0)]))
    assert torch.equal(batches[0], rows)
    assert torch.equal(indices[0], index)
    assert torch.equal(batches[1][indices[1]].flip(0), rows[index])


def test_every_video_is_seen_once_an_epoch() -> None:
    seen = torch.cat([batch_videos(12, 4, seed=5, step=s) for s in range(3)])
    assert sorted(seen.tolist()) == list(range(12))
    later = torch.cat([batch_videos(12, 4, seed=5, step=s) for s in range(3, 6)])
    assert seen.tolist() != later.tolist()
    assert len(batch_videos(3, 16, seed=0, step=0)) == 3


def test_distinct_rows_change_nothing(seed: int) -> None:
    """A step on distinct rows equals a step on every sampled row: losses, labels and weights."""
    torch.manual_seed(seed)
    settings = make_settings(num_classes=3, num_clusters=4, hidden=16, num_segments=24, protocol="corrected", lr=1e-2)
    lengths = torch.tensor([5, 30, 11])
    starts = torch.tensor([0, 5, 35])
    features = tuple(torch.randn(46, 8) for _ in range(2))
    split = ResidentSplit(("a", "b", "c"), features, starts, lengths, torch.eye(3))
    torch.manual_seed(seed)
    fast = Learner((8, 8), settings)
    torch.manual_seed(seed)
    plain = Learner((8, 8), settings)
    for step in range(4):
        positions = random_positions(lengths, 24, position_key(seed, step), torch.arange(3))
        rows, index, _ = split.sampled(torch.arange(3), 24, position_key(seed, step))
        assert rows[0].shape[0] < positions.numel()
        ids = (starts[:, None] + positions).flatten()
        everything = torch.arange(ids.numel()).view(3, 24)
        a = fast.step(rows, index, split.labels)
        b = plain.step([f[ids] for f in features], everything, split.labels)
        torch.testing.assert_close(a.total, b.total, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(a.cluster_labels, b.cluster_labels, rtol=1e-4, atol=1e-5)


def test_localizing_again_is_localizing_with_these_settings(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """From the same activations, more videos than go at once: every choice, detection by detection."""
    monkeypatch.setattr("case.engine.evaluate.CHUNK_BYTES", 600_000)
    torch.manual_seed(seed)
    settings = make_settings(num_classes=3, num_clusters=4, hidden=16, num_segments=24, class_threshold=0.1)
    features = tuple(torch.randn(60, 8) for _ in range(2))
    offsets = torch.tensor([0, 5, 30, 31, 50, 60])
    split = ResidentSplit(tuple("abcde"), features, offsets[:-1], offsets.diff(), torch.zeros(5, 3))
    learner = Learner((8, 8), settings)
    labels = torch.rand(4, 2)

    def detections(localized: Localized) -> list[list[Any]]:
        return [column.tolist() for column in localized.detections]

    first = localize_split(learner.model, labels, split, settings)
    assert len(first.detections.score)
    assert detections(relocalize(first, settings)) == detections(first)
    seen = [detections(first)]
    for choice in localization_choices(settings).values():
        again = relocalize(first, choice)
        assert detections(again) == detections(localize_split(learner.model, labels, split, choice))
        seen.append(detections(again))
    assert any(found != seen[0] for found in seen)
    truth = GroundTruth(("x", "y", "z"), {"a": VideoTruth("test", None, np.array([[0.0, 1.0]]), np.array([2]))})
    problem = pose_split(first, truth, "test")
    assert problem.inside.tolist() == [True, False, False, False, False]
    assert problem.found.score.tolist() == first.detections.score.tolist()
    nothing = torch.full((len(problem.found.score),), torch.nan, dtype=torch.float64)
    diverged = replace(first, detections=first.detections._replace(score=nothing))
    with pytest.raises(CaseError, match="detections have the score NaN: training diverged; lower lr"):
        pose_split(diverged, truth, "test")


def test_choices_are_those_that_differ() -> None:
    released, corrected = make_settings(), make_settings(protocol="corrected")
    alone = [f"{name} corrected" for name in DEVIATIONS]
    assert list(localization_choices(released)) == [*alone, "3, 4, 5 corrected"]
    assert localization_choices(released)["4 NMS lengths corrected"] == replace(released, nms_length_offset=0.0)
    for choice in localization_choices(corrected).values():
        assert choice.prior_ranks == corrected.prior_ranks
    own = localization_choices(replace(released, outer_ratio=0.5))
    assert {"3 proposal score released", "3 proposal score corrected"} <= set(own)


def test_training_writes_its_run(data: Path, tmp_path: Path) -> None:
    run = training.open_run(config(data, tmp_path / "run"))
    training.run_training(run)
    names = {p.name for p in (tmp_path / "run").iterdir()}
    assert {"config.toml", "metrics.jsonl", "last.safetensors", "best.safetensors", "tensorboard"} <= names
    assert not [n for n in names if n.startswith(".tmp")]
    entries = read_entries(tmp_path / "run" / "metrics.jsonl")
    assert [e["step"] for e in entries if e["kind"] == "train"] == [1, 2, 3, 4, 5, 6]
    assert [e["step"] for e in entries if e["kind"] == "eval"] == [3, 6]
    best = max((e for e in entries if e["kind"] == "eval"), key=lambda e: e["mAP"])
    assert load_checkpoint(tmp_path / "run" / "best.safetensors").steps == best["step"]


def test_resume_is_bit_equal(data: Path, tmp_path: Path) -> None:
    whole = training.open_run(config(data, tmp_path / "whole"))
    training.run_training(whole)
    part = training.open_run(config(data, tmp_path / "parts", max_steps=4))
    training.run_training(part)
    rest = training.open_run(config(data, tmp_path / "parts", resume=True))
    assert rest.learner.steps == 4
    training.run_training(rest)
    a, b = (load_checkpoint(tmp_path / name / "last.safetensors") for name in ("whole", "parts"))
    assert a.steps == b.steps == 6
    assert set(a.tensors) == set(b.tensors)
    for name, value in a.tensors.items():
        assert torch.equal(value, b.tensors[name]), name

    def losses(name: str) -> list[float]:
        return [e["total"] for e in read_entries(tmp_path / name / "metrics.jsonl") if e["kind"] == "train"]

    assert losses("whole") == losses("parts")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_leaves_a_resumable_checkpoint(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    run = training.open_run(config(data, tmp_path / "run", eval_every=0))
    step = Learner.step

    def interrupted(self: Learner, *args: Any) -> Any:
        if self.steps == 2:
            os.kill(os.getpid(), number)
        return step(self, *args)

    monkeypatch.setattr(Learner, "step", interrupted)
    with pytest.raises(training.Interrupted):
        training.run_training(run)
    assert load_checkpoint(tmp_path / "run" / "last.safetensors").steps == 3
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    monkeypatch.undo()
    rest = training.open_run(config(data, tmp_path / "run", eval_every=0, resume=True))
    training.run_training(rest)
    whole = training.open_run(config(data, tmp_path / "whole", eval_every=0))
    training.run_training(whole)
    a, b = (load_checkpoint(tmp_path / name / "last.safetensors") for name in ("run", "whole"))
    assert all(torch.equal(a.tensors[k], b.tensors[k]) for k in a.tensors)


def test_an_existing_run_is_not_overwritten(data: Path, tmp_path: Path) -> None:
    training.run_training(training.open_run(config(data, tmp_path / "run", max_steps=1)))
    with pytest.raises(CaseError, match="already holds a run"):
        training.open_run(config(data, tmp_path / "run"))
    with pytest.raises(CaseError, match="no checkpoint to resume from"):
        training.open_run(config(data, tmp_path / "other", resume=True))


def test_a_full_disk_leaves_nothing_half_written(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = training.open_run(config(data, tmp_path / "run"))
    training.run_training(run)
    before = (tmp_path / "run" / "last.safetensors").read_bytes()

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(CaseError, match="No space left on device"):
        run.save("last.safetensors", None)
    assert (tmp_path / "run" / "last.safetensors").read_bytes() == before
    assert not list((tmp_path / "run").glob(".tmp*"))


def steps_kept(folder: Path) -> list[int]:
    return [load_checkpoint(path).steps for path in step_files(folder)]


def test_the_last_checkpoints_are_kept(data: Path, tmp_path: Path) -> None:
    output = tmp_path / "run"
    values = {"max_steps": 12, "eval_every": 0, "save_every": 3}
    training.run_training(training.open_run(config(data, output, keep_last=2, **values)))
    assert steps_kept(output) == [9, 12]
    assert (output / "step-12.safetensors").read_bytes() == (output / "last.safetensors").read_bytes()
    values["max_steps"] = 15
    training.run_training(training.open_run(config(data, output, keep_last=3, resume=True, **values)))
    assert steps_kept(output) == [9, 12, 15]
    values["max_steps"] = 16
    training.run_training(training.open_run(config(data, output, resume=True, **values)))
    assert steps_kept(output) == []
    with pytest.raises(CaseError, match="keep_last must be at least 1, got 0"):
        config(data, output, keep_last=0)


def test_the_oldest_checkpoint_goes_only_after_the_new_one_is_there(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = training.open_run(config(data, tmp_path / "run", keep_last=2, eval_every=0, save_every=2))
    training.run_training(run)
    assert steps_kept(tmp_path / "run") == [4, 6]
    run.learner.steps = 8
    save = checkpoint.save_checkpoint

    def full(path: Path, *args: Any) -> None:
        if path.name.startswith("step-"):
            raise CaseError("no space left")
        save(path, *args)

    monkeypatch.setattr(checkpoint, "save_checkpoint", full)
    with pytest.raises(CaseError, match="no space"):
        run.save("last.safetensors", None)
    assert steps_kept(tmp_path / "run") == [4, 6]


@pytest.mark.parametrize("damage", ["truncated", "empty", "foreign", "missing", "incomplete"])
def test_a_damaged_checkpoint_is_told_in_one_line(data: Path, tmp_path: Path, damage: str) -> None:
    training.run_training(training.open_run(config(data, tmp_path / "run", max_steps=1)))
    path = tmp_path / "run" / "last.safetensors"
    content = path.read_bytes()
    if damage == "missing":
        path.unlink()
    elif damage == "incomplete":
        tensors = load_file(path)
        del tensors["model/branches.rgb.base.bias"]
        with safe_open(path, "pt") as file:
            metadata = file.metadata()
        save_file(tensors, path, metadata)
    else:
        path.write_bytes({"truncated": content[: len(content) // 2], "empty": b"", "foreign": b"PK" * 999}[damage])
    with pytest.raises(CaseError, match=r"last\.safetensors: checkpoint") as error:
        load_checkpoint(path)
    assert "\n" not in str(error.value)


def test_a_diverging_loss_is_told(data: Path, tmp_path: Path) -> None:
    run = training.open_run(config(data, tmp_path / "run"))
    with torch.no_grad():
        next(run.learner.model.parameters()).fill_(float("nan"))
    with pytest.raises(CaseError, match="the loss is nan at step 1"):
        training.run_training(run)


def test_going_back_to_an_earlier_step(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Nothing of the steps that are made again stays, and the run ends as one that went this way at once."""
    output = tmp_path / "run"
    values = {"eval_every": 2, "keep_last": 4, "pictures": 0}
    training.run_training(training.open_run(config(data, output, max_steps=8, **values)))
    for name in ("last", "best"):  # as if the last evaluation had been the best
        (output / f"{name}.safetensors").write_bytes((output / "step-8.safetensors").read_bytes())
    (output / "last.safetensors").write_bytes((output / "step-4.safetensors").read_bytes())
    values |= {"lr": 1e-3, "max_steps": 6}
    run = training.open_run(config(data, output, resume=True, **values))
    assert (run.learner.steps, run.due) == (4, True), "what was selected is gone"
    training.run_training(run)
    told = capsys.readouterr().out
    assert "goes on from step 4; removed best.safetensors, step-6.safetensors, step-8.safetensors of later" in told
    assert steps_kept(output) == [2, 4, 6]
    entries = [e for e in read_entries(output / "metrics.jsonl") if e["kind"] == "eval"]
    assert [e["step"] for e in entries] == [2, 4, 6]
    best = max(entries[1:], key=lambda e: e["mAP"])
    kept = load_checkpoint(output / "best.safetensors")
    assert kept.steps == run.best["best-test"]["step"] == best["step"]
    assert kept.notes["best"] == {"step": best["step"], "mAP": best["mAP"]}
    again = training.open_run(config(data, output, resume=True, **values))
    assert (again.best, again.due) == (run.best, False)


def test_an_outcome_is_that_of_its_checkpoint(data: Path, tmp_path: Path) -> None:
    """Not of another checkpoint that has made as many steps."""
    run, other = (training.open_run(config(data, tmp_path / n, pictures=0, seed=s)) for s, n in enumerate("ab"))
    for one in (run, other):
        training.run_training(one)
    (tmp_path / "a" / "best.safetensors").write_bytes((tmp_path / "b" / "last.safetensors").read_bytes())
    outcomes = conclude_run(run)
    assert outcomes["last"].step == outcomes["best-test"].step == 6
    scores = (outcomes[name].localized.detections.score for name in ("last", "best-test"))
    first, second = scores
    assert run.evaluated is not None
    assert other.evaluated is not None
    assert torch.equal(first, run.evaluated.localized.detections.score)
    assert torch.equal(second, other.evaluated.localized.detections.score)


def test_other_evaluation_settings_select_anew(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """mAPs at other thresholds say nothing of each other."""
    output, strict = tmp_path / "run", {"tiou": (0.95,), "nms_threshold": 0.5}
    training.run_training(training.open_run(config(data, output, tiou=(0.05,))))
    finished = training.open_run(config(data, output, resume=True, **strict))
    assert finished.best["best-test"]["step"] in (3, 6), "nothing is selected any more"
    assert "changed" not in capsys.readouterr().err
    run = training.open_run(config(data, output, max_steps=9, resume=True, **strict))
    assert run.best == {}
    told = " ".join(capsys.readouterr().err.split())
    assert "nms_threshold, tiou changed since" in told
    assert "the best checkpoints are selected anew" in told
    training.run_training(run)
    assert load_checkpoint(output / "best.safetensors").steps == 9
    capsys.readouterr()
    assert training.open_run(config(data, output, max_steps=12, resume=True, **strict)).best["best-test"]["step"] == 9
    assert "changed" not in capsys.readouterr().err
    (output / "best.safetensors").unlink()
    finished = training.open_run(config(data, output, max_steps=9, resume=True, tiou=(0.5,)))
    assert (finished.best, finished.due) == ({}, True), "nothing to compare with an evaluation that is made now"
    assert "changed" in capsys.readouterr().err


def test_weights_that_are_not_finite_are_not_saved(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The loss of a step is that of the weights before it, so that it says nothing of these."""
    run = training.open_run(config(data, tmp_path / "run", save_every=2, eval_every=0))
    step = run.learner.step

    def overflowing(*args: Any) -> Any:
        losses = step(*args)
        if run.learner.steps == 4:
            run.learner.model.branches["rgb"].base.bias.data[3] = torch.inf
        return losses

    monkeypatch.setattr(run.learner, "step", overflowing)
    with pytest.raises(CaseError, match=r"weights are not finite at step 4 of .*run; lower --lr"):
        training.run_training(run)
    kept = load_checkpoint(tmp_path / "run" / "last.safetensors")
    assert kept.steps == 2
    assert all(value.isfinite().all() for value in kept.tensors.values())


def test_label_smoothing_and_start() -> None:
    released, corrected = (make_settings(protocol=p, num_clusters=4) for p in ("released", "corrected"))
    assert Learner((8, 8), released).labels.tolist() == [[0.25, 0.25]] * 4
    assert Learner((8, 8), corrected).labels.tolist() == [[0.5, 0.5]] * 4
    learner = Learner((8, 8), replace(corrected, num_classes=3, num_segments=16))
    rows, index, labels = [torch.rand(32, 8)] * 2, torch.arange(32).view(2, 16), torch.eye(3)[:2]
    seen = []
    for _ in range(3):
        learner.step(rows, index, labels)
        seen.append(learner.labels.clone())
    mean = seen[0]
    for value in seen[1:]:
        mean = 0.9 * mean + 0.1 * value
    torch.testing.assert_close(learner.inference_labels, mean)


@pytest.mark.gpu
def test_a_gpu_trains_and_localizes_as_the_cpu_does(data: Path, tmp_path: Path) -> None:
    """Same seed: losses of a few steps, through a resume, and the detections they lead to."""
    losses, detections = {}, {}
    for device in ("cpu", "cuda"):
        output = tmp_path / device
        training.run_training(training.open_run(config(data, output, device=device, lr=1e-3, max_steps=3)))
        run = training.open_run(config(data, output, device=device, lr=1e-3, max_steps=5, resume=True))
        training.run_training(run)
        losses[device] = [e["total"] for e in read_entries(output / "metrics.jsonl") if e["kind"] == "train"]
        assert run.evaluated is not None
        detections[device] = run.evaluated.localized.detections.score.numel()
    np.testing.assert_allclose(losses["cuda"], losses["cpu"], rtol=1e-3)
    assert abs(detections["cuda"] - detections["cpu"]) <= 0.02 * detections["cpu"]


def test_the_loss_falls_on_real_data(shared_data: Path, tmp_path: Path) -> None:
    folder = shared_data / "shrec21"
    values = {"data": folder, "output": tmp_path / "run", "num_segments": 224, "lr": 1e-3, "class_threshold": 0.1}
    run = training.open_run(configure({**values, "max_steps": 12, "eval_every": 0, "log_every": 1, "seed": 1}))
    training.run_training(run)
    losses = [e["total"] for e in read_entries(tmp_path / "run" / "metrics.jsonl") if e["kind"] == "train"]
    assert np.mean(losses[-3:]) < 0.95 * np.mean(losses[:3])
    score = json.loads(json.dumps(load_checkpoint(tmp_path / "run" / "last.safetensors").notes["score"]))
    assert 0 <= score["mAP"] <= 1
