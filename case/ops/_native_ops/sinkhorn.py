"""``sinkhorn`` and ``sinkhorn_potentials`` by ``csrc/sinkhorn*.cpp``, gradients included.

The gradient is made from the column potentials of the iterations that ran, which forward keeps: n_iters * K numbers
a problem.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from case.ops._native_ops import _common
from case.ops._native_ops._common import DTYPES, address
from case.ops._native_ops.ranks import rank_positions
from case.ops._registration import gradients_with_graph, kernels_cannot
from case.ops.reference import sinkhorn as reference
from case.ops.reference._numerics import accumulation_dtype

# The registered ops' arguments with a gradient, by position: logits, prior, rank_centers and the two marginals.
_DIFFERENTIABLE = (0, 1, 3, 6, 7)
# Largest |log| of a product of matrix entry and potential that the linear domain is trusted with; tests change it.
LINEAR_RANGE = {torch.float32: 75.0, torch.float64: 600.0}


def sinkhorn(*args: Any) -> Tensor:
    (q,) = _run(False, args)
    return q


def sinkhorn_potentials(*args: Any) -> tuple[Tensor, Tensor]:
    u, v = _run(True, args)
    return u, v


def _run(potentials: bool, args: tuple[Any, ...]) -> tuple[Tensor, ...]:
    if torch.is_grad_enabled() and any(args[i] is not None and args[i].requires_grad for i in _DIFFERENTIABLE):
        return _Sinkhorn.apply(potentials, *args)
    return _Problem(args).solve(potentials)[0]


class _Problem:
    """The registered ops' arguments as ``case._C`` takes them; keeps alive what it points to."""

    def __init__(self, args: tuple[Any, ...], positions: Tensor | None = None) -> None:
        (logits, prior, scores, centers, sigma, ranks, row_marginal, col_marginal, mask, scale, n_iters, tol) = args
        self.n_iters = n_iters
        self.result_dtype, self.dtype = logits.dtype, accumulation_dtype(logits)
        self.lead, (self.n, self.k) = logits.shape[:-2], logits.shape[-2:]
        self.batch = self.lead.numel()
        self.logits, self.prior = self._matrix(logits), self._matrix(prior)
        self.centers = self._vector(centers, self.k)
        self.row_marginal = self._vector(row_marginal, self.n)
        self.col_marginal = self._vector(col_marginal, self.k)
        self.mask = self._mask(mask)
        self.positions = self._positions(scores, ranks) if positions is None else positions
        settings = (scale, n_iters, -1.0 if tol is None else tol, LINEAR_RANGE[self.dtype])
        self.description = (
            DTYPES[self.dtype],
            (self.batch, self.n, self.k),
            _place(self.logits, 2),
            _place(self.prior, 2),
            _place(self.mask, 3),
            (address(self.positions), address(self.centers), sigma),
            (address(self.row_marginal), address(self.col_marginal)),
            settings,
        )

    def solve(self, potentials: bool, history: _History | None = None) -> tuple[tuple[Tensor, ...], bool]:
        """(Q,) or (u, v), and whether ``history`` does for the gradient."""
        shapes = [(self.n,), (self.k,)] if potentials else [(self.n, self.k)]
        outputs = tuple(self._empty(*shape) for shape in shapes)
        addresses = tuple(x.data_ptr() for x in outputs)
        regular = _common.module().sinkhorn_cpu(
            self.description,
            *((0, *addresses) if potentials else (*addresses, 0, 0)),
            (0, 0, 0, 0) if history is None else history.addresses(),
            torch.get_num_threads(),
        )
        return outputs if potentials else (outputs[0].to(self.result_dtype),), regular

    def gradients(self, history: _History, grads: tuple[Tensor | None, ...], needed: list[bool]) -> list[Tensor | None]:
        """Of the arguments at ``_DIFFERENTIABLE``; grads: of q, u and v."""
        given = [None if g is None else g.to(self.dtype).contiguous() for g in grads]
        shapes = [(self.n, self.k), (self.n, self.k), (self.k,), (self.n,), (self.k,)]
        wanted = [True, *needed[1:]]  # that of the logits is what the others are made from
        results = [self._empty(*shape) if want else None for shape, want in zip(shapes, wanted)]
        _common.module().sinkhorn_backward_cpu(
            self.description,
            history.addresses(),
            tuple(address(g) for g in given),
            tuple(address(r) for r in results),
            torch.get_num_threads(),
        )
        return results

    def _empty(self, *shape: int) -> Tensor:
        return self.logits.new_empty((*self.lead, *shape))

    def _matrix(self, x: Tensor | None) -> Any:
        """(batch, N, K) with contiguous columns; a copy only where strides cannot say it."""
        if x is None:
            return None
        x = x.detach().to(self.dtype).reshape(self.batch, self.n, self.k)
        return x if x.stride(2) == 1 or self.k == 1 else x.contiguous()

    def _vector(self, x: Tensor | None, length: int) -> Tensor | None:
        return None if x is None else x.detach().to(self.dtype).reshape(self.batch, length).contiguous()

    def _mask(self, mask: Tensor | None) -> Tensor | None:
        if mask is None:
            return None
        mask = mask.reshape(self.batch, self.n, self.k)
        return mask if mask.stride(2) in (0, 1) else mask.contiguous()

    def _positions(self, scores: Tensor | None, ranks: str) -> Tensor | None:
        scores = self._vector(scores, self.n)
        if scores is None:
            return None
        valid = None
        if self.mask is not None:
            valid = (self.mask[..., 0] if self.mask.stride(2) == 0 else self.mask.any(-1)).contiguous()
        return rank_positions(scores, valid, ranks)


