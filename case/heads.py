"""The network's formulas (METHOD.md, Network) in torch, forward and backward.

``case.heads_native`` has ``forward`` and ``embedding_backward`` as passes in C++; these are their oracle.
Shapes have M modalities in front, and R behind M where R runs are stacked.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from typing import NamedTuple

import torch
from torch import Tensor
from torch.linalg import vector_norm

from case.ops import cosine_logits
from case.scratch import Scratch, empty

_EPS = 1e-12  # of the length of an embedding, as in ``cosine_logits``


class Wide(NamedTuple):
    """Of one modality: features, and the weights of both layers that read them."""

    rows: Tensor  # (L, width), in the dtype of its products
    cas_hidden: Tensor  # (H, width)
    base: Tensor  # (H, width)

    def weights(self) -> Tensor:
        """(2H, width), as one product reads them."""
        return torch.cat([self.cas_hidden, self.base], -2).to(self.rows.dtype)


class WideGradients(NamedTuple):
    """Of ``Wide``; that of the rows only if somebody wants it."""

    rows: Tensor | None
    cas_hidden: Tensor
    base: Tensor


class HeadWeights(NamedTuple):
    """Of all modalities, contiguous; also their gradients."""

    hidden_bias: Tensor  # (M, 2H): of the layer under the class logits, then of the embedding
    cas: Tensor  # (M, C, H)
    cas_bias: Tensor  # (M, C)
    directions: Tensor  # (M, K + 1, H): prototypes of length 1, then the attention's weights
    attention_bias: Tensor  # (M, 1)


class Kept(NamedTuple):
    """What forward leaves for backward."""

    hidden: Tensor  # (M, L, 2H), both hidden layers
    attention: Tensor  # (M, L)
    logits: Tensor  # (M, L, K)
    lengths: Tensor | None  # (M, L), of the embeddings; None: to be made again


class HeadCotangents(NamedTuple):
    """Without cluster logits or a use of the embedding of its own, as in the baseline, their terms are left out."""

    cas: Tensor
    embedding: Tensor | None
    attention: Tensor
    logits: Tensor | None


def forward(wide: Sequence[Wide], hidden: Tensor, weights: HeadWeights, scale: float) -> tuple[Tensor, Kept]:
    """Class logits (M, L, C), and the rest; hidden (M, L, 2H) is filled."""
    multiply(wide, weights.hidden_bias.to(hidden.dtype), hidden)
    hidden.relu_()
    width, dtype, of_rows = weights.cas.shape[-1], weights.cas.dtype, hidden.dtype
    cas_hidden, embedding = hidden[..., :width], hidden[..., width:].to(dtype)
    # In bfloat16 this product is as well: its inputs have lost their digits.
    cas = each(cas_hidden, weights.cas.to(of_rows).mT, weights.cas_bias.to(of_rows))
    units, direction = weights.directions[..., :-1, :], weights.directions[..., -1:, :]
    attention = each(embedding, direction.mT, weights.attention_bias).squeeze(-1).sigmoid_()
    logits = cosine_logits(embedding, units, scale=scale, unit_y=True)
    return cas.to(dtype), Kept(hidden, attention, logits, None)


def backward(
    wide: Sequence[Wide], of_rows: Sequence[bool], kept: Kept, weights: HeadWeights, scale: float,
    given: HeadCotangents, scratch: Scratch | None,
) -> tuple[HeadWeights, list[WideGradients]]:  # fmt: skip
    """Gradients of all weights, and of the rows of those modalities for which ``of_rows`` is true.

    Without ``given.logits`` the gradient of the directions is that of the attention's weights alone, (M, 1, H).
    """
    width, dtype, hidden = weights.cas.shape[-1], weights.cas.dtype, kept.hidden
    of_hidden = empty(scratch, "gradient", hidden.shape, hidden)
    directions, attention_bias = _of_embedding(kept, weights, scale, given, of_hidden[..., width:])
    of_cas = given.cas.to(hidden.dtype)
    each(of_cas, weights.cas.to(hidden.dtype), None, of_hidden[..., :width])
    _undo_relu(of_hidden, hidden)
    of_wide = []
    for x, wanted, found in zip(wide, of_rows, of_hidden, strict=True):
        both = product(found.mT, x.rows).to(dtype)
        of_wide.append(WideGradients(product(found, x.weights()) if wanted else None, *both.tensor_split(2, -2)))
    of_weights = HeadWeights(
        of_hidden.sum(-2, dtype=dtype), each(of_cas.mT, hidden[..., :width]).to(dtype), of_cas.sum(-2, dtype=dtype),
        directions, attention_bias,
    )  # fmt: skip
    return of_weights, of_wide


class EmbeddingGradients(NamedTuple):
    """Of the embedding's layer and what reads it, over M modalities."""

    bias: Tensor  # (M, H)
    directions: Tensor  # (M, K + 1, H), or (M, 1, H) as above
    attention_bias: Tensor  # (M, 1)


