"""Test files in several pytest processes at once, without a plug-in: what takes long is compiling kernels, on one core.

Usage: python -m benchmarks.side_by_side LOG PROCESSES FILE... [-- PYTEST ARGUMENT...]. Each process takes its share of
the files and writes LOG-<n>.log; as one ends, what it says of failures is shown. Exit code: the worst of all, where a
share without a chosen test is none. After SIGINT, of which each process is told as well, all that is left is a summary.
"""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

NO_TESTS = 5  # pytest's exit code
GRACE = 8.0  # seconds to report in after SIGINT
SHOWN = ("FAILED", "ERROR", "E  ", "=====")


def shares(files: Sequence[Path], count: int) -> list[list[Path]]:
    """The files in at most ``count`` groups of about the same length of code, the longest file first."""
    groups: list[list[Path]] = [[] for _ in range(min(count, len(files)))]
    sizes = [0] * len(groups)
    for path in sorted(files, key=lambda path: (-path.stat().st_size, path)):
        smallest = sizes.index(min(sizes))
        groups[smallest].append(path)
        sizes[smallest] += path.stat().st_size
    return groups


def run(log: Path, count: int, files: Sequence[Path], arguments: Sequence[str]) -> int:
    # Processes that share a cache of pytest would overwrite each other's.
    pytest = [sys.executable, "-m", "pytest", "--color=no", "--continue-on-collection-errors", "-p", "no:cacheprovider"]
    running: dict[subprocess.Popen[bytes], Path] = {}
    for number, group in enumerate(shares(files, count), 1):
        path = log.with_name(f"{log.name}-{number}.log")
        with open(path, "wb") as output:
            process = subprocess.Popen([*pytest, *map(str, group), *arguments], stdout=output, stderr=subprocess.STDOUT)
        running[process] = path
    codes = []
    try:
        while running:
            codes += ended(running)
            time.sleep(0.1)
    except KeyboardInterrupt:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        end = time.monotonic() + GRACE
        while running and time.monotonic() < end:
            codes += ended(running)
            time.sleep(0.1)
        for process in running:
            process.kill()
            process.wait()
        codes += [*ended(running), 2]
    return max(codes, default=0)


def ended(running: dict[subprocess.Popen[bytes], Path]) -> list[int]:
    """Takes processes that are done out of ``running``, shows what they say, and gives their exit codes."""
    codes = []
    for process, path in list(running.items()):
        code = process.poll()
        if code is None:
            continue
        del running[process]
        lines = path.read_text(errors="replace").splitlines()
        told = lines[-1:] if code in (0, NO_TESTS) else [x for x in lines if x.startswith(SHOWN)][-40:] or lines[-20:]
        print(f"-- {path.name}, exit code {code}", *told, sep="\n", flush=True)
        # A process that a signal has ended is as bad as one that says so.
        codes.append(0 if code == NO_TESTS else abs(code))
    return codes


def main(argv: Sequence[str]) -> int:
    at = argv.index("--") if "--" in argv else len(argv)
    log, count, *files = argv[:at]
    return run(Path(log), int(count), [Path(file) for file in files], argv[at + 1 :])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
