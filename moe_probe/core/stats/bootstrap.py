"""Intervals of whatever is measured on documents: a bootstrap over groups. Those of an AUROC are in `auroc`.

docs/statistics.md ("Coverage of intervals") gives the measured coverage; ``scripts/interval_coverage.py`` measures it.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

#: Where the formulas come from; results that have intervals cite these.
BOOTSTRAP = (
    "Efron and Tibshirani 1993, bootstrap over independent units, DOI 10.1201/9780429246593",
    "Rao and Wu 1988, unbiased variance of resampled means, DOI 10.1080/01621459.1988.10478591",
    "Hall 1992, intervals of skewed estimates",
)
#: Spread below which nothing is said to vary.
NOTHING = 1e-12


class Interval(NamedTuple):
    """A value and the ends of its interval; floats or arrays of one shape, NaN where there are no two groups."""

    value: np.ndarray
    low: np.ndarray
    high: np.ndarray

    def row(self, name: str, prefix: str) -> dict[str, float]:
        """Return the interval as columns of a table.

        Parameters
        ----------
        name : str
            Column of the value.
        prefix : str
            The ends are ``<prefix>_low, <prefix>_high``.

        Returns
        -------
        dict of str to float
        """
        return {name: float(self.value), f"{prefix}_low": float(self.low), f"{prefix}_high": float(self.high)}


class Resamples:
    """Weights of groups in bootstrap samples; row 0 of `weights` is the sample itself.

    Of the n groups of a cell (a topic) n - 1 are drawn with replacement, each counting n / (n - 1): so the variance of a
    mean is unbiased however small the cell is (Rao and Wu 1988, DOI 10.1080/01621459.1988.10478591). Drawing n of n, the
    standard deviation of five groups is too small by a tenth, and the ends of the normal law come on top of that.

    Two schemes are in use. Within topics (`cells` are the topics of the groups), each topic keeps its number of groups: for
    what compares topics. Over all groups (`pooled`), topics vary in size: for what is measured on the corpus as a whole.

    Parameters
    ----------
    cells : ndarray of int, shape (n_groups,)
        Groups are drawn within cells. A cell of one group stays as it is.
    n : int
        Number of resamples.
    seed : int or sequence of int
    """

    def __init__(self, cells: np.ndarray, *, n: int, seed: int | list[int]) -> None:
        rng = np.random.default_rng(seed)
        self.weights = np.ones((n + 1, len(cells)))
        for cell in np.unique(cells):
            rows = np.flatnonzero(cells == cell)
            if len(rows) > 1:
                m = len(rows) - 1
                self.weights[1:, rows] = rng.multinomial(m, np.full(len(rows), 1 / len(rows)), size=n) * (len(rows) / m)

    @classmethod
    def pooled(cls, n_groups: int, *, n: int, seed: int | list[int]) -> Resamples:
        """Draw groups regardless of their topics.

        Parameters
        ----------
        n_groups : int
        n : int
            Number of resamples.
        seed : int or sequence of int

        Returns
        -------
        Resamples
        """
        return cls(np.zeros(n_groups, dtype=int), n=n, seed=seed)

    def means(self, values: np.ndarray, rows: np.ndarray | None = None) -> np.ndarray:
        """Compute weighted means over groups.

        Parameters
        ----------
        values : ndarray, shape (n_groups, ...)
        rows : ndarray of int, optional
            Groups that count; all when omitted.

        Returns
        -------
        ndarray, shape (n + 1, ...)
            NaN where none of the groups was drawn.
        """
        weights = self.weights if rows is None else self.weights[:, rows]
        part = values if rows is None else values[rows]
        with np.errstate(invalid="ignore", divide="ignore"):
            total = weights.sum(1)
            return np.asarray((weights @ part) / (total if part.ndim == 1 else total[:, None]))


def ratio_interval(drawn: Resamples, above: np.ndarray, below: np.ndarray, *, confidence: float = 0.95) -> Interval:
    """Compute the interval of a sum over groups divided by another: a mean per token, a share, bits per selection.

    Parameters
    ----------
    drawn : Resamples
        `Resamples.pooled`.
    above, below : ndarray, shape (n_groups,) or (n_groups, n_columns)
        `below` broadcasts.
    confidence : float

    Returns
    -------
    Interval
    """
    with np.errstate(divide="ignore", invalid="ignore"):
        draws = (drawn.weights @ above) / (drawn.weights @ below)
    return student_interval(draws, len(above) - 1, confidence=confidence)


def student_interval(draws: np.ndarray, df: float, *, confidence: float = 0.95) -> Interval:
    """Compute an estimate plus and minus Student's t times the deviation of its draws, the side of their tail stretched.

    For means of symmetric values this is the classical interval. It needs no correction of bias: a resample has fewer
    distinct groups than the sample, which moves the middle of its draws, not their spread. `stretched` says what skew does.

    Parameters
    ----------
    draws : ndarray, shape (1 + n_resamples, ...)
        The estimate first, then its value in every resample of a `Resamples`. Resamples without a value are left out.
    df : float
        Degrees of freedom of the standard deviation: groups less cells, or `satterthwaite`. Below 1 there is no interval.
    confidence : float

    Returns
    -------
    Interval
        Shape (...).
    """
    from scipy.stats import t as student

    estimate = np.asarray(draws[0], dtype=float)
    if df < 1:
        return Interval(estimate, np.full(estimate.shape, np.nan), np.full(estimate.shape, np.nan))
    error = spread(draws[1:])
    down, up = stretched(np.asarray(student.ppf(0.5 + confidence / 2, df)), skewness(draws[1:], error))
    return Interval(estimate, estimate - down * error, estimate + up * error)


def stretched(critical: np.ndarray, skewness: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Compute how many standard errors an interval reaches below and above an estimate, where values are skewed.

    A few groups of skewed values mostly lack the tail: their mean and their spread are too small at once, and Student's t
    misses on the side of the tail. Hall's transformation of t (Hall 1992, J. R. Stat. Soc. B 54, 221-228) moves both
    ends towards the tail. Only the end that moves outwards is moved here, since skewness itself is known badly.

    Parameters
    ----------
    critical : ndarray
        Quantile of Student's t.
    skewness : ndarray
        Of the estimate (that of the values over the root of their number).

    Returns
    -------
    down, up : ndarray
        At least `critical` each.
    """
    skew = np.nan_to_num(skewness)
    a = np.where(np.abs(skew) < 1e-6, 1e-6, skew)

    def back(y: np.ndarray) -> np.ndarray:
        return np.asarray(3 / a * (np.cbrt(1 + a * (y - a / 6)) - 1))

    return np.maximum(critical, back(critical)), np.maximum(critical, -back(-critical))


