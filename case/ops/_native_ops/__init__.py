"""The compiled implementations of ops, put in place where ``case._C`` is there. Addresses, sizes and a stream go in."""

from __future__ import annotations

from case import _native
from case.ops import _backend
from case.ops._native_ops import (
    cosine,
    iou,
    losses,
    nms,
    nms_blocks,
    nms_vote_blocks,
    pooling,
    proposals,
    prototypes,
    ranks,
    sinkhorn,
)

if _native.load() is not None:
    _backend.add("batched_nms", "native", "cpu", nms.batched_nms)
    _backend.add("batched_nms_padded", "native", "cpu", nms.batched_nms_padded)
    _backend.add("clustering_losses", "native", "cpu", losses.clustering_losses)
    _backend.add("cosine_logits", "native", "cpu", cosine.cosine_logits)
    _backend.add("cosine_softmax", "native", "cpu", cosine.cosine_softmax)
    _backend.add("generalized_cross_entropy", "native", "cpu", losses.generalized_cross_entropy)
    _backend.add("propose", "native", "cpu", proposals.propose)
    _backend.add("propose_padded", "native", "cpu", proposals.propose_padded)
    _backend.add("prototypes", "native", "cpu", prototypes.prototypes)
    _backend.add("prototypes_of_plan", "native", "cpu", prototypes.prototypes_of_plan)
    _backend.add("rank_prior", "native", "cpu", ranks.rank_prior)
    _backend.add("score_vote", "native", "cpu", nms.score_vote)
    _backend.add("sinkhorn", "native", "cpu", sinkhorn.sinkhorn)
    _backend.add("sinkhorn_potentials", "native", "cpu", sinkhorn.sinkhorn_potentials)
    _backend.add("soft_cross_entropy", "native", "cpu", losses.soft_cross_entropy)
    _backend.add("soft_cross_entropy_of_plan", "native", "cpu", losses.soft_cross_entropy_of_plan)
    _backend.add("temporal_iou", "native", "cpu", iou.temporal_iou)
    _backend.add("topk_pool", "native", "cpu", pooling.topk_pool)
    if _native.has_cuda():
        _backend.add("batched_nms", "native", "cuda", nms_blocks.batched_nms)
        _backend.add("batched_nms_padded", "native", "cuda", nms_blocks.batched_nms_padded)
        _backend.add("propose", "native", "cuda", proposals.propose)
        _backend.add("propose_padded", "native", "cuda", proposals.propose_padded)
        _backend.add("score_vote", "native", "cuda", nms_vote_blocks.score_vote)
        _backend.add("temporal_iou", "native", "cuda", iou.temporal_iou)
