"""Limits, benchmarks and scaling into the machine's folder under RESULTS: python -m benchmarks.run RESULTS [--quick]

--quick leaves out the large sizes and scaling and takes fewer rounds. Exit code 1 if a contender was wrong. A run
that is told to stop (SIGINT or SIGTERM) keeps what it has measured, says what it has not, and ends with 130.
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from benchmarks.machine import ROOT, folder_name, machine

GRACE = 30.0  # seconds to finish a call and to write


def main() -> int:
    parser = argparse.ArgumentParser(prog="benchmarks.run", description=__doc__)
    parser.add_argument("results", type=Path)
    parser.add_argument("--quick", action="store_true")
    given = parser.parse_args()
    out = given.results.resolve() / folder_name(machine())
    out.mkdir(parents=True, exist_ok=True)
    tests = ["pytest", "benchmarks", f"--benchmark-json={out / 'ops.json'}", "--color=no", "-q"]
    # The relative figures in parentheses are pytest-benchmark's, of rows measured at different moments.
    shown = ["--benchmark-columns=median,iqr,rounds", "--benchmark-sort=name", "--benchmark-group-by=group", "-rfE"]
    quick = ["-m", "not slow"] if given.quick else []
    stages = [["benchmarks.limits", str(out)], [*tests, *shown, *quick]]
    if not given.quick:
        stages.append(["benchmarks.scaling", str(out)])
    environment = os.environ | ({"CASE_BENCH_SECONDS": "0.25"} if given.quick else {})
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    codes = []
    for number, stage in enumerate(stages):
        try:
            codes.append(run(stage, environment))
        except KeyboardInterrupt:
            rest = ", ".join(x[0] for x in stages[number + 1 :]) or "nothing"
            print(f"benchmarks.run: stopped in {stage[0]}, not begun: {rest}; what was measured is in {out}")
            return 130
    return int(any(codes))


def run(stage: Sequence[str], environment: Mapping[str, str]) -> int:
    """The stage's exit code. In a process group of its own, so that a signal reaches it once, from here."""
    process = subprocess.Popen([sys.executable, "-m", *stage], cwd=ROOT, env=environment, process_group=0)
    try:
        return process.wait()
    except KeyboardInterrupt:
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_IGN)
        process.send_signal(signal.SIGINT)
        try:
            process.wait(GRACE)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        raise


if __name__ == "__main__":
    sys.exit(main())
