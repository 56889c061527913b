"""A run of benchmarks: how long it may take, what it leaves out by name, and what it keeps when it is stopped."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import (
    bench_nms,
    bench_proposals,
    bench_prototypes,
    bench_sinkhorn,
    budget,
    compare,
    peers,
    timing,
    work,
)
from case import ops

ROOT = Path(__file__).resolve().parents[1]
CONFTEST = (ROOT / "benchmarks" / "conftest.py").read_text()
CASES = """
import os, time
import pytest, torch
from benchmarks.work import Work, bench
from case import ops

def slow(p, target):
    time.sleep(0.02 * len(p))
    return ops.generalized_cross_entropy(p, target, q=0.7)

@bench("generalized_cross_entropy", peers=("eager torch",), scales=(1, 10, 100))
def test_growing(scale):
    x = torch.rand(scale, 3)
    ops.generalized_cross_entropy(x, x, q=0.7)  # what a first call loads is no part of it
    return Work(
        lambda p, target: ops.generalized_cross_entropy(p, target, q=0.7), {"p": x, "target": (x > 0.5).float()}, 0, {},
        peers={"eager torch": slow},
    )

def test_that_waits(benchmark):
    def wait():
        open(os.environ["WAITING"], "w").close()
        time.sleep(60)
    if os.environ["WHERE"] == "before the rounds":
        wait()
    benchmark.pedantic(wait, rounds=3)

def test_never_begun(benchmark):
    benchmark.pedantic(int)
"""


@pytest.fixture
def command(tmp_path: Path) -> list[str]:
    """pytest with the benchmarks' conftest on cases of its own."""
    (tmp_path / "conftest.py").write_text(CONFTEST)
    (tmp_path / "bench_own.py").write_text(CASES)
    (tmp_path / "pytest.ini").write_text(
        "[pytest]\npython_files = bench_*.py\nmarkers = slow\nfilterwarnings = error\n"
    )
    pytest_command = [sys.executable, "-m", "pytest", str(tmp_path), "-q", "--color=no", "-p", "no:cacheprovider"]
    return [*pytest_command, f"--benchmark-json={tmp_path / 'ops.json'}"]


def environment(**more: str) -> dict[str, str]:
    path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    # Beside other tests of a parallel run pytest-benchmark would switch itself off.
    own = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    # One back end, whatever was built: rows are counted here.
    own |= {"CASE_NATIVE": "0", "PYTHONPATH": path, "CASE_BENCH_SECONDS": "0.05", "CASE_BENCH_LONGEST": "1"}
    return own | more


