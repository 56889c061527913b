"""On what something was measured: processor, GPU, versions, commit. No host name, no user, no path."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import re
import subprocess
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"
# As many for every contender. Where others use the machine as well, CASE_BENCH_THREADS=1 keeps threads from waiting for
# each other.
THREADS = int(os.environ.get("CASE_BENCH_THREADS") or min(2, os.cpu_count() or 1))
PACKAGES = ("torch", "triton", "numpy", "pandas", "POT", "geomloss", "torchvision", "actionformer", "flash-kmeans")


def machine() -> dict[str, Any]:
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    cpu = f"{_processor()}, {os.cpu_count()} cores, {torch.backends.cpu.get_cpu_capability()}"
    return {
        "name": gpu or cpu,
        "cpu": cpu,
        "threads": THREADS,
        "gpu": gpu,
        "driver": _output("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader") if gpu else None,
        "cuda": torch.version.cuda if gpu else None,
        "system": f"{platform.system()} {platform.machine()}, Python {platform.python_version()}",
        "versions": {name: version for name in PACKAGES if (version := _version(name))},
        "commit": _output("git", "rev-parse", "HEAD"),
        "changed": _output("git", "status", "--porcelain", "--untracked-files=no", "--", *_MEASURED) != "",
        "load": round(os.getloadavg()[0], 1),
    }


_MEASURED = ("case", "kernels", "csrc", "benchmarks/*.py")


def folder_name(found: dict[str, Any]) -> str:
    """The machine's name as a folder: small letters, digits and hyphens."""
    return re.sub(r"[^a-z0-9]+", "-", found["name"].lower()).strip("-")


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or "unknown processor"
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else "unknown processor"


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _output(*command: str) -> str | None:
    try:
        return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True, timeout=20).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None
