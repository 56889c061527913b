"""MIL pooling of one batch: top T // 8 of 750 snippets for each of 20 classes."""

from __future__ import annotations

import torch
from torch import Tensor

from benchmarks.work import Work, bench
from case import ops

B, T, C = 16, 750, 20
LARGE = "a hundred times as many videos are no batch: the rows of each are its own, as at ten times"


@bench("topk_pool", peers=("eager torch", "torch.topk"), scales=(1, 10, 100), backward=True)
def test_topk_pool(scale: int) -> Work:
    b, top = scale * B, T // 8
    torch.manual_seed(0)
    # Distinct within a column: equal values may be told apart in any way.
    selector = torch.rand(b, T, C).argsort(1).float()

    def by_sorting(selector: Tensor, values: Tensor) -> Tensor:
        """As WTAL code has it: a full sort, then a gather of the first rows."""
        _, order = selector.sort(descending=True, dim=1)
        return values.gather(1, order[:, :top]).mean(1)

    def by_topk(selector: Tensor, values: Tensor) -> Tensor:
        return values.gather(1, selector.topk(top, dim=1, sorted=False).indices).mean(1)

    return Work(
        lambda selector, values: ops.topk_pool(selector, values, top),
        {"selector": selector, "values": torch.randn(b, T, C)},
        moved=4 * b * C * (T + top + 1),
        sizes={"b": b, "t": T, "classes": C, "k": top},
        leaves=("values",),
        peers={"eager torch": by_sorting, "torch.topk": by_topk},
    )


@bench("topk_pool", peers=("torch.topk",), scales=(1, 10), backward=True, left_out=LARGE)
def test_topk_pool_of_rows(scale: int) -> Work:
    """Of two modalities at the distinct rows behind the samples, some 38 % of them, as in training."""
    b, top, of_each = scale * B, T // 8, 285
    torch.manual_seed(0)
    index = torch.randint(of_each, (b, T)).sort(1).values + of_each * torch.arange(b).unsqueeze(1)

    def by_topk(selector: Tensor, values: Tensor, index: Tensor) -> Tensor:
        """Written out first."""
        picked = selector.topk(top, dim=1, sorted=False).indices
        return values[:, index].gather(2, picked.expand(2, -1, -1, -1)).mean(2)

    return Work(
        lambda selector, values, index: ops.topk_pool(selector, values, top, index=index),
        {
            "selector": torch.rand(b, T, C).argsort(1).float(),
            "values": torch.randn(2, b * of_each, C),
            "index": index,
        },
        moved=4 * C * (b * T + 2 * b * of_each + 2 * b) + index.nbytes,
        sizes={"modalities": 2, "b": b, "t": T, "rows": b * of_each, "classes": C, "k": top},
        leaves=("values",),
        peers={"torch.topk": by_topk},
    )
