"""Weighted sums of chosen rows, and their gradients to the weights (Triton; imported only where there are a GPU and Triton).

A bag is a run of pairs (row, weight). One program sums some columns of one bag, several rows at a time: so many loads are on
their way at once, and neither many small bags nor a few large ones leave the memory waiting. torch's `embedding_bag` reads one
row after the other, and took 3 to 4 times as long on an H200 at 64 of 32,768 and of 131,072 rows of 2,048 numbers.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

#: Rows of a bag that are read at once.
_ROWS = 8
#: Columns of a program: so many that each thread of 8 warps reads 16 bytes of a row.
_COLUMNS = 1024


@triton.jit  # type: ignore[untyped-decorator]
def _sum_bags(index, weights, starts, rows, out, n_bags, n_pairs, d, ROWS: tl.constexpr, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def] # noqa: N803, PLR0913 - a GPU kernel
    """Sum ``weight * row`` over one bag, for some columns."""
    bag = tl.program_id(0).to(tl.int64)
    columns = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = columns < d
    begin = tl.load(starts + bag)
    end = tl.load(starts + bag + 1, mask=bag + 1 < n_bags, other=n_pairs)
    total = tl.zeros((BLOCK,), dtype=tl.float32)
    for first in range(begin, end, ROWS):
        pair = first + tl.arange(0, ROWS)
        used = pair < end
        row = tl.load(index + pair, mask=used, other=0)
        weight = tl.load(weights + pair, mask=used, other=0.0)
        values = tl.load(rows + row[:, None] * d + columns[None, :], mask=used[:, None] & inside[None, :], other=0.0)
        total += tl.sum(values * weight[:, None], axis=0)
    tl.store(out + bag * d + columns, total, mask=inside)


@triton.jit  # type: ignore[untyped-decorator]
def _dot_bags(index, starts, rows, grads, out, n_bags, n_pairs, d, ROWS: tl.constexpr, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def] # noqa: N803, PLR0913 - a GPU kernel
    """Multiply each row of one bag with the bag's gradient."""
    bag = tl.program_id(0).to(tl.int64)
    begin = tl.load(starts + bag)
    end = tl.load(starts + bag + 1, mask=bag + 1 < n_bags, other=n_pairs)
    for first in range(begin, end, ROWS):
        pair = first + tl.arange(0, ROWS)
        used = pair < end
        row = tl.load(index + pair, mask=used, other=0)
        products = tl.zeros((ROWS, BLOCK), dtype=tl.float32)
        for left in range(0, d, BLOCK):
            columns = left + tl.arange(0, BLOCK)
            inside = columns < d
            grad = tl.load(grads + bag * d + columns, mask=inside, other=0.0)
            values = tl.load(rows + row[:, None] * d + columns[None, :], mask=used[:, None] & inside[None, :], other=0.0)
            products += values * grad[None, :]
        tl.store(out + pair, tl.sum(products, axis=1), mask=used)


def sum_bags(index: Tensor, weights: Tensor, starts: Tensor, rows: Tensor) -> Tensor:
    """Sum ``weight * rows[index]`` over the pairs of every bag.

    Parameters
    ----------
    index : Tensor of int64, shape (n_pairs,)
    weights : Tensor, shape (n_pairs,)
    starts : Tensor of int64, shape (n_bags,)
        Pair that each bag begins with.
    rows : Tensor of float32, shape (n_rows, d)
        Contiguous, as the others are.

    Returns
    -------
    Tensor, shape (n_bags, d)
    """
    n, d = len(starts), rows.shape[1]
    out = torch.empty(n, d, dtype=rows.dtype, device=rows.device)
    block = _block(d)
    _launch(_sum_bags, (n, -(-d // block)), index, weights, starts, rows, out, n, len(index), d, BLOCK=block)
    return out


def dot_bags(index: Tensor, starts: Tensor, rows: Tensor, grads: Tensor) -> Tensor:
    """Compute the gradient of `sum_bags` to its weights.

    Parameters
    ----------
    index, starts, rows
        As `sum_bags`.
    grads : Tensor of float32, shape (n_bags, d)
        Gradient of the sums.

    Returns
    -------
    Tensor, shape (n_pairs,)
    """
    n, d = grads.shape
    out = torch.empty(len(index), dtype=rows.dtype, device=rows.device)
    _launch(_dot_bags, (n,), index, starts, rows, grads, out, n, len(index), d, BLOCK=_block(d))
    return out


def _block(d: int) -> int:
    return min(_COLUMNS, 1 << (d - 1).bit_length())


def _launch(kernel: Any, grid: tuple[int, ...], *arguments: object, BLOCK: int) -> None:  # noqa: N803 - a kernel's constant
    matrix = next(one for one in arguments if isinstance(one, Tensor))
    # Triton launches on the current GPU, whatever its arguments are on
    with torch.cuda.device_of(matrix):  # type: ignore[no-untyped-call]
        kernel[grid](*arguments, ROWS=_ROWS, BLOCK=BLOCK, num_warps=8 if BLOCK >= _COLUMNS else 4)
