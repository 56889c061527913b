"""What people use today, doing the same work: eager torch and numpy as WTAL code writes them, and packages.

Every package is called as its documentation says, with the settings under which it does this work fastest and without
its warnings and convergence checks where they can be left out. None is required: ``missing`` says why one is left out.
"""

from __future__ import annotations

import importlib
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import normalize

SCALE, ITERATIONS = 2.0, 3  # of the method's Sinkhorn


@dataclass(frozen=True)
class Peer:
    """A row of the table of peers.

    module: what has to be importable; devices: where it runs; cannot: what case can; extra: the extra of case-wtal that
    installs it; needs: what beyond that.
    """

    module: str | None
    devices: tuple[str, ...]
    work: str
    cannot: str
    extra: str = ""
    needs: str = ""


PEERS = {
    "eager torch": Peer(
        None, ("cpu", "cuda"), "every op, in plain torch as WTAL code writes it",
        "a plan held as potentials; rows off by a mask; a fixed launch count",
    ),
    "separate ops": Peer(
        None, ("cpu", "cuda"), "the clustering chain by calls of `case.ops`, nothing fused", "sums over distinct rows",
    ),
    "torch F.cross_entropy": Peer(
        None, ("cpu", "cuda"), "soft cross entropy with probabilities as targets",
        "a plan held as potentials as targets",
    ),
    "torch.matmul": Peer(
        None, ("cpu", "cuda"), "prototypes as W^T E (on CUDA by cuBLAS, which splits the long sum as it sees fit)",
        "a plan held as potentials, normalisation in the same pass",
    ),
    "torch.index_add": Peer(
        None, ("cpu", "cuda"), "prototypes of hard assignments, each row added to its cluster's", "soft assignments",
    ),
    "torch.topk": Peer(None, ("cpu", "cuda"), "top-k pooling", "nothing of it"),
    "numpy loop": Peer(None, ("cpu",), "NMS, proposals and mAP as WTAL code writes them", "GPU, batches of videos"),
    "pandas loop": Peer(
        "pandas", ("cpu",), "mAP as evaluators with data frames write it",
        "other rules of evaluators, AR@AN, kinds of errors", extra="peers",
    ),
    "POT sinkhorn_log": Peer(
        "ot", ("cpu", "cuda"), "`ot.bregman.sinkhorn_log`, 3 iterations",
        "a prior (folded into the cost here), masks, batches, a split over processes, a plan as potentials alone",
        extra="peers",
    ),
    "POT ot.batch": Peer(
        "ot", ("cpu", "cuda"), "`ot.batch.solve_batch` on the transposed cost, so that rows come last, 3 iterations",
        "a prior (folded into the cost here), ragged problems, masks, a split over processes", extra="peers",
    ),
    "geomloss ot.solve": Peer(
        "geomloss", ("cpu", "cuda"), "entropic transport to convergence (it anneals, symmetrically)",
        "a given number of iterations, a prior (folded into the cost), masks, a split over processes", extra="peers",
    ),
    "flash-sinkhorn": Peer(
        "flash_sinkhorn", ("cuda",),
        "`SamplesLoss(backend=\"alternating\")` on unit vectors, whose cost is the cosine's up to a constant",
        "a matrix of logits, a prior, masks, gradients through three iterations, a CPU", extra="peers-cuda",
    ),
    "flash-kmeans": Peer(
        "flash_kmeans.centroid_update_triton", ("cuda",),  # without tqdm the package imports, but has nothing in it
        "prototypes of hard assignments, `triton_centroid_update_sorted_euclid`",
        "soft assignments, gradients, a CPU", extra="peers-cuda",
    ),
    "torchvision nms": Peer(
        "torchvision", ("cpu", "cuda"), "`torchvision.ops.batched_nms` on boxes of height 1",
        "decayed scores, soft NMS, an offset of lengths, a fixed size of the result",
        extra="peers-nms", needs="a build for the torch beside it: one for CUDA does not load where torch is for CPUs",
    ),
    "actionformer nms": Peer(
        "nms_1d_cpu", ("cpu",), "hard NMS class by class in C++, float32",
        "decay once, float64, groups in one call, GPU",
        extra="peers-nms", needs="a C++ compiler, and --no-build-isolation to be built against the torch beside it",
    ),
}  # fmt: skip
# Peers that a compiler sees into.
PLAIN = frozenset({"eager torch"})


