"""Effect sizes: share, lift and ratio, with their intervals."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from moe_probe.core.stats.bootstrap import stretched
from moe_probe.core.stats.labels import column_step
from moe_probe.core.stats.shares import Shares, column_blocks


class Lift(NamedTuple):
    """Effect sizes, each an ndarray of shape (n_topics, n_columns).

    ``share`` is the mean over the topic's groups, ``lift`` is share over base, ``log2_lift`` has the
    pseudo-count, ``se`` is its standard error (NaN for topics of one group), ``ci_low`` and
    ``ci_high`` bound it. ``base``, shape (n_columns,), is the mean over topics of the topic means.
    All but ``share`` are NaN for experts nobody used.
    """

    share: np.ndarray
    base: np.ndarray
    lift: np.ndarray
    log2_lift: np.ndarray
    se: np.ndarray
    ci_low: np.ndarray
    ci_high: np.ndarray


def topic_moments(shares: Shares, topic: np.ndarray, *, n_topics: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Compute mean and squared standard error of the mean over groups, per topic.

    Parameters
    ----------
    shares : ndarray or ShareTable, shape (n_groups, n_columns)
    topic : ndarray of int, shape (n_groups,)
    n_topics : int

    Returns
    -------
    mean, squared_error : ndarray, shape (n_topics, n_columns)
        NaN where a topic has no group, and no two groups, respectively.
    sizes : ndarray of int, shape (n_topics,)
    """
    sizes = np.bincount(topic, minlength=n_topics)
    mean = np.full((n_topics, shares.shape[1]), np.nan)
    squared_error = np.full_like(mean, np.nan)
    for columns in column_blocks(shares):
        block = shares[:, columns]
        for t in range(n_topics):
            rows = block[topic == t]
            if len(rows):
                mean[t, columns] = rows.mean(0)
            if len(rows) > 1:
                squared_error[t, columns] = rows.var(0, ddof=1) / len(rows)
    return mean, squared_error, sizes


def half_selection(selections: np.ndarray, topic: np.ndarray, *, n_topics: int) -> np.ndarray:
    """Compute half a selection as a share of a topic's selections.

    Added to share and base before the logarithm, so that an expert that a topic never chose has a
    finite lift, and one that nobody chose would have lift 1.

    Parameters
    ----------
    selections : ndarray, shape (n_groups, n_layers)
    topic : ndarray of int, shape (n_groups,)
    n_topics : int

    Returns
    -------
    ndarray, shape (n_topics, n_layers)
    """
    total = np.zeros((n_topics, selections.shape[1]))
    np.add.at(total, topic, selections)
    return np.asarray(0.5 / np.maximum(total, 1.0))


def log2_lift(
    shares: Shares, topic: np.ndarray, *, n_topics: int, pseudo: np.ndarray | float = 0.0, confidence: float = 0.95
) -> Lift:
    """Compute the lift of every (topic, column) over the macro-averaged base, with its interval.

    ``log2((share + h) / (base + h))``, base the mean over topics (with groups) of their means. The
    topic is itself one part of T in the base; the variance accounts for that: with a = 1/(share+h),
    b = 1/(base+h) and v the squared standard error of a topic's mean,

        var(ln lift) = v_t (a - b/T)^2 + (b/T)^2 * sum of v over the other topics.

    Two corrections serve small samples and rare experts. v_t (a - b/T)^2 is taken from the jackknife, where that is larger
    (Efron and Stein 1981, DOI 10.1214/aos/1176345462: it errs on the wide side): usage is skewed, and the logarithm of a
    mean of few skewed values varies more than its linear part. And v is at least the sampling variance of a count, since
    documents that agree with each other by chance do not make a count of 3 more exact than a count is: without that, an
    expert that 5 documents never chose has an interval of no width.

    The interval uses Student's t at Satterthwaite's degrees of freedom (DOI 10.2307/3002019).
    docs/statistics.md gives its measured coverage.

    Parameters
    ----------
    shares : ndarray or ShareTable, shape (n_groups, n_columns)
    topic : ndarray of int, shape (n_groups,)
    n_topics : int
    pseudo : ndarray broadcasting to (n_topics, n_columns), default 0
        h, in the unit of shares; see `half_selection`.
    confidence : float, default 0.95

    Returns
    -------
    Lift
    """
    from scipy.stats import t as student

    mean, v, sizes = topic_moments(shares, topic, n_topics=n_topics)
    present = (sizes > 0).sum()
    base = np.nanmean(mean, axis=0) if present else np.full(shares.shape[1], np.nan)
    h = np.broadcast_to(pseudo, mean.shape)
    live = base > 0
    # of n selections, 1 / (2 n) being h, the share p has the variance p (1 - p) / n at least; NaN stays
    v = np.maximum(v, 2 * h * (mean + h) * np.maximum(1 - mean, 0))
    with np.errstate(divide="ignore", invalid="ignore"):
        lift = np.where(live, mean / base, np.nan)
        logs = np.where(live, np.log2((mean + h) / (base + h)), np.nan)
        # squared weights with which each topic's error enters the topic's own logarithm
        b = 1 / ((base + h) * present)
        left_out, cubes = _left_out(shares, topic, mean, base, h)
        own = np.fmax(v * (1 / (mean + h) - b) ** 2, left_out)
        known = np.nan_to_num(v)
        others = b**2 * (known.sum(0) - known)
        freedom = (np.maximum(sizes, 2) - 1)[:, None]
        fourth = own**2 / freedom + b**4 * ((known**2 / freedom).sum(0) - known**2 / freedom)
        # a topic without spread would divide 0 by 0: any freedom gives the same empty interval
        df = np.clip(np.nan_to_num((own + others) ** 2 / fourth, nan=1.0), 1.0, 1e6)
        se = np.where(live, np.sqrt(own + others), np.nan) / np.log(2)
        down, up = stretched(student.ppf(0.5 + confidence / 2, df), cubes / (own + others) ** 1.5)
    return Lift(mean, base, lift, logs, se, logs - down * se, logs + up * se)


