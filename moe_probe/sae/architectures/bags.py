"""Weighted sums of chosen rows: by kernels of our own on a GPU once they have agreed with torch there, else by torch."""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor
from torch.nn import functional

from moe_probe.sae.architectures.trial import agrees

#: Largest difference from torch of a sum of 40 products of standard normal numbers.
_TOLERATED = 1e-4


def sum_bags(index: Tensor, weights: Tensor, starts: Tensor, rows: Tensor) -> Tensor:
    """Sum ``weight * rows[index]`` over the pairs of every bag; gradients to the weights only with torch's own sum.

    Parameters
    ----------
    index : Tensor of int, shape (n_pairs,)
        Rows, bag after bag.
    weights : Tensor, shape (n_pairs,)
    starts : Tensor of int, shape (n_bags,)
        Pair that each bag begins with; it ends where the next begins.
    rows : Tensor, shape (n_rows, d)

    Returns
    -------
    Tensor, shape (n_bags, d)
    """
    if fast(rows):
        from moe_probe.sae.architectures import bag_kernels

        return bag_kernels.sum_bags(index.contiguous(), weights.contiguous(), starts, rows)
    return functional.embedding_bag(index, rows, starts, mode="sum", per_sample_weights=weights)


def dot_bags(index: Tensor, starts: Tensor, rows: Tensor, grads: Tensor) -> Tensor:
    """Compute the gradient of `sum_bags` to its weights, where `fast` holds.

    Parameters
    ----------
    index, starts, rows
        As `sum_bags`.
    grads : Tensor, shape (n_bags, d)
        Gradient of the sums.

    Returns
    -------
    Tensor, shape (n_pairs,)
    """
    from moe_probe.sae.architectures import bag_kernels

    return bag_kernels.dot_bags(index.contiguous(), starts, rows, grads.contiguous())


def fast(rows: Tensor) -> bool:
    """Whether the kernels sum such rows."""
    return rows.is_cuda and rows.dtype == torch.float32 and rows.is_contiguous() and kernels_agree(rows.device)


@cache
def kernels_agree(device: torch.device) -> bool:
    """Try the kernels on a device, once.

    Parameters
    ----------
    device : torch.device

    Returns
    -------
    bool
    """
    return agrees(_largest_difference, device, what="the fused sum of rows", tolerated=_TOLERATED)


def _largest_difference(device: torch.device) -> float:
    """Sum and differentiate by both: bags of 0 to 40 rows, and columns that do not fill a program."""
    from moe_probe.sae.architectures import bag_kernels

    worst = 0.0
    generator = torch.Generator().manual_seed(0)
    for d in (40, 1500):
        rows, grads = (torch.randn(n, d, generator=generator).to(device) for n in (60, 24))
        sizes = torch.randint(0, 41, (24,), generator=generator)
        sizes[::5] = 0
        starts = (sizes.cumsum(0) - sizes).to(device)
        n = int(sizes.sum())
        index, weights = torch.randint(0, 60, (n,), generator=generator).to(device), torch.randn(n, generator=generator)
        weights = weights.to(device).requires_grad_()
        plain = functional.embedding_bag(index, rows, starts, mode="sum", per_sample_weights=weights)
        (slope,) = torch.autograd.grad(plain, weights, grads)
        summed = bag_kernels.sum_bags(index, weights.detach(), starts, rows)
        dotted = bag_kernels.dot_bags(index, starts, rows, grads)
        # a dot product sums d terms, a bag 40 at most
        worst = max(
            worst, float((summed - plain.detach()).abs().max()), float((dotted - slope).abs().max()) * (40 / d) ** 0.5
        )
    return worst