@cache
def missing(name: str, device: str) -> str | None:
    """Why a peer cannot run here, in a line, or None."""
    peer = PEERS[name.removesuffix("+compile")]
    if device not in peer.devices:
        return f"does not run on {device}"
    if peer.module is None:
        return None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a package's warnings are its own affair
            importlib.import_module(peer.module)
    except (ImportError, RuntimeError, OSError) as error:  # torchvision raises what its library does
        found = f"{peer.module} cannot be imported ({error})"
        return f"{found}; it needs {peer.needs}" if peer.needs else found
    return None


# -- Sinkhorn ------------------------------------------------------------------------------------------------------


def eager_sinkhorn(logits: Tensor, prior: Tensor | None = None) -> Tensor:
    """The usual assignment step, in the linear domain: totals, columns, rows, one full pass each."""
    n, k = logits.shape
    q = torch.exp(SCALE * logits)
    if prior is not None:
        q = q * prior
    q = q / q.sum()
    for _ in range(ITERATIONS):
        q = q / q.sum(dim=0, keepdim=True)
        q = q / k
        q = q / q.sum(dim=1, keepdim=True)
        q = q / n
    return q * n


def streamed_sinkhorn(logits: Tensor, prior: Tensor | None = None, rows: int = 8192) -> Tensor:
    """In float64, the oracle of large sizes: a stretch of rows at a time, the scaling of columns kept between them."""
    columns = logits.new_ones(logits.shape[1], dtype=torch.float64)

    def stretches() -> Iterator[Tensor]:
        for i in range(0, len(logits), rows):
            kernel = (SCALE * logits[i : i + rows].double()).exp_()
            yield kernel if prior is None else kernel.mul_(prior[i : i + rows])

    for step in range(ITERATIONS):
        # Rows are scaled to sum to 1, but not before the first step.
        totals = [x.sum(0) if step == 0 else (x @ columns).reciprocal_() @ x for x in stretches()]
        columns = torch.stack(totals).sum(0).reciprocal_()
    found = torch.empty(logits.shape, dtype=torch.float64, device=logits.device)
    for part, x in zip(found.split(rows), stretches(), strict=True):
        torch.div(x.mul_(columns), x.sum(1, keepdim=True), out=part)
    return found


def eager_rank_prior(scores: Tensor, centers: Tensor) -> Tensor:
    """The position prior by two sorts, sigma 0.3."""
    ranks = scores.argsort(descending=True).argsort()
    gap = ((ranks + 1) / scores.shape[0]).unsqueeze(1) - centers
    prior = torch.exp(-gap.square() / (2 * 0.3**2))
    return prior / prior.sum()


def _cost(logits: Tensor, prior: Tensor | None) -> Tensor:
    """The cost whose kernel at regularisation 1 is exp(scale * logits) * prior."""
    return -SCALE * logits if prior is None else -(SCALE * logits + prior.log())


def pot_sinkhorn_log(logits: Tensor, prior: Tensor | None = None) -> Tensor:
    from ot.bregman import sinkhorn_log

    n, k = logits.shape
    rows, columns = logits.new_full((n,), 1 / n), logits.new_full((k,), 1 / k)
    return n * sinkhorn_log(rows, columns, _cost(logits, prior), 1.0, ITERATIONS, stopThr=0.0, warn=False)


def pot_batch(logits: Tensor, prior: Tensor | None = None) -> Tensor:
    from ot.batch import solve_batch

    n = logits.shape[0]
    cost = _cost(logits, prior).T.unsqueeze(0)  # it scales the first axis first, and columns come first here
    grad = "autodiff" if logits.requires_grad else "detach"
    found = solve_batch(cost, 1.0, max_iter=ITERATIONS, tol=0.0, method="log_sinkhorn", grad=grad)
    return n * found.plan[0].T


def geomloss_solve(logits: Tensor, iterations: int) -> Tensor:
    from geomloss import ot

    return logits.shape[0] * ot.solve(-SCALE * logits, reg=1.0, max_iter=iterations).plan


def pot_converged(logits: Tensor, iterations: int) -> Tensor:
    from ot.bregman import sinkhorn_log

    n, k = logits.shape
    rows, columns = logits.new_full((n,), 1 / n), logits.new_full((k,), 1 / k)
    return n * sinkhorn_log(rows, columns, -SCALE * logits, 1.0, iterations, stopThr=0.0, warn=False)


def flash_sinkhorn_of_features(embeddings: Tensor, prototypes: Tensor) -> Tensor:
    """Clusters first: its iterations begin with its first argument. Its potentials, and the plan's rows from them."""
    from flash_sinkhorn import SamplesLoss

    # |x - y|^2 / 2 = 1 - cos; exp(-cost / 0.05) = exp(2 * 10 * cos) up to a constant.
    reg = 1 / (10.0 * SCALE)
    solve = SamplesLoss(
        "sinkhorn", backend="alternating", eps=reg, n_iters=ITERATIONS, half_cost=True, potentials=True,
        use_epsilon_scaling=False,
    )  # fmt: skip
    potential, _ = solve(prototypes, embeddings)
    return ((embeddings @ prototypes.T + potential) / reg).softmax(-1)


