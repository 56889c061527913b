"""What a run leaves in its JSON file beside times: the machine, and by name and reason all that was not measured.

A run that is told to stop (SIGINT, or SIGTERM as ``timeout`` sends it) keeps what it has measured and ends in one line.
"""

from __future__ import annotations

import signal
from collections.abc import Generator, Sequence
from typing import Any

import pytest

from benchmarks.machine import machine
from benchmarks.work import Case, Contender

NO_GPU = "no CUDA device"  # said once, at the head of the page
STOPPED, UNASKED = "the run was stopped before", "not asked for in this run"
SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Records:
    """A plug-in of pytest beside pytest-benchmark."""

    def __init__(self) -> None:
        self.left_out: list[dict[str, Any]] = []
        self.measured = 0

    def pytest_sessionstart(self) -> None:
        for number in SIGNALS:
            signal.signal(number, signal.default_int_handler)

    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        """Small sizes first: they say how long large ones take, and come before a run's time is spent."""
        items.sort(key=lambda item: described(item).get("scale", 1))

    def pytest_deselected(self, items: Sequence[pytest.Item]) -> None:
        for item in items:
            found = described(item)
            self._add({name: found[name] for name in ("case", "scale", "device") if name in found}, UNASKED)

    def pytest_collection_finish(self, session: pytest.Session) -> None:
        for item in session.items:
            case: Case | None = getattr(getattr(item, "function", None), "case", None)
            if case is None:
                continue
            for scale in (10, 100):
                if scale > max(case.scales):
                    self._add({"case": described(item)["case"], "scale": scale}, case.left_out)

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_makereport(self, item: pytest.Item, call: pytest.CallInfo[Any]) -> Generator[None, Any, Any]:
        report = yield
        if report.skipped and isinstance(report.longrepr, tuple):
            self._add(described(item), report.longrepr[2].removeprefix("Skipped: "))
        elif report.failed and call.excinfo is not None:
            self._add(described(item), f"failed: {call.excinfo.exconly().splitlines()[0][:200]}")
        elif report.when == "call":
            self.measured += 1
        return report

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_call(self, item: pytest.Function) -> Generator[None, Any, Any]:
        try:
            return (yield)
        except KeyboardInterrupt:
            fixture: Any = item.funcargs.get("benchmark")
            if fixture is not None:
                fixture.has_error = fixture.skipped = True  # some of its rounds, or none: no result, no warning
            raise

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Generator[None, Any, Any]:
        try:
            return (yield)
        except KeyboardInterrupt:
            for number in SIGNALS:  # a second one would hit what saves the first's results
                signal.signal(number, signal.SIG_IGN)
            items = item.session.items
            rest = [described(x) for x in items[items.index(item) :] if not x.get_closest_marker("skip")]
            for found in rest:
                self._add(found, STOPPED)
            cases = "; ".join(sorted({found["case"] for found in rest}))
            pytest.exit(
                f"stopped: {self.measured} rows measured and kept; {len(rest)} not measured, of {cases}",
                returncode=pytest.ExitCode.INTERRUPTED,
            )

    def pytest_benchmark_update_machine_info(self, machine_info: dict[str, Any]) -> None:
        """The repository's own header in place of the plug-in's, which names the host."""
        machine_info.clear()
        machine_info.update(machine())

    def pytest_benchmark_update_json(self, output_json: dict[str, Any]) -> None:
        """What a reader needs: every round's time to four digits, and nothing about who ran it where."""
        output_json["commit_info"] = {}  # the machine's header has it
        output_json["left_out"] = self.left_out
        for entry in output_json["benchmarks"]:
            for name in ("options", "params", "param", "fullname"):
                entry.pop(name, None)
            entry["stats"]["data"] = [float(f"{x:.4g}") for x in entry["stats"].get("data", [])]

    def _add(self, found: dict[str, Any], why: str) -> None:
        entry = found | {"why": why}
        if why != NO_GPU and entry not in self.left_out:
            self.left_out.append(entry)


def described(item: pytest.Item) -> dict[str, Any]:
    """A row by name: case and contender, and for those of ``work.bench`` size, direction and device."""
    params = dict(item.callspec.params) if hasattr(item, "callspec") else {}
    contender = params.pop("contender", None)
    case = getattr(item, "originalname", item.name).removeprefix("test_")
    if isinstance(contender, Contender):
        return {
            "case": case, "contender": contender.name, "scale": contender.scale, "device": contender.device,
            "backward": contender.backward,
        }  # fmt: skip
    found = {"case": ", ".join([case, *(str(value) for name, value in params.items() if name != "device")])}
    found |= {"device": params["device"]} if "device" in params else {}
    return found | ({"contender": contender} if contender else {})
