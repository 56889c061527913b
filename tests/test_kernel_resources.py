"""Every kernel that ``auto`` launches compiles for each architecture without a GPU, without spilling registers."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton", reason="triton is not installed")

ROOT = Path(__file__).resolve().parents[1]


@pytest.mark.slow
@pytest.mark.parametrize("arch", [80, 90, 100])
def test_kernels_compile_without_spills(arch: int) -> None:
    # In a process of its own: the tests run in Triton's interpreter, which compiles nothing.
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, "-W", "error", str(ROOT / "benchmarks" / "kernel_resources.py"), str(arch)],
        capture_output=True, text=True, env=environment, check=False,
    )  # fmt: skip
    print(done.stdout)
    assert done.returncode == 0, done.stderr[-2000:] or done.stdout[-2000:]
    assert f"sm_{arch}: " in done.stdout