def _left_out(
    shares: Shares,
    topic: np.ndarray,
    mean: np.ndarray,
    base: np.ndarray,
    h: np.ndarray,
) -> tuple[np.ndarray, np.ndarray]:
    """Jackknife variance and third central moment of every topic's log lift (natural), its groups left out in turn.

    NaN for topics of one group.
    """
    present = int(np.isfinite(mean).all(1).sum())
    out, cubes = np.full((2, *mean.shape), np.nan)
    for t in range(len(mean)):
        rows = topic == t
        n = int(rows.sum())
        step = column_step(n)
        for start in range(0, shares.shape[1] if n > 1 else 0, step):
            c = slice(start, start + step)
            without = (mean[t, c] * n - shares[rows, c]) / (n - 1)
            lift = np.log((without + h[t, c]) / (base[c] + (without - mean[t, c]) / present + h[t, c]))
            out[t, c], cubes[t, c] = _jackknife(lift)
    return out, cubes


def _jackknife(left_out: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Variance and third central moment of an estimate from its values with each group left out, shape (n_groups, ...)."""
    n = len(left_out)
    influence = (left_out.mean(0) - left_out) * (n - 1)
    return (influence**2).sum(0) / (n * (n - 1)), (influence**3).sum(0) / n**3


class LogRatio(NamedTuple):
    """Ratio of two means over groups, each ndarray of shape (n_columns,); the interval is NaN for fewer than two groups."""

    log2: np.ndarray
    ci_low: np.ndarray
    ci_high: np.ndarray


def log2_ratio(above: np.ndarray, below: np.ndarray, *, half: np.ndarray | float, confidence: float = 0.95) -> LogRatio:
    """Compute the ratio of two shares of the same groups, both with half a selection added, and its interval.

    Standard error from the jackknife over groups, of the logarithm itself, and at least that of the counts (`log2_lift`
    says why); Student's t.

    Parameters
    ----------
    above, below : ndarray, shape (n_groups, n_columns)
        Shares of each group, observed and what they are compared with.
    half : float or ndarray, shape (n_columns,)
        Share that half a selection is, above 0.
    confidence : float, default 0.95

    Returns
    -------
    LogRatio
    """
    from scipy.stats import t as student

    n = len(above)
    if not n:
        return LogRatio(*np.full((3, above.shape[1]), np.nan))
    a, b = above.mean(0), below.mean(0)
    logs = np.log2((a + half) / (np.maximum(b, 0) + half))
    if n < 2:
        return LogRatio(logs, np.full_like(logs, np.nan), np.full_like(logs, np.nan))
    left = [np.maximum((mean * n - values) / (n - 1), 0) + half for mean, values in ((a, above), (b, below))]
    counted = 2 * half * np.maximum(1 - a, 0) / (a + half)  # variance of a share of 1 / (2 half) selections, over its square
    variance, cubes = _jackknife(np.log(left[0] / left[1]))
    variance = np.maximum(variance, counted)
    with np.errstate(divide="ignore", invalid="ignore"):
        down, up = stretched(np.asarray(student.ppf(0.5 + confidence / 2, n - 1)), cubes / variance**1.5)
    error = np.sqrt(variance) / np.log(2)
    return LogRatio(logs, logs - down * error, logs + up * error)
