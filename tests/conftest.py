"""What every test file shares: seeds, the gpu mark, the native module, a small data folder, what a user is told."""

from __future__ import annotations

import os
import secrets
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from torch import Tensor

if not torch.cuda.is_available():
    # Kernels then run in Triton's interpreter. It has to be said before Triton is imported, and Triton is by case.
    os.environ.setdefault("TRITON_INTERPRET", "1")

from case import _native
from case.data import SyntheticConfig, write
from case.errors import CaseError

torch.set_num_threads(2)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if torch.cuda.is_available():
        return
    for item in items:
        if "gpu" in item.keywords:
            item.add_marker(pytest.mark.skip(reason="no CUDA device"))


@pytest.fixture
def seed() -> int:
    """A fresh seed for each test, shown when the test fails; CASE_TEST_SEED=<number> repeats it."""
    value = int(os.environ.get("CASE_TEST_SEED") or secrets.randbits(32))
    print(f"repeat with CASE_TEST_SEED={value}")
    return value


@pytest.fixture
def rng(seed: int) -> np.random.Generator:
    """numpy's generator; torch's own is seeded alike."""
    torch.manual_seed(seed)
    return np.random.default_rng(seed)


@pytest.fixture
def native() -> ModuleType:
    module = _native.load()
    if module is None:
        pytest.skip(f"no native module: {_native.reason()}")
    return module


@pytest.fixture
def message() -> Callable[[Callable[[], object]], str]:
    """What the user is told when a call fails: one line, whatever went wrong."""

    def told(call: Callable[[], object]) -> str:
        with pytest.raises(CaseError) as caught:
            call()
        text = str(caught.value)
        assert "\n" not in text
        return text

    return told


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small data folder, for whoever has none of their own: ten training videos, four of the test split."""
    folder = tmp_path_factory.mktemp("synthetic") / "data"
    write(SyntheticConfig(num_train=10, num_test=4, num_classes=3, width=8, seed=3), folder)
    return folder


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Real data kept beside the repository, not in it: CASE_SHARED_DATA, or ../shared/data."""
    folder = Path(os.environ.get("CASE_SHARED_DATA") or Path(__file__).parents[2] / "shared" / "data")
    if not folder.is_dir():
        pytest.skip(f"no real data at {folder}; CASE_SHARED_DATA=<folder> names another place")
    return folder


@pytest.fixture
def poisoned() -> Iterator[None]:
    """Fresh memory is full of NaN, so that what is not written shows."""
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture
def over_threads() -> Iterator[Callable[[Callable[[], Sequence[Tensor]]], Sequence[Tensor]]]:
    """Runs a function on 1, 2, 3, 16 and again 2 threads, asserts equal bits, and returns what it gave."""

    def check(function: Callable[[], Sequence[Tensor]]) -> Sequence[Tensor]:
        torch.set_num_threads(1)
        first = function()
        for threads in (2, 3, 16, 2):
            torch.set_num_threads(threads)
            assert all(torch.equal(a, b) for a, b in zip(first, function(), strict=True)), f"{threads} threads"
        return first

    before = torch.get_num_threads()
    yield check
    torch.set_num_threads(before)
