"""Differences with intervals: from draws of a bootstrap, or from intervals that were stored."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from moe_probe.core.stats import benjamini_hochberg
from moe_probe.core.stats.bootstrap import BOOTSTRAP, satterthwaite, spread

SOURCES = (
    *BOOTSTRAP,
    "Gelman and Stern 2006, significant against not significant is no significant difference, DOI 10.1198/000313006X152649",
    "Benjamini and Hochberg 1995, false discovery rate, DOI 10.1111/j.2517-6161.1995.tb02031.x",
)
#: Columns that every difference has, after those that say what differs.
COLUMNS = ("value_a", "value_b", "difference", "ci_low", "ci_high", "p_value")


class Difference(NamedTuple):
    """A value of either side, the second less the first, its 95 % interval and two-sided p."""

    value_a: float
    value_b: float
    difference: float
    ci_low: float
    ci_high: float
    p_value: float


def no_difference(value_a: float = np.nan, value_b: float = np.nan) -> Difference:
    """Two values whose difference has no interval."""
    return Difference(value_a, value_b, value_b - value_a, np.nan, np.nan, np.nan)


def from_draws(
    value_a: float, value_b: float, draws_a: np.ndarray, draws_b: np.ndarray, *, paired: bool, df: tuple[float, float]
) -> Difference:
    """Difference of two values with the spread of bootstrap draws.

    The interval is symmetric: the difference plus and minus Student's t times the standard deviation of the draws, which
    needs no correction of bias (the information of a resample is too high, on both sides).

    Parameters
    ----------
    value_a, value_b : float
    draws_a, draws_b : ndarray, shape (n_resamples,)
        Of the same resamples in the same order where `paired`.
    paired : bool
    df : pair of float
        Degrees of freedom of either standard deviation; together by Satterthwaite where they are independent.
    """
    if paired:
        error, freedom = float(spread(draws_b - draws_a)), min(df)
    else:
        variances = np.square([spread(draws_a), spread(draws_b)])
        error, freedom = float(np.sqrt(variances.sum())), float(satterthwaite(variances, np.array(df)))
    return from_error(value_a, value_b, error, freedom)


def from_error(value_a: float, value_b: float, error: float, df: float) -> Difference:
    """Difference of two values from its standard error; two equal values without spread do not differ."""
    from scipy.stats import t as student

    gap = value_b - value_a
    if not np.isfinite(gap) or not np.isfinite(error) or df < 1:
        return no_difference(value_a, value_b)
    if error < 1e-12:
        return Difference(value_a, value_b, gap, gap, gap, 1.0 if abs(gap) < 1e-9 else 0.0)
    margin = float(student.ppf(0.975, df)) * error
    return Difference(value_a, value_b, gap, gap - margin, gap + margin, float(2 * student.sf(abs(gap) / error, df)))


def from_intervals(a: tuple[float, float, float], b: tuple[float, float, float]) -> Difference:
    """Difference of two independent values from their 95 % intervals, (value, low, high) each.

    The half widths are taken for 1.96 standard errors: too many where Student's t made them, which errs on the safe side.
    """
    error = np.hypot(a[2] - a[1], b[2] - b[1]) / (2 * 1.959963984540054)
    return from_error(a[0], b[0], float(error), 1e6)


def with_q(p_values: np.ndarray, *, alpha: float = 0.05) -> tuple[np.ndarray, np.ndarray]:
    """q-values over a family of differences, and which of them count (q at most alpha)."""
    q_values = benjamini_hochberg(np.asarray(p_values, dtype=float))
    with np.errstate(invalid="ignore"):
        return q_values, q_values <= alpha
