"""The update of an SAE's two matrices in two passes (Triton; imported only where there are a GPU and Triton).

Plain torch reads or writes such a matrix 30 times per step to remove the parallel gradient, measure the norm of all
gradients, scale them, apply Adam and restore unit norm; these two kernels, 17 times. One program has one latent's row in
registers.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor


@triton.jit  # type: ignore[untyped-decorator]
def _measure_rows(g_enc, g_dec, w_dec, along, squares, d, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def] # noqa: N803, PLR0913 - a GPU kernel
    """Compute, per latent, the decoder gradient along its row, and the squared norm of what a step uses of both gradients."""
    row = tl.program_id(0).to(tl.int64)
    columns = tl.arange(0, BLOCK)
    inside = columns < d
    at = row * d + columns
    grad = tl.load(g_dec + at, mask=inside, other=0.0)
    weight = tl.load(w_dec + at, mask=inside, other=0.0)
    parallel = tl.sum(grad * weight, axis=0)
    grad -= parallel * weight
    other = tl.load(g_enc + at, mask=inside, other=0.0)
    tl.store(along + row, parallel)
    tl.store(squares + row, tl.sum(grad * grad + other * other, axis=0))


@triton.jit  # type: ignore[untyped-decorator]
def _update_rows(  # type: ignore[no-untyped-def] # noqa: PLR0913 - a GPU kernel
    weights,
    grads,
    firsts,
    seconds,
    along,
    shrink,
    rate,
    root,
    beta1,
    beta2,
    eps,
    d,
    UNIT: tl.constexpr,  # noqa: N803
    BLOCK: tl.constexpr,  # noqa: N803
):
    """Apply Adam to the rows of one matrix; UNIT: without the gradient along the row, and back to unit norm."""
    row = tl.program_id(0).to(tl.int64)
    columns = tl.arange(0, BLOCK)
    inside = columns < d
    at = row * d + columns
    weight = tl.load(weights + at, mask=inside, other=0.0)
    grad = tl.load(grads + at, mask=inside, other=0.0)
    if UNIT:
        grad -= tl.load(along + row) * weight
    grad *= tl.load(shrink)
    first = beta1 * tl.load(firsts + at, mask=inside, other=0.0) + (1.0 - beta1) * grad
    second = beta2 * tl.load(seconds + at, mask=inside, other=0.0) + (1.0 - beta2) * grad * grad
    weight -= rate * first / (tl.sqrt(second) / root + eps)
    if UNIT:
        weight /= tl.maximum(tl.sqrt(tl.sum(weight * weight, axis=0)), 1e-8)
    tl.store(weights + at, weight, mask=inside)
    tl.store(firsts + at, first, mask=inside)
    tl.store(seconds + at, second, mask=inside)


class Matrix(NamedTuple):
    """One matrix with its gradient and moments, each of shape (d_sae, d_in), contiguous."""

    weights: Tensor
    grads: Tensor
    firsts: Tensor
    seconds: Tensor


class Adam(NamedTuple):
    """Adam in one step: learning rate over the first bias correction, root of the second, betas and epsilon."""

    rate: float
    root: float
    beta1: float
    beta2: float
    eps: float


def measure(encoder: Matrix, decoder: Matrix) -> tuple[Tensor, Tensor]:
    """Measure the gradients of both matrices.

    Parameters
    ----------
    encoder, decoder : Matrix

    Returns
    -------
    tuple of Tensor
        The decoder's gradient along each of its rows, shape (d_sae,), and the squared norm of both gradients without it, ().
    """
    n, d = decoder.weights.shape
    along, squares = torch.empty(2, n, device=decoder.weights.device)
    _launch(_measure_rows, n, encoder.grads, decoder.grads, decoder.weights, along, squares, d, BLOCK=_block(d))
    return along, squares.sum()


def update(matrix: Matrix, adam: Adam, *, shrink: Tensor, along: Tensor | None = None) -> None:
    """Apply Adam to a matrix in place.

    Parameters
    ----------
    matrix : Matrix
    adam : Adam
    shrink : Tensor, shape ()
        Factor of the gradient.
    along : Tensor, shape (d_sae,), optional
        From `measure`: rows keep unit norm, and the gradient along them is not used.
    """
    n, d = matrix.weights.shape
    unit = along is not None
    _launch(_update_rows, n, *matrix, along if unit else shrink, shrink, *adam, d, UNIT=unit, BLOCK=_block(d))


def _block(d: int) -> int:
    return 1 << (d - 1).bit_length()


def _launch(kernel: Any, n: int, *arguments: object, **constants: object) -> None:
    matrix = next(one for one in arguments if isinstance(one, Tensor))
    # Triton launches on the current GPU, whatever its arguments are on
    with torch.cuda.device_of(matrix):  # type: ignore[no-untyped-call]
        kernel[(n,)](*arguments, **constants, num_warps=8 if int(str(constants["BLOCK"])) > 1024 else 4)
