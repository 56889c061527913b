"""Benchmarks are code as well: statistics, the roofline, the report and the comparison of commits."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import bench_train, compare, limits, machine, peers, report, scaling, timing, work
from benchmarks.paper import Rank, weight_numbers
from case import ops
from case.config import make_settings
from case.engine.store import ResidentSplit
from case.model import CASE

LIMITS = {
    "copy_bytes_per_second": {"1000": 4e9, "1000000": 2e9},
    "product_operations_per_second": {"float32": 1e10},
}


def entry(contender: str, seconds: float, *, peer: bool = False, **info: Any) -> dict[str, Any]:
    """A benchmark as pytest-benchmark writes it."""
    given = {
        "op": "sinkhorn", "title": "sinkhorn", "contender": contender, "peer": peer, "device": "cpu",
        "dtype": "float32",
        "backward": False, "scale": 1, "moved": 1_000_000, "operations": 0,
    }  # fmt: skip
    stats = {"median": seconds, "q1": 0.9 * seconds, "q3": 1.1 * seconds, "rounds": 9}
    return {"group": "sinkhorn 12000 x 16", "extra_info": given | info, "stats": stats}


@pytest.fixture
def results(tmp_path: Path) -> Path:
    """A folder of results with one machine."""
    folder = tmp_path / "benchmarks" / "results" / "a-cpu"
    folder.mkdir(parents=True)
    header = {
        "name": "A CPU", "cpu": "A CPU, 2 cores", "threads": 2, "gpu": None, "driver": None, "cuda": None,
        "system": "Linux", "versions": {"torch": "2.13.0"}, "commit": "0123abc", "changed": False, "load": 0.5,
    }  # fmt: skip
    slower = {"ratio": 4.0, "low": 3.5, "high": 4.5, "pairs": 9}
    faster = {"ratio": 0.5, "low": 0.4, "high": 0.6, "pairs": 9}
    entries = [
        entry("reference", 0.01),
        entry("native", 0.001),
        entry("POT sinkhorn_log", 0.004, peer=True, ratio=slower),
        entry("eager torch", 0.0005, peer=True, ratio=faster),
    ]
    for scale, peer in ((10, None), (100, "POT sinkhorn_log")):
        large = [entry("native", 0.1, scale=scale)]
        large += [entry(peer, 0.4, peer=True, ratio=slower, scale=scale)] if peer else []
        entries += [x | {"group": f"sinkhorn {12000 * scale} x 16"} for x in large]
    missing = "torchvision cannot be imported"
    row = {"device": "cpu", "backward": False}
    left_out = [
        *({"case": "sinkhorn", "contender": peer, "scale": 10, "why": f"more than 5 s ({seconds} s)"} | row
          for peer, seconds in (("eager torch", 9.0), ("POT ot.batch", 8.0))),
        *({"case": "nms", "contender": "torchvision nms", "scale": scale, "why": missing} | row for scale in (1, 10)),
    ]  # fmt: skip
    found = {"machine_info": header, "benchmarks": entries, "left_out": left_out}
    (folder / "ops.json").write_text(json.dumps(found))
    (folder / "limits.json").write_text(json.dumps({"cpu": LIMITS}))
    point = {"seconds": timing.spread([0.1, 0.2, 0.3]), "input_bytes": 100, "peak_bytes": 200}
    points = [{"value": value} | point for value in (1, 10, 100)]
    curve = {"name": "sinkhorn", "over": "rows", "device": "cpu", "points": points, "exponent": 1.02}
    (folder / "scaling.json").write_text(json.dumps({"curves": [curve]}))
    return folder.parent


def test_report_says_what_the_files_say(results: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "BENCHMARKS.md"
    report.main(["--results", str(results), "--out", str(out), "--print"])
    text = out.read_text()
    # The native row is what `auto` runs: 1 MB at 2 GB/s is 0.5 ms of its 1 ms.
    first = "| sinkhorn 12000 x 16 | 1 ms (900 µs to 1.1 ms) | 50 % | eager torch 0.50 (0.40 to 0.60) |"
    assert f"{first} the same | none timed | POT sinkhorn_log 4.00 (3.50 to 4.50) |" in text
    assert "takes 0.5 to 0.5 times as long, 0.5 times in the middle of 1 cases" in text
    assert "of 2 cases, of all sizes, ops are faster in 1, slower in 1 (named below), and in 0" in text
    long = (
        "- sinkhorn x 10, forward, eager torch (9.0 s); sinkhorn x 10, forward, POT ot.batch (8.0 s): more than 5 s\n"
    )
    assert long in text
    assert "- torchvision nms: torchvision cannot be imported\n" in text
    assert "4.00 (3.50 to 4.50)" in text
    assert "Commit `0123abc`" in text
    assert "Nothing here has run on a GPU" in text
    assert "1 to 100 | 1.02 | 200 ms (150 ms to 250 ms)" in text
    assert (results / "a-cpu" / "scaling.png").stat().st_size > 0
    assert "0.50 (0.40 to 0.60)" in capsys.readouterr().out


def test_report_names_the_peers_that_win_and_those_not_run(results: Path, tmp_path: Path) -> None:
    found = report.Machine.read(results / "a-cpu")
    winners = report.where_peers_win(found)
    assert "eager torch" in winners
    assert "POT" not in winners
    rows = {line.split(" | ")[0].strip("| "): line for line in report.peer_table([found]).splitlines()}
    assert rows["POT sinkhorn_log"].endswith("yes |")
    assert rows["torchvision nms"].endswith("**not run**: torchvision cannot be imported |")
    assert rows["flash-kmeans"].endswith("**not run**: no GPU yet |")


def test_report_without_results_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        report.main(["--results", str(tmp_path)])
    assert "make bench" in capsys.readouterr().err


def test_gpu_times_of_the_device_go_before_wall_times() -> None:
    times = {"eager": {"median_us": 9.0, "quartile_1_us": 8.0, "quartile_3_us": 10.0}}
    assert report.spent(entry("triton", 1.0, device_time=times))["median"] == pytest.approx(9e-6)
    times["replay"] = {"median_us": 3.0, "quartile_1_us": 2.0, "quartile_3_us": 4.0}
    assert report.spent(entry("triton", 1.0, device_time=times))["median"] == pytest.approx(3e-6)


@pytest.mark.parametrize("seconds, shown", [(2.0, "2 s"), (0.0123, "12.3 ms"), (4.56e-5, "45.6 µs"), (3e-8, "0.03 µs")])
def test_durations(seconds: float, shown: str) -> None:
    assert report.duration(seconds) == shown


def test_roofline() -> None:
    assert limits.copy_rate(LIMITS, 500) == 4e9
    assert limits.copy_rate(LIMITS, 5_000) == 2e9
    assert limits.copy_rate(LIMITS, 1e9) == 2e9, "beyond the largest copy its rate holds"
    assert limits.least_seconds(LIMITS, 1e6, 0) == pytest.approx(5e-4)
    assert limits.least_seconds(LIMITS, 1e6, 1e10) == pytest.approx(1.0)


def test_rates_are_positive(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "COPIED", (2**14,))
    monkeypatch.setattr(limits, "PRODUCT", (16, 16, 16))
    monkeypatch.setattr(limits, "PATIENCE", 0.01)
    monkeypatch.setattr(limits, "PRODUCT_PATIENCE", 0.01)
    found = limits.measure("cpu")
    assert found["copy_bytes_per_second"][str(2**14)] > 0
    assert found["product_operations_per_second"]["float32"] > 0


def test_ratio_of_pairs_survives_noise_that_both_share() -> None:
    generator = random.Random(1)
    base = [generator.uniform(1, 5) for _ in range(41)]
    found = timing.ratio_interval([1.3 * x * generator.uniform(0.98, 1.02) for x in base], base)
    assert found["low"] <= found["ratio"] <= found["high"]
    assert found["low"] == pytest.approx(1.3, rel=0.02)
    assert found["high"] == pytest.approx(1.3, rel=0.02)


def test_exponent_is_that_of_the_upper_half() -> None:
    sizes = [10.0**i for i in range(6)]
    assert scaling.exponent(sizes, [1e4 + x**2 for x in sizes]) == pytest.approx(2, abs=0.05)
    assert scaling.exponent([1, 2], [1, 2]) is None


def test_proof_refuses_what_is_wrong() -> None:
    wanted = [torch.tensor([1.0, 2.0], dtype=torch.float64)]
    work.prove([torch.tensor([1.0, 2.0])], wanted, 1e-6)
    with pytest.raises(AssertionError, match="error"):
        work.prove([torch.tensor([1.0, 2.1])], wanted, 1e-2)
    with pytest.raises(AssertionError, match="error"):
        work.prove([torch.tensor([1.0, torch.nan])], wanted, 1e-2)
    with pytest.raises(AssertionError, match="shape"):
        work.prove([torch.zeros(3)], wanted, 1e-2)


def test_every_case_names_an_op_and_peers_of_the_table() -> None:
    found = compare.all_cases()
    assert len(found) > 20
    for name, (case, _) in found.items():
        assert hasattr(ops, case.op), name
        assert set(case.peers) <= set(peers.PEERS), name


def test_missing_peers_are_named() -> None:
    assert peers.missing("eager torch", "cpu") is None
    assert peers.missing("flash-kmeans", "cpu") == "does not run on cpu"


def test_machine_names_no_person_and_no_host() -> None:
    found = machine.machine()
    assert machine.folder_name({"name": "AMD EPYC, 2 cores, AVX2"}) == "amd-epyc-2-cores-avx2"
    assert not {"node", "host", "user"} & set(found)


def test_weights_on_paper_are_the_models() -> None:
    model = CASE((1024, 1024), make_settings())
    assert weight_numbers() == sum(p.numel() for p in model.parameters())
    assert Rank(8).rows * 8 == 10**9
    assert Rank(1).all_reduced(100) == 0


@pytest.mark.timeout(120)
def test_compare_of_the_working_tree_with_itself() -> None:
    """Two processes, in turns. No commit is checked out: a source archive has none."""
    sides = [compare.Side(machine.ROOT, None) for _ in range(2)]
    try:
        found = compare.compare("topk_pool", *sides, pairs=3)
        assert found is not None
        assert found["pairs"] == 3
        assert found["seconds"] > 0
        assert found["low"] <= found["ratio"] <= found["high"]
    finally:
        for side in sides:
            side.close()


@pytest.mark.parametrize("contender", ["usual", "plain", "fast"])
def test_steps_that_are_timed_can_be_made(monkeypatch: pytest.MonkeyPatch, contender: str) -> None:
    monkeypatch.setattr(bench_train, "POOL", 4)
    monkeypatch.setattr(bench_train, "VIDEOS", 2)
    split = ResidentSplit.from_loaded(bench_train.data.__wrapped__(), torch.device("cpu"))
    monkeypatch.setattr(bench_train, "data", bench_train.data.__wrapped__)
    assert getattr(bench_train, contender)(split, "cpu")().isfinite()


def test_the_usual_step_is_the_engines(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench_train, "POOL", 4)
    monkeypatch.setattr(bench_train, "data", bench_train.data.__wrapped__)
    bench_train.test_usual_step_computes_the_same()
