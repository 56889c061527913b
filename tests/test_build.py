"""The native module as built: it loads, its first op is right, and the package stands without it."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch

from case import __version__, _native

ROOT = Path(__file__).resolve().parents[1]
SIZES = [(1, 1, 1), (2, 3, 5), (3, 17, 31), (1, 129, 257), (5, 1, 64), (2, 200, 3)]


def temporal_iou(a: np.ndarray, b: np.ndarray, length_offset: float = 0.0) -> np.ndarray:
    """The formula in float64, with numpy's NaN-keeping minimum and maximum."""
    x, y = a.astype(np.float64)[:, :, None], b.astype(np.float64)[:, None]
    overlap = np.minimum(x[..., 1], y[..., 1]) - np.maximum(x[..., 0], y[..., 0]) + length_offset
    inter = np.maximum(overlap, 0)
    union = (x[..., 1] - x[..., 0] + length_offset) + (y[..., 1] - y[..., 0] + length_offset) - inter
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(union <= 0, 0.0, inter / union)


def segments(rng: np.random.Generator, batch: int, count: int, dtype: str) -> np.ndarray:
    """Random (batch, count, 2); some of length 0, some with end before start. Multiples of 1/64: float32 is exact."""
    start = rng.integers(0, 64 * 20, (batch, count))
    length = rng.integers(-64, 64 * 10, (batch, count)) * (rng.random((batch, count)) < 0.9)
    return np.stack([start, start + length], axis=-1).astype(dtype) / np.dtype(dtype).type(64)


def iou_cpu(native: ModuleType, a: np.ndarray, b: np.ndarray, **settings: float) -> np.ndarray:
    (batch, m, _), p = a.shape, b.shape[1]
    out = np.full((batch, m, p), np.nan, a.dtype)
    native.iou_cpu(a.ctypes.data, b.ctypes.data, out.ctypes.data, batch, m, p, str(a.dtype), **settings)
    return out


def run_python(code: str, **env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env={**os.environ, **env}, capture_output=True, text=True, timeout=120
    )


def test_build_info(native: ModuleType) -> None:
    info = native.build_info()
    assert set(info) == {
        "version", "compiler", "openmp", "openmp_max_threads", "cuda", "cuda_version", "cuda_archs",
    }  # fmt: skip
    assert info["version"] == __version__
    assert info["openmp_max_threads"] >= 1
    assert info["cuda"] == _native.has_cuda() == bool(info["cuda_archs"])


def test_a_module_of_another_interface_is_refused(native: ModuleType, tmp_path: Path) -> None:
    package = tmp_path / "case"
    package.mkdir()
    for name in ("_native.py", "errors.py", "_C.pyi"):
        shutil.copyfile(ROOT / "case" / name, package / name)
    (package / "__init__.py").write_text("")
    code = (
        f"import sys; sys.path.insert(0, {str(tmp_path)!r}); from case import _native; print(_native.load().INTERFACE)"
    )

    def load() -> subprocess.CompletedProcess[str]:
        return run_python(code, CASE_NATIVE=str(native.__file__), PYTHONPATH=str(tmp_path))

    done = load()
    assert done.stdout.strip() == native.INTERFACE, done.stderr
    with (package / "_C.pyi").open("a") as stub:
        stub.write("def added(count: int) -> None: ...\n")
    done = load()
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith(
        f"case.errors.CaseError: case._C ({native.__file__}) was compiled with another interface than"
    )
    assert done.returncode == 1
    (package / "_C.pyi").unlink()
    done = load()
    assert done.stdout.strip() == native.INTERFACE, done.stderr


def test_cuda_half_holds_code_for_each_architecture(native: ModuleType) -> None:
    info = native.build_info()
    if not info["cuda"]:
        pytest.skip("case._C was built without CUDA (nvcc)")
    cuobjdump = shutil.which("cuobjdump") or shutil.which("/usr/local/cuda/bin/cuobjdump")
    if cuobjdump is None:
        pytest.skip("cuobjdump is not installed")
    listed = subprocess.run([cuobjdump, "--list-elf", native.__file__], capture_output=True, text=True, check=True)
    for arch in info["cuda_archs"]:
        if not arch.endswith("-virtual"):
            assert f"sm_{arch.removesuffix('-real')}." in listed.stdout


