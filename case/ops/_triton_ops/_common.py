"""What the Triton implementations share."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def batch(x: Tensor, dims: int) -> Tensor:
    """(..., *last) as (B, *last) with ``dims`` last ones: a view where strides allow it; missing ones become 1."""
    while x.dim() < dims:
        x = x.unsqueeze(0)
    lead = x.shape[: x.dim() - dims]
    return x.reshape(lead.numel(), *x.shape[len(lead) :])


def needs_gradient(*arguments: Any) -> bool:
    return torch.is_grad_enabled() and any(isinstance(x, Tensor) and x.requires_grad for x in arguments)
