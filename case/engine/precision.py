"""In what the wide products are computed: ``fp32``, ``tf32`` (CUDA's, otherwise fp32) or ``bf16``.

Weights, moments, everything narrow and every sum of losses are float32 in all of them.
"""

from __future__ import annotations

from typing import Literal

import torch

from case import console
from case.heads import multiplies_bfloat16

Precision = Literal["fp32", "tf32", "bf16"]


def rows_dtype(precision: Precision) -> torch.dtype:
    """What feature rows go into the network as."""
    return torch.bfloat16 if precision == "bf16" else torch.float32


def set_products(precision: Precision, device: torch.device) -> None:
    """How this process multiplies float32 matrices on a GPU from now on; warns where bfloat16 gains nothing."""
    torch.backends.cuda.matmul.fp32_precision = "tf32" if precision == "tf32" else "ieee"
    if precision == "bf16" and device.type == "cpu" and not multiplies_bfloat16():
        console.warn(
            "bfloat16 products are no faster than float32's on this CPU, which multiplies the rounded numbers in "
            "float32; use --precision fp32"
        )