def spread(draws: np.ndarray) -> np.ndarray:
    """Compute the standard deviation over resamples, shape (n_resamples, ...), of those with a value; NaN for fewer than two."""
    rest = np.asarray(draws, dtype=float)
    known = np.isfinite(rest)
    n = known.sum(0)
    with np.errstate(divide="ignore", invalid="ignore"):
        middle = np.where(known, rest, 0.0).sum(0) / n
        squares = np.square(np.where(known, rest - middle, 0.0)).sum(0)
        return np.asarray(np.sqrt(np.where(n > 1, squares / (n - 1), np.nan)))


def skewness(draws: np.ndarray, error: np.ndarray) -> np.ndarray:
    """Compute the skewness over resamples, those without a value left out.

    Parameters
    ----------
    draws : ndarray, shape (n_resamples, ...)
    error : ndarray, shape (...)
        Their standard deviation, from `spread`.

    Returns
    -------
    ndarray, shape (...)
        0 where nothing varies.
    """
    rest = np.asarray(draws, dtype=float)
    known = np.isfinite(rest)
    n = np.maximum(known.sum(0), 1)
    with np.errstate(divide="ignore", invalid="ignore"):
        middle = np.where(known, rest, 0.0).sum(0) / n
        cubes = np.where(known, rest - middle, 0.0) ** 3
        return np.where(error > NOTHING * (1 + np.abs(middle)), cubes.sum(0) / n / error**3, 0.0)


def satterthwaite(variances: np.ndarray, df: np.ndarray) -> np.ndarray:
    """Compute the degrees of freedom of a sum of independent variances (Satterthwaite 1946, DOI 10.2307/3002019).

    Parameters
    ----------
    variances : ndarray, shape (n_parts, ...)
    df : ndarray, shape (n_parts, ...)
        Of each; parts without variance do not count.

    Returns
    -------
    ndarray, shape (...)
        At least 1; where nothing varies the smallest of `df`.
    """
    freedom = np.maximum(df, 1.0)
    with np.errstate(divide="ignore", invalid="ignore"):
        df_sum = np.square(variances.sum(0)) / (np.square(variances) / freedom).sum(0)
    return np.asarray(np.clip(np.where(np.isfinite(df_sum), df_sum, freedom.min(0)), 1.0, 1e6))


def correlation_of(one: np.ndarray, other: np.ndarray) -> float:
    """Compute the correlation of two sets of draws.

    Parameters
    ----------
    one, other : ndarray, shape (1 + n_resamples,)
        Estimates first.

    Returns
    -------
    float
        0 where one of them does not vary.
    """
    both = np.isfinite(one[1:]) & np.isfinite(other[1:])
    a, b = one[1:][both], other[1:][both]
    if len(a) < 2 or min(float(a.std()), float(b.std())) < NOTHING:
        return 0.0
    return float(np.corrcoef(a, b)[0, 1])
