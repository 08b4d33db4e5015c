"""Gradients of active latents only: an SAE step at a fraction of the dense cost.

With k of M latents active, gradients of encoder and decoder rows are sums over the (token, latent) pairs
that were active. Sorting the pairs by latent turns each into one `embedding_bag` over the tokens: no
temporary of size tokens x k x d, and no dense M x d product for the backward pass.

Nothing here but `filled` waits for a GPU: all sizes are known without asking it.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from moe_probe.sae.architectures.bags import dot_bags, fast, sum_bags

#: Columns of a group in `top_k`, at the fewest: below, the detour does not pay.
_FEWEST = 4


def sum_rows(weights: Tensor, indices: Tensor, tokens: Tensor, rows: Tensor, *, n_latents: int) -> Tensor:
    """Sum, for every latent, ``weight * rows[token]`` over the pairs in which it is active.

    Parameters
    ----------
    weights, indices, tokens : Tensor, shape (n_pairs,)
        Weight, latent and token of every pair, in any order.
    rows : Tensor, shape (n_tokens, d)
    n_latents : int

    Returns
    -------
    Tensor, shape (n_latents, d)
    """
    latents, order = indices.sort()
    return sum_bags(tokens[order], weights[order], _starts(latents, n_latents), rows)


def _starts(ordered: Tensor, n: int) -> Tensor:
    """Find where each of the numbers 0 to n - 1 begins in a sorted list; `bincount` would wait for the GPU."""
    return torch.searchsorted(ordered, torch.arange(n, device=ordered.device))


def top_k(values: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Find the k largest values of every row, by the maxima of groups of columns where there are many columns.

    Every value among the k largest is in one of the k groups of largest maximum: had its group a smaller maximum than k
    others, k values would be larger. So one pass over the columns, and two searches in lists that are 8 to 45 times shorter,
    find what `torch.topk` finds in several passes; the values are the same, and so are the columns except among equals.

    Parameters
    ----------
    values : Tensor, shape (n, columns)
    k : int

    Returns
    -------
    tuple of Tensor
        Values and columns, each of shape (n, k), in no order.
    """
    n, columns = values.shape
    size = _group_size(columns, k)
    if size == 1:
        top = values.topk(k, dim=1, sorted=False)
        return top.values, top.indices
    groups = values.view(n, size, columns // size)  # group g has the columns g, g + columns / size, ...
    best = groups.amax(1).topk(k, dim=1, sorted=False).indices
    candidates = groups.gather(2, best[:, None, :].expand(n, size, k)).view(n, size * k)
    top = candidates.topk(k, dim=1, sorted=False)
    member = top.indices // k
    return top.values, member * (columns // size) + best.gather(1, top.indices - member * k)


def _group_size(columns: int, k: int) -> int:
    """Choose columns per group: the power of 2 that divides them and makes both searches about equally long; 1 for none."""
    size = 1
    while 4 * size * size * k <= columns and columns % (2 * size) == 0:
        size *= 2
    return size if size >= _FEWEST else 1


def filled(values: Tensor) -> Tensor:
    """Find the slots of a value other than 0, counted token by token; a GPU is waited for.

    Parameters
    ----------
    values : Tensor, shape (n, slots)

    Returns
    -------
    Tensor of int, shape (n_filled,)
    """
    return values.reshape(-1).nonzero()[:, 0]


def _pairs(values: Tensor, indices: Tensor, kept: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    """Weights, latents and tokens of the slots (n, k), or of those of them that are kept."""
    slots, flat = indices.shape[1], values.reshape(-1)
    if kept is None:
        return flat, indices.reshape(-1), torch.arange(flat.numel(), device=flat.device) // slots
    return flat[kept], indices.reshape(-1)[kept], kept // slots


class _Encode(torch.autograd.Function):
    """Pre-activations of chosen latents, with gradients to the chosen rows only (none to the input)."""

    @staticmethod
    def forward(  # noqa: PLR0913 - autograd takes tensors one by one
        ctx: Any, x: Tensor, weight: Tensor, _bias: Tensor, chosen: Tensor, indices: Tensor, kept: Tensor | None
    ) -> Tensor:
        ctx.save_for_backward(x, indices, kept)
        ctx.n_latents = weight.shape[0]
        return chosen

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[None, Tensor, Tensor, None, None, None]:
        x, indices, kept = ctx.saved_tensors
        weights, latents, tokens = _pairs(gradients[0], indices, kept)
        d_bias = torch.zeros(ctx.n_latents, dtype=weights.dtype, device=weights.device).index_add_(0, latents, weights)
        return None, sum_rows(weights, latents, tokens, x, n_latents=ctx.n_latents), d_bias, None, None, None


def encode_chosen(
    x: Tensor, parameters: tuple[Tensor, Tensor], chosen: Tensor, indices: Tensor, *, kept: Tensor | None = None
) -> Tensor:
    """Attach gradients of ``weight[indices] · x + bias[indices]`` to values that were computed without.

    Parameters
    ----------
    x : Tensor, shape (n_tokens, d)
    parameters : tuple of Tensor, shapes (n_latents, d) and (n_latents,)
        Weight and bias of the encoder.
    chosen : Tensor, shape (n_tokens, k)
        Pre-activations of the chosen latents.
    indices : Tensor of int, shape (n_tokens, k)
        The chosen latents.
    kept : Tensor of int, shape (n_kept,), optional
        Slots (counted token by token) that can have a gradient other than 0; all by default.

    Returns
    -------
    Tensor, shape (n_tokens, k)
        Equal to `chosen`.
    """
    weight, bias = parameters
    return _Encode.apply(x, weight, bias, chosen, indices, kept)  # type: ignore[no-any-return,no-untyped-call]


class _DecoderGradient(torch.autograd.Function):
    """Identity on decoded sums; its gradient to the decoder's rows is a sum over active pairs."""

    @staticmethod
    def forward(  # noqa: PLR0913 - autograd takes tensors one by one
        ctx: Any, decoded: Tensor, weight: Tensor, values: Tensor, indices: Tensor, tokens: Tensor
    ) -> Tensor:
        ctx.save_for_backward(values, indices, tokens)
        ctx.n_latents = weight.shape[0]
        return decoded.view_as(decoded)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, None, None, None]:
        values, indices, tokens = ctx.saved_tensors
        (grad,) = gradients
        return grad, sum_rows(values, indices, tokens, grad.contiguous(), n_latents=ctx.n_latents), None, None, None


class _DecodeFast(torch.autograd.Function):
    """Decoded sums by kernels, with their gradients to values and to the decoder's rows."""

    @staticmethod
    def forward(  # noqa: PLR0913 - autograd takes tensors one by one
        ctx: Any, values: Tensor, weight: Tensor, indices: Tensor, tokens: Tensor, starts: Tensor
    ) -> Tensor:
        ctx.save_for_backward(values, weight, indices, tokens, starts)
        return sum_bags(indices, values, starts, weight)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, None, None, None]:
        values, weight, indices, tokens, starts = ctx.saved_tensors
        grad = gradients[0].contiguous()
        d_weight = sum_rows(values, indices, tokens, grad, n_latents=len(weight))
        return dot_bags(indices, starts, weight, grad), d_weight, None, None, None


def decode(values: Tensor, indices: Tensor, weight: Tensor, *, kept: Tensor | None = None) -> Tensor:
    """Sum ``values * weight[indices]`` over the slots of every token.

    On a GPU by `bags`. Elsewhere the gradient to the values is torch's own: `embedding_bag` gathers no rows for it (0.9 ms,
    compared with 8.5 ms for a gather and a batched product at 2,048 x 16 of 4,096 x 256). Its gradient to the weight would
    be dense: ours is not.

    Parameters
    ----------
    values : Tensor of float, shape (n_tokens, k)
    indices : Tensor of int, shape (n_tokens, k)
        Latents.
    weight : Tensor, shape (n_latents, d)
        Rows of the decoder.
    kept : Tensor of int, shape (n_kept,), optional
        Slots (counted token by token, in increasing order) whose value can be other than 0; all by default. `filled`
        finds them.

    Returns
    -------
    Tensor, shape (n_tokens, d)
    """
    flat, latents, tokens = _pairs(values, indices, kept)
    if fast(weight):
        starts = _starts(tokens, len(values))
        return _DecodeFast.apply(flat, weight, latents, tokens, starts)  # type: ignore[no-any-return,no-untyped-call]
    decoded = functional.embedding_bag(
        latents, weight.detach(), _starts(tokens, len(values)), mode="sum", per_sample_weights=flat
    )
    return _DecoderGradient.apply(decoded, weight, flat.detach(), latents, tokens)  # type: ignore[no-any-return,no-untyped-call]
