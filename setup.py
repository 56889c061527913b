"""Builds the native module ``case._C`` with CMake; everything static is in pyproject.toml.

Environment (all optional):
  CASE_BUILD_NATIVE  1 (default): build case._C, fail loudly if that fails. 0: install without it.
  CASE_BUILD_CUDA    auto (default): compile the CUDA sources if nvcc is found. 1: insist. 0: CPU half only.
  CASE_CUDA_ARCHS    CMake architecture list, e.g. "90" or "80-real;90"; default: all supported ones.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path
from typing import NoReturn

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext
from setuptools.command.build_py import build_py

ROOT = Path(__file__).resolve().parent


def fail(message: str) -> NoReturn:
    # SystemExit rather than an exception: pip then shows this line last, not a traceback.
    raise SystemExit(f"case: {message}")


def choice(name: str, default: str, allowed: tuple[str, ...]) -> str:
    value = os.environ.get(name) or default
    if value not in allowed:
        fail(f"{name} must be one of {', '.join(allowed)}, got {value!r}")
    return value


def find_tool(name: str) -> str | None:
    """A build tool on PATH, else beside the running Python (a virtualenv that is not activated)."""
    return shutil.which(name) or shutil.which(name, path=sysconfig.get_path("scripts"))


def find_nvcc() -> str | None:
    homes = [os.environ[v] for v in ("CUDA_HOME", "CUDA_PATH") if os.environ.get(v)]
    candidates = [os.environ.get("CUDACXX"), *(f"{h}/bin/nvcc" for h in homes), "nvcc", "/usr/local/cuda/bin/nvcc"]
    return next((found for c in candidates if c and (found := shutil.which(c))), None)


def cuda_compiler() -> str | None:
    """nvcc to compile with, or None for the CPU half alone, as CASE_BUILD_CUDA wants it."""
    wanted = choice("CASE_BUILD_CUDA", "auto", ("auto", "1", "0"))
    if wanted == "0":
        return None
    nvcc = find_nvcc()
    if nvcc is None and wanted == "1":
        fail("CASE_BUILD_CUDA=1 but nvcc was not found; put it on PATH, set CUDA_HOME, or use CASE_BUILD_CUDA=auto")
    return nvcc


def pybind11_dir() -> list[str]:
    try:
        import pybind11
    except ImportError:
        return []  # A system-wide pybind11 without its Python package: CMake finds it itself.
    return [f"-Dpybind11_DIR={pybind11.get_cmake_dir()}"]


def configure_command(cmake: str, build: Path, nvcc: str | None) -> list[str]:
    command = [
        cmake, "-S", str(ROOT), "-B", str(build), "-DCMAKE_BUILD_TYPE=Release",
        f"-DPython_EXECUTABLE={sys.executable}", f"-DCASE_CUDA={'ON' if nvcc else 'OFF'}", *pybind11_dir(),
    ]  # fmt: skip
    # Paths of the tools are given each time: in an isolated build they move from one build to the next.
    if ninja := find_tool("ninja"):
        command += ["-G", "Ninja", f"-DCMAKE_MAKE_PROGRAM={ninja}"]
    if nvcc:
        command.append(f"-DCMAKE_CUDA_COMPILER={nvcc}")
        # An empty value clears an earlier list from the cache; CMakeLists.txt then takes its default.
        command.append(f"-DCASE_CUDA_ARCHS={os.environ.get('CASE_CUDA_ARCHS', '')}")
    return command


def nvcc_complaint(nvcc: str, build: Path) -> str:
    """What nvcc says about an empty file; CMake leaves that in a log file when it gives up on a compiler."""
    source = build / "empty.cu"
    source.write_text("")
    done = subprocess.run([nvcc, "-c", source, "-o", build / "empty.o"], capture_output=True, text=True)
    lines = (done.stderr + done.stdout).strip().splitlines()
    return f"{nvcc} fails on an empty file ({lines[-1] if lines else 'it says nothing'}); " if done.returncode else ""


def build_native() -> Path:
    """Configure and compile case._C; returns the folder that holds it."""
    cmake = find_tool("cmake")
    if cmake is None:
        fail("cmake was not found; `pip install cmake ninja pybind11`, or CASE_BUILD_NATIVE=0 to go without case._C")
    nvcc = cuda_compiler()
    generator = "ninja" if find_tool("ninja") else "make"
    # One folder per tool chain, so that a change of compiler or a moved checkout never meets a stale CMake cache.
    key = [str(ROOT), sysconfig.get_config_var("EXT_SUFFIX"), nvcc, os.environ.get("CXX"), generator]
    build = ROOT / "build" / f"native-{hashlib.sha256(repr(key).encode()).hexdigest()[:8]}"
    compile_command = [cmake, "--build", str(build), "--parallel", str(os.cpu_count() or 1)]
    for stage, command in (("configure", configure_command(cmake, build, nvcc)), ("compile", compile_command)):
        # One file descriptor for both streams: pip shows them in the order in which they were written.
        code = subprocess.run(command, stderr=subprocess.STDOUT).returncode
        if code:
            cure = "see the messages above; CASE_BUILD_NATIVE=0 installs without case._C"
            if nvcc:
                cure = f"{nvcc_complaint(nvcc, build)}{cure}, CASE_BUILD_CUDA=0 with its CPU half alone"
            fail(f"the native module did not {stage}: {cure}")
    return build


class CMakeBuild(build_ext):
    def build_extension(self, ext: Extension) -> None:
        target = Path(self.get_ext_fullpath(ext.name)).resolve()
        built = build_native() / target.name
        if not built.exists():
            fail(f"{built} was not built: CMake and {sys.executable} disagree about the Python to build for")
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(built, target)


NATIVE = choice("CASE_BUILD_NATIVE", "1", ("1", "0")) == "1"


class BuildPy(build_py):
    def run(self) -> None:
        if self.editable_mode and not NATIVE:
            for left in (ROOT / "case").glob("_C.*.so"):  # of an earlier build: it would be loaded
                left.unlink()
        super().run()


setup(
    license="Apache-2.0",
    packages=[
        "case",
        "case.ops",
        "case.ops._native_ops",
        "case.ops.reference",
        "case.ops._triton_ops",
        "case.engine",
        "case.data",
        "case.metrics",
        "case.compat",
        "case.commands",
        "case.kernels",
    ],
    # Triton kernels live beside csrc/ at the top level and are importable as case.kernels only.
    package_dir={"case": "case", "case.kernels": "kernels"},
    package_data={"case": ["*.pyi", "py.typed"]},
    ext_modules=[Extension("case._C", sources=[])] if NATIVE else [],
    cmdclass={"build_ext": CMakeBuild, "build_py": BuildPy},
)
