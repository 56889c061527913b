"""Two commits on one machine, in turns: python -m benchmarks.compare BASE [HEAD] [--cases PATTERN] [--pairs N]

Each commit gets a process of its own with the ``case`` of that commit; both run the benchmark cases of this checkout,
call after call in turns and in alternating order, so that what else the machine does weighs on both alike. Reports
HEAD's time over BASE's with a 95 % interval. Exit code 1 if a case is slower by more than --allowed, interval included.
HEAD is the working tree unless named. Commits whose C++ differs from what is built here are built first.
"""

from __future__ import annotations

import argparse
import importlib
import os
import pkgutil
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import IO, Any

import benchmarks
from benchmarks.machine import ROOT, THREADS
from benchmarks.timing import ratio_interval

NATIVE = ("csrc", "case/_C.pyi", "CMakeLists.txt", "setup.py")
# Beside a call of some milliseconds the pipe's latency does not show; shorter calls are repeated.
LEAST_SECONDS = 2e-3
# The cases are this checkout's on both sides, whatever the tree has; everything else is the tree's.
START = """
import sys
root, tree = sys.argv[1:]
sys.path[0] = root
import benchmarks
sys.path[0] = tree
from benchmarks.compare import serve
serve(tree, sys.stdin, sys.stdout)
"""


class Side:
    """A process with one commit's ``case``."""

    def __init__(self, tree: Path, native: Path | None) -> None:
        environment = os.environ | {"OMP_NUM_THREADS": str(THREADS)}
        if native is not None:
            environment["CASE_NATIVE"] = str(native)
        command = [sys.executable, "-c", START, str(ROOT), str(tree)]
        self.process = subprocess.Popen(
            command, env=environment, cwd=tree, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
            process_group=0,  # SIGINT is for the parent: a side ends when its requests do
        )  # fmt: skip

    def ask(self, *words: object) -> str:
        stdin, stdout = self.process.stdin, self.process.stdout
        assert stdin is not None
        assert stdout is not None
        try:
            stdin.write(" ".join(map(str, words)) + "\n")
            stdin.flush()
            answer = stdout.readline().strip()
        except BrokenPipeError:
            answer = ""
        if not answer:
            raise RuntimeError(f"a process ended early, with code {self.process.wait()}; its messages are above")
        return answer

    def close(self) -> None:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.close()
        self.process.wait()
        self.process.stdout.close()


def all_cases() -> dict[str, Any]:
    """Every function that ``benchmarks.work.bench`` made, by name, twice where it has a gradient."""
    found: dict[str, Any] = {}
    for module in pkgutil.iter_modules(benchmarks.__path__):
        if not module.name.startswith("bench_"):
            continue
        for name, value in vars(importlib.import_module(f"benchmarks.{module.name}")).items():
            if hasattr(value, "case"):
                found[name.removeprefix("test_")] = (value.case, False)
                if value.case.backward:
                    found[name.removeprefix("test_") + "+backward"] = (value.case, True)
    return found


def serve(tree: str, requests: IO[str], answers: IO[str]) -> None:
    """Answers ``prepare NAME`` with a sample's calls, 0 where there is no such op, and ``run`` with seconds a call."""
    import torch

    import case
    from benchmarks.timing import seconds
    from benchmarks.work import placed, results

    assert case.__file__ is not None
    assert Path(case.__file__).is_relative_to(tree), f"case comes from {case.__file__}, not from {tree}"
    torch.set_num_threads(THREADS)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    cases, step, calls = all_cases(), None, 1

    def repeated() -> None:
        assert step is not None
        for _ in range(calls):
            step()

    for request in requests:
        word, *rest = request.split()
        if word == "prepare":
            described, backward = cases[rest[0]]
            work = described.build(1)
            dtype = getattr(torch, described.dtypes[0])
            inputs = placed(work.inputs, device, work.leaves, None if dtype == torch.float32 else dtype)

            def step(work: Any = work, inputs: Any = inputs, backward: bool = backward) -> None:
                results(work.run, inputs, work.leaves, backward)

            try:
                step()
            except (AttributeError, TypeError) as error:
                print(f"{rest[0]}: {error}", file=sys.stderr, flush=True)
                calls = 0
            else:
                calls = max(1, round(LEAST_SECONDS / max(seconds(step, device), 1e-6)))
            print(calls, file=answers, flush=True)
        else:
            calls = int(rest[0])
            print(seconds(repeated, device) / calls, file=answers, flush=True)