def backward_by_rows(
    wide: Sequence[Wide], of_rows: Sequence[bool], kept: Kept, weights: HeadWeights, scale: float,
    given: HeadCotangents, scratch: Scratch | None, embedding_backward: Callable[..., EmbeddingGradients],
) -> tuple[HeadWeights, list[WideGradients]]:  # fmt: skip
    """``backward`` where numbers of rows may depend on the data: under the class logits, only rows with a cotangent are
    looked at. The video loss reads the highest activations of each class, an eighth of the snippets, and by and large
    the same of all classes. Of finite numbers the gradients are the same, up to rounding.

    ``embedding_backward`` is the function below, or that of ``case.heads_native``.
    """
    width, dtype = weights.cas.shape[-1], weights.cas.dtype
    gradient = empty(scratch, "gradient", (*kept.hidden.shape[:-1], width), kept.hidden)
    embedding = embedding_backward(kept, weights, scale, given, gradient)
    classes, of_wide = [], []
    for m, (x, wanted) in enumerate(zip(wide, of_rows, strict=True)):
        rows = product(gradient[m], x.base.to(gradient.dtype)) if wanted else None
        found = _class_gradients(x, kept.hidden[m, ..., :width], weights.cas[m], given.cas[m], rows)
        classes.append(found)
        of_wide.append(WideGradients(rows, found.cas_hidden, product(gradient[m].mT, x.rows).to(dtype)))
    bias, cas, cas_bias = (torch.stack(y) for y in zip(*(x[1:] for x in classes), strict=True))
    hidden_bias = torch.cat([bias, embedding.bias], -1)
    return HeadWeights(hidden_bias, cas, cas_bias, embedding.directions, embedding.attention_bias), of_wide


def embedding_backward(
    kept: Kept, weights: HeadWeights, scale: float, given: HeadCotangents, gradient: Tensor
) -> EmbeddingGradients:
    """gradient (M, L, H) is filled with that of the embedding before its relu."""
    directions, attention_bias = _of_embedding(kept, weights, scale, given, gradient)
    _undo_relu(gradient, kept.hidden[..., weights.cas.shape[-1] :])
    return EmbeddingGradients(gradient.sum(-2, dtype=weights.cas.dtype), directions, attention_bias)


def _of_embedding(
    kept: Kept, weights: HeadWeights, scale: float, given: HeadCotangents, gradient: Tensor
) -> tuple[Tensor, Tensor]:
    """Gradients of the directions and of the attention's bias; ``gradient`` (M, L, H) becomes that of the embedding."""
    attention, dtype = kept.attention, weights.cas.dtype
    embedding = kept.hidden[..., weights.cas.shape[-1] :].to(dtype)
    # Attention and cluster logits are products of the embedding with H numbers each: their gradients are one.
    of_attention = (given.attention * attention * (1 - attention)).unsqueeze(-1)
    of_products, directions = of_attention, weights.directions
    if given.logits is None:
        directions = directions[..., -1:, :]
    else:
        lengths = vector_norm(embedding, dim=-1, keepdim=True).clamp_min_(_EPS)
        of_products = torch.cat([given.logits * (scale / lengths), of_attention], -1)
    found = gradient if gradient.dtype == dtype else torch.empty_like(embedding)
    each(of_products, directions, given.embedding, found)
    if given.logits is not None:
        along = (given.logits * kept.logits).sum(-1, keepdim=True)
        found.addcmul_(embedding, along.div_(lengths.square_()), value=-1)
    if found is not gradient:
        gradient.copy_(found)
    return each(of_products.mT, embedding), of_attention.sum(-2)


