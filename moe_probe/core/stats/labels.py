"""Permuted topic labels, and the sums of usage per topic under each: one sparse product a block."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from scipy import sparse

from moe_probe.core.errors import MoeProbeError
from moe_probe.core.stats.shares import Shares

#: Columns multiplied at a time: a block of this width stays in the second-level cache.
COLUMN_BLOCK = 64


#: Groups up to which sums over permuted labels are one product; of more, in blocks that stay in the second-level cache.
MOST_GROUPS_AT_ONCE, _GROUP_BLOCK = 1 << 14, 1 << 11
#: Values that are worked on at a time, where a whole table of columns would be copied: 32 MB in float64.
_AT_ONCE = 1 << 22


def column_step(n_groups: int, most: int = 512) -> int:
    """Choose how many columns to work on at a time, so that temporary arrays of all groups stay small.

    Parameters
    ----------
    n_groups : int
    most : int

    Returns
    -------
    int
        From 1 to `most`.
    """
    return int(np.clip(_AT_ONCE // max(n_groups, 1), 1, most))


class LabelPermuter:
    """Draws permutations of topic labels over groups, as one-hot label matrices.

    A row of a label matrix belongs to one (permutation, topic) and has ones at the groups that
    carry the topic. Kept sparse, because every group carries one topic: the product with usage
    then costs G additions a column and permutation, and not T x G.

    Parameters
    ----------
    topic : ndarray of int, shape (n_groups,)
    n_topics : int
    strata : ndarray of int, shape (n_groups,), optional
        Labels are exchanged within a stratum only.
    seed : int
        The same seed gives the same permutations, however they are cut into blocks.

    Raises
    ------
    MoeProbeError
        When no two groups with different topics may be exchanged.
    """

    def __init__(self, topic: np.ndarray, *, n_topics: int, strata: np.ndarray | None = None, seed: int = 0) -> None:
        self._rng = np.random.default_rng(seed)
        self.n_topics, self.n_groups, self.strata = n_topics, len(topic), strata
        self.sizes = np.bincount(topic, minlength=n_topics)
        self._order = np.argsort(topic, kind="stable")  # slot -> group; slots are sorted by topic
        self._starts = np.concatenate([[0], np.cumsum(self.sizes)])
        in_slots = np.zeros(len(topic), dtype=np.int64) if strata is None else strata[self._order]
        self._slots = [np.flatnonzero(in_slots == s) for s in np.unique(in_slots)]
        if all(len(np.unique(topic[self._order[slots]])) < 2 for slots in self._slots):
            raise MoeProbeError(
                "no labels can be exchanged",
                "every stratum holds a single topic" if strata is not None else "all groups have the same topic",
                "use a corpus of several topics, and strata that cut across them",
            )

    @property
    def testable(self) -> np.ndarray:
        """Whether a topic has two groups inside and two outside, shape (n_topics,)."""
        return np.asarray((self.sizes > 1) & (self.n_groups - self.sizes > 1))

    def observed(self) -> sparse.csr_array:
        """Label matrix of the labels as they are, shape (n_topics, n_groups)."""
        return self._matrix(self._order[None])

    def draw(self, n: int) -> sparse.csr_array | BlockedLabels:
        """Label matrix of `n` permutations, shape (n * n_topics, n_groups), to be multiplied by a dense one from the right."""
        orders = self.draw_orders(n)
        if self.n_groups <= MOST_GROUPS_AT_ONCE:
            return self._matrix(orders)
        topic = np.empty(orders.shape, dtype=np.min_scalar_type(self.n_topics))  # short integers are sorted fastest
        np.put_along_axis(topic, orders, np.repeat(np.arange(self.n_topics, dtype=topic.dtype), self.sizes)[None], axis=1)
        return BlockedLabels(topic, self.n_topics)

    def draw_orders(self, n: int) -> np.ndarray:
        """Draw groups in the order of the topics that they are given, `n` times, shape (n, n_groups); see `slots_of`."""
        indices = np.empty((n, self.n_groups), dtype=np.int32)
        for row in indices:
            for slots in self._slots:
                row[slots] = self._rng.permutation(self._order[slots])
        return indices

    def slots_of(self, topic: int) -> slice:
        """Columns of `draw_orders` that hold a topic's groups."""
        return slice(int(self._starts[topic]), int(self._starts[topic + 1]))

    def _matrix(self, indices: np.ndarray) -> sparse.csr_array:
        n = len(indices)
        starts = (self._starts[:-1] + self.n_groups * np.arange(n)[:, None]).ravel()
        indptr = np.append(starts, n * self.n_groups).astype(np.int64 if indices.size > 2**31 - 1 else np.int32)
        ones = np.ones(indices.size, dtype=np.float32)
        return sparse.csr_array(
            (ones, indices.ravel().astype(indptr.dtype), indptr), shape=(n * self.n_topics, self.n_groups)
        )