def compare(name: str, base: Side, head: Side, pairs: int) -> dict[str, float] | None:
    """None where one of the commits has no such op."""
    asked = [int(side.ask("prepare", name)) for side in (base, head)]
    if not all(asked):
        return None
    calls = max(asked)
    for side in (base, head):
        side.ask("run", calls)
    before, after = [], []
    for turn in range(pairs):
        order = (base, head) if turn % 2 else (head, base)
        spent = {side: float(side.ask("run", calls)) for side in order}
        before.append(spent[base])
        after.append(spent[head])
    return ratio_interval(after, before) | {"seconds": sorted(after)[pairs // 2]}


@contextmanager
def checkout(commit: str) -> Iterator[tuple[Path, Path | None]]:
    """A folder with the commit's files, and the native module built here if it is of the same C++."""
    with tempfile.TemporaryDirectory() as folder:
        tree = Path(folder) / "tree"
        _git("worktree", "add", "--detach", str(tree), commit)
        try:
            built = next((ROOT / "case").glob("_C*.so"), None)
            if (
                built is not None
                and subprocess.run(["git", "diff", "--quiet", commit, "--", *NATIVE], cwd=ROOT).returncode
            ):
                built = build(tree)
            yield with_kernels(tree), built
        finally:
            _git("worktree", "remove", "--force", str(tree))


def with_kernels(tree: Path) -> Path:
    """The tree, importable: kernels/ is case.kernels only once installed."""
    (tree / "case" / "kernels").symlink_to(tree / "kernels", target_is_directory=True)
    return tree


def build(tree: Path) -> Path:
    print(f"building the C++ of {tree.name}: some minutes", file=sys.stderr, flush=True)
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    command = [sys.executable, "setup.py", "-q", "build_ext", "--inplace"]
    subprocess.run(command, cwd=tree, check=True, stdout=sys.stderr, env=os.environ | {"PATH": path})
    return next((tree / "case").glob("_C*.so"))


def _git(*arguments: str) -> None:
    subprocess.run(["git", *arguments], cwd=ROOT, check=True, capture_output=True)


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="benchmarks.compare", description=__doc__)
    parser.add_argument("base")
    parser.add_argument("head", nargs="?")
    parser.add_argument("--cases", default="", help="regular expression on the names of cases")
    parser.add_argument("--pairs", type=int, default=21)
    parser.add_argument("--allowed", type=float, default=0.05, help="slowdown that is no regression")
    given = parser.parse_args(argv)
    names = [name for name in all_cases() if re.search(given.cases, name)]
    if not names:
        parser.error(f"no case matches {given.cases!r}; there are: {', '.join(all_cases())}")
    for commit in filter(None, (given.base, given.head)):
        asked = ["git", "rev-parse", "--verify", "--quiet", f"{commit}^{{commit}}"]
        if subprocess.run(asked, cwd=ROOT, capture_output=True).returncode:
            parser.error(f"{commit!r} is no commit here")
    slower = 0
    with ExitStack() as stack:
        sides = []
        for commit in (given.base, given.head):
            tree, native = stack.enter_context(checkout(commit)) if commit else (ROOT, None)
            sides.append(Side(tree, native))
            stack.callback(sides[-1].close)
        print(
            f"{'time of ' + (given.head or 'the working tree') + ' over ' + given.base:<52}{'ratio':>7}  95 % interval"
        )
        for name in names:
            found = compare(name, sides[0], sides[1], given.pairs)
            if found is None:
                print(f"{name:<40} not in both")
                continue
            worse = found["low"] > 1 + given.allowed
            slower += worse
            interval = f"{found['low']:.3f} to {found['high']:.3f}{'  SLOWER' if worse else ''}"
            print(f"{name:<40}{1e3 * found['seconds']:9.3f} ms{found['ratio']:>7.3f}  {interval}", flush=True)
    return 1 if slower else 0


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except KeyboardInterrupt:
        print("compare: stopped; the cases above are complete", file=sys.stderr)
        sys.exit(130)
