"""One training step and the state it carries: weights, Adam moments, cluster labels."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from case.config import Settings
from case.engine.share import Share
from case.model import CASE
from case.objective import Losses, initial_cluster_labels, training_losses
from case.scratch import Scratch


def make_adam(groups: Sequence[tuple[Iterable[nn.Parameter], Settings]]) -> torch.optim.Adam:
    """Adam over parameters on one device, each group by its settings; one launch a group, and graphs can capture it."""
    made: list[dict[str, Any]] = [
        {"params": list(parameters), "lr": s.lr, "betas": s.betas, "weight_decay": s.weight_decay}
        for parameters, s in groups
    ]
    return torch.optim.Adam(made, fused=True, capturable=made[0]["params"][0].is_cuda)


class Learner:
    """The network with its optimizer and cluster labels.

    ``labels`` (K, 2) is R of the last step, which sets the next step's prior; ``inference_labels`` (K, 2) is what
    testing uses: the same, or its running mean where ``label_momentum`` asks for one.
    """

    def __init__(self, widths: Sequence[int], settings: Settings, device: torch.device | str = "cpu") -> None:
        self.settings = settings
        self.model = CASE(widths, settings).to(device)
        # Steps follow each other, and nothing of one is looked at in the next.
        self.scratch = Scratch() if torch.device(device).type == "cpu" else None
        self.optimizer = make_adam([(self.model.parameters(), settings)])
        self.labels = initial_cluster_labels(settings, torch.device(device))
        self.inference_labels = self.labels.clone()
        self.steps = 0

    def step(self, rows: Sequence[Tensor], index: Tensor, labels: Tensor, share: Share | None = None) -> Losses:
        """One update on B videos: rows (L, width) per modality, index (B, T) into them, labels (B, C).

        With ``share`` they are this process's part of a batch; losses, labels and the update are those of all of it.
        """
        losses = self.update(rows, index, labels, share)
        self.steps += 1
        return losses

    def update(self, rows: Sequence[Tensor], index: Tensor, labels: Tensor, share: Share | None = None) -> Losses:
        """``step`` without counting it: nothing but work for the device, so that a graph can capture it."""
        self.model.train()
        losses = self.losses(rows, index, labels, share)
        self.optimizer.zero_grad(set_to_none=True)
        losses.total.backward()
        if share is not None:
            losses = share.reduce(losses, self.model.parameters())
        self.optimizer.step()
        self.labels.copy_(losses.cluster_labels)
        keep = self.settings.label_momentum if self.steps > 0 else 0.0
        self.inference_labels.mul_(keep).add_(self.labels, alpha=1 - keep)
        return losses

    def losses(self, rows: Sequence[Tensor], index: Tensor, labels: Tensor, share: Share | None = None) -> Losses:
        """The objective at the present weights; this process's part of it with ``share``."""
        losses_of = training_losses if share is None else share.training_losses
        return losses_of(self.model(rows, self.scratch), index, labels, self.labels, self.settings)

    def state(self) -> dict[str, Any]:
        """Everything a bit-equal continuation needs, as tensors on the CPU under flat names, and the step count."""
        tensors = {f"model/{name}": value for name, value in self.model.state_dict().items()}
        for name, parameter in self.model.named_parameters():
            for key, value in self.optimizer.state.get(parameter, {}).items():
                tensors[f"adam/{key}/{name}"] = value
        tensors["labels"], tensors["inference_labels"] = self.labels, self.inference_labels
        kept = {k: v.detach().cpu().clone(memory_format=torch.contiguous_format) for k, v in tensors.items()}
        return {"steps": self.steps, "tensors": kept}

    def load(self, state: dict[str, Any]) -> None:
        """Restore what ``state`` gave. Raises ``RuntimeError``, as torch does, where weights do not fit."""
        tensors: dict[str, Tensor] = state["tensors"]
        weights = {k.removeprefix("model/"): v for k, v in tensors.items() if k.startswith("model/")}
        self.model.load_state_dict(weights)
        for name, parameter in self.model.named_parameters():
            suffix = "/" + name
            moments = {k.split("/")[1]: v for k, v in tensors.items() if k.startswith("adam/") and k.endswith(suffix)}
            self.optimizer.state[parameter] = {
                key: value.to(parameter.device, copy=True) for key, value in moments.items()
            }
        self.labels = tensors["labels"].to(self.labels.device, copy=True)
        self.inference_labels = tensors["inference_labels"].to(self.labels.device, copy=True)
        self.steps = int(state["steps"])
