"""The Triton implementations of ops, put in place where Triton is there: checked arguments in, autograd around kernels.

One file per public file of ``case.ops``; each holds functions named after the registered ops. They are imported at an
op's first call, and Triton with them. ``TRITON_INTERPRET=1`` in the environment runs them on the CPU in Triton's
interpreter, for tests. float64 exists for gradients in the interpreter; on a GPU it takes the reference.
"""

from __future__ import annotations

import contextlib
import importlib
import os
from typing import Any

import torch

from case import _native
from case.ops import _backend

_FILES = {
    "sinkhorn": ("sinkhorn", "sinkhorn_potentials", "rank_prior"),
    "prototypes": ("prototypes", "prototypes_of_plan"),
    "cosine": ("cosine_logits", "cosine_softmax"),
    "losses": ("soft_cross_entropy", "soft_cross_entropy_of_plan", "generalized_cross_entropy"),
    "clustering": ("clustering_losses",),
}


def _lazy(file: str, op: str) -> _backend.Implementation:
    def run(*args: Any) -> Any:
        if args[0].dtype == torch.float64 and args[0].is_cuda:
            return _backend.reference(op)(*args)
        function = getattr(importlib.import_module(f"case.ops._triton_ops.{file}"), op)
        # Triton launches on the current device, which need not be the tensors'.
        with torch.cuda.device(args[0].device) if args[0].is_cuda else contextlib.nullcontext():
            return function(*args)

    return run


def put_in_place(device: str | None = None) -> None:
    """Add every Triton implementation for ``device``; by default CUDA, or the CPU where Triton interprets."""
    if _native.triton_reason() is not None:
        return
    device = device or ("cpu" if os.environ.get("TRITON_INTERPRET") == "1" else "cuda")
    for file, ops in _FILES.items():
        for op in ops:
            _backend.add(op, "triton", device, _lazy(file, op))
