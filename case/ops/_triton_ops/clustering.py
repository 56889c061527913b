"""``clustering_losses`` on Triton: the registered op's arguments around ``case.kernels.clustering``."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from case.kernels import clustering as kernels
from case.kernels.config import MAX_CHAIN_CLUSTERS
from case.ops import _backend
from case.ops._registration import gradients_with_graph, kernels_cannot
from case.ops._triton_ops._common import needs_gradient
from case.ops._triton_ops._ranks import rank_term
from case.ops.reference._numerics import accumulation_dtype


def clustering_losses(*chain: Any) -> tuple[Tensor, Tensor, Tensor]:
    logits, embeddings, attention, foreground, cluster_labels, index, sigma, ranks, *settings = chain
    if foreground.numel() * logits.numel() * embeddings.numel() == 0 or logits.shape[-1] > MAX_CHAIN_CLUSTERS:
        return _backend.reference("clustering_losses")(*chain)
    # Kernels read these with a stride of 1, and the prior in the dtype that the transport is computed in.
    foreground, index = foreground.contiguous(), None if index is None else index.contiguous()
    attention, cluster_labels = (x.to(accumulation_dtype(logits)) for x in (attention, cluster_labels))
    centers = cluster_labels[:, 0].unsqueeze(0)
    rows, k = logits.shape[1:]
    weights = torch.empty((rows, k + 2), dtype=torch.int64, device=logits.device)
    term, sorted_ = rank_term(
        attention.unsqueeze(0), centers, sigma, ranks, index=index, complement=True, clear=weights
    )
    given = (weights, foreground, index, term, sorted_, kernels.Settings(*settings))
    if needs_gradient(logits, embeddings):
        return _ClusteringLosses.apply(logits, embeddings, given, chain[2:])
    found = kernels.forward(logits, embeddings, *given)
    return found.scc, found.ccc, found.labels


class _ClusteringLosses(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, logits: Tensor, embeddings: Tensor, given: tuple[Any, ...], rest: tuple[Any, ...]
    ) -> tuple[Tensor, Tensor, Tensor]:
        chain = kernels.forward(logits, embeddings, *given)
        # The embeddings are read again for second derivatives alone.
        ctx.save_for_backward(logits, embeddings)
        ctx.rest = rest
        ctx.chain = chain._replace(scc=None, ccc=None, labels=None)
        ctx.width = embeddings.shape[2]
        ctx.samples = given[1].shape[0]
        ctx.mark_non_differentiable(chain.labels)
        return chain.scc, chain.ccc, chain.labels

    @staticmethod
    def backward(ctx: Any, of_scc: Tensor, of_ccc: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        logits, embeddings = ctx.saved_tensors
        if kernels_cannot(of_scc, of_ccc):
            found = gradients_with_graph(
                lambda *given: _backend.reference("clustering_losses")(*given, *ctx.rest),
                (logits, embeddings), ctx.needs_input_grad[:2], of_scc, of_ccc, None,
            )  # fmt: skip
            return *found, None, None
        of_logits, of_embeddings = kernels.backward(logits, ctx.width, ctx.chain, ctx.samples, of_scc, of_ccc)
        return of_logits, of_embeddings, None, None
