"""MIL pooling of one batch: top T // 8 of 750 snippets for each of 20 classes."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from case import ops

B, T, C = 16, 750, 20
TOP = T // 8


def by_sorting(selector: Tensor, values: Tensor) -> Tensor:
    """As WTAL code has it: a full sort, then a gather of the first rows."""
    _, order = selector.sort(descending=True, dim=1)
    return values.gather(1, order[:, :TOP]).mean(1)


@pytest.mark.bench("topk_pool", backward=True, peers=("eager torch",))
def test_topk_pool(measure: Callable[..., None]) -> None:
    torch.manual_seed(0)
    selector = torch.linspace(0, 1, B * T * C)[torch.randperm(B * T * C)].view(B, T, C)
    inputs = {"selector": selector, "values": torch.randn(B, T, C)}
    measure(
        lambda selector, values: ops.topk_pool(selector, values, TOP),
        inputs,
        leaves=("values",),
        peers={"eager torch": by_sorting},
        moved=4 * B * C * (T + TOP + 1),
        b=B,
        t=T,
        classes=C,
        k=TOP,
    )
