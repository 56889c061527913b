"""One process of ``test_sinkhorn_group``: sinkhorn on this rank's rows. Arguments: rank, world size, folder."""

from __future__ import annotations

import sys
from pathlib import Path

import torch
import torch.distributed as dist

from case import ops


def main(rank: int, world: int, folder: Path) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder / 'meet'}", rank=rank, world_size=world)
    group = dist.group.WORLD
    outcome = []
    for case in torch.load(folder / "cases.pt"):
        rows = slice(*(case["logits"].shape[-2] * i // world for i in (rank, rank + 1)))
        tensors = {name: x[..., rows, :].clone().requires_grad_() for name, x in case["tensors"].items()}
        logits = case["logits"][..., rows, :].clone().requires_grad_()
        marginals = {k: v[..., rows] if k == "row_marginal" else v for k, v in case["marginals"].items()}
        q = ops.sinkhorn(logits, **tensors, **marginals, **case["numbers"], group=group)
        gradients = torch.autograd.grad(q, [logits, *tensors.values()], case["cotangent"][..., rows, :])
        u, v = ops.sinkhorn_potentials(logits, **tensors, **marginals, **case["numbers"], group=group)
        outcome.append({"q": q.detach(), "gradients": list(gradients), "u": u.detach(), "v": v.detach()})
    torch.save(outcome, folder / f"rank{rank}.pt")
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]))
