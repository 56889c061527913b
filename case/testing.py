"""Parity harness: check that this code computes what the released code computes.

Both functions take and give weights under the names of the authors' checkpoints (``best_model.pkl``), so that a dump
of the released code's inputs and outputs can be replayed here and compared number by number:

    from case.testing import replay_training, replay_inference
    run = replay_training(init_state, x, y, settings={"num_clusters": 6, "num_segments": 96, "lr": 1e-3})
    print(run["losses"], run["parts"])
    detections, video_scores = replay_inference(run["state"], run["cls_gt"][-1], features, {"num_segments": 96, ...})

They run the same ``Learner``, ``activate`` and ``localize`` that ``case-wtal train`` and ``case-wtal localize`` run.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from case.compat import from_released, released_sizes, to_released
from case.config import Settings, settings_fields, settings_from
from case.engine.learner import Learner
from case.engine.sampling import uniform_positions
from case.errors import CaseError
from case.inference import activate, localize, to_results
from case.model import CASE


def replay_training(
    init_state: Mapping[str, Tensor | NDArray[Any]],
    x: Tensor | NDArray[Any],
    y: Tensor | NDArray[Any],
    *,
    settings: Settings | Mapping[str, Any] | Any = None,
) -> dict[str, Any]:
    """Train on given, already sampled batches, one step each.

    Args:
        init_state: weights before the first step, by checkpoint name; 1x1 convolutions (out, in, 1) or (out, in).
        x: (steps, B, T, D) features, the modalities' widths side by side in the order of ``settings.modalities``.
        y: (steps, B, C) video labels, 0 or 1.
        settings: ``Settings``, or a mapping or dataclass of its field names; the rest default to the released
            THUMOS14 values. modalities, num_classes, num_clusters and hidden come from the weights where a mapping
            leaves them out, and must agree with them where given.

    Returns:
        ``losses``: total loss of each step; ``cls_gt``: cluster labels R (K, 2) after each step, as arrays; ``state``:
        final weights by checkpoint name; ``inference_labels``: R for testing, smoothed where ``label_momentum`` asks
        for it (else the last of ``cls_gt``); ``first_step_grad``: gradients of the first step by checkpoint name;
        ``parts``: the first step's ``video``, ``attention``, ``scc``, ``ccc``, and the sums ``baseline``
        (video + attention), ``baseline_scc`` (with w_clu scc) and ``total``.
    """
    x, y = _stacked("x", x), _stacked("y", y)
    weights, resolved, widths = _fit(init_state, settings)
    x, y = x.to(torch.get_default_dtype()), y.to(torch.get_default_dtype())
    if x.dim() != 4 or x.shape[-1] != sum(widths):
        raise CaseError(f"x must have shape (steps, B, T, {sum(widths)}) to match the weights, got {tuple(x.shape)}")
    if y.shape != (*x.shape[:2], resolved.num_classes):
        raise CaseError(f"y must have shape {(*x.shape[:2], resolved.num_classes)}, got {tuple(y.shape)}")
    learner = Learner(widths, resolved)
    learner.model.load_state_dict(from_released(weights, resolved.modalities))
    losses, cls_gt = [], []
    first_grad: dict[str, Tensor] = {}
    parts: dict[str, float] = {}
    for batch, labels in zip(x, y, strict=True):
        index = torch.arange(batch.shape[0] * batch.shape[1]).view(batch.shape[:2])
        step = learner.step(batch.flatten(0, 1).split(list(widths), dim=-1), index, labels)
        losses.append(step.total.item())
        cls_gt.append(step.cluster_labels.numpy(force=True).copy())
        if not first_grad:
            grads = {name: p.grad for name, p in learner.model.named_parameters() if p.grad is not None}
            zeros = {name: torch.zeros_like(p) for name, p in learner.model.named_parameters()}
            first_grad = {k: v.clone() for k, v in to_released(zeros | grads, resolved.modalities).items()}
            parts = {name: getattr(step, name).item() for name in ("video", "attention", "scc", "ccc", "total")}
            parts["baseline"] = parts["video"] + parts["attention"]
            parts["baseline_scc"] = parts["baseline"] + resolved.w_clu * parts["scc"]
    state = {k: v.detach().clone() for k, v in to_released(learner.model.state_dict(), resolved.modalities).items()}
    return {
        "losses": losses,
        "cls_gt": cls_gt,
        "state": state,
        "inference_labels": learner.inference_labels.numpy(force=True).copy(),
        "first_step_grad": first_grad,
        "parts": parts,
    }


def replay_inference(
    state: Mapping[str, Tensor | NDArray[Any]],
    cls_gt: Tensor | NDArray[Any],
    features: Mapping[str, NDArray[Any]],
    settings: Settings | Mapping[str, Any] | Any = None,
) -> tuple[dict[str, Any], dict[str, NDArray[np.float32]]]:
    """Localize in videos with given weights.

    Args:
        state: weights by checkpoint name.
        cls_gt: (K, 2) cluster labels R (the released ``cls_gt.npy``).
        features: per video a (rows, D) array, the modalities side by side; sampled uniformly to T rows.
        settings: as for ``replay_training``.

    Returns:
        Detections in ActivityNet form ({"results": {video: [{"label", "score", "segment"}]}}), and per video the
        (C,) class scores.
    """
    weights, resolved, widths = _fit(state, settings)
    model = CASE(widths, resolved)
    model.load_state_dict(from_released(weights, resolved.modalities))
    model.eval()
    videos = list(features)
    arrays = [torch.as_tensor(np.asarray(features[v])).float() for v in videos]
    labels = torch.as_tensor(cls_gt)
    if labels.shape != (resolved.num_clusters, 2):
        raise CaseError(f"cls_gt must have shape ({resolved.num_clusters}, 2), got {tuple(labels.shape)}")
    if not videos:
        raise CaseError("features must hold at least one video, got none")
    for video, array in zip(videos, arrays, strict=True):
        if array.dim() != 2 or array.shape[0] == 0 or array.shape[1] != sum(widths):
            raise CaseError(
                f"features of '{video}' must have shape (rows > 0, {sum(widths)}), got {tuple(array.shape)}"
            )
    lengths = torch.tensor([len(a) for a in arrays])
    first = lengths.cumsum(0) - lengths
    index = first.unsqueeze(1) + uniform_positions(lengths, resolved.num_segments)
    with torch.inference_mode():
        heads = model(torch.cat(arrays).split(list(widths), dim=-1))
        activations = activate(heads, index, labels, resolved)
        found = localize(activations, lengths, resolved)
    scores = dict(zip(videos, activations.video_scores.numpy(), strict=True))
    return to_results(found, videos, resolved.labels), scores


def _stacked(name: str, value: Any) -> Tensor:
    """A tensor from a tensor, an array, or a list of either; ``CaseError`` where it holds NaN or infinity."""
    tensor = (
        torch.stack([torch.as_tensor(v) for v in value]) if isinstance(value, list | tuple) else torch.as_tensor(value)
    )
    if not bool(tensor.isfinite().all()):
        raise CaseError(f"{name} holds NaN or infinity; every batch must be finite")
    return tensor


def _fit(state: Mapping[str, Any], settings: Any) -> tuple[dict[str, Tensor], Settings, tuple[int, ...]]:
    """Weights as tensors, settings completed by the sizes that the weights imply, and feature widths.

    Raises ``CaseError`` where a size was given that is not the weights'.
    """
    weights = {name: torch.as_tensor(value) for name, value in state.items()}
    widths, sizes = released_sizes(weights)
    given = settings_fields(settings)
    resolved = settings_from({**sizes, **given} if not isinstance(settings, Settings) else settings)
    for name, size in sizes.items():
        if getattr(resolved, name) != size:
            raise CaseError(f"settings say {name} = {getattr(resolved, name)!r}, the weights have {size!r}")
    return weights, resolved, widths
