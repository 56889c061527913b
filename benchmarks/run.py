"""Limits, benchmarks and scaling into the machine's folder under RESULTS: python -m benchmarks.run RESULTS [--quick]

--quick leaves out the large sizes and scaling and takes fewer rounds. Exit code 1 if a contender was wrong.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from pathlib import Path

from benchmarks.machine import ROOT, folder_name, machine


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
    codes = [subprocess.run([sys.executable, "-m", *s], cwd=ROOT, env=environment).returncode for s in stages]
    return int(any(codes))


if __name__ == "__main__":
    sys.exit(main())
