"""Compile every kernel that ``auto`` would launch on a GPU, without one: registers, shared memory and spills of each.

``python benchmarks/kernel_resources.py 90`` runs the ops at the method's own size, forward and backward, with launches
replaced by compilation for that architecture, and prints a table; ``--all`` takes every form that launches have, some
450 kernels. Exit code 1 if a kernel spills or asks for more shared memory than the architecture has.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import torch
import triton
from torch import Tensor
from triton.backends.compiler import GPUTarget
from triton.runtime.driver import driver
from triton.runtime.jit import JITFunction

from case import ops
from case.kernels import config
from case.kernels.config import Device
from case.ops import _triton_ops

# Bytes of shared memory that one program may use (CUDA C++ Programming Guide, compute capabilities 8.0, 9.0, 10.0).
SHARED_LIMIT = {80: 163 * 1024, 90: 227 * 1024, 100: 227 * 1024}
MULTIPROCESSORS = {80: 108, 90: 132, 100: 148}


# Every padded width that launches tell apart, and what lies just beyond.
COLUMNS = (1, 2, 4, 8, 32, 33, 128, config.MAX_CHAIN_CLUSTERS, 512, config.MAX_COLUMNS)


class Resources(NamedTuple):
    """Of one compiled kernel: registers a thread, bytes of shared memory a program, bytes of stack a thread."""

    kernel: str
    settings: str
    num_warps: int
    registers: int
    shared: int
    stack: int


class _NoDriver:
    """Stands in for the CUDA driver: names the architecture and never launches."""

    def __init__(self, arch: int) -> None:
        self.arch = arch

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", self.arch, 32)

    def get_current_device(self) -> int:
        return self.arch  # kernels are cached by device

    def get_current_stream(self, device: int = 0) -> int:
        return 0


class Recorder:
    """Compiles each kernel that the code inside the ``with`` block launches on CPU tensors, for ``arch``."""

    def __init__(self, arch: int) -> None:
        self.arch = arch
        self.found: dict[tuple[str, str], Resources] = {}
        self.traps: list[str] = []

    def __enter__(self) -> Recorder:
        driver.set_active(_NoDriver(self.arch))
        device = Device(self.arch, MULTIPROCESSORS[self.arch])
        recorder = self

        def compile_instead(kernel: JITFunction, grid: Any) -> Callable[..., None]:
            return lambda *args, **settings: recorder._compile(kernel, grid, args, settings)

        self.patches: list[Any] = [
            mock.patch.object(JITFunction, "__getitem__", compile_instead),
            mock.patch.object(config, "device_of", return_value=device),
        ]
        # Launchers import it by name.
        self.patches += [
            mock.patch.object(module, "device_of", return_value=device)
            for name, module in list(sys.modules.items())
            if name.startswith("case.") and module is not config and hasattr(module, "device_of")
        ]
        for patch in self.patches:
            patch.start()
        return self

    def __exit__(self, *error: object) -> None:
        for patch in self.patches:
            patch.stop()

    def _compile(self, kernel: JITFunction, grid: Any, args: tuple[Any, ...], settings: dict[str, Any]) -> None:
        compiled = kernel.warmup(*args, grid=grid, **settings)
        registers, stack = _usage(compiled.asm["cubin"])
        if "trap;" in compiled.asm["ptx"]:  # Triton's answer, without an error, to a few tiles on sm_100
            self.traps.append(f"{kernel.__name__} {settings}")
        constants = {name: value for name, value in settings.items() if name not in ("num_warps", "num_stages")}
        shown = " ".join(f"{name}={value}" for name, value in constants.items())
        found = Resources(
            kernel.__name__, shown, compiled.metadata.num_warps, registers, compiled.metadata.shared, stack
        )
        key = (found.kernel, compiled.hash)
        self.found[key] = found

    def too_much(self) -> list[Resources]:
        return [r for r in self.found.values() if r.stack or r.shared > SHARED_LIMIT[self.arch]]


def _usage(cubin: bytes) -> tuple[int, int]:
    """(registers, stack bytes) of a cubin with one kernel; registers that spill lie on the stack."""
    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        shown = subprocess.run([tool, "--dump-resource-usage", file.name], capture_output=True, text=True, check=True)
    numbers = {name: int(value) for name, value in re.findall(r"(REG|STACK|LOCAL):(\d+)", shown.stdout)}
    return numbers["REG"], max(numbers["STACK"], numbers["LOCAL"])


def cases(everything: bool) -> Iterator[tuple[str, Callable[[], Any]]]:
    """(name, call) of what ``auto`` runs on a GPU: the method's own size, or with ``everything`` all launch forms."""
    kinds = (torch.float32, torch.bfloat16, torch.float16)
    sinkhorn = [(12_000, 16, torch.float32), (1_000_000, 128, torch.float32)]
    rows = [12_000]
    if everything:
        sinkhorn += [(12_000, 16, torch.bfloat16), (12_000, 16, torch.float16), (1_000_000, 16, torch.float32)]
        sinkhorn += [(300, 16, torch.float32), (60, 5, torch.float32), (1_000_000, 5, torch.float32)]
        sinkhorn += [(5000, k, torch.float32) for k in COLUMNS]
        rows += [1_000_000]
        yield "clustering_losses, many", lambda: _clustering(400_000, 1_000_000, 128, torch.float32)
        for k in COLUMNS:
            yield f"clustering_losses K={k}", lambda k=k: _clustering(3000, 5000, k, torch.float32)
            for dtype in kinds:
                yield f"prototypes K={k} {dtype}", lambda k=k, dtype=dtype: _prototypes(5000, k, dtype)
                yield f"cosine K={k} {dtype}", lambda k=k, dtype=dtype: _cosine(5000, k, dtype)
                yield f"losses K={k} {dtype}", lambda k=k, dtype=dtype: _losses(5000, k, dtype)
    for n, k, dtype in sinkhorn:
        yield f"sinkhorn {n} x {k} {dtype}", lambda n=n, k=k, dtype=dtype: _sinkhorn(n, k, dtype)
    for dtype in kinds if everything else kinds[:2]:
        for n in rows:
            yield f"prototypes {n} {dtype}", lambda n=n, dtype=dtype: _prototypes(n, 16, dtype)
            yield f"cosine {n} {dtype}", lambda n=n, dtype=dtype: _cosine(n, 16, dtype)
            yield f"losses {n} {dtype}", lambda n=n, dtype=dtype: _losses(n, 16, dtype)
        yield f"clustering_losses {dtype}", lambda dtype=dtype: _clustering(4560, 12_000, 16, dtype)


