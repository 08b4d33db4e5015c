"""Permutation p-values of many statistics that share their null."""

from __future__ import annotations

import numpy as np

#: Values closer than this are equal: chances are held in single precision and added up in more than one order.
EQUAL = 1e-6


def one_sided_p(null: np.ndarray, observed: np.ndarray | float) -> np.ndarray:
    """One-sided permutation p-values, never 0: values that differ by rounding are equal, and NaN is no evidence."""
    return np.asarray((1 + (~(null < observed - EQUAL)).sum(0)) / (1 + len(null)))


class PooledNull:
    """The studentised nulls of many statistics together, for p-values far below 1 / permutations.

    Every permutation is studentised by the others, as the observed value is by all: had each a part in its own mean and spread,
    the pool would be narrower than what it is a null of, the more so the fewer permutations there are.

    Parameters
    ----------
    null : ndarray of float, shape (n_permutations, n_statistics)
    """

    def __init__(self, null: np.ndarray) -> None:
        n = len(null)
        self._null, self.mean = null, null.mean(0)
        centred = null - self.mean
        squares = np.square(centred).sum(0)
        left_out = np.maximum((squares - n / (n - 1) * np.square(centred)) / (n - 1), 0.0)
        self._pool = np.sort((n / (n - 1) * centred / np.maximum(np.sqrt(left_out), EQUAL)).ravel())
        self.spread = np.maximum(np.sqrt(squares / n), EQUAL)

    def tail(self, values: np.ndarray, which: np.ndarray) -> np.ndarray:
        """p-values of any values under the nulls of some of the statistics, shape of both."""
        own = (values - self.mean[which]) / self.spread[which]
        beyond = len(self._pool) - np.searchsorted(self._pool, own - 1e-9)
        return np.asarray((1 + beyond) / (1 + len(self._pool)))

    def p_values(self, observed: np.ndarray) -> np.ndarray:
        """p-values of the statistics, shape (n_statistics,)."""
        pooled = self.tail(observed, np.arange(len(observed)))
        # where permutations hardly change a value, studentising would blow up what is rounding
        return np.asarray(
            np.where(observed > self.mean + EQUAL, pooled, np.maximum(pooled, one_sided_p(self._null, observed)))
        )
