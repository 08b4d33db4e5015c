"""Many tests at once: permutation p-values, family-wise error and false discoveries."""

from __future__ import annotations

import numpy as np


def permutation_p(exceed: np.ndarray, n_permutations: int) -> np.ndarray:
    """Compute the p-value of a permutation test, ``(1 + #) / (1 + B)``; never 0.

    Phipson and Smyth 2010, DOI 10.2202/1544-6115.1585.

    Parameters
    ----------
    exceed : ndarray of int
        How many permutations had a statistic at least as large as the observed one.
    n_permutations : int

    Returns
    -------
    ndarray of float64
    """
    return (1.0 + np.asarray(exceed, dtype=np.float64)) / (1.0 + n_permutations)


def benjamini_hochberg(p_values: np.ndarray) -> np.ndarray:
    """Compute q-values that control the false discovery rate over the finite entries.

    Benjamini and Hochberg 1995, DOI 10.1111/j.2517-6161.1995.tb02031.x.

    Parameters
    ----------
    p_values : ndarray, any shape
        NaN marks what was not tested: it takes no part in the family and stays NaN.
    """
    from scipy.stats import false_discovery_control

    p_values = np.asarray(p_values, dtype=np.float64)
    q_values = np.full(p_values.shape, np.nan)
    tested = np.isfinite(p_values)
    if tested.any():
        q_values[tested] = false_discovery_control(p_values[tested], method="bh")
    return q_values


def holm(p_values: np.ndarray) -> np.ndarray:
    """Apply Holm's step-down adjustment, which controls the family-wise error without assumptions.

    Holm 1979, https://www.jstor.org/stable/4615733. NaN stays NaN and is not counted.
    """
    p_values = np.asarray(p_values, dtype=np.float64)
    adjusted = np.full(p_values.shape, np.nan)
    tested = np.isfinite(p_values)
    p = p_values[tested]
    order = np.argsort(p, kind="stable")
    stepped = np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1))
    back = np.empty(len(p))
    back[order] = np.minimum(stepped, 1.0)
    adjusted[tested] = back
    return adjusted


class StepDownMax:
    """Westfall and Young's step-down max-T, fed with blocks of permutations.

    The tests are ordered by their observed statistic; in every permutation the i-th is compared
    with the largest statistic of the tests that are not more extreme. Westfall and Young 1993,
    "Resampling-based multiple testing", algorithm 4.1; controls the family-wise error strongly
    under subset pivotality (permuting labels of whole rows provides it).

    Parameters
    ----------
    observed : ndarray, shape (n_tests,)
        Observed statistics, the larger the more extreme. NaN leaves a test out.
    tolerance : float
        Relative slack by which a permuted value counts as equal (rounding), against the claim.
    """

    def __init__(self, observed: np.ndarray, *, tolerance: float = 0.0) -> None:
        observed = np.asarray(observed, dtype=np.float64)
        self._size = observed.size
        tested = np.flatnonzero(np.isfinite(observed))
        self._order = tested[np.argsort(observed[tested], kind="stable")]  # ascending
        ascending = observed[self._order]
        self._bound = ascending - tolerance * np.maximum(1.0, np.abs(ascending))
        self._exceed = np.zeros(len(self._order), dtype=np.int64)
        self._exceed_max = np.zeros(len(self._order), dtype=np.int64)
        self.n_permutations = 0
        self._maxima: list[np.ndarray] = []

    def add(self, permuted: np.ndarray) -> None:
        """Count a block of permuted statistics, shape (n_permutations, n_tests)."""
        self.n_permutations += len(permuted)
        if not len(self._order):
            return
        for row in permuted:
            running = np.maximum.accumulate(row[self._order])
            self._exceed += running >= self._bound
            self._exceed_max += running[-1] >= self._bound
            self._maxima.append(running[-1:].astype(np.float64))

    @property
    def maxima(self) -> np.ndarray:
        """Largest statistic of every permutation, shape (n_permutations,)."""
        return np.concatenate(self._maxima) if self._maxima else np.zeros(0)

    def p_values(self) -> np.ndarray:
        """Step-down adjusted p-values, shape (n_tests,)."""
        # from the most extreme downwards an adjusted p-value may not fall
        stepped = np.maximum.accumulate(self._exceed[::-1])[::-1]
        return self._spread(stepped)

    def p_values_single_step(self) -> np.ndarray:
        """Single-step adjusted p-values: every test against the largest of all."""
        return self._spread(self._exceed_max)

    def _spread(self, exceed: np.ndarray) -> np.ndarray:
        p = np.full(self._size, np.nan)
        p[self._order] = permutation_p(exceed, self.n_permutations)
        return p
