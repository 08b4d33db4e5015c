"""The permutation test behind every claim: topic against rest, all experts and topics at once.

Statistic, null and multiplicity follow one protocol: Welch's t of a column's group means, topic
against rest; topic labels permuted over groups; Westfall-Young over all tests; p-values whose far
tail is borrowed from the topic's other tests. Nothing of size permutations x columns x topics is ever held.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from moe_probe.core.progress import track
from moe_probe.core.stats.labels import (
    LabelPermuter,
    centre_and_scale,
    column_step,
    for_each_column_block,
    n_threads,
    permutation_blocks,
)
from moe_probe.core.stats.multiplicity import StepDownMax, permutation_p
from moe_probe.core.stats.shares import Shares, ShareTable, column_blocks
from moe_probe.core.stats.tail import PooledTail
from moe_probe.core.stats.welch import welch_t

#: Relative slack within which a float32 permuted statistic counts as large as the observed one.
TIE_TOLERANCE = 1e-5
#: Values of chosen columns that are picked at a time: 4 MB.
_PICKED = 2**20


@dataclass(frozen=True)
class PermutationTest:
    """Outcome of `permutation_test`. Arrays are [topic, column] unless said otherwise.

    Attributes
    ----------
    t : ndarray of float64
        Welch's t of group means, topic against rest; NaN where not testable (a topic with fewer
        than two groups, a column that is constant).
    p_value : ndarray of float64
        ``(1 + #) / (1 + B)`` where at least `TAIL_SIZE` permutations reached the observed value;
        beyond, the tail spliced from the topic's pooled null (`PooledTail`).
    p_count : ndarray of float64
        ``(1 + #) / (1 + B)`` from the test's own permutations alone.
    p_familywise : ndarray of float64
        Step-down Westfall-Young over all tests.
    p_single_step : ndarray of float64
        Each against the largest statistic of all tests.
    maxima : ndarray of float64, shape (n_permutations,)
        Largest statistic of all tests in every permutation.
    topic_maxima : ndarray of float32, shape (n_permutations, n_topics)
        Largest statistic of a topic's tests in every permutation.
    layer_p : ndarray of float64, shape (n_layers,)
        Omnibus p of every layer, adjusted over layers (see `_LayerOmnibus`).
    model_p : float
        Omnibus p of the model: the smallest of `layer_p`.
    """

    t: np.ndarray
    p_value: np.ndarray
    p_count: np.ndarray
    p_familywise: np.ndarray
    p_single_step: np.ndarray
    maxima: np.ndarray
    topic_maxima: np.ndarray
    layer_p: np.ndarray
    model_p: float

    def critical_values(self, alpha: float) -> np.ndarray:
        """Statistic that a topic's test must reach to be significant among that topic's tests, shape (n_topics,)."""
        return np.asarray(np.quantile(self.topic_maxima, 1 - alpha, axis=0, method="higher"))


class _Columns:
    """Columns ready for tests under permuted labels: centred and scaled, all of an array or the block that is needed."""

    def __init__(self, shares: Shares, permuter: LabelPermuter) -> None:
        self.permuter, self.n_groups, self.n_columns = permuter, *shares.shape
        self._shares = shares if isinstance(shares, ShareTable) else None
        self._values: np.ndarray | None = None
        if self._shares is None:
            self._values, varies = centre_and_scale(np.asarray(shares), permuter.strata)
        else:
            blocks = column_blocks(shares)
            varies = np.concatenate([centre_and_scale(shares[:, c], permuter.strata)[1] for c in blocks])
        self.testable = varies & permuter.testable[:, None]

    def values(self, columns: slice) -> np.ndarray:
        """Return some columns, float32, shape (n_groups, n)."""
        if self._shares is None:
            assert self._values is not None
            return self._values[:, columns]
        return centre_and_scale(self._shares[:, columns], self.permuter.strata)[0]

    def observed(self) -> np.ndarray:
        """Compute Welch's t of the labels as they are, summed in float64, shape (n_topics, n_columns)."""
        one_hot = self.permuter.observed().astype(np.float64)
        t = np.empty((self.permuter.n_topics, self.n_columns))
        step = column_step(self.n_groups)
        for start in range(0, t.shape[1], step):
            block = self.values(slice(start, start + step)).astype(np.float64)
            sums, squares = one_hot @ block, one_hot @ block**2
            t[:, start : start + step] = welch_t(sums, squares, self.permuter.sizes, total=self.n_groups)
        return t

    def permuted(self, n: int, pool: ThreadPoolExecutor, signs: np.ndarray | None = None) -> np.ndarray:
        """Compute statistics of `n` permutations, float32 [permutation, topic, column]; 0 where not testable."""
        labels, n_topics = self.permuter.draw(n), self.permuter.n_topics
        n_groups, n_columns = self.n_groups, self.n_columns
        statistics = np.empty((n, n_topics, n_columns), dtype=np.float32)

        def work(columns: slice) -> None:
            width = columns.stop - columns.start
            both = np.empty((n_groups, 2 * width), dtype=np.float32)
            both[:, :width] = self.values(columns)
            np.square(both[:, :width], out=both[:, width:])
            sums = (labels @ both).reshape(n, n_topics, 2 * width)
            t = welch_t(sums[..., :width], sums[..., width:], self.permuter.sizes, total=n_groups)
            statistics[:, :, columns] = np.abs(t, out=t) if signs is None else t * signs[:, columns]

        for_each_column_block(n_columns, work, pool=pool)
        return statistics


def _threads_for(shares: Shares) -> int:
    """Threads that test blocks of columns: each divides a block of a table for itself, 150 MB for 100,000 groups."""
    return n_threads(4) if isinstance(shares, ShareTable) else n_threads()


class _LayerOmnibus:
    """Does anything in a layer depend on the topic? Two statistics, each adjusted over layers.

    The largest statistic of a layer sees one strong expert; the sum of squares sees many weak
    ones. Each is stepped down over layers (Westfall-Young), the sums after standardising by their
    mean and deviation over the permutations and the observation, which treats all alike. The
    smaller of the two adjusted p, doubled (Bonferroni), is the layer's.
    """

    def __init__(self, layer_index: np.ndarray) -> None:
        self._starts = np.flatnonzero(np.diff(layer_index, prepend=-1))
        self._maxima: list[np.ndarray] = []
        self._sums: list[np.ndarray] = []

    def add(self, statistics: np.ndarray) -> None:
        """Add statistics [permutation, topic, column]; those of the observation come first."""
        self._maxima.append(np.maximum.reduceat(statistics.max(1), self._starts, axis=1).astype(np.float64))
        squares = np.einsum("btc,btc->bc", statistics, statistics)
        self._sums.append(np.add.reduceat(squares.astype(np.float64), self._starts, axis=1))

    def p_values(self) -> np.ndarray:
        """Compute adjusted p-values, shape (n_layers,)."""
        maxima, sums = np.concatenate(self._maxima), np.concatenate(self._sums)
        spread = sums.std(0)
        sums = (sums - sums.mean(0)) / np.where(spread > 0, spread, 1.0)
        adjusted = []
        for values in (maxima, sums):
            step_down = StepDownMax(values[0], tolerance=TIE_TOLERANCE)
            step_down.add(values[1:])
            adjusted.append(step_down.p_values())
        return np.asarray(np.minimum(1.0, 2 * np.minimum(*adjusted)))


def permutation_test(  # noqa: PLR0913 options are keyword-only with defaults
    shares: Shares,
    topic: np.ndarray,
    *,
    n_topics: int,
    layer_index: np.ndarray | None = None,
    permutations: int = 1000,
    seed: int = 0,
    strata: np.ndarray | None = None,
    sign: np.ndarray | None = None,
) -> PermutationTest:
    """Test every (column, topic) for a difference of group means, topic against rest.

    Parameters
    ----------
    shares : ndarray of float or ShareTable, shape (n_groups, n_columns)
        One row a group, e.g. ``GroupUsage.shares``.
    topic : ndarray of int, shape (n_groups,)
        Index of the group's topic.
    n_topics : int
    layer_index : ndarray of int, shape (n_columns,), optional
        Ordinal of the column's layer, never decreasing, for the omnibus tests. All columns are one layer when omitted.
    permutations : int, default 1000
    seed : int, default 0
    strata : ndarray of int, shape (n_groups,), optional
        Labels are permuted within strata; columns are centred within them.
    sign : ndarray of -1 or 1, shape (n_topics, n_columns), optional
        One-sided tests in the given directions (statistic ``sign * t``); |t| when omitted.

    Returns
    -------
    PermutationTest

    Raises
    ------
    MoeProbeError
        When no labels can be exchanged.
    """
    layer_index = np.zeros(shares.shape[1], dtype=np.int64) if layer_index is None else layer_index
    permuter = LabelPermuter(topic, n_topics=n_topics, strata=strata, seed=seed)
    columns = _Columns(shares, permuter)
    t = columns.observed()
    signs = None if sign is None else sign.astype(np.float32)
    observed = np.where(columns.testable, np.abs(t) if sign is None else sign * t, np.nan)
    tail = PooledTail(observed, permutations=permutations, tolerance=TIE_TOLERANCE)
    family = StepDownMax(observed.ravel(), tolerance=TIE_TOLERANCE)
    omnibus, topic_maxima = _LayerOmnibus(layer_index), []
    omnibus.add(np.nan_to_num(observed)[None].astype(np.float32))
    with ThreadPoolExecutor(_threads_for(shares)) as pool:
        for size in track(list(permutation_blocks(permutations, n_tests=t.size)), "permute", unit="blocks of permutations"):
            statistics = columns.permuted(size, pool, signs)
            aside = pool.submit(family.add, statistics.reshape(size, -1)), pool.submit(omnibus.add, statistics)
            tail.add(statistics)
            for added in aside:
                added.result()
            topic_maxima.append(statistics.max(2))
    layer_p = omnibus.p_values()
    return PermutationTest(
        t=np.where(np.isnan(observed), np.nan, t),
        p_value=tail.p_values(),
        p_count=permutation_p(tail.exceed, permutations) + np.where(np.isnan(observed), np.nan, 0.0),
        p_familywise=family.p_values().reshape(t.shape),
        p_single_step=family.p_values_single_step().reshape(t.shape),
        maxima=family.maxima,
        topic_maxima=np.concatenate(topic_maxima),
        layer_p=layer_p,
        model_p=float(layer_p.min()),
    )


def permutation_p_values(  # noqa: PLR0913 options as `permutation_test`
    shares: Shares,
    topic: np.ndarray,
    *,
    n_topics: int,
    permutations: int = 1000,
    seed: int = 0,
    strata: np.ndarray | None = None,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Give the t and p-values of `permutation_test` alone, at about half its cost: for many columns.

    Parameters
    ----------
    shares, topic, n_topics, permutations, seed, strata
        As `permutation_test` takes them.

    Returns
    -------
    t, p_value, p_familywise : ndarray, shape (n_topics, n_columns)
        The last against the largest statistic of all tests, in a single step.
    """
    permuter = LabelPermuter(topic, n_topics=n_topics, strata=strata, seed=seed)
    columns = _Columns(shares, permuter)
    t = columns.observed()
    observed = np.where(columns.testable, np.abs(t), np.nan)
    tail = PooledTail(observed, permutations=permutations, tolerance=TIE_TOLERANCE)
    with ThreadPoolExecutor(_threads_for(shares)) as pool, ThreadPoolExecutor(1) as aside:
        added, maxima = None, []
        for size in track(list(permutation_blocks(permutations, n_tests=t.size)), "permute", unit="blocks of permutations"):
            statistics = columns.permuted(size, pool)
            maxima.append(statistics.reshape(size, -1).max(1))
            if added is not None:
                added.result()  # one block is counted while the next is computed
            added = aside.submit(tail.add, statistics)
        if added is not None:
            added.result()
    largest = np.sort(np.concatenate(maxima))
    slack = TIE_TOLERANCE * np.maximum(1.0, np.abs(observed))
    p_familywise = permutation_p(permutations - np.searchsorted(largest, np.nan_to_num(observed - slack)), permutations)
    tested = np.isfinite(observed)
    return np.where(tested, t, np.nan), tail.p_values(), np.where(tested, p_familywise, np.nan)


def chosen_p_values(  # noqa: PLR0913 options as `permutation_test`
    shares: Shares,
    topic: np.ndarray,
    chosen: Sequence[tuple[int, np.ndarray, np.ndarray]],
    *,
    n_topics: int,
    permutations: int = 1000,
    seed: int = 0,
    strata: np.ndarray | None = None,
) -> list[np.ndarray]:
    """One-sided p-values of a few columns for one topic each, as `permutation_test` has them with ``sign``.

    Only what is asked for is computed: sums over a topic's groups in every permutation, of its own columns. The tail is
    pooled over the columns of one entry.

    Parameters
    ----------
    shares, topic, n_topics, permutations, seed, strata
        As `permutation_test`.
    chosen : sequence of (topic, columns, signs)
        Columns to test for a topic, and 1 or -1 for each: whether more or less usage counts.

    Returns
    -------
    list of ndarray of float64, shape (n_columns of the entry,)
        NaN where not testable.

    Raises
    ------
    MoeProbeError
        When no labels can be exchanged.
    """
    permuter = LabelPermuter(topic, n_topics=n_topics, strata=strata, seed=seed)
    sizes = permuter.sizes
    columns = np.unique(np.concatenate([c for _, c, _ in chosen]))
    scaled, varies = centre_and_scale(shares, strata, columns=columns)
    orders = permuter.draw_orders(permutations)
    out = []
    for number, wanted, signs in chosen:
        place = np.searchsorted(columns, wanted)
        block = scaled[:, place]
        n = np.array([sizes[number]])

        def statistic(
            rows: np.ndarray, block: np.ndarray = block, n: np.ndarray = n, signs: np.ndarray = signs
        ) -> np.ndarray:
            picked = block[rows]  # permutation, group, column
            t = welch_t(picked.sum(1)[:, None], np.square(picked).sum(1)[:, None], n, total=len(scaled))
            return np.asarray(t * signs, dtype=np.float32)

        own = np.flatnonzero(topic == number)
        observed = statistic(own[None])[0].astype(np.float64)
        observed = np.where(varies[place] & permuter.testable[number], observed, np.nan)
        tail = PooledTail(observed, permutations=permutations, tolerance=TIE_TOLERANCE)
        given = orders[:, permuter.slots_of(number)]
        step = max(200, _PICKED // max(1, int(sizes[number]) * len(wanted)))
        for start in track(range(0, permutations, step), "permute", unit="blocks of permutations"):
            tail.add(statistic(given[start : start + step]))
        out.append(tail.p_values()[0])
    return out
