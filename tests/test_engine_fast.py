"""The fast engine against its oracle, and its forms against one another: static shapes, precision, residence."""

from __future__ import annotations

import errno
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from case.commands.train import configure
from case.config import Settings, make_settings
from case.data import LoadedSplit, load_split, open_folder, split_bytes
from case.data.synthetic import SyntheticConfig, write
from case.engine.graphs import StaticSteps
from case.engine.learner import Learner
from case.engine.plain import PlainLearner
from case.engine.precision import rows_dtype, set_products
from case.engine.sampling import batch_videos, position_key
from case.engine.store import ResidentSplit, fitting_residence
from case.engine.train import open_run, run_training
from case.errors import CaseError
from case.heads import multiplies_bfloat16

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("synthetic") / "data"
    write(SyntheticConfig(num_train=6, num_test=2, num_classes=3, width=8, seed=3), folder)
    return folder


def settings(**values: Any) -> Settings:
    sizes = {"num_classes": 5, "num_clusters": 6, "hidden": 32, "num_segments": 50, "batch_size": 4}
    return make_settings(**{**sizes, **values})


def split(seed: int, videos: int = 9, width: int = 24) -> LoadedSplit:
    """Features with something to learn: each class shifts some of its videos' rows."""
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(3, 120, (videos,), generator=generator)
    offsets = torch.cat([torch.zeros(1, dtype=torch.int64), lengths.cumsum(0)])
    kinds = torch.randint(0, 5, (videos,), generator=generator)
    features = []
    for _ in range(2):
        directions = torch.randn(5, width, generator=generator)
        rows = torch.randn(int(offsets[-1]), width, generator=generator)
        acting = (torch.rand(int(offsets[-1]), generator=generator) < 0.3).float().unsqueeze(1)
        features.append((rows + 2 * acting * directions[kinds].repeat_interleave(lengths, 0)).numpy())
    labels = torch.eye(5)[kinds].numpy()
    return LoadedSplit(tuple(f"v{i}" for i in range(videos)), tuple(features), offsets.numpy(), labels)


def learner(kind: type[Learner], seed: int, given: Settings) -> Learner:
    torch.manual_seed(seed)
    return kind((24, 24), given)


def train(found: Learner, data: ResidentSplit, steps: int) -> list[float]:
    losses = []
    for step in range(steps):
        videos = batch_videos(len(data.videos), found.settings.batch_size, 1, step)
        losses.append(
            found.step(*data.sampled(videos, found.settings.num_segments, position_key(1, step))).total.item()
        )
    return losses


@pytest.mark.parametrize("protocol", ["released", "corrected"])
def test_200_steps_of_both_engines_agree(seed: int, protocol: str) -> None:
    given = settings(protocol=protocol)
    data = ResidentSplit.from_loaded(split(seed), CPU)
    fast, plain = learner(Learner, seed, given), learner(PlainLearner, seed, given)
    wanted = torch.tensor(train(plain, data, 200))
    torch.testing.assert_close(torch.tensor(train(fast, data, 200)), wanted, rtol=1e-5, atol=0)
    torch.testing.assert_close(fast.labels, plain.labels, rtol=1e-3, atol=1e-4)
    assert wanted[-20:].mean() < wanted[:20].mean(), "nothing was learned"


def test_the_baseline_of_both_engines_agrees(seed: int) -> None:
    given = settings(clustering=False)
    data = ResidentSplit.from_loaded(split(seed), CPU)
    found = [torch.tensor(train(learner(kind, seed, given), data, 20)) for kind in (Learner, PlainLearner)]
    torch.testing.assert_close(*found, rtol=1e-5, atol=0)


@pytest.fixture
def small_granule(monkeypatch: pytest.MonkeyPatch) -> None:
    """Batches of videos that are shorter than their samples then have several capacities, as real ones do."""
    monkeypatch.setattr("case.engine.graphs.GRANULE", 16)


def assert_same_state(found: Learner, wanted: Learner, *, rtol: float, atol: float) -> None:
    """Weights, moments and both kinds of cluster labels."""
    found_tensors, wanted_tensors = found.state()["tensors"], wanted.state()["tensors"]
    assert found_tensors.keys() == wanted_tensors.keys()
    for name, value in wanted_tensors.items():
        torch.testing.assert_close(
            found_tensors[name], value, rtol=rtol, atol=atol, msg=lambda text, name=name: f"{name}: {text}"
        )


