"""Gradients over active latents only: an SAE step at a fraction of the dense cost.

With k of M latents active, gradients of encoder and decoder rows are sums over the (token, latent) pairs
that were active. Sorting the pairs by latent turns each into one `embedding_bag` over the tokens: no
temporary of size tokens x k x d, and no dense M x d product for the backward pass.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional


def by_latent(indices: Tensor, n_latents: int) -> tuple[Tensor, Tensor]:
    """Order of the flat (token, slot) pairs sorted by latent, and where each latent's run starts, (n_latents,)."""
    flat = indices.reshape(-1)
    order = flat.argsort()
    counts = torch.bincount(flat, minlength=n_latents)
    return order, counts.cumsum(0) - counts


def sum_rows(weights: Tensor, indices: Tensor, rows: Tensor, n_latents: int) -> Tensor:
    """Sum, for every latent, ``weights * rows[token]`` over the tokens where it is active.

    Parameters
    ----------
    weights, indices : Tensor, shape (n_tokens, k)
    rows : Tensor, shape (n_tokens, d)

    Returns
    -------
    Tensor, shape (n_latents, d)
    """
    order, starts = by_latent(indices, n_latents)
    token = order // indices.shape[1]
    return functional.embedding_bag(token, rows, starts, mode="sum", per_sample_weights=weights.reshape(-1)[order])


class _Encode(torch.autograd.Function):
    """Pre-activations of chosen latents, with gradients to the chosen rows only (none to the input)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, chosen: Tensor, indices: Tensor) -> Tensor:
        ctx.save_for_backward(x, indices)
        ctx.n_latents = weight.shape[0]
        return chosen

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[None, Tensor, Tensor, None, None]:
        x, indices = ctx.saved_tensors
        (grad,) = gradients
        d_bias = torch.zeros(ctx.n_latents, dtype=grad.dtype, device=grad.device)
        d_bias.index_add_(0, indices.reshape(-1), grad.reshape(-1))
        return None, sum_rows(grad, indices, x, ctx.n_latents), d_bias, None, None


def encode_chosen(x: Tensor, weight: Tensor, bias: Tensor, chosen: Tensor, indices: Tensor) -> Tensor:
    """Attach gradients of ``weight[indices] · x + bias[indices]`` to values that were computed without.

    Parameters
    ----------
    x : Tensor, shape (n_tokens, d)
    weight : Tensor, shape (n_latents, d)
    bias : Tensor, shape (n_latents,)
    chosen, indices : Tensor, shape (n_tokens, k)
        Pre-activations of the chosen latents, and which these are.
    """
    return _Encode.apply(x, weight, bias, chosen, indices)  # type: ignore[no-any-return,no-untyped-call]


class _Decode(torch.autograd.Function):
    """Sum of decoder rows weighted by activations; gradients over active latents."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, indices: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(values, indices, weight)
        return functional.embedding_bag(indices, weight, mode="sum", per_sample_weights=values)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, Tensor]:
        values, indices, weight = ctx.saved_tensors
        (grad,) = gradients
        step = max(1, 2**22 // (indices.shape[1] * weight.shape[1]))  # 16 MiB of gathered rows at a time
        d_values = torch.cat([torch.bmm(weight[indices[i:i + step]], grad[i:i + step, :, None])[..., 0]
                              for i in range(0, len(values), step)])
        return d_values, None, sum_rows(values, indices, grad.contiguous(), weight.shape[0])


def decode(values: Tensor, indices: Tensor, weight: Tensor) -> Tensor:
    """``sum over slots of values * weight[indices]``, shape (n_tokens, d)."""
    return _Decode.apply(values, indices, weight)  # type: ignore[no-any-return,no-untyped-call]
