"""The CUDA C++ compiles for each architecture without a GPU, spills nothing and fits into shared memory."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

CSRC = Path(__file__).resolve().parents[1] / "csrc"
ARCHS = (80, 90, 100)
STATIC_SHARED = 48 * 1024  # bytes a block may have without asking for more


@pytest.mark.slow
@pytest.mark.parametrize("source", sorted(path.name for path in CSRC.glob("*.cu")))
def test_kernels_compile_without_spills(source: str) -> None:
    nvcc = shutil.which("nvcc") or shutil.which("/usr/local/cuda/bin/nvcc")
    if nvcc is None:
        pytest.skip("nvcc is not there")
    targets = [f"-gencode=arch=compute_{arch},code=sm_{arch}" for arch in ARCHS]
    command = [nvcc, "-std=c++17", "-O3", "-DCASE_WITH_CUDA", *targets, "-Xptxas", "-v", "-c", CSRC / source]
    done = subprocess.run([*command, "-o", "/dev/null"], capture_output=True, text=True)
    shown = done.stdout + done.stderr
    assert done.returncode == 0, shown
    assert "warning" not in shown, shown
    for arch in ARCHS:
        assert f"for 'sm_{arch}'" in shown
    spills = re.findall(r"(\d+) bytes spill stores, (\d+) bytes spill loads", shown)
    assert len(spills) >= len(ARCHS)
    assert set(spills) == {("0", "0")}, shown
    assert all(int(size) <= STATIC_SHARED for size in re.findall(r"(\d+) bytes smem", shown)), shown
