"""Cross entropies, and the clustering losses L_C and L_R as the chain of the other ops (METHOD.md, SCC, CCC)."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from case.ops.reference._numerics import accumulation_dtype
from case.ops.reference.cosine import cosine_logits
from case.ops.reference.prototypes import prototypes
from case.ops.reference.sinkhorn import dense_plan, sinkhorn

EPS = 1e-7  # the released code's guard in the generalized cross entropy


def soft_cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    dtype = accumulation_dtype(logits)
    logits, targets = logits.to(dtype), targets.to(dtype)
    # Masks cost more than all else; a GPU could not be asked without waiting for it.
    if targets.is_cpu and bool(targets.all()):
        return -(targets * logits.log_softmax(-1)).sum(-1)
    # 0 * -inf would be NaN: a class of zero target adds nothing whatever its logit, nor does a row of them, whose
    # gradient would be that of a softmax that may not exist.
    off = targets == 0
    logits = logits.masked_fill(off.all(-1, keepdim=True), 0)
    return -(targets * logits.log_softmax(-1).masked_fill(off, 0)).sum(-1)


def soft_cross_entropy_of_plan(logits: Tensor, *plan: Any) -> Tensor:
    return soft_cross_entropy(logits, dense_plan(*plan))


def generalized_cross_entropy(p: Tensor, target: Tensor, q: float) -> Tensor:
    dtype = accumulation_dtype(p)
    target = target.to(dtype)
    loss = (1 - (p.to(dtype) + EPS) ** q) / q
    return (target * loss).sum(-1) / (target.sum(-1) + EPS)


def clustering_losses(
    logits: Tensor,
    embeddings: Tensor,
    attention: Tensor,
    foreground: Tensor,
    cluster_labels: Tensor,
    index: Tensor | None,
    sigma: float,
    ranks: str,
    ot_scale: float,
    cosine_scale: float,
    n_iters: int,
    transport: Callable[..., Tensor] = sinkhorn,
    cross_entropy: Callable[..., Tensor] = soft_cross_entropy,
    prototypes: Callable[..., Tensor] = prototypes,
    similarity: Callable[..., Tensor] = cosine_logits,
) -> tuple[Tensor, Tensor, Tensor]:
    """(L_C, L_R, R) from M modalities at distinct rows; ``index`` maps each of the N samples to its row.

    Only the transport, whose prior ranks every sample, sees the N samples. The first cross entropy is linear in its
    targets, prototypes in their weights: to both, repeats of a row are one row with their sum.

    ``transport``, ``cross_entropy``, ``prototypes``, ``similarity``: the ops ``sinkhorn``, ``soft_cross_entropy``,
    ``prototypes`` and ``cosine_logits``, by whom they may be; the second with targets that broadcast, the third with
    weights that do.
    """
    dtype = accumulation_dtype(logits)
    logits = logits.to(dtype)
    rows, k = logits.shape[-2:]
    if index is None:
        index = torch.arange(rows, device=logits.device)
    with torch.no_grad():
        q = transport(
            logits.mean(0)[index], None, attention.to(dtype)[index], 1 - cluster_labels[:, 0].to(dtype), sigma, ranks,
            None, None, None, ot_scale, n_iters, None,
        )  # fmt: skip
        fg = foreground.to(dtype)
        columns = torch.cat([q, fg.unsqueeze(1), (1 - fg).unsqueeze(1)], dim=1)
        weights = torch.zeros(rows, columns.shape[1], dtype=dtype, device=q.device).index_add_(0, index, columns)
        beta = torch.stack([fg.mean(), 1 - fg.mean()])
    scc = cross_entropy(logits, weights[:, :k]).sum() / len(q)

    z = prototypes(embeddings.to(dtype), weights, "l2")
    u = similarity(z[:, :k], z[:, k:], cosine_scale, False)
    with torch.no_grad():
        labels = transport(u.mean(0), None, None, None, 1.0, ranks, None, beta, None, ot_scale, n_iters, None)
    ccc = cross_entropy(u, labels).mean(1).sum()
    return scc, ccc, labels