@pytest.mark.slow
@pytest.mark.parametrize("source", sorted((ROOT / "csrc").glob("*.cu")), ids=lambda path: path.name)
def test_cuda_kernels_do_not_spill(source: Path, tmp_path: Path) -> None:
    nvcc = shutil.which("nvcc") or shutil.which("/usr/local/cuda/bin/nvcc")
    if nvcc is None:
        pytest.skip("nvcc is not installed")
    archs = [f"-gencode=arch=compute_{a},code=sm_{a}" for a in (80, 90, 100)]
    options = ["-std=c++17", "-DCASE_WITH_CUDA", "-Xptxas=-v", *archs, "-c", "-o", str(tmp_path / "out.o")]
    done = subprocess.run([nvcc, *options, str(source)], capture_output=True, text=True, timeout=250)
    assert done.returncode == 0, done.stderr
    report = [line.strip() for line in done.stderr.splitlines() if "spill" in line]
    assert len(report) >= len(archs)
    assert all("0 bytes spill stores, 0 bytes spill loads" in line for line in report), done.stderr


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("length_offset", [0.0, 1.0])
@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_iou_cpu(native, rng, sizes, length_offset, dtype) -> None:
    batch, m, p = sizes
    a, b = segments(rng, batch, m, dtype), segments(rng, batch, p, dtype)
    got = iou_cpu(native, a, b, length_offset=length_offset)
    # Numerator and denominator are exact here, so the only rounding is the division's.
    np.testing.assert_array_max_ulp(got, temporal_iou(a, b, length_offset).astype(dtype), maxulp=1)


@pytest.mark.parametrize("num_threads", [1, 2, 3])
def test_iou_cpu_over_threads(native, rng, num_threads) -> None:
    a, b = segments(rng, 2, 211, "float32"), segments(rng, 2, 307, "float32")
    got = iou_cpu(native, a, b, num_threads=num_threads)
    np.testing.assert_array_equal(got, iou_cpu(native, a, b, num_threads=1))
    np.testing.assert_array_max_ulp(got, temporal_iou(a, b).astype(np.float32), maxulp=1)


@pytest.mark.parametrize("sizes", [(0, 3, 4), (2, 0, 4), (2, 3, 0), (0, 0, 0)], ids=str)
def test_iou_cpu_empty(native, sizes) -> None:
    batch, m, p = sizes
    a, b = np.zeros((batch, m, 2), np.float32), np.zeros((batch, p, 2), np.float32)
    assert iou_cpu(native, a, b).shape == (batch, m, p)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("corner", [0, 1])
def test_iou_cpu_keeps_nan(native, rng, corner, dtype) -> None:
    a, b = segments(rng, 1, 37, dtype), segments(rng, 1, 41, dtype)
    a[0, 5, corner] = np.nan
    b[0, 7, corner] = np.nan
    got = iou_cpu(native, a, b, length_offset=1.0)
    assert np.isnan(got[0, 5]).all()
    assert np.isnan(got[0, :, 7]).all()
    assert np.isnan(got).sum() == 37 + 41 - 1


def test_iou_cpu_infinite_ends_match_the_formula(native) -> None:
    ends = np.array([[-np.inf, np.inf], [0, np.inf], [-np.inf, 3], [np.inf, np.inf], [1, 2]], np.float64)[None]
    with np.errstate(invalid="ignore"):
        np.testing.assert_array_equal(iou_cpu(native, ends, ends), temporal_iou(ends, ends))


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ((0, 0, 0, -1, 1, 1, "float32"), ValueError, "batch must not be negative, got -1"),
        ((0, 0, 0, 1, 1, 1, "float32"), ValueError, "a must be an address, got 0"),
        ((0, 0, 0, 1, 1, 1, "float16"), TypeError, "dtype must be 'float32' or 'float64', got 'float16'"),
    ],
)
def test_iou_cpu_refuses(native, arguments, error, message) -> None:
    with pytest.raises(error, match=f"^{message}$"):
        native.iou_cpu(*arguments)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("sizes", [*SIZES, (70000, 2, 3), (1, 600000, 3)], ids=str)
