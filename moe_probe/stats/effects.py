"""How large: share, lift and its interval, and how well an expert's usage tells the topic."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

_BLOCK = 512  # columns worked on at a time


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


def topic_moments(shares: np.ndarray, topic: np.ndarray, *, n_topics: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Mean and squared standard error of the mean over groups, per topic.

    Returns
    -------
    mean, squared_error : ndarray, shape (n_topics, n_columns)
        NaN where a topic has no group, and no two groups, respectively.
    sizes : ndarray of int, shape (n_topics,)
    """
    sizes = np.bincount(topic, minlength=n_topics)
    mean = np.full((n_topics, shares.shape[1]), np.nan)
    squared_error = np.full_like(mean, np.nan)
    for t in range(n_topics):
        rows = shares[topic == t]
        if len(rows):
            mean[t] = rows.mean(0)
        if len(rows) > 1:
            squared_error[t] = rows.var(0, ddof=1) / len(rows)
    return mean, squared_error, sizes


def half_selection(selections: np.ndarray, topic: np.ndarray, *, n_topics: int) -> np.ndarray:
    """Share that half a selection is of a topic's selections, shape (n_topics, n_layers).

    Added to share and base before the logarithm, so that an expert that a topic never chose has a
    finite lift, and one that nobody chose would have lift 1.
    """
    total = np.zeros((n_topics, selections.shape[1]))
    np.add.at(total, topic, selections)
    return np.asarray(0.5 / np.maximum(total, 1.0))


def log2_lift(
    shares: np.ndarray, topic: np.ndarray, *, n_topics: int, pseudo: np.ndarray | float = 0.0, confidence: float = 0.95
) -> Lift:
    """Lift of every (topic, column) over the macro-averaged base, with a delta-method interval.

    ``log2((share + h) / (base + h))``, base the mean over topics (with groups) of their means. The
    topic is itself one part of T in the base; the variance accounts for that: with a = 1/(share+h),
    b = 1/(base+h) and v the squared standard error of a topic's mean,

        var(ln lift) = v_t (a - b/T)^2 + (b/T)^2 * sum of v over the other topics.

    The interval uses Student's t at Satterthwaite's degrees of freedom (DOI 10.2307/3002019).
    docs/statistics.md gives its measured coverage, beside that of the bootstrap.

    Parameters
    ----------
    shares : ndarray, shape (n_groups, n_columns)
    topic : ndarray of int, shape (n_groups,)
    n_topics : int
    pseudo : ndarray broadcasting to (n_topics, n_columns), default 0
        h, in the unit of shares; see `half_selection`.
    confidence : float, default 0.95
    """
    from scipy.stats import t as student

    mean, v, sizes = topic_moments(shares, topic, n_topics=n_topics)
    present = (sizes > 0).sum()
    base = np.nanmean(mean, axis=0) if present else np.full(shares.shape[1], np.nan)
    h = np.broadcast_to(pseudo, mean.shape)
    live = base > 0
    with np.errstate(divide="ignore", invalid="ignore"):
        lift = np.where(live, mean / base, np.nan)
        logs = np.where(live, np.log2((mean + h) / (base + h)), np.nan)
        # squared weights with which each topic's error enters the topic's own logarithm
        b = 1 / ((base + h) * present)
        own = v * (1 / (mean + h) - b) ** 2
        known = np.nan_to_num(v)
        others = known.sum(0) - known
        variance = own + b**2 * others
        freedom = (np.maximum(sizes, 2) - 1)[:, None]
        fourth = own**2 / freedom + b**4 * ((known**2 / freedom).sum(0) - known**2 / freedom)
        # a topic without spread would divide 0 by 0: any freedom gives the same empty interval
        df = np.clip(np.nan_to_num(variance**2 / fourth, nan=1.0), 1.0, 1e6)
        se = np.where(live, np.sqrt(variance), np.nan) / np.log(2)
    margin = student.ppf(0.5 + confidence / 2, df) * se
    return Lift(mean, base, lift, logs, se, logs - margin, logs + margin)


