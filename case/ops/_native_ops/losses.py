"""``clustering_losses`` on the CPU: torch for what is wide, ``csrc/sinkhorn*.cpp`` for both transports."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from case.ops._native_ops.sinkhorn import sinkhorn
from case.ops.reference import losses as reference


def clustering_losses(*chain: Any) -> tuple[Tensor, Tensor, Tensor]:
    return reference.clustering_losses(*chain, transport=sinkhorn)
