"""The two nulls of a tree (labels permuted over documents, features permuted over the tree), and their p-values."""

from __future__ import annotations

import numpy as np

#: Values closer than this are equal: chances are held in single precision and added up in more than one order.
EQUAL = 1e-6


def shuffled_within(strata: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Draw a permutation that moves every item within its stratum only.

    Parameters
    ----------
    strata : ndarray of int, shape (n,)
        Stratum of every item.
    rng : numpy.random.Generator
        Source of the permutation.

    Returns
    -------
    ndarray of int, shape (n,)
    """
    out = np.arange(len(strata))
    for stratum in np.unique(strata):
        members = np.flatnonzero(strata == stratum)
        out[members] = rng.permutation(members)
    return out


def exchanged(n: int, strata: np.ndarray | None, rng: np.random.Generator) -> np.ndarray:
    """Draw a permutation of groups of documents, within strata where there are any.

    Parameters
    ----------
    n : int
        Number of groups.
    strata : ndarray of int, shape (n,), optional
        Stratum of every group.
    rng : numpy.random.Generator
        Source of the permutation.

    Returns
    -------
    ndarray of int, shape (n,)
    """
    return rng.permutation(n) if strata is None else shuffled_within(strata, rng)


def rate_strata(counts: np.ndarray, *, size: int = 40) -> np.ndarray:
    """Put features that fire about as often into one stratum: neighbours in the order of their counts.

    Parameters
    ----------
    counts : ndarray of int, shape (n_features,)
        Tokens on which each feature fires.
    size : int
        Features of a stratum, about.

    Returns
    -------
    ndarray of int, shape (n_features,)
        Stratum of every feature, from rare to frequent.
    """
    n = max(1, len(counts) // size)
    rank = np.empty(len(counts), dtype=int)
    rank[np.argsort(counts, kind="stable")] = np.arange(len(counts))
    return np.asarray(rank * n // max(len(counts), 1))


def one_sided_p(null: np.ndarray, observed: np.ndarray | float) -> np.ndarray:
    """Compute one-sided permutation p-values, never 0: values that differ by rounding are equal, and NaN is no evidence.

    Parameters
    ----------
    null : ndarray of float, shape (n_permutations,) or (n_permutations, n_statistics)
        Statistics of the permutations.
    observed : float or ndarray of float, shape (n_statistics,)
        Statistics of the data.

    Returns
    -------
    ndarray of float, shape () or (n_statistics,)
    """
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
        """Compute p-values of any values under the nulls of some of the statistics.

        Parameters
        ----------
        values : ndarray of float, shape (n,)
            Statistics as if observed.
        which : ndarray of int, shape (n,)
            Statistic whose null each value is compared with.

        Returns
        -------
        ndarray of float, shape (n,)
        """
        own = (values - self.mean[which]) / self.spread[which]
        n_larger = len(self._pool) - np.searchsorted(self._pool, own - 1e-9)
        return np.asarray((1 + n_larger) / (1 + len(self._pool)))

    def p_values(self, observed: np.ndarray) -> np.ndarray:
        """Compute p-values of the statistics, shape (n_statistics,)."""
        pooled = self.tail(observed, np.arange(len(observed)))
        # where permutations hardly change a value, studentising would blow up what is rounding
        return np.asarray(
            np.where(observed > self.mean + EQUAL, pooled, np.maximum(pooled, one_sided_p(self._null, observed)))
        )
