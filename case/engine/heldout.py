"""Held-out training videos: which ones, as a split of their own, and against which annotations they are scored.

Selecting a checkpoint on the test set says too much of it. Selecting on training videos that were never trained on says
nothing of the test set, at the price of their annotated times, which training itself does not use.
"""

from __future__ import annotations

from dataclasses import replace

import torch

from case.data import GroundTruth
from case.engine.sampling import random_bits, random_key
from case.engine.store import ResidentSplit
from case.errors import CaseError

# The stream of random numbers of a seed that orders videos here; case.engine.sampling has 0 and 1.
_HELD_OUT = 2


def hold_out(split: ResidentSplit, fraction: float, seed: int) -> tuple[ResidentSplit, ResidentSplit | None]:
    """``split`` as (what is trained on, what is held out), the latter round(fraction * V) videos, one at least.

    A fraction of 0 holds nothing out and gives (``split``, None).

    Videos are taken in an order that the seed decides. Those that are all that is left of one of their classes are
    passed over, and taken in the same order only if there are not enough others. Both parts keep the split's order.

    Raises ``CaseError`` where nothing would be left to train on.
    """
    if fraction == 0:
        return split, None
    labels = split.labels.cpu() > 0
    count = len(labels)
    wanted = max(1, round(fraction * count))
    if wanted >= count:
        raise CaseError(
            f"val_fraction {fraction:g} of {count} training videos leaves none to train on; "
            "lower it, or use more videos"
        )
    order = random_bits(random_key(seed, _HELD_OUT), torch.arange(count)).argsort(stable=True).tolist()
    left = labels.sum(0)
    taken: list[int] = []
    for v in order:
        if len(taken) < wanted and bool((left[labels[v]] > 1).all()):
            taken.append(v)
            left = left - labels[v].long()
    passed_over = [v for v in order if v not in taken]
    taken += passed_over[: wanted - len(taken)]
    held = torch.zeros(count, dtype=torch.bool)
    held[taken] = True
    kept, out = (split.part(chosen.nonzero().squeeze(1)) for chosen in (~held, held))
    return kept, out


def heldout_truth(truth: GroundTruth, videos: tuple[str, ...], subset: str) -> GroundTruth:
    """The annotations of ``videos`` alone, classes numbered as before.

    Raises ``CaseError`` where none of them has an annotated instance in ``subset``.
    """
    known = {v: truth.videos[v] for v in videos if v in truth.videos}
    if not any(t.subset == subset and len(t.labels) for t in known.values()):
        raise CaseError(
            f"none of the {len(videos)} held-out videos has an annotated instance in subset '{subset}'; correct "
            "gt.json or train_subset, or leave --val-fraction out"
        )
    return replace(truth, videos=known)
