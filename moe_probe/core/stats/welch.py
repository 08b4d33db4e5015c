"""Welch's t of each topic against the other groups, for many columns at once."""

from __future__ import annotations

import numpy as np

#: Smallest squared standard error, as a share of what independent labels would give.
SE_FLOOR = 1e-6


def welch_t(sums: np.ndarray, squares: np.ndarray, n_groups: np.ndarray, *, total: int) -> np.ndarray:
    """Compute Welch's t from sums over a topic's groups of columns that are centred and of unit mean square.

    With n of G groups in the topic, the rest's sums follow from the totals 0 and G, so that numerator
    and squared standard error are linear in the sum, its square and the sum of squares.
    Welch 1947, DOI 10.1093/biomet/34.1-2.28.

    Parameters
    ----------
    sums, squares : ndarray, shape (..., n_topics, n_columns)
        Sums of the column and of its square over the groups of a topic.
    n_groups : ndarray of int, shape (n_topics,)
    total : int
        Number of all groups.

    Returns
    -------
    ndarray, same shape and dtype; 0 for topics with fewer than two groups inside or outside.
    """
    n = np.asarray(n_groups, dtype=np.float64)
    rest = total - n
    usable = (n > 1) & (rest > 1)
    n, rest = np.where(usable, n, 2.0), np.where(usable, rest, 2.0)
    inside, outside = 1 / (n * (n - 1)), 1 / (rest * (rest - 1))
    dtype = sums.dtype

    def column(x: np.ndarray) -> np.ndarray:
        return x.astype(dtype)[:, None]

    variance = squares * column(inside - outside)
    variance += column(total * outside)
    variance -= np.square(sums) * column(inside / n + outside / rest)
    np.maximum(variance, column(SE_FLOOR * (1 / n + 1 / rest)), out=variance)
    t: np.ndarray = sums * column(np.where(usable, 1 / n + 1 / rest, 0.0))
    t /= np.sqrt(variance, out=variance)
    return t
