"""Area under the ROC curve (AUROC): of dense scores, of weighted histograms, of sparse scores; and its intervals.

It is the probability that a random positive has a higher score than a random negative, ties counting half (Mann and
Whitney 1947, DOI 10.1214/aoms/1177730491).
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from moe_probe.core.stats.bootstrap import NOTHING, Interval, skewness, spread, stretched
from moe_probe.core.stats.labels import column_step
from moe_probe.core.stats.shares import Shares

#: Where the formulas of the intervals come from; results that have such intervals cite these.
AUROC = (
    "Newcombe 2006, interval of the Mann-Whitney statistic, DOI 10.1002/sim.2324",
    "Zou and Donner 2008, interval of a difference from two intervals (MOVER), DOI 10.1002/sim.3095",
)


def auroc(shares: Shares, topic: np.ndarray, *, n_topics: int) -> np.ndarray:
    """Compute the AUROC of every column for every topic against the rest.

    The probability that a random group of the topic uses the expert more than a random other
    group, ties counting half (Mann and Whitney 1947, DOI 10.1214/aoms/1177730491).

    Parameters
    ----------
    shares : ndarray or ShareTable, shape (n_groups, n_columns)
    topic : ndarray of int, shape (n_groups,)
        -1 for a group of none of these topics: it belongs to the rest of every topic.
    n_topics : int

    Returns
    -------
    ndarray, shape (n_topics, n_columns)
        NaN for topics without groups inside or outside.
    """
    from scipy.stats import rankdata

    sizes = np.bincount(topic[topic >= 0], minlength=n_topics).astype(np.float64)[:, None]
    rest = len(topic) - sizes
    area = np.empty((n_topics, shares.shape[1]))
    one_hot = (topic[None] == np.arange(n_topics)[:, None]).astype(np.float64)
    step = column_step(len(shares))
    for start in range(0, shares.shape[1], step):
        columns = slice(start, start + step)
        ranks = one_hot @ rankdata(shares[:, columns], axis=0)
        with np.errstate(divide="ignore", invalid="ignore"):
            area[:, columns] = (ranks - sizes * (sizes + 1) / 2) / (sizes * rest)
    return np.where((sizes > 0) & (rest > 0), area, np.nan)


def weighted_auroc(positive: np.ndarray, negative: np.ndarray) -> np.ndarray:
    """Compute the AUROC from histograms of scores.

    Parameters
    ----------
    positive, negative : ndarray, shape (n_draws, n_bins)
        Weights of positives and negatives by bin, bins in increasing order of the score; ties within a bin count half.

    Returns
    -------
    ndarray, shape (n_draws,)
        NaN for a draw without positives or negatives.
    """
    below = np.cumsum(negative, axis=1) - 0.5 * negative
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.asarray((positive * below).sum(1) / (positive.sum(1) * negative.sum(1)))


def sparse_auroc(hit: np.ndarray, value: np.ndarray, chosen: float, n: float) -> float:
    """Compute the AUROC of scores of which most are zero, from the others alone; all zeros are tied.

    Parameters
    ----------
    hit : ndarray of bool, shape (n_active,)
        Whether a unit with a score above zero is a positive.
    value : ndarray, shape (n_active,)
        Scores of these units.
    chosen, n : float
        Positives and units in all, zeros included.

    Returns
    -------
    float
        As `auroc` (Mann and Whitney 1947, DOI 10.1214/aoms/1177730491).
    """
    from scipy.stats import rankdata

    positive, negative = float(hit.sum()), float((~hit).sum())
    silent = n - chosen - negative
    above = rankdata(value)[hit].sum() - positive * (positive + 1) / 2 if positive else 0.0
    wins = above + positive * silent + 0.5 * (chosen - positive) * silent
    return float(wins / (chosen * (n - chosen)))


def auroc_interval(
    area: float, positives: int, negatives: int, *, draws: np.ndarray | None = None, confidence: float = 0.95
) -> Interval:
    """Compute an interval of an AUROC that does not collapse at 1.

    All values x are inside that lie within z standard errors of the area, the error being that of x and not of the area
    seen (Newcombe 2006, method 5, DOI 10.1002/sim.2324; Hanley and McNeil 1982, DOI 10.1148/radiology.143.1.7063747):

        V(x) = x (1 - x) / (m n) * (1 + N ((1 - x) / (2 - x) + x / (1 + x))),  N = (m + n) / 2 - 1.

    The bootstrap breaks down where positives and negatives hardly overlap: an area of 1 has no spread, and 5 documents that
    all lie above 25 others show an AUROC above 0.77, no more.

    Parameters
    ----------
    area : float
    positives, negatives : int
        Numbers of independent units (groups of documents).
    draws : ndarray, shape (1 + n_resamples,), optional
        Of a bootstrap, the estimate first, where the score is not one per group (an AUROC over tokens). V is scaled to
        their variance, and Student's t of the smaller class takes the place of z, `stretched` where they are skewed. Draws
        that do not vary are ignored.
    confidence : float

    Returns
    -------
    Interval
        NaN ends where a class has fewer than two groups.
    """
    from scipy.stats import norm
    from scipy.stats import t as student

    if min(positives, negatives) < 2 or not np.isfinite(area):
        return Interval(np.asarray(area), np.asarray(np.nan), np.asarray(np.nan))
    down = up = np.asarray(norm.ppf(0.5 + confidence / 2))
    scale, own = 1.0, _auroc_variance(area, positives, negatives)
    if draws is not None and own > NOTHING and (error := spread(draws[1:])) > NOTHING:
        scale = float(error) ** 2 / own
        critical = np.asarray(student.ppf(0.5 + confidence / 2, min(positives, negatives) - 1))
        down, up = stretched(critical, skewness(draws[1:], error))

    def outside(x: float) -> bool:
        error = np.sqrt(scale * _auroc_variance(x, positives, negatives))
        return abs(x - area) > float((down if x < area else up) * error)

    return Interval(np.asarray(area), np.asarray(_boundary(outside, 0.0, area)), np.asarray(_boundary(outside, 1.0, area)))


def auroc_difference(one: Interval, other: Interval, correlation: float) -> Interval:
    """Compute the interval of the first area less the second, on the same documents, from the two intervals.

    MOVER: margins of the two are added as if they were standard errors of correlated estimates, each end for itself
    (Newcombe 1998, DOI 10.1002/(SICI)1097-0258(19981130)17:22<2635::AID-SIM954>3.0.CO;2-C; Zou and Donner 2008, DOI
    10.1002/sim.3095).

    Parameters
    ----------
    one, other : Interval
    correlation : float
        Of the two estimates, as their draws have it; 0 where one of them has no spread.

    Returns
    -------
    Interval
    """
    r = correlation if np.isfinite(correlation) else 0.0

    def joined(a: np.ndarray, b: np.ndarray) -> np.ndarray:
        return np.asarray(np.sqrt(np.maximum(a**2 + b**2 - 2 * r * a * b, 0.0)))

    value = one.value - other.value
    return Interval(
        value,
        value - joined(one.value - one.low, other.high - other.value),
        value + joined(one.high - one.value, other.value - other.low),
    )


def _auroc_variance(x: float, m: int, n: int) -> float:
    return x * (1 - x) / (m * n) * (1 + ((m + n) / 2 - 1) * ((1 - x) / (2 - x) + x / (1 + x)))


def _boundary(outside: Callable[[float], bool], far: float, near: float) -> float:
    """Where values between one that is inside (`near`) and an end of the range go over from in to out, by bisection."""
    if not outside(far):
        return far
    for _ in range(50):
        middle = (far + near) / 2
        far, near = (middle, near) if outside(middle) else (far, middle)
    return near
