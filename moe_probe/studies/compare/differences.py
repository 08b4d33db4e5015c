"""Differences with intervals: from bootstrap draws, from stored intervals, or from standard errors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from moe_probe.core.stats import benjamini_hochberg
from moe_probe.core.stats.bootstrap import BOOTSTRAP, satterthwaite, spread

if TYPE_CHECKING:
    import pandas as pd

    from moe_probe.studies.compare.settings import ComparisonSettings


SOURCES = (
    *BOOTSTRAP,
    "Gelman and Stern 2006, significant against not significant is no significant difference, DOI 10.1198/000313006X152649",
    "Benjamini and Hochberg 1995, false discovery rate, DOI 10.1111/j.2517-6161.1995.tb02031.x",
)
#: Columns that every table of differences has, after those that say what differs.
COLUMNS = ("value_a", "value_b", "difference", "ci_low", "ci_high", "p_value", "q_value", "beyond", "method")
#: Half width of a 95 % interval of the normal law, in standard errors.
_Z95 = 1.959963984540054


class Estimate(NamedTuple):
    """A value with its bootstrap distribution.

    Attributes
    ----------
    value : float
    draws : ndarray, shape (n_resamples,)
    df : float
        Degrees of freedom of the draws' standard deviation.
    """

    value: float
    draws: np.ndarray
    df: float


class Difference(NamedTuple):
    """Values of two runs, the second less the first, its 95 % interval and two-sided p-value."""

    value_a: float
    value_b: float
    difference: float
    ci_low: float
    ci_high: float
    p_value: float


def no_difference(value_a: float = np.nan, value_b: float = np.nan) -> Difference:
    """Two values whose difference has no interval.

    Parameters
    ----------
    value_a, value_b : float

    Returns
    -------
    Difference
    """
    return Difference(value_a, value_b, value_b - value_a, np.nan, np.nan, np.nan)


def from_draws(a: Estimate, b: Estimate, *, paired: bool) -> Difference:
    """Difference of two estimates from the spread of their bootstrap draws.

    The interval is symmetric: the difference plus and minus Student's t times the standard deviation of the draws, which
    needs no correction of bias (the information of a resample is too high, on both sides).

    Parameters
    ----------
    a, b : Estimate
    paired : bool
        The draws of both are of the same resamples in the same order. Otherwise they are independent, and their degrees of
        freedom are combined as Satterthwaite does.

    Returns
    -------
    Difference
    """
    if paired:
        error, df = float(spread(b.draws - a.draws)), min(a.df, b.df)
    else:
        variances = np.square([spread(a.draws), spread(b.draws)])
        error, df = float(np.sqrt(variances.sum())), float(satterthwaite(variances, np.array([a.df, b.df])))
    return from_error(a.value, b.value, error, df)


def from_error(value_a: float, value_b: float, error: float, df: float = 1e6) -> Difference:
    """Difference of two values from its standard error; two equal values without spread do not differ.

    Parameters
    ----------
    value_a, value_b : float
    error : float
        Standard error of the difference.
    df : float
        Degrees of freedom of the error; below 1 there is no interval.

    Returns
    -------
    Difference
    """
    from scipy.stats import t as student

    gap = value_b - value_a
    if not np.isfinite(gap) or not np.isfinite(error) or df < 1:
        return no_difference(value_a, value_b)
    if error < 1e-12:
        return Difference(value_a, value_b, gap, gap, gap, 1.0 if abs(gap) < 1e-9 else 0.0)
    margin = float(student.ppf(0.975, df)) * error
    return Difference(value_a, value_b, gap, gap - margin, gap + margin, float(2 * student.sf(abs(gap) / error, df)))


def from_intervals(a: Sequence[float], b: Sequence[float], *, z: float = _Z95) -> Difference:
    """Difference of two independent values from their 95 % intervals.

    Parameters
    ----------
    a, b : sequence of three float
        Value, lower and upper end.
    z : float
        Half width of an interval in standard errors. The default is too large where Student's t made the interval, which
        errs on the safe side.

    Returns
    -------
    Difference
    """
    return from_error(a[0], b[0], float(np.hypot(a[2] - a[1], b[2] - b[1]) / (2 * z)))


def difference_table(rows: Sequence[Mapping[str, Any]], *, alpha: float) -> pd.DataFrame:
    """Rows of differences with their q-values over the whole table.

    Parameters
    ----------
    rows : sequence of mapping
        What differs, the fields of `Difference` and ``method``, then further columns.
    alpha : float
        False discovery rate of ``beyond``.

    Returns
    -------
    pandas.DataFrame
        What differs, `COLUMNS`, further columns.
    """
    import pandas as pd

    table = pd.DataFrame(rows)
    q_values = benjamini_hochberg(table["p_value"].to_numpy(dtype=float))
    with np.errstate(invalid="ignore"):
        table = table.assign(q_value=q_values, beyond=q_values <= alpha)
    start = list(rows[0]).index(COLUMNS[0])
    first, further = list(rows[0])[:start], [name for name in list(rows[0])[start:] if name not in COLUMNS]
    return table[[*first, *COLUMNS, *further]]


def interval_caption(method: str, settings: ComparisonSettings) -> str:
    """Last sentences of a caption: how intervals and q-values were made.

    Parameters
    ----------
    method : str
        As the column has it.
    settings : ComparisonSettings

    Returns
    -------
    str
    """
    return (
        f"95 % intervals: {method} of documents. q: Benjamini-Hochberg over this table; beyond: q at most "
        f"{settings.alpha:g}."
    )