def eager_sinkhorn_of_features(embeddings: Tensor, prototypes: Tensor) -> Tensor:
    return eager_sinkhorn(10.0 * embeddings @ prototypes.T)


# -- prototypes, cosine, pooling -----------------------------------------------------------------------------------


def matmul_prototypes(embeddings: Tensor, weights: Tensor) -> Tensor:
    return normalize(weights.mT @ embeddings, dim=-1)


def flash_kmeans_prototypes(embeddings: Tensor, cluster: Tensor, clusters: int) -> Tensor:
    """Hard assignments only. Sorts them, and gives means, which point where sums do."""
    from flash_kmeans.centroid_update_triton import triton_centroid_update_sorted_euclid

    old = embeddings.new_zeros(embeddings.shape[0], clusters, embeddings.shape[-1])
    return normalize(triton_centroid_update_sorted_euclid(embeddings, cluster, old), dim=-1)


def index_add_prototypes(embeddings: Tensor, cluster: Tensor, clusters: int) -> Tensor:
    m, _, h = embeddings.shape
    at = cluster + clusters * torch.arange(m, device=cluster.device)[:, None]
    sums = embeddings.new_zeros(m * clusters, h).index_add_(0, at.flatten(), embeddings.flatten(0, 1))
    return normalize(sums.view(m, clusters, h), dim=-1)


def eager_cosine(x: Tensor, y: Tensor) -> Tensor:
    return 10.0 * normalize(x, dim=-1) @ normalize(y, dim=-1).mT


# -- NMS -----------------------------------------------------------------------------------------------------------


def numpy_nms(segments: Tensor, scores: Tensor, groups: Tensor, threshold: float, sigma: float | None) -> Any:
    """The usual numpy loop, class by class: the best one against all that remain. With sigma, decay once."""
    ends, weights, labels = (x.numpy(force=True) for x in (segments, scores, groups))
    keep: list[int] = []
    found: list[float] = []
    for label in np.unique(labels):
        members = np.flatnonzero(labels == label)
        queue = members[np.argsort(-weights[members], kind="stable")]
        decayed: list[int] = []
        decayed_scores: list[float] = []
        while len(queue) > 0:
            best, rest = queue[0], queue[1:]
            keep.append(best)
            found.append(weights[best])
            low = np.maximum(ends[best, 0], ends[rest, 0])
            inter = np.maximum(0.0, np.minimum(ends[best, 1], ends[rest, 1]) - low)
            iou = inter / (ends[best, 1] - ends[best, 0] + ends[rest, 1] - ends[rest, 0] - inter)
            beaten = iou >= threshold
            if sigma is not None:
                decayed += rest[beaten].tolist()
                decayed_scores += (weights[rest[beaten]] * np.exp(-np.square(iou[beaten]) / sigma)).tolist()
            queue = rest[~beaten]
        keep += decayed
        found += decayed_scores
    return torch.tensor(np.array(keep, np.int64)), torch.tensor(np.array(found))


def boxes(segments: Tensor) -> Tensor:
    """Of height 1, whose IoU is that of the segments."""
    zero = torch.zeros_like(segments[:, 0])
    return torch.stack([segments[:, 0], zero, segments[:, 1], zero + 1], dim=1)


def torchvision_nms(boxes: Tensor, scores: Tensor, groups: Tensor, threshold: float) -> Tensor:
    from torchvision.ops import batched_nms

    return batched_nms(boxes, scores, groups, threshold)


def actionformer_nms(segments: Tensor, scores: Tensor, groups: Tensor, threshold: float) -> Tensor:
    """Class by class, as that package's own batched_nms calls it."""
    import nms_1d_cpu

    kept = []
    for label in groups.unique().tolist():
        here = (groups == label).nonzero().squeeze(1)
        kept.append(here[nms_1d_cpu.nms(segments[here], scores[here], iou_threshold=threshold)])
    return torch.cat(kept)


def eager_iou(a: Tensor, b: Tensor) -> Tensor:
    (s1, e1), (s2, e2) = a[:, None].unbind(-1), b[None].unbind(-1)
    inter = (torch.minimum(e1, e2) - torch.maximum(s1, s2)).clamp(min=0)
    return inter / ((e1 - s1) + (e2 - s2) - inter)