def bootstrap_log2_lift(
    shares: np.ndarray, topic: np.ndarray, *, n_topics: int, pseudo: np.ndarray | float = 0.0, confidence: float = 0.95,
    resamples: int = 1000, seed: int = 0,
) -> tuple[np.ndarray, np.ndarray]:
    """BCa bootstrap interval of the log2 lift, resampling groups within topics.

    Efron 1987, DOI 10.1080/01621459.1987.10478410; the acceleration comes from the influence of
    every group on the log2 lift (the infinitesimal jackknife). Holds resamples x topics x 512 values.

    Returns
    -------
    ci_low, ci_high : ndarray, shape (n_topics, n_columns)
        NaN for topics of fewer than two groups and experts nobody used.
    """
    rng = np.random.default_rng(seed)
    rows = [np.flatnonzero(topic == t) for t in range(n_topics)]
    weights = [rng.multinomial(len(r), np.full(len(r), 1 / len(r)), size=resamples) / len(r) if len(r) else None
               for r in rows]
    present = sum(len(r) > 0 for r in rows)
    low, high = np.full((2, n_topics, shares.shape[1]), np.nan)
    h = np.broadcast_to(pseudo, low.shape)
    for start in range(0, shares.shape[1], _BLOCK):
        columns = slice(start, start + _BLOCK)
        block = shares[:, columns].astype(np.float64)
        means = np.stack([np.zeros((resamples, block.shape[1])) if w is None else w @ block[r]
                          for w, r in zip(weights, rows, strict=True)], axis=1)
        base = means.sum(1, keepdims=True) / present
        with np.errstate(divide="ignore", invalid="ignore"):
            draws = np.log2((means + h[:, columns]) / (base + h[:, columns]))
        point = log2_lift(block, topic, n_topics=n_topics, pseudo=h[:, columns])
        for t in range(n_topics):
            if len(rows[t]) > 1:
                skew = _acceleration(block, rows, t, point=point, h=h[:, columns], present=present)
                ends = _bca(draws[:, t], point.log2_lift[t], skew, confidence)
                low[t, columns], high[t, columns] = np.where(point.base > 0, ends, np.nan)
    return low, high


def _acceleration(
    block: np.ndarray, rows: list[np.ndarray], t: int, *, point: Lift, h: np.ndarray, present: int
) -> np.ndarray:
    """Skewness of the groups' influences on topic t's log lift, divided by 6 (Efron 1987, eq. 7.4)."""
    b = 1 / ((point.base + h[t]) * present)
    cubes = squares = np.zeros(block.shape[1])
    for other, members in enumerate(rows):
        if not len(members):
            continue
        weight = 1 / (point.share[t] + h[t]) - b if other == t else -b
        influence = (block[members] - point.share[other]) / len(members) * weight
        cubes = cubes + (influence**3).sum(0)
        squares = squares + (influence**2).sum(0)
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.nan_to_num(cubes / (6 * squares**1.5))


def _bca(draws: np.ndarray, point: np.ndarray, skew: np.ndarray, confidence: float) -> tuple[np.ndarray, np.ndarray]:
    """Ends of a BCa interval from draws [resample, column]."""
    from scipy.stats import norm

    n = len(draws)
    below = ((draws < point).sum(0) + 0.5 * (draws == point).sum(0)) / n
    bias = norm.ppf(np.clip(below, 0.5 / n, 1 - 0.5 / n))
    ordered = np.sort(draws, axis=0)
    ends = []
    for tail in (0.5 - confidence / 2, 0.5 + confidence / 2):
        z = bias + norm.ppf(tail)
        level = norm.cdf(bias + z / (1 - skew * z))
        rank = np.clip(np.round(level * (n + 1)).astype(int) - 1, 0, n - 1)
        ends.append(np.take_along_axis(ordered, rank[None], axis=0)[0])
    return ends[0], ends[1]


def auroc(shares: np.ndarray, topic: np.ndarray, *, n_topics: int) -> np.ndarray:
    """Area under the ROC curve of every column for every topic against the rest.

    The probability that a random group of the topic uses the expert more than a random other
    group, ties counting half (Mann and Whitney 1947, DOI 10.1214/aoms/1177730491).

    Parameters
    ----------
    shares : ndarray, shape (n_groups, n_columns)
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
    for start in range(0, shares.shape[1], _BLOCK):
        columns = slice(start, start + _BLOCK)
        ranks = one_hot @ rankdata(shares[:, columns], axis=0)
        with np.errstate(divide="ignore", invalid="ignore"):
            area[:, columns] = (ranks - sizes * (sizes + 1) / 2) / (sizes * rest)
    return np.where((sizes > 0) & (rest > 0), area, np.nan)