class _ClassGradients(NamedTuple):
    """Of one modality's layers under the class logits, or of each of R runs."""

    cas_hidden: Tensor  # (H, width)
    hidden_bias: Tensor  # (H,)
    cas: Tensor  # (C, H)
    cas_bias: Tensor  # (C,)


def _class_gradients(x: Wide, hidden: Tensor, cas: Tensor, given: Tensor, of_rows: Tensor | None) -> _ClassGradients:
    """hidden (L, H), cas (C, H), given (L, C). The rows' own gradient is added to ``of_rows``."""
    if given.dim() > 2:
        to = [None] * len(given) if of_rows is None else of_rows
        runs = [_class_gradients(Wide(*y), *rest) for *y, rest in zip(*x, zip(hidden, cas, given, to, strict=True))]
        return _ClassGradients(*(torch.stack(y) for y in zip(*runs, strict=True)))
    chosen = (given != 0).any(-1).nonzero().squeeze(-1)
    rows, hidden, given = (y.index_select(0, chosen) for y in (x.rows, hidden, given.to(hidden.dtype)))
    of_hidden = product(given, cas.to(hidden.dtype))
    _undo_relu(of_hidden, hidden)
    if of_rows is not None:
        of_rows.index_add_(0, chosen, product(of_hidden, x.cas_hidden.to(hidden.dtype)))
    wide, narrow = product(of_hidden.mT, rows).to(cas.dtype), product(given.mT, hidden).to(cas.dtype)
    return _ClassGradients(wide, of_hidden.sum(0, dtype=cas.dtype), narrow, given.sum(0, dtype=cas.dtype))


def _undo_relu(gradient: Tensor, hidden: Tensor) -> None:
    torch.ops.aten.threshold_backward.grad_input(gradient, hidden, 0, grad_input=gradient)


def multiply(wide: Sequence[Wide], bias: Tensor | None, hidden: Tensor) -> None:
    """The wide products, of each modality: hidden (M, L, 2H), with its bias (M, 2H) if there is one here."""
    for m, x in enumerate(wide):
        product(x.rows, x.weights().mT, None if bias is None else bias[m], hidden[m])


def product(x: Tensor, y: Tensor, plus: Tensor | None = None, out: Tensor | None = None) -> Tensor:
    """out = x @ y + plus of matrices, or of R at once; plus a matrix or a row."""
    if out is None:
        out = x.new_empty(*x.shape[:-1], y.shape[-1])
    if plus is not None and plus.dim() < x.dim():
        plus = plus.unsqueeze(-2)
    if x.dtype == torch.bfloat16 and x.is_cpu and not multiplies_bfloat16():
        out.copy_(product(x.float(), y.float(), None if plus is None else plus.float()))
    elif x.dim() == 2:
        torch.mm(x, y, out=out) if plus is None else torch.addmm(plus, x, y, out=out)
    elif x.is_cuda:
        torch.bmm(x, y, out=out) if plus is None else torch.baddbmm(plus, x, y, out=out)
    else:  # one by one: batches of matrices with gaps between their rows are copied first
        for r, mine in enumerate(out):
            product(x[r], y[r], None if plus is None else plus[r], mine)
    return out


@cache
def multiplies_bfloat16() -> bool:
    """Whether this CPU does so faster than float32, whose sums of the same numbers are no coarser.

    Measured: with AVX2 alone torch's loops take up to ten times as long; with Intel's AVX-512 instructions for pairs of
    numbers a product takes 1.6 times as long as float32's with both conversions (Xeon without tiles). Taken to be
    faster, as they are made for it: tiles, and the instructions of AMD and ARM.
    """
    if not hasattr(torch.cpu, "get_capabilities"):  # an older torch
        return torch.backends.cpu.get_cpu_capability() != "AVX2"
    found = torch.cpu.get_capabilities()
    pairs = found.get("avx512_bf16", False) and "Intel" not in found.get("cpu_name", "")
    return bool(found.get("amx_bf16", False) or pairs or found.get("bf16", False))


def each(x: Tensor, y: Tensor, plus: Tensor | None = None, out: Tensor | None = None) -> Tensor:
    """``product`` of each modality."""
    if out is None:
        out = x.new_empty(*x.shape[:-1], y.shape[-1])
    for m, mine in enumerate(out):
        product(x[m], y[m], None if plus is None else plus[m], mine)
    return out
