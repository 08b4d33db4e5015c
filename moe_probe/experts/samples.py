"""Samples of a fixed size, for what would otherwise take longer than a corpus is worth: drawn by seed, evenly over topics."""

from __future__ import annotations

import numpy as np

#: Groups of documents (or documents) that topics are decoded from, and that are clustered, at most.
MOST_DOCUMENTS = 10_000


def even_sample(code: np.ndarray, most: int, *, seed: int) -> np.ndarray:
    """Choose about `most` units, the same share of every code and at least two of each.

    Parameters
    ----------
    code : ndarray of int, shape (n_units,)
        Topic of every unit.
    most : int
        Number of units to keep; all are kept where there are no more.
    seed : int
        Seed of the draw.

    Returns
    -------
    ndarray of bool, shape (n_units,)
    """
    if len(code) <= most:
        return np.ones(len(code), dtype=bool)
    chosen = np.zeros(len(code), dtype=bool)
    rng = np.random.default_rng([seed, len(code)])
    for value in np.unique(code):
        rows = rng.permutation(np.flatnonzero(code == value))
        chosen[rows[: max(2, len(rows) * most // len(code))]] = True
    return chosen