class _History:
    """What the gradient needs of the iterations: see SinkhornHistory in ``csrc/sinkhorn.h``."""

    def __init__(self, tensors: tuple[Tensor, ...]) -> None:
        self.tensors = tensors

    @classmethod
    def of(cls, problem: _Problem) -> _History:
        shapes = [(problem.batch, problem.n_iters, problem.k)] * 2 + [(problem.batch,)] * 2
        return cls(tuple(torch.empty(shape, dtype=torch.float64) for shape in shapes))

    def addresses(self) -> tuple[int, ...]:
        return tuple(x.data_ptr() for x in self.tensors)


class _Sinkhorn(torch.autograd.Function):
    @staticmethod
    def forward(ctx, potentials: bool, *args: Any) -> tuple[Tensor, ...]:  # type: ignore[no-untyped-def]
        problem = _Problem(args)
        history = _History.of(problem)
        outputs, ctx.regular = problem.solve(potentials, history)
        tensors = [i for i, x in enumerate(args) if isinstance(x, Tensor)]
        ctx.save_for_backward(*history.tensors, problem.positions, *(args[i] for i in tensors))
        ctx.tensors = tensors
        ctx.others = [None if isinstance(x, Tensor) else x for x in args]
        ctx.potentials = potentials
        ctx.set_materialize_grads(False)
        return outputs

    @staticmethod
    def backward(ctx, *grads: Tensor | None) -> tuple[Tensor | None, ...]:  # type: ignore[no-untyped-def]
        *history, positions = ctx.saved_tensors[:5]
        args = list(ctx.others)
        for i, x in zip(ctx.tensors, ctx.saved_tensors[5:]):
            args[i] = x
        # Irregular: a column's mass is so far below the others' that the history cannot hold it.
        if kernels_cannot(*grads) or not ctx.regular:
            function = reference.sinkhorn_potentials if ctx.potentials else reference.sinkhorn
            return None, *gradients_with_graph(function, args, ctx.needs_input_grad[1:], *grads)
        needed = [ctx.needs_input_grad[1 + i] for i in _DIFFERENTIABLE]
        of_each = (None, *grads) if ctx.potentials else (*grads, None, None)
        found = _Problem(tuple(args), positions).gradients(_History(tuple(history)), of_each, needed)
        result: list[Tensor | None] = [None] * (1 + len(args))
        for i, want, gradient in zip(_DIFFERENTIABLE, needed, found):
            if want and gradient is not None:
                result[1 + i] = gradient.to(args[i].dtype)
        return tuple(result)


def _place(x: Tensor | None, strides: int) -> tuple[int, ...]:
    return (0,) * (1 + strides) if x is None else (x.data_ptr(), *x.stride()[:strides])