def test_iou_cuda(native, rng, sizes, dtype) -> None:
    if not _native.has_cuda():
        pytest.skip("case._C was built without CUDA (nvcc)")
    batch, m, p = sizes
    a, b = segments(rng, batch, m, dtype), segments(rng, batch, p, dtype)
    a.reshape(-1)[rng.integers(a.size)] = np.nan
    x, y = torch.from_numpy(a).cuda(), torch.from_numpy(b).cuda()
    out = x.new_full((batch, m, p), torch.nan)
    stream = torch.cuda.current_stream().cuda_stream
    native.iou_cuda(x.data_ptr(), y.data_ptr(), out.data_ptr(), batch, m, p, dtype, 1.0, stream)
    np.testing.assert_array_max_ulp(out.cpu().numpy(), temporal_iou(a, b, 1.0).astype(dtype), maxulp=1)


@pytest.mark.gpu
def test_iou_cuda_past_two_to_the_31_results(native) -> None:
    if not _native.has_cuda():
        pytest.skip("case._C was built without CUDA (nvcc)")
    m, p = 70_001, 30_701
    if torch.cuda.mem_get_info()[0] < 10 * 2**30:
        pytest.skip("less than 10 GiB of free GPU memory")
    x = torch.rand(1, m, 2, device="cuda").cumsum(-1)
    y = torch.rand(1, p, 2, device="cuda").cumsum(-1)
    out = x.new_full((1, m, p), torch.nan)
    stream = torch.cuda.current_stream().cuda_stream
    native.iou_cuda(x.data_ptr(), y.data_ptr(), out.data_ptr(), 1, m, p, "float32", 0.0, stream)
    assert m * p > 2**31
    assert not out.isnan().any()
    for row in (0, m // 2, m - 1):
        wanted = temporal_iou(x[:, row : row + 1].cpu().numpy(), y.cpu().numpy())[0, 0]
        np.testing.assert_allclose(out[0, row].cpu().numpy(), wanted, rtol=1e-5, atol=1e-6)


def test_kernels_is_refused_under_its_bare_name() -> None:
    done = run_python("import kernels")
    assert done.returncode == 1
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("ImportError: import case.kernels, not kernels")


def test_kernels_imports_as_part_of_case() -> None:
    done = run_python("import sys; sys.modules['triton'] = None; import case.kernels")
    assert done.returncode == 0, done.stderr


def test_import_without_the_native_module() -> None:
    code = "import case, case._native as n; assert n.load() is None and not n.has_cuda(); print(n.reason())"
    done = run_python(code, CASE_NATIVE="0")
    assert done.returncode == 0, done.stderr
    assert "CASE_NATIVE=0" in done.stdout


def test_import_without_triton() -> None:
    code = "import sys; sys.modules['triton'] = None; import case, case._native as n; print(n.triton_reason())"
    done = run_python(code)
    assert done.returncode == 0, done.stderr
    assert "triton is not installed" in done.stdout


def test_native_access_imports_neither_torch_nor_triton() -> None:
    code = "import sys, case._native as n; n.load(); n.triton_reason(); print({'torch', 'triton'} & set(sys.modules))"
    done = run_python(code)
    assert done.stdout.strip() == "set()", done.stderr


def test_training_without_flags_needs_no_tyro() -> None:
    """A GPU machine without it still runs the tests of the engine, and benchmarks that train."""
    code = "import sys; sys.modules['tyro'] = None; from case.commands import train; train.configure({})"
    done = run_python(code)
    assert done.returncode == 0, done.stderr