@pytest.mark.timeout(120)
@pytest.mark.parametrize(
    "number, where",
    [(signal.SIGINT, "before the rounds"), (signal.SIGINT, "in a round"), (signal.SIGTERM, "in a round")],
)
def test_a_stopped_run_keeps_what_it_has_measured_and_names_the_rest(
    command: list[str], tmp_path: Path, number: signal.Signals, where: str
) -> None:
    waiting = tmp_path / "waiting"
    process = subprocess.Popen(
        command,
        env=environment(WAITING=str(waiting), WHERE=where),
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    end = time.monotonic() + 100
    while not waiting.exists() and process.poll() is None and time.monotonic() < end:
        time.sleep(0.05)
    process.send_signal(number)
    output, _ = process.communicate()
    assert process.returncode == pytest.ExitCode.INTERRUPTED, output
    assert "stopped: 2 rows measured and kept; 6 not measured, of growing; never_begun; that_waits" in output
    assert "Traceback" not in output
    assert "Error" not in output
    found = json.loads((tmp_path / "ops.json").read_text())
    assert [e["extra_info"]["scale"] for e in found["benchmarks"]] == [1, 1]
    why = {(x["case"], x.get("scale"), x.get("contender")): x["why"] for x in found["left_out"]}
    assert why["that_waits", None, None] == why["never_begun", None, None] == "the run was stopped before"
    assert why["growing", 10, "eager torch"] == "the run was stopped before"


@pytest.mark.timeout(120)
def test_a_run_names_calls_that_would_take_long(command: list[str], tmp_path: Path) -> None:
    subprocess.run([*command, "-k", "growing"], env=environment(), check=True, stdout=subprocess.DEVNULL)
    found = json.loads((tmp_path / "ops.json").read_text())
    assert [e["extra_info"]["scale"] for e in found["benchmarks"]] == [1, 1, 10, 10, 100]
    why = {(x["case"], x.get("contender")): x["why"] for x in found["left_out"]}
    assert why["growing", "eager torch"].startswith("a call is predicted to take more than 1 s (2.")
    assert why["that_waits", None] == "not asked for in this run"
    own, peer = found["benchmarks"][:2]
    assert "ratio" not in own["extra_info"]
    assert peer["extra_info"]["ratio"]["pairs"] >= 3


@pytest.mark.timeout(120)
def test_calls_that_turn_out_to_be_long_are_not_timed(command: list[str], tmp_path: Path) -> None:
    longest = environment(CASE_BENCH_LONGEST="0.05")
    subprocess.run([*command, "-k", "growing and x10-"], env=longest, check=True, stdout=subprocess.DEVNULL)
    found = json.loads((tmp_path / "ops.json").read_text())
    assert [e["extra_info"]["contender"] for e in found["benchmarks"]] == ["reference"]
    why = {x.get("contender"): x["why"] for x in found["left_out"]}
    assert why["eager torch"].startswith("a call took more than 0.1 s (0.")


def test_large_sizes_are_there_or_left_out_for_a_reason() -> None:
    for name, (case, _) in compare.all_cases().items():
        assert set(case.scales) >= {10, 100} or case.left_out, name


def test_rounds_are_fewer_for_long_calls_but_never_fewer_than_three() -> None:
    assert budget.rounds(1e-6) == 100
    assert budget.rounds(0.2) == 6
    assert budget.rounds(4.0) == 3


def test_predictions_grow_with_the_size() -> None:
    seen = budget.Predictions()
    assert seen.too_long("loop", 100) is None, "nothing is known of it"
    seen.saw("loop", 10, 0.2 * budget.LONGEST)
    assert seen.too_long("loop", 20) is None
    why = seen.too_long("loop", 100)
    assert why is not None
    assert why.endswith(f"({2 * budget.LONGEST:.1f} s)")


def test_large_sizes_are_not_begun_when_the_time_of_a_run_is_spent() -> None:
    now = time.monotonic()
    assert budget.spent(100, now) is None
    assert budget.spent(1, now - budget.WHOLE_RUN - 1) is None, "the method's own size always is"
    assert budget.spent(10, now - budget.WHOLE_RUN - 1) is not None


class Benchmark:
    """Stands in for pytest-benchmark's: writes down what happens in a round."""

    def __init__(self) -> None:
        self.stats: Any = None
        self.extra_info: dict[str, Any] = {}

    def pedantic(self, step: Any, setup: Any = None, teardown: Any = None, rounds: int = 1) -> None:
        data = []
        for _ in range(rounds):
            if setup:
                setup()
            start = time.perf_counter()
            assert step() is None, "results are freed within the time"
            data.append(time.perf_counter() - start)
            if teardown:
                teardown()
        self.stats = type("Meta", (), {"stats": type("Stats", (), {"data": data})})


def test_pairs_take_turns_in_going_first() -> None:
    called: list[str] = []
    benchmark = Benchmark()
    timing.timed(benchmark, lambda: called.append("peer") or 1, lambda: called.append("own") or 1, rounds=4)
    warm, rest = called[:1], called[1:]
    assert warm == ["own"]
    assert rest == ["own", "peer", "peer", "own"] * 2
    assert benchmark.extra_info["ratio"]["pairs"] == 4


@pytest.mark.parametrize(
    "build", [bench_nms.test_nms_decay_once, bench_nms.test_nms_hard, bench_proposals.test_propose]
)
def test_a_part_of_the_results_is_the_result_of_that_part(build: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench_nms, "GROUPS", 3)
    monkeypatch.setattr(bench_nms, "PER_GROUP", 40)
    monkeypatch.setattr(bench_proposals, "VIDEOS", 2)
    monkeypatch.setattr(bench_proposals, "T", 40)
    found = build.case.build(10)
    dtype = getattr(torch, build.case.dtypes[0])
    exact = work.expected(found, False, dtype)
    whole = work.results(found.run, found.inputs, (), False)
    part = found.part.of(whole)
    assert 0 < len(part[0]) < len(whole[0])
    work.prove(part, exact, 1e-11)
    for peer in ("numpy loop",):
        work.prove(found.part.of(work.results(found.peers[peer], found.inputs, (), False)), exact, 1e-11)


@pytest.mark.parametrize("name", ["with_prior", "without"])
def test_the_oracle_of_large_sinkhorn_is_the_reference(name: str) -> None:
    torch.manual_seed(0)
    logits, prior = torch.randn(1_000, 7), torch.rand(1_000, 7) + 0.1
    given = {"logits": logits} | ({"prior": prior} if name == "with_prior" else {})
    found = peers.streamed_sinkhorn(**given, rows=300)
    with ops.backend("reference"):
        exact = ops.sinkhorn(**{key: x.double() for key, x in given.items()}, scale=peers.SCALE)
    torch.testing.assert_close(found, exact, rtol=1e-12, atol=0)


def test_peers_of_hard_assignments_agree(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench_prototypes, "N", 500)
    monkeypatch.setattr(bench_prototypes, "H", 32)
    found = bench_prototypes.test_prototypes_of_hard_assignments.case.build(1)
    exact = work.expected(found, False, torch.float32)
    for peer in ("torch.matmul", "torch.index_add"):
        work.prove(work.results(found.peers[peer], found.inputs, (), False), exact, 1e-5)


def test_boxes_of_height_1_have_the_segments_iou() -> None:
    segments = bench_nms.grouped(1)["segments"][:20]
    boxes = peers.boxes(segments)
    low, high = (
        torch.maximum(boxes[:, None, :2], boxes[None, :, :2]),
        torch.minimum(boxes[:, None, 2:], boxes[None, :, 2:]),
    )
    inter = (high - low).clamp(min=0).prod(-1)
    area = (boxes[:, 2:] - boxes[:, :2]).prod(-1)
    torch.testing.assert_close(inter / (area[:, None] + area[None] - inter), ops.temporal_iou(segments, segments))


def test_sizes_beyond_the_methods_are_proven_by_stretches() -> None:
    wanted = [torch.zeros(3 * work.COMPARED + 5, dtype=torch.float64)]
    wanted[0][0] = 1.0
    found = wanted[0].float()
    work.prove([found], wanted, 1e-6)
    found[-1] = 0.1
    with pytest.raises(AssertionError, match="error"):
        work.prove([found], wanted, 1e-2)


def test_sinkhorn_of_wide_rows_is_proven_without_the_reference() -> None:
    assert bench_sinkhorn.with_prior(bench_sinkhorn.N, 3).oracle is None
    assert bench_sinkhorn.with_prior(bench_sinkhorn.N + 1, 3).oracle is peers.streamed_sinkhorn
