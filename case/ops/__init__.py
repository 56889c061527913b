"""The ops behind CASE, usable alone: plain functions on tensors that know no model.

Each op takes tensors on CPU or CUDA, checks its arguments, and is differentiable where its docstring says so, in eager
mode, under ``torch.compile(fullgraph=True)`` and as a registered op ``torch.ops.case.<name>``. ``backend(...)`` or the
environment variable ``CASE_BACKEND`` choose the implementation; the default takes the fastest there is.
"""

from case.ops import (
    _native_ops,  # noqa: F401  (puts the compiled implementations in place)
    _triton_ops,
)
from case.ops._backend import backend
from case.ops.cosine import cosine_logits, cosine_softmax
from case.ops.losses import ClusteringLosses, clustering_losses, generalized_cross_entropy, soft_cross_entropy
from case.ops.nms import (
    NMSResult,
    PaddedNMSResult,
    VotedNMSResult,
    batched_nms,
    batched_nms_padded,
    nms,
    temporal_iou,
)
from case.ops.pooling import topk_pool
from case.ops.proposals import PaddedProposals, Proposals, propose, propose_padded
from case.ops.prototypes import prototypes
from case.ops.sinkhorn import Plan, RankPrior, rank_prior, sinkhorn, sinkhorn_potentials

_triton_ops.put_in_place()

__all__ = [
    "ClusteringLosses",
    "NMSResult",
    "PaddedNMSResult",
    "PaddedProposals",
    "Plan",
    "Proposals",
    "RankPrior",
    "VotedNMSResult",
    "backend",
    "batched_nms",
    "batched_nms_padded",
    "clustering_losses",
    "cosine_logits",
    "cosine_softmax",
    "generalized_cross_entropy",
    "nms",
    "propose",
    "propose_padded",
    "prototypes",
    "rank_prior",
    "sinkhorn",
    "sinkhorn_potentials",
    "soft_cross_entropy",
    "temporal_iou",
    "topk_pool",
]
