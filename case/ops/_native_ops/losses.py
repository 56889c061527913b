"""``clustering_losses`` on the CPU: torch for what is wide, ``csrc/sinkhorn*.cpp`` for both transports."""

from functools import partial

from case.ops._native_ops.sinkhorn import sinkhorn
from case.ops.reference import losses as reference

clustering_losses = partial(reference.clustering_losses, transport=sinkhorn)
