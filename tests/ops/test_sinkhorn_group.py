"""Sinkhorn with its rows split over a process group equals sinkhorn in one process: values and gradients."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import case
from case import ops

WORLD = 2


@pytest.fixture
def outcomes(draw, tmp_path) -> list[tuple[dict[str, Any], list[dict[str, Any]]]]:
    """(inputs, what each rank found) for several calls."""
    if not torch.distributed.is_gloo_available():
        pytest.skip("torch was built without gloo")
    cases = []
    for lead, n, tensors, marginals, numbers in (
        ((), 11, (), (), {"scale": 2.0}),
        ((3,), 9, ("prior",), ("row_marginal", "col_marginal"), {"scale": 1.5, "n_iters": 4}),
        ((2,), 10, (), (), {"scale": 2.0, "n_iters": 8, "tol": 0.03}),
        ((), 1, (), (), {}),  # the first rank has no rows at all
    ):
        shapes = {"row_marginal": (*lead, n), "col_marginal": (*lead, 4)}
        cases.append(
            {
                "logits": draw.normal(*lead, n, 4),
                "cotangent": draw.normal(*lead, n, 4),
                "tensors": {name: draw.uniform(*lead, n, 4, low=0.2) for name in tensors},
                "marginals": {name: draw.uniform(*shapes[name], low=0.2) for name in marginals},
                "numbers": numbers,
            }
        )
    torch.save(cases, tmp_path / "cases.pt")
    worker = str(Path(__file__).with_name("group_worker.py"))
    environment = {**os.environ, "PYTHONPATH": str(Path(case.__file__).parents[1]), "OMP_NUM_THREADS": "1"}
    commands = [[sys.executable, worker, str(rank), str(WORLD), str(tmp_path)] for rank in range(WORLD)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    processes = [subprocess.Popen(command, env=environment, **pipes) for command in commands]
    try:
        for process in processes:
            output, _ = process.communicate(timeout=120)
            assert process.returncode == 0, output
    finally:
        for process in processes:
            process.kill()
            process.wait()
    ranks = [torch.load(tmp_path / f"rank{rank}.pt") for rank in range(WORLD)]
    return [(inputs, [found[i] for found in ranks]) for i, inputs in enumerate(cases)]


def test_two_processes_find_what_one_finds(outcomes, close):
    for inputs, found in outcomes:
        logits = inputs["logits"].requires_grad_()
        tensors = {name: x.requires_grad_() for name, x in inputs["tensors"].items()}
        given = {**tensors, **inputs["marginals"], **inputs["numbers"]}
        q = ops.sinkhorn(logits, **given)
        close(torch.cat([rank["q"] for rank in found], dim=-2), q)
        expected = torch.autograd.grad(q, [logits, *tensors.values()], inputs["cotangent"])
        for position, gradient in enumerate(expected):
            parts = [rank["gradients"][position] for rank in found]
            close(torch.cat(parts, dim=-2), gradient, floor=1e-3)  # of one column it is 0, or rounding
        u, v = ops.sinkhorn_potentials(logits, **given)
        close(torch.cat([rank["u"] for rank in found], dim=-1), u)
        for rank in found:
            close(rank["v"], v)


def test_a_rank_prior_cannot_be_split():
    prior = ops.RankPrior(torch.zeros(4), torch.zeros(3), 0.1)
    with pytest.raises(ValueError, match=r"^sinkhorn: prior is a RankPrior, which needs the scores of all ranks"):
        ops.sinkhorn(torch.zeros(4, 3), prior=prior, group=object())  # type: ignore[arg-type]