def _empty(*shape: int, dtype: torch.dtype = torch.float32, leaf: bool = False) -> Tensor:
    return torch.empty(shape, dtype=dtype).requires_grad_(leaf)


def _backward(*outputs: Tensor) -> None:
    torch.autograd.backward(outputs, [torch.empty_like(x) for x in outputs])


def _sinkhorn(n: int, k: int, dtype: torch.dtype) -> None:
    logits = _empty(1, n, k, dtype=dtype, leaf=True)
    scores, prior, mask = _empty(1, n), _empty(1, n, k), torch.empty(1, n, k, dtype=torch.bool)
    rows, columns = _empty(1, n), _empty(1, k)
    given = ops.RankPrior(scores, columns, 0.3)
    _backward(ops.sinkhorn(logits, scale=2.0))
    _backward(ops.sinkhorn(logits, prior=given, scale=2.0))
    _backward(*ops.sinkhorn_potentials(logits, prior=given, scale=2.0))
    _backward(ops.sinkhorn(logits, prior=prior, mask=mask, row_marginal=rows, col_marginal=columns, tol=1e-3))
    ops.sinkhorn(logits, prior=given._replace(ranks="argsort"))


def _plan(n: int, k: int) -> ops.Plan:
    return ops.Plan(_empty(n, k), _empty(n), _empty(k), 2.0, ops.RankPrior(_empty(n), _empty(k), 0.3))


def _prototypes(n: int, k: int, dtype: torch.dtype) -> None:
    e, w = _empty(n, 512, dtype=dtype, leaf=True), _empty(n, k, leaf=True)
    for normalize in ("mean", "l2", "sum"):
        _backward(ops.prototypes(e, w, normalize=normalize))
    _backward(ops.prototypes(e, _plan(n, k), normalize="l2"))


def _cosine(n: int, k: int, dtype: torch.dtype) -> None:
    x, y = _empty(n, 512, dtype=dtype, leaf=True), _empty(k, 512, dtype=dtype, leaf=True)
    _backward(ops.cosine_logits(x, y, scale=10.0))
    _backward(ops.cosine_logits(x, y, scale=10.0, unit_y=True))
    _backward(ops.cosine_softmax(x, y, scale=10.0))


def _losses(n: int, k: int, dtype: torch.dtype) -> None:
    logits, targets = _empty(n, k, dtype=dtype, leaf=True), _empty(n, k, leaf=True)
    _backward(ops.soft_cross_entropy(logits, targets))
    _backward(ops.soft_cross_entropy(logits, _plan(n, k)))
    attention = _empty(2, 16, 750, dtype=dtype, leaf=True)
    _backward(ops.generalized_cross_entropy(attention, _empty(2, 16, 750), q=0.7))


def _clustering(rows: int, samples: int, k: int, dtype: torch.dtype) -> None:
    index = torch.randint(0, rows, (samples,))
    found = ops.clustering_losses(
        _empty(2, rows, k, dtype=dtype, leaf=True), _empty(2, rows, 512, dtype=dtype, leaf=True), _empty(rows),
        _empty(samples), _empty(k, 2), index=index, sigma=0.3,
    )  # fmt: skip
    _backward(found.scc, found.ccc)


def main(argv: list[str]) -> int:
    everything = "--all" in argv
    archs = [int(a) for a in argv if a != "--all"] or sorted(SHARED_LIMIT)
    _triton_ops.put_in_place("cpu")  # as if they could run there
    bad = 0
    for arch in archs:
        with Recorder(arch) as recorder, ops.backend("triton"):
            for name, call in cases(everything):
                before = len(recorder.found)
                call()
                print(f"sm_{arch} {name}: {len(recorder.found) - before} new kernels", flush=True)
        print(f"{'kernel':<28}{'warps':>6}{'registers':>10}{'shared':>8}{'stack':>6}  settings")
        for r in sorted(recorder.found.values()):
            print(f"{r.kernel:<28}{r.num_warps:>6}{r.registers:>10}{r.shared:>8}{r.stack:>6}  {r.settings}")
        for r in recorder.too_much():
            print(f"sm_{arch}: {r.kernel} [{r.settings}] has {r.stack} bytes of stack, {r.shared} of shared memory")
        for name in recorder.traps:
            print(f"sm_{arch}: {name} was compiled to a trap")
        over = len(recorder.too_much()) + len(recorder.traps)
        print(f"sm_{arch}: {len(recorder.found)} kernels, {over} over the limits")
        bad += over
    return 1 if bad else 0


if __name__ == "__main__":
    if os.environ.get("TRITON_INTERPRET") == "1":
        sys.exit("kernel_resources: TRITON_INTERPRET=1 leaves nothing to compile; unset it")
    sys.exit(main(sys.argv[1:]))
