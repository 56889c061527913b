"""Choosing an implementation: names, fallbacks, and what is said when there is none."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import case
from case import ops
from case.ops import _backend


def test_every_op_has_a_reference_for_any_device():
    assert all("reference/any" in found for found in _backend.table().values())


def test_unknown_names_are_refused():
    with (
        pytest.raises(ValueError, match=r"^backend must be one of auto, reference, triton, native, got 'cuda'$"),
        ops.backend("cuda"),
    ):
        pass


def test_an_absent_implementation_is_named():
    absent = [op for op, found in _backend.table().items() if not any(f.startswith("triton/") for f in found)]
    if not absent:
        pytest.skip("every op has a triton implementation")
    with (
        ops.backend("triton"),
        pytest.raises(RuntimeError, match=rf"^{absent[0]}: no 'triton' implementation on cpu; it has "),
    ):
        _backend.select(absent[0], torch.device("cpu"))


def test_backends_nest_and_end():
    before = _backend._current.get()
    with ops.backend("reference"):
        with ops.backend("auto"):
            assert _backend._current.get() == "auto"
        assert _backend._current.get() == "reference"
    assert _backend._current.get() == before


@pytest.mark.parametrize("name, fragment", [("reference", ""), ("fastest", "CASE_BACKEND must be one of")])
def test_environment_variable(name, fragment):
    environment = {**os.environ, "CASE_BACKEND": name, "PYTHONPATH": str(Path(case.__file__).parents[1])}
    code = "from case.ops import _backend; print(_backend._current.get())"
    run = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    if fragment:
        assert run.returncode != 0
        assert fragment in run.stderr
        assert repr(name) in run.stderr
    else:
        assert run.stdout.split() == [name], run.stderr
