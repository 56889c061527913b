"""Small numerical helpers of the reference ops."""

import torch
from torch import Tensor


def accumulation_dtype(x: Tensor) -> torch.dtype:
    """float64 stays float64 (gradcheck); everything else is computed in float32."""
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def logsumexp(x: Tensor, dim: int) -> Tensor:
    """log sum exp over ``dim``; -inf with zero gradient (not NaN) where a slice is empty or all -inf."""
    if x.shape[dim] == 0:
        return x.sum(dim) - torch.inf
    peak = x.detach().amax(dim, keepdim=True)
    peak = torch.where(peak.isfinite(), peak, torch.zeros_like(peak))
    total = (x - peak).exp().sum(dim)
    none = total == 0  # false of NaN, which goes on
    log_total = total.masked_fill(none, 1).log() + peak.squeeze(dim)
    return log_total.masked_fill(none, -torch.inf)
