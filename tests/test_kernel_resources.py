"""Every kernel that ``auto`` launches compiles for each architecture without a GPU, without spilling registers."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.importorskip("triton", reason="triton is not installed")

SCRIPT = Path(__file__).resolve().parents[1] / "benchmarks" / "kernel_resources.py"
ARCHS = (80, 90, 100)


@pytest.fixture(scope="module")
def compilations() -> Iterator[dict[int, subprocess.Popen[str]]]:
    """One process for each architecture, all at once: a minute each, on a core each."""
    # In processes of their own: the tests run in Triton's interpreter, which compiles nothing.
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment |= {"OMP_NUM_THREADS": "1"}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True, "env": environment}
    command = [sys.executable, "-W", "error", str(SCRIPT)]
    running = {arch: subprocess.Popen([*command, str(arch)], **pipes) for arch in ARCHS}  # type: ignore[call-overload]
    yield running
    for process in running.values():
        process.kill()
        process.wait()


@pytest.mark.slow
@pytest.mark.parametrize("arch", ARCHS)
def test_kernels_compile_without_spills(compilations: dict[int, subprocess.Popen[str]], arch: int) -> None:
    shown, _ = compilations[arch].communicate()
    print(shown)
    assert compilations[arch].returncode == 0, shown[-2000:]
    assert f"sm_{arch}: " in shown