@pytest.mark.usefixtures("small_granule")
def test_steps_of_static_shapes(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows padded to a capacity change nothing but the last digits; results stay as they are until the next step."""
    given = settings(protocol="corrected", num_segments=120)
    data = ResidentSplit.from_loaded(split(seed), CPU)
    plain, padded = learner(Learner, seed, given), learner(Learner, seed, given)
    static = StaticSteps(padded, data, given.batch_size, (1,), capture=False)
    capacities = set()
    run = static._run
    monkeypatch.setattr(static, "_run", lambda capacity: (capacities.add(capacity), run(capacity)))
    for step in range(30):
        videos = batch_videos(9, given.batch_size, 1, step)
        wanted = plain.step(*data.sampled(videos, given.num_segments, position_key(1, step)))
        found = static.step()
        for a, b in zip(found[:5], wanted[:5], strict=True):
            torch.testing.assert_close(a, b.detach(), rtol=1e-5, atol=1e-6)
        # A transport multiplies what training has added up by 20.
        torch.testing.assert_close(found.cluster_labels, wanted.cluster_labels, rtol=1e-4, atol=2e-5)
    assert len(capacities) >= 3
    assert padded.steps == 30
    assert_same_state(padded, plain, rtol=1e-3, atol=2e-5)


@pytest.mark.gpu
@pytest.mark.usefixtures("small_granule")
def test_captured_steps_equal_eager_ones(seed: int) -> None:
    """Graphs of several capacities, captured at different steps and replayed in turns, work on one state."""
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    given, device = settings(protocol="corrected", num_segments=120), torch.device("cuda")
    data = ResidentSplit.from_loaded(split(seed), device)
    torch.manual_seed(seed)
    first = Learner((24, 24), given, device)
    torch.manual_seed(seed)
    second = Learner((24, 24), given, device)
    static = StaticSteps(second, data, given.batch_size, (1,), capture=True)
    for step in range(60):
        videos = batch_videos(9, given.batch_size, 1, step)
        wanted = first.step(*data.sampled(videos, given.num_segments, position_key(1, step)))
        for a, b in zip(static.step(), wanted, strict=True):
            torch.testing.assert_close(a, b.detach(), rtol=1e-4, atol=1e-5)
    assert sum(graph is not None for graph in static._graphs.values()) >= 3
    assert second.steps == 60
    assert_same_state(second, first, rtol=1e-2, atol=1e-4)


def test_bf16_products_keep_results_in_float32(seed: int) -> None:
    given = settings()
    whole = ResidentSplit.from_loaded(split(seed), CPU)
    half = ResidentSplit.from_loaded(split(seed), CPU, dtype=rows_dtype("bf16"))
    model = learner(Learner, seed, given)
    heads = model.model(half.uniform(torch.arange(9), 50).features)
    assert {x.dtype for x in heads} == {torch.float32}
    wanted = train(model, whole, 5)
    torch.testing.assert_close(train(learner(Learner, seed, given), half, 5), wanted, rtol=2e-2, atol=0)


@pytest.mark.parametrize(
    "capabilities, warned",
    [
        ({"avx2": True, "cpu_name": "AMD EPYC"}, True),
        ({"avx512_bf16": True, "amx_bf16": False, "cpu_name": "Intel Xeon"}, True),
        ({"avx512_bf16": True, "amx_bf16": True, "cpu_name": "Intel Xeon"}, False),
        ({"avx512_bf16": True, "cpu_name": "AMD EPYC"}, False),
        ({"neon": True, "bf16": True}, False),
        ({"neon": True, "bf16": False}, True),
    ],
)
def test_bf16_that_is_no_faster_is_remarked_on(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], capabilities: dict[str, Any], warned: bool
) -> None:
    monkeypatch.setattr("torch.cpu.get_capabilities", lambda: capabilities, raising=False)
    monkeypatch.setattr("case.engine.precision.multiplies_bfloat16", multiplies_bfloat16.__wrapped__)
    set_products("fp32", CPU)
    assert not capsys.readouterr().err
    set_products("bf16", CPU)
    assert ("use --precision fp32" in capsys.readouterr().err) == warned
    set_products("fp32", CPU)


def test_where_features_lie_changes_no_bit(seed: int, data: Path, tmp_path: Path) -> None:
    folder = open_folder(data)
    at_hand = load_split(folder, "train")
    mapped = load_split(folder, "train", directory=tmp_path / "rows")
    assert all(isinstance(x, np.memmap) for x in mapped.features)
    assert sum(x.nbytes for x in mapped.features) == split_bytes(folder, "train")
    assert not list((tmp_path / "rows").iterdir()), "nothing is left behind"
    videos = torch.arange(len(at_hand.videos))
    expected = ResidentSplit.from_loaded(at_hand, CPU).sampled(videos, 20, position_key(3, 1))
    for residence in ("host", "disk"):
        found = ResidentSplit.from_loaded(mapped, CPU, residence=residence).sampled(videos, 20, position_key(3, 1))
        for a, b in zip((*found.features, *found[1:]), (*expected.features, *expected[1:]), strict=True):
            assert torch.equal(a, b)


def test_features_go_where_they_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("case.engine.store._free_memory", lambda: 1000)
    assert fitting_residence(600, CPU) == "device"
    assert fitting_residence(601, CPU) == "disk"


def test_no_room_on_disk_is_told(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "rows").write_text("in the way")
    with pytest.raises(CaseError, match="rows"):
        load_split(open_folder(data), "train", directory=tmp_path / "rows")
    monkeypatch.setattr("os.posix_fallocate", lambda *_: (_ for _ in ()).throw(OSError(errno.ENOSPC, "No space left")))
    with pytest.raises(CaseError, match=r"cannot make a file of [\d,]+ bytes: No space left"):
        load_split(open_folder(data), "train", directory=tmp_path)


@pytest.mark.parametrize(
    "choice", [{"engine": "plain"}, {"precision": "bf16", "storage": "bfloat16"}, {"residence": "disk"}]
)
def test_choices_of_the_engine_train_and_score(data: Path, tmp_path: Path, choice: dict[str, str]) -> None:
    values = {"num_segments": 20, "num_clusters": 4, "hidden": 16, "batch_size": 4, "max_steps": 2, "pictures": 0}
    run = open_run(configure({**values, "data": data, "output": tmp_path / "run", **choice}))
    run_training(run)
    assert {path.name for path in (tmp_path / "run").iterdir()} >= {"last.safetensors", "metrics.jsonl"}
    entries = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [e["step"] for e in entries if "mAP" in e] == [2]


def test_features_on_disk_stay_as_they_are_stored(data: Path, tmp_path: Path, message: Callable[..., str]) -> None:
    config = configure({"data": data, "output": tmp_path / "run", "residence": "disk", "storage": "float16"})
    assert "--storage stored" in message(lambda: open_run(config))