class BlockedLabels:
    """A label matrix cut into blocks of groups, since rows picked at random from a larger table come from slow memory.

    Sums over groups are added up block by block: in float32 their last digits differ from those of one product.

    Parameters
    ----------
    topic : ndarray of unsigned int, shape (n_permutations, n_groups)
        Topic that every permutation gives to a group.
    n_topics : int
    """

    def __init__(self, topic: np.ndarray, n_topics: int) -> None:
        n, rows = len(topic), len(topic) * n_topics
        self._blocks: list[sparse.csr_array] = []
        for start in range(0, topic.shape[1], _GROUP_BLOCK):
            part = topic[:, start : start + _GROUP_BLOCK]
            order = np.argsort(part, axis=1, kind="stable").astype(np.int32)
            counts = np.bincount((np.arange(n)[:, None] * n_topics + part).ravel(), minlength=rows)
            indptr = np.concatenate([[0], np.cumsum(counts)]).astype(np.int32)
            ones = np.ones(order.size, dtype=np.float32)
            self._blocks.append(sparse.csr_array((ones, order.ravel(), indptr), shape=(rows, part.shape[1])))

    def toarray(self) -> np.ndarray:
        """Return the matrix as a dense one."""
        return np.concatenate([block.toarray() for block in self._blocks], axis=1)

    def __matmul__(self, values: np.ndarray) -> np.ndarray:
        """Sum values (n_groups, n_columns) over the groups of every permutation and topic."""
        out = np.zeros((self._blocks[0].shape[0], values.shape[1]), dtype=values.dtype)
        for index, block in enumerate(self._blocks):
            out += block @ values[index * _GROUP_BLOCK : (index + 1) * _GROUP_BLOCK]
        return out


def centre_and_scale(
    shares: Shares, strata: np.ndarray | None = None, *, columns: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Centre every column (within strata) and scale it to unit mean square, as float32.

    Centring first keeps float32 sums accurate; centring within strata gives the difference of
    means the expectation 0 under restricted permutation.

    Parameters
    ----------
    shares : ndarray or ShareTable, shape (n_groups, n_columns)
    strata : ndarray of int, shape (n_groups,), optional
    columns : ndarray of int, optional
        Columns to take; all of them when left out.

    Returns
    -------
    scaled : ndarray of float32, shape (n_groups, n_columns)
    varies : ndarray of bool, shape (n_columns,)
        False for constant columns (a dead expert, say), which are 0 in `scaled`.
    """
    n_groups, n_columns = len(shares), shares.shape[1] if columns is None else len(columns)
    scaled = np.empty((n_groups, n_columns), dtype=np.float32)
    varies = np.empty(n_columns, dtype=bool)
    step = column_step(n_groups)
    for start in range(0, n_columns, step):
        part = slice(start, start + step)
        block = shares[:, part if columns is None else columns[part]].astype(np.float64)
        level = np.abs(block).max(0)
        if strata is None:
            block -= block.mean(0)
        else:
            for stratum in np.unique(strata):
                block[strata == stratum] -= block[strata == stratum].mean(0)
        spread = np.sqrt((block**2).mean(0))
        varies[part] = spread > 1e-9 * np.maximum(level, 1e-300)
        scaled[:, part] = np.where(varies[part], block / np.where(varies[part], spread, 1.0), 0.0)
    return scaled, varies


def n_threads(most: int = 8) -> int:
    """Threads worth starting: the cores this process may use, at most `most`."""
    affinity = getattr(os, "sched_getaffinity", None)
    return min(most, len(affinity(0)) if affinity else os.cpu_count() or 1)


def for_each_column_block(n_columns: int, work: Callable[[slice], None], *, pool: ThreadPoolExecutor) -> None:
    """Run `work` on every block of columns, in the threads of a pool (sparse products release the lock).

    Parameters
    ----------
    n_columns : int
    work : callable
        Takes a slice of columns.
    pool : ThreadPoolExecutor
    """
    blocks = [slice(start, min(start + COLUMN_BLOCK, n_columns)) for start in range(0, n_columns, COLUMN_BLOCK)]
    for _ in pool.map(work, blocks):
        pass


def permutation_blocks(n_permutations: int, *, n_tests: int, max_bytes: int = 48 * 2**20) -> Iterator[int]:
    """Cut permutations into blocks whose statistics (float32) fit into some memory.

    Parameters
    ----------
    n_permutations, n_tests : int
    max_bytes : int

    Yields
    ------
    int
        Size of a block.
    """
    step = int(np.clip(max_bytes // max(4 * n_tests, 1), 1, 64))
    for start in range(0, n_permutations, step):
        yield min(step, n_permutations - start)
