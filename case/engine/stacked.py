"""Training steps of R runs at once: weights of all runs stacked along a first dimension, one launch for R of them.

Rows, network, pooling, classification losses and Adam take all runs at once, which is for GPUs, where a step at the
method's size is many short launches. ``clustering_losses`` is called run by run: fused, it is 8 launches forward and 1
backward, 9 R in all, and reads the embeddings once in each direction. The same chain composed of ops with leading
dimensions (gathers, Sinkhorn, weights, prototypes, cosine, losses, means, and the gradients of all of them) takes an
estimated 70 to 80 whatever R is, and passes over the embeddings several times. So the loop has fewer launches up to
about eight runs, and less memory traffic for any number; none of it has been timed on a GPU.
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn

from case.config import Settings
from case.engine.learner import Learner, make_adam
from case.errors import CaseError
from case.model import CASE, Branch
from case.objective import Losses, attention_loss, clustering_of, video_loss

SWEEPABLE = (
    "lr", "weight_decay", "w_clu", "w_cls", "prior_sigma", "gce_q", "ot_scale", "ot_iters", "label_momentum",
)  # fmt: skip
"""Settings that the runs of a ``StackedLearner`` may differ in."""


class StackedLinear(nn.Module):
    """The weights (R, out, in) and biases (R, out) of R linear layers."""

    def __init__(self, layers: Sequence[nn.Linear]) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.stack([layer.weight.detach() for layer in layers]))
        self.bias = nn.Parameter(torch.stack([layer.bias.detach() for layer in layers]))


def stack_models(models: Sequence[CASE]) -> CASE:
    """One network of R networks: every parameter has R as its first dimension, under the same name.

    It takes rows (R, L, width) and gives ``Heads`` (M, R, L, ...).
    """
    stacked = copy.deepcopy(models[0])
    for name, module in models[0].named_modules():
        if isinstance(module, nn.Linear):
            layers: list[nn.Linear] = [model.get_submodule(name) for model in models]  # type: ignore[misc]
            stacked.set_submodule(name, StackedLinear(layers))
        elif isinstance(module, Branch):
            prototypes = [model.get_parameter(f"{name}.prototypes").detach() for model in models]
            branch = stacked.get_submodule(name)
            branch.prototypes = nn.Parameter(torch.stack(prototypes))
    return stacked


class StackedLearner:
    """``Learner`` of R runs at once.

    The runs' own learners stay what they are: their weights, moments and cluster labels become views of the stacked
    ones, so that each can be evaluated and saved at any time, and nothing is copied back.

    Raises ``CaseError`` unless the runs are at one step and differ only in ``SWEEPABLE`` settings.
    """

    def __init__(self, learners: Sequence[Learner]) -> None:
        self.learners = list(learners)
        self._check()
        self.model = stack_models([learner.model for learner in learners])
        self.scratch = self.learners[0].scratch
        for r, learner in enumerate(self.learners):
            for name, parameter in learner.model.named_parameters():
                parameter.data = self.model.get_parameter(name).detach()[r]
        groups = list(self._optimizer_groups())
        # Neighbours with equal settings are stepped as one: one fused launch for all runs, unless these are swept.
        self.optimizer = make_adam([(views.values(), self.learners[runs.start].settings) for runs, views in groups])
        self._groups = groups
        if self.learners[0].steps > 0:
            self._adopt_moments()
        self.labels = torch.stack([learner.labels for learner in learners])
        self.inference_labels = torch.stack([learner.inference_labels for learner in learners])
        for learner, now, kept in zip(self.learners, self.labels, self.inference_labels, strict=True):
            learner.labels, learner.inference_labels = now, kept
        self._w_clu, self._w_cls, momentum = (
            torch.tensor([getattr(learner.settings, name) for learner in learners], device=self.labels.device)
            for name in ("w_clu", "w_cls", "label_momentum")
        )
        self._momentum = momentum[:, None, None]

    @property
    def settings(self) -> Settings:
        """The first run's; all runs share what is not ``SWEEPABLE``."""
        return self.learners[0].settings

    @property
    def steps(self) -> int:
        return self.learners[0].steps

    @steps.setter
    def steps(self, made: int) -> None:
        for learner in self.learners:
            learner.steps = made

    def step(self, rows: Sequence[Tensor], index: Tensor, labels: Tensor) -> Losses:
        """One update of every run: rows (R, L, width) per modality, index (R, B, T) into L, labels (R, B, C).

        Rows that no index names take no part. Returns losses (R,) and cluster labels (R, K, 2).
        """
        losses = self.update(rows, index, labels)
        self.steps += 1
        return losses

    def update(self, rows: Sequence[Tensor], index: Tensor, labels: Tensor) -> Losses:
        """``step`` without counting it: nothing but work for the device, so that a graph can capture it."""
        self.model.train()
        losses = self._losses(rows, index, labels)
        self.model.zero_grad(set_to_none=True)
        losses.total.sum().backward()
        for runs, views in self._groups:
            for name, view in views.items():
                grad = self.model.get_parameter(name).grad
                view.grad = None if grad is None else grad[runs]
        self.optimizer.step()
        if self.steps == 0:
            self._share_moments()
        keep = self._momentum if self.steps > 0 else torch.zeros_like(self._momentum)
        self.labels.copy_(losses.cluster_labels)
        self.inference_labels.mul_(keep).add_(self.labels * (1 - keep))
        return Losses(*(part.detach() for part in losses))

    def _losses(self, rows: Sequence[Tensor], index: Tensor, labels: Tensor) -> Losses:
        heads = self.model(rows, self.scratch)
        settings = [learner.settings for learner in self.learners]
        count, length = heads.attention.shape[1:]
        places = index + length * torch.arange(count, device=index.device)[:, None, None]
        cas, of_rows = heads.cas.flatten(1, 2), heads.attention.flatten(1, 2)
        batch = index.shape[1]
        video, foreground = video_loss(cas, of_rows, places, labels, settings[0], batch)
        attention = of_rows[:, places]
        if len({s.gce_q for s in settings}) == 1:
            attending = attention_loss(attention, foreground, settings[0].gce_q, batch)
        else:
            own = zip(attention.unbind(1), foreground, settings)
            attending = torch.stack([attention_loss(a, g, s.gce_q, batch) for a, g, s in own])
        total = video + attending
        if not settings[0].clustering:
            zero = torch.zeros_like(video)
            return Losses(total, video, attending, zero, zero, self.labels)
        # unbind, not slices: its gradient writes each run's part once, not a whole of zeros for every run.
        parts = zip(
            heads.cluster_logits.unbind(1), heads.embedding.unbind(1), heads.attention.detach().unbind(1), index,
            foreground, self.labels, settings,
        )  # fmt: skip
        scc, ccc, new_labels = (torch.stack(column) for column in zip(*(clustering_of(*part) for part in parts)))
        return Losses(total + self._w_clu * scc + self._w_cls * ccc, video, attending, scc, ccc, new_labels)

    def _check(self) -> None:
        first = self.learners[0]
        for learner in self.learners:
            if learner.steps != first.steps:
                raise CaseError(
                    f"runs at steps {first.steps} and {learner.steps} cannot be trained at once; resume them apart"
                )
            for name, value in vars(learner.settings).items():
                if name not in SWEEPABLE and value != getattr(first.settings, name):
                    raise CaseError(f"runs that differ in {name} cannot be trained at once; run them apart")

    def _optimizer_groups(self) -> Iterator[tuple[slice, dict[str, nn.Parameter]]]:
        """Neighbouring runs with the same settings of Adam, and their weights as views of the stacked ones."""
        start = 0
        for _, runs in itertools.groupby(self.learners, lambda one: (one.settings.lr, one.settings.weight_decay)):
            chosen = slice(start, start + len(list(runs)))
            yield (
                chosen,
                {name: nn.Parameter(value.detach()[chosen]) for name, value in self.model.named_parameters()},
            )
            start = chosen.stop

    def _adopt_moments(self) -> None:
        """Moments of runs that go on, stacked."""
        for runs, views in self._groups:
            for name, view in views.items():
                states = [one.optimizer.state.get(one.model.get_parameter(name), {}) for one in self.learners[runs]]
                if states[0]:
                    stacked = {key: torch.stack([s[key] for s in states]) for key in ("exp_avg", "exp_avg_sq")}
                    self.optimizer.state[view] = {"step": states[0]["step"].clone(), **stacked}
        self._share_moments()

    def _share_moments(self) -> None:
        """The learners' moments as views of the stacked ones; Adam makes these in its first step."""
        for runs, views in self._groups:
            for name, view in views.items():
                state = self.optimizer.state.get(view)
                if not state:  # never had a gradient
                    continue
                for i, learner in enumerate(self.learners[runs]):
                    own = {key: state[key][i] for key in ("exp_avg", "exp_avg_sq")}
                    learner.optimizer.state[learner.model.get_parameter(name)] = {"step": state["step"], **own}
