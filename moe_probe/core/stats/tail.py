"""p-values beyond what a test's own permutations can resolve."""

from __future__ import annotations

import numpy as np

from moe_probe.core.stats.multiplicity import permutation_p

#: Number of largest permuted statistics that every test keeps; beyond them the tail is pooled.
TAIL_SIZE = 10

_SHIFT = 13  # float32 bits dropped: 1,024 bins an octave, so a bin is 0.1 % wide
_LOWEST, _HIGHEST = 2.0**-6, 2.0**14


def _bin(values: np.ndarray) -> np.ndarray:
    """Logarithmic bin of positive float32 values, from their bits (monotone); 0 for all below."""
    first = np.float32(_LOWEST).view(np.int32) >> _SHIFT
    last = np.float32(_HIGHEST).view(np.int32) >> _SHIFT
    bits = np.ascontiguousarray(values, dtype=np.float32).view(np.int32) >> _SHIFT
    return np.asarray(np.clip(bits, first, last) - first)


N_BINS = int(_bin(np.array([_HIGHEST]))[0]) + 1


class PooledTail:
    """Counts permuted statistics per test, and pools their distribution within each topic.

    Where fewer than `TAIL_SIZE` of B permutations reach a test's observed value x, counting cannot
    say how small p is, and a false discovery rate over 100,000 tests needs to know. There

        p(x) = (TAIL_SIZE / B) * (1 + N(x)) / (1 + N(q)),

    with q the test's own TAIL_SIZE-th largest permuted statistic and N(.) the number of permuted
    statistics of the same topic's tests (all layers, experts, permutations) at least as large. The place
    where the tail starts is the test's own, so that skewed columns keep their heavier null; its shape
    beyond is the topic's, because the number of a topic's groups decides how heavy the tail of a
    studentised difference is: pooling over topics would judge a topic of 50 groups by one of 5.

    Parameters
    ----------
    observed : ndarray, shape (n_topics, n_columns)
        NaN marks what is not tested.
    permutations : int
        B, how many will be added.
    tolerance : float
        Relative slack by which a permuted value counts as equal, against the claim.
    """

    def __init__(self, observed: np.ndarray, *, permutations: int, tolerance: float = 0.0) -> None:
        self._observed, self._pool = observed, np.arange(len(observed))[:, None]
        self._permutations = permutations
        slack = tolerance * np.maximum(1.0, np.abs(observed))
        self._bound = np.where(np.isnan(observed), np.inf, observed - slack)
        self.exceed = np.zeros(observed.shape, dtype=np.int64)
        # with few permutations the ten largest are no tail
        self._size = min(TAIL_SIZE, permutations // 20)
        self._largest = np.zeros((0, *observed.shape), dtype=np.float32)
        self._histogram = np.zeros((len(observed), N_BINS), dtype=np.int64)

    def add(self, statistics: np.ndarray) -> None:
        """Add a block of permuted statistics, float32, shape (n, n_topics, n_columns)."""
        self.exceed += np.count_nonzero(statistics >= self._bound.astype(np.float32), axis=0)
        if not self._size:
            return
        merged = np.concatenate([self._largest, statistics])
        if len(merged) > self._size:
            # partition works on contiguous rows: tests first
            rows = np.ascontiguousarray(merged.reshape(len(merged), -1).T)
            rows.partition(len(merged) - self._size, axis=1)
            merged = np.ascontiguousarray(rows[:, -self._size :].T).reshape(self._size, *self._observed.shape)
        self._largest = merged
        bins = _bin(statistics) + self._pool * N_BINS
        counts = np.bincount(bins.ravel(), minlength=self._histogram.size)
        self._histogram += counts.reshape(self._histogram.shape)

    def p_values(self) -> np.ndarray:
        """p-values of all tests; NaN where not tested."""
        p = permutation_p(self.exceed, self._permutations)
        if self._size:
            at_least = np.cumsum(self._histogram[:, ::-1], axis=1)[:, ::-1]
            start = self._largest.min(0)
            pool = np.broadcast_to(self._pool, start.shape)
            beyond = 1.0 + at_least[pool, _bin(np.nan_to_num(self._observed))]
            ratio = np.minimum(1.0, beyond / (1.0 + at_least[pool, _bin(start)]))
            p = np.where(self.exceed < self._size, self._size / self._permutations * ratio, p)
        return np.where(np.isnan(self._observed), np.nan, p)
