"""Registration with ``torch.library``: schema, fake kernel and autograd for each op, in one place.

In eager mode a public op calls its implementation directly: plain torch is differentiated by autograd as it
stands, kernels bring their own ``autograd.Function``. Under ``torch.compile`` the registered op
``torch.ops.case.<name>`` is called, an opaque node whose gradient is a second op, ``<name>_backward``, that runs the
implementation again from the saved inputs and differentiates it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from case.ops import _backend

_exclude, _Key = torch._C._SetExcludeDispatchKeyGuard, torch._C.DispatchKey
_is_batch, _is_old_batch = torch._C._functorch.is_batchedtensor, torch._C._functorch.is_legacy_batchedtensor
_library = torch.library.Library("case", "DEF")


def register(
    name: str,
    arguments: str,
    returns: str,
    reference: Callable[..., Any],
    fake: Callable[..., Any],
    *,
    differentiable: tuple[str, ...] = (),
) -> None:
    """Define ``case::name(arguments) -> returns``; ``differentiable`` names the Tensor arguments with a gradient.

    ``reference`` and ``fake`` take the arguments in schema order; the first is a Tensor and decides the device.
    """
    _backend.add(name, "reference", "any", reference)
    op = f"case::{name}"
    _library.define(f"{name}({arguments}) -> {returns}")

    def forward(*args: Any) -> Any:
        # The fake kernels promise contiguous results; plain torch lets strides follow those of the inputs.
        result = _backend.select(name, args[0].device)(*args)
        return result.contiguous() if isinstance(result, Tensor) else tuple(part.contiguous() for part in result)

    _library.impl(name, forward, "CompositeExplicitAutograd")
    torch.library.register_fake(op, fake, lib=_library)
    if differentiable:
        _register_gradient(name, arguments, differentiable)


def call(name: str, *args: Any) -> Any:
    """Run op ``name``: the registered op while compiling, its implementation under the current backend otherwise.

    Under ``torch.func`` and forward-mode differentiation, plain torch, whatever the backend: kernels read memory, in
    which neither batched dimensions nor tangents are."""
    if torch.compiler.is_compiling():
        return getattr(torch.ops.case, name)(*args)
    if forward_ad._current_level >= 0 or torch._C._functorch.maybe_current_level() is not None:
        return _backend.reference(name)(*args)
    return _backend.select(name, args[0].device)(*args)


def _register_gradient(name: str, arguments: str, differentiable: tuple[str, ...]) -> None:
    names = [part.split()[1].split("=")[0] for part in arguments.split(",")]
    positions = [names.index(wanted) for wanted in differentiable]
    _library.define(f"{name}_backward(Tensor[] grads, bool[] needed, {arguments}) -> Tensor[]")

    def backward(grads: list[Tensor], needed: list[bool], *args: Any) -> list[Tensor]:
        wanted = [p for p, n in zip(positions, needed, strict=True) if n]
        found = differentiate(_backend.select(name, args[0].device), args, wanted, grads)
        return [g.contiguous() for g in found]

    def backward_fake(grads: list[Tensor], needed: list[bool], *args: Any) -> list[Tensor]:
        wanted = [args[p] for p, n in zip(positions, needed, strict=True) if n]
        return [x.new_empty(x.shape) for x in wanted]

    _library.impl(f"{name}_backward", backward, "CompositeExplicitAutograd")
    torch.library.register_fake(f"case::{name}_backward", backward_fake, lib=_library)

    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        ctx.tensors = [i for i, x in enumerate(inputs) if isinstance(x, Tensor)]
        ctx.save_for_backward(*(inputs[i] for i in ctx.tensors))
        ctx.others = [None if isinstance(x, Tensor) else x for x in inputs]

    def autograd_backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        args = list(ctx.others)
        for i, x in zip(ctx.tensors, ctx.saved_tensors, strict=True):
            args[i] = x
        if torch.is_grad_enabled():
            wanted = [p in positions and needs for p, needs in enumerate(ctx.needs_input_grad)]
            floating = [g for g in grads if g is None or g.is_floating_point()]
            return gradients_with_graph(_backend.reference(name), args, wanted, *floating)
        needed = [ctx.needs_input_grad[p] for p in positions]
        result: list[Tensor | None] = [None] * len(args)
        if any(needed):
            op = getattr(torch.ops.case, f"{name}_backward")
            found = iter(op([g for g in grads if g is not None and g.is_floating_point()], needed, *args))
            for position, wanted in zip(positions, needed, strict=True):
                if wanted:
                    result[position] = next(found)
        return tuple(result)

    torch.library.register_autograd(f"case::{name}", autograd_backward, setup_context=setup_context, lib=_library)


def differentiate(
    function: Callable[..., Any], args: Sequence[Any], wanted: Sequence[int], grads: Sequence[Tensor | None]
) -> tuple[Tensor, ...]:
    """Run ``function`` again and return the gradients of the arguments at ``wanted``, 0 where nothing reaches them.

    grads: of its floating outputs, None for those that are not used.
    """
    inputs = list(args)
    with _recording():
        for position in wanted:
            inputs[position] = inputs[position].detach().requires_grad_()
        outputs = _floating(function(*inputs))
    return _gradients(outputs, [inputs[position] for position in wanted], grads)


def gradients_with_graph(
    reference: Callable[..., Any], inputs: Sequence[Any], needed: Sequence[bool], *grads: Tensor | None
) -> tuple[Tensor | None, ...]:
    """Gradients of ``reference(*inputs)`` that can be differentiated again, which ``create_graph`` asks for.

    Kernels serve everybody else: what they write has no graph, and second derivatives would silently be zero.
    grads: as of ``differentiate``.
    """
    again = torch.is_grad_enabled()
    with _recording():
        # Views of its own for each: one input may be made from another, whose gradient is for autograd to pass on.
        given = [x.view_as(x) if want else x for x, want in zip(inputs, needed, strict=True)]
        wanted = [x for x, want in zip(given, needed, strict=True) if want]
        found = iter(_gradients(_floating(reference(*given)), wanted, grads, create_graph=again))
    return tuple(next(found) if want else None for want in needed)


def kernels_cannot(*grads: Tensor | None) -> bool:
    """In a ``backward``: whether its gradients are to have a graph themselves, which grad mode says, or its cotangents
    are batches, as of ``torch.func.vmap`` or ``is_grads_batched``, which have no memory to read."""
    return torch.is_grad_enabled() or any(g is not None and (_is_batch(g) or _is_old_batch(g)) for g in grads)


@contextmanager
def _recording() -> Iterator[None]:
    """Autograd sees what is done: inside a compiled graph the dispatcher leaves it out, and gradients would be zero."""
    with _exclude(_Key.AutogradFunctionality, False), _exclude(_Key.ADInplaceOrView, False), torch.enable_grad():
        yield


def _gradients(
    outputs: list[Tensor], leaves: list[Tensor], grads: Sequence[Tensor | None], create_graph: bool = False
) -> tuple[Tensor, ...]:
    reached = [(o, g) for o, g in zip(outputs, grads, strict=True) if o.requires_grad and g is not None]
    given = [o for o, _ in reached], leaves, [g for _, g in reached]
    return torch.autograd.grad(*given, create_graph=create_graph, materialize_grads=True)


def _floating(outputs: Any) -> list[Tensor]:
    outputs = outputs if isinstance(outputs, tuple) else (outputs,)
    return [o for o in outputs if o.is_floating_point()]
