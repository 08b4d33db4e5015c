"""Shares of selections -> whole counts: the numbers of tokens are recovered from the denominators.

A share of a document with n selections per layer is c / n for a whole c. The smallest n that makes every share of the document
whole is found by running through the counts c that the smallest share can stand for, and is checked against all others.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from moe_probe.core.errors import MoeProbeError

_SUM = 1e-3  # rows that add up to 1 only so far are no shares at all, however they were rounded
_ROOM = 4.0  # roundings of a share, in units of half the last place: sums and products add to the last division's
_CHANCE = 1e-6  # chance, at most, that shares without a common denominator would look as if they had one
_STEP = 4096  # counts that the smallest share may stand for, tried at a time
_MOST = 1 << 20  # selections per layer of a document, at most: a longer one needs its number of tokens


def precision_of(values: np.ndarray) -> float:
    """Return half the relative spacing of the coarsest type of floats that holds values exactly.

    Parameters
    ----------
    values : ndarray of float

    Returns
    -------
    float
        2^-11 for float16, 2^-24 for float32, 2^-53 for float64.
    """
    for kind in (np.float16, np.float32):
        if values.dtype.itemsize <= np.dtype(kind).itemsize or (values.astype(kind).astype(values.dtype) == values).all():
            return float(np.finfo(kind).eps) / 2
    return float(np.finfo(np.float64).eps) / 2


def check_shares(layers: Sequence[int], shares: np.ndarray, where: Callable[[int], str]) -> None:
    """Refuse shares that do not add up to 1 per document and layer.

    Parameters
    ----------
    layers : sequence of int
    shares : ndarray of float, shape (n_documents, n_layers, n_experts)
        A layer may be empty (all 0): in all documents where it is dense, which is checked elsewhere.
    where : callable
        Names a document.

    Raises
    ------
    MoeProbeError
        Naming document and layer.
    """
    sums = shares.sum(axis=2)
    bad = (np.abs(sums - 1) > _SUM) & (sums != 0)
    if bad.any():
        row, column = (int(i) for i in np.argwhere(bad)[0])
        raise MoeProbeError(
            f"the fractions of {where(row)} add up to {sums[row, column]:.6g} in layer {layers[column]}",
            "they are shares of the layer's selections, which add up to 1",
            "selections divided by their sum over the layer's experts",
        )


def recover_selections(shares: np.ndarray, top_k: int) -> np.ndarray:
    """Find the smallest number of selections per layer that makes every share of a document whole.

    Parameters
    ----------
    shares : ndarray of float, shape (n_documents, n_cells)
        Shares of all layers and experts of a document.
    top_k : int
        Selections per token: the number is a multiple of it.

    Returns
    -------
    ndarray of int64, shape (n_documents,)
        0 for a document without a share; -1 where there is no such number, or so large a one that rounding, or chance, would
        allow others. Multiples of the number explain the shares as well.
    """
    precision = _ROOM * precision_of(shares)
    shares = shares.astype(np.float64)
    found = np.where(shares.any(axis=1), -1, 0)
    smallest = np.where(shares > 0, shares, np.inf).min(axis=1, initial=np.inf)
    largest = shares.max(axis=1, initial=0)
    open_ = np.flatnonzero(found < 0)
    # beyond this, roundings of the largest share reach a quarter of a selection
    limit = np.minimum(_MOST, 0.25 / (precision * np.maximum(largest, np.finfo(np.float64).tiny)))
    count, step = 1, 16
    while len(open_):
        counts = np.arange(count, count + step, dtype=np.float64)
        n = np.rint(counts / smallest[open_, None] / top_k) * top_k  # (n_open, step)
        near = (n > 0) & (n <= limit[open_, None]) & (np.abs(n * smallest[open_, None] - counts) <= precision * counts)
        which, at = np.nonzero(near)
        tried, numbers = open_[which], n[which, at]
        exact = shares[tried] * numbers[:, None]
        right = (np.abs(exact - np.rint(exact)) <= precision * exact).all(axis=1) & _is_no_chance(exact, numbers, precision)
        hit, first = np.unique(tried[right], return_index=True)  # the first of a document is the smallest
        found[hit] = numbers[right][first].astype(np.int64)
        open_ = open_[(found[open_] < 0) & (n[:, -1] <= limit[open_])]
        count, step = count + step, min(2 * step, _STEP)
    return found


def _is_no_chance(exact: np.ndarray, numbers: np.ndarray, precision: float) -> np.ndarray:
    """Whether so many shares are whole by their origin: random ones would be, within their roundings, for none of the numbers."""
    odds = np.log(np.minimum(1.0, 2 * precision * np.maximum(exact, 1)))
    return np.asarray(np.log(np.maximum(numbers, 1)) + np.where(exact > 0, odds, 0).sum(axis=1) < np.log(_CHANCE))


def whole_counts(shares: np.ndarray, n_selections: np.ndarray) -> tuple[np.ndarray, float]:
    """Multiply shares with the selections of their layer, and round so that sums stay.

    Parameters
    ----------
    shares : ndarray of float, shape (n_documents, n_layers, n_experts)
    n_selections : ndarray of int, shape (n_documents,)
        Selections per layer.

    Returns
    -------
    counts : ndarray of int64, same shape as `shares`
        They add up to `n_selections` in every layer with a share: the largest remainders are rounded up.
    moved : float
        Largest difference between a count and its product, in selections.
    """
    sums = shares.sum(axis=2, keepdims=True, dtype=np.float64)
    exact = shares / np.where(sums == 0, 1, sums) * n_selections[:, None, None]
    counts = np.floor(exact + 1e-9)
    missing = np.where(sums[..., 0] == 0, 0, n_selections[:, None] - counts.sum(axis=2))
    order = np.argsort(np.argsort(counts - exact, axis=2, kind="stable"), axis=2)
    counts += order < missing[..., None]
    return counts.astype(np.int64), float(np.abs(counts - exact).max(initial=0))


def rounds_to_whole(shares: np.ndarray, n_selections: np.ndarray) -> np.ndarray:
    """Whether shares are whole counts over given selections, as far as their type of floats can say it.

    Parameters
    ----------
    shares : ndarray of float, shape (n_documents, n_layers, n_experts)
    n_selections : ndarray of int, shape (n_documents,)
        Selections per layer.

    Returns
    -------
    ndarray of bool, shape (n_documents,)
    """
    exact = shares.astype(np.float64) * n_selections[:, None, None]
    room = _ROOM * precision_of(shares) * exact
    return np.asarray((np.abs(exact - np.rint(exact)) <= np.minimum(room, 0.25)).all(axis=(1, 2)))
