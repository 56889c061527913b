"""A batch as one share of itself: the composition of ops that processes compute together is the op of one process."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from case import ops
from case.engine.share import RankLost, Share, contact


@pytest.fixture
def group(tmp_path: Path) -> Iterator[dist.ProcessGroup]:
    """A process group of this process alone."""
    if not dist.is_gloo_available():
        pytest.skip("torch was built without gloo")
    dist.init_process_group("gloo", init_method=f"file://{tmp_path / 'meet'}", rank=0, world_size=1)
    assert dist.group.WORLD is not None
    yield dist.group.WORLD
    dist.destroy_process_group()


@pytest.mark.parametrize("backend", ["auto", "reference", "triton"])
@pytest.mark.parametrize("ranks", ["true", "argsort"])
@pytest.mark.parametrize("sigma", [0.3, 0.02])  # the prior itself would underflow at the latter
def test_the_only_share_is_the_op(group: dist.ProcessGroup, seed: int, backend: str, ranks: str, sigma: float) -> None:
    torch.manual_seed(seed)
    videos, segments, rows, k = 3, 20, 30, 5
    logits, embeddings = torch.randn(2, rows, k), torch.rand(2, rows, 8)
    index = torch.randint(rows, (videos * segments,))
    others = (torch.rand(rows), torch.rand(len(index)).round(), torch.rand(k, 2))
    numbers = {"sigma": sigma, "ranks": ranks, "ot_scale": 2.0, "cosine_scale": 10.0, "n_iters": 3}
    outcomes = []
    for losses in (ops.clustering_losses, Share(group, (videos,), segments).clustering_losses):
        given = [logits.clone().requires_grad_(), embeddings.clone().requires_grad_()]
        with ops.backend("reference" if losses is ops.clustering_losses else backend):
            found = losses(*given, *others, index=index, **numbers)
            gradients = torch.autograd.grad(found.scc + 2 * found.ccc, given)
        outcomes.append((*found, *gradients))
    torch.testing.assert_close(outcomes[1], outcomes[0], rtol=1e-5, atol=1e-5)


def test_what_torch_says_of_a_lost_process_becomes_one_line() -> None:
    said = "[/src/pair.cc:537] Read error [127.0.0.1]:1:\nConnection reset by peer. This is typically caused by a bug."
    with pytest.raises(RankLost, match=r"^Read error \[127\.0\.0\.1\]:1: Connection reset by peer$"), contact():
        raise RuntimeError(said)
    with pytest.raises(ValueError, match="not of a collective"), contact():
        raise ValueError("not of a collective")
