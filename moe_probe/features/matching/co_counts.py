"""Counts of the tokens on which two units are both active: one of them of a dictionary in memory, the other read in blocks."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, NamedTuple, Protocol

import numpy as np

from moe_probe.core.progress import Bar
from moe_probe.core.stats.labels import n_threads

if TYPE_CHECKING:
    from scipy import sparse

#: Counts that are kept in memory at a time (int32): of more features x units, the tokens are gone through again.
MOST_COUNTS = 1 << 26
#: Tokens of a block whose units stay in the cache of a core, in units; and firings per feature and block that are worth a pass.
_CACHED_UNITS, _WORTH = 1 << 18, 16
#: Firings of pairs that are looked up in one pass (a byte each), and bits that mark active units meanwhile.
MOST_HITS, _MARKS = 1 << 28, 1 << 28
#: Features that are yielded together: what is computed from their counts has several times their size.
_BLOCK = 512


class TokenBlock(NamedTuple):
    """Units that are active on consecutive tokens.

    Attributes
    ----------
    start : int
        Number of the first token.
    indptr : ndarray of int, shape (n_tokens + 1,)
        Where each token's units start in `units`.
    units : ndarray of int32, shape (n_active,)
    """

    start: int
    indptr: np.ndarray
    units: np.ndarray


class ActiveUnits(Protocol):
    """The units that are active on each of some tokens, read block by block, as often as they are asked for.

    Attributes
    ----------
    shape : tuple of int
        Tokens and units.
    """

    @property
    def shape(self) -> tuple[int, int]:
        """Tokens and units."""

    def blocks(self) -> Iterator[TokenBlock]:
        """Go through the tokens in their order."""


class MatrixUnits:
    """The columns of a sparse array as units.

    Parameters
    ----------
    matrix : csr_array, shape (n_tokens, n_units)
        A stored entry is an active unit.
    """

    def __init__(self, matrix: sparse.csr_array) -> None:
        self._matrix = matrix

    @property
    def shape(self) -> tuple[int, int]:
        """Tokens and units."""
        return self._matrix.shape[0], self._matrix.shape[1]

    def blocks(self) -> Iterator[TokenBlock]:
        """Yield the whole array."""
        yield TokenBlock(0, self._matrix.indptr, self._matrix.indices)


def active_units(of: sparse.csr_array | ActiveUnits) -> ActiveUnits:
    """Take a sparse array for the units of its columns; return anything else as it is."""
    from scipy import sparse

    return MatrixUnits(of) if sparse.issparse(of) else of


def unit_counts(units: ActiveUnits) -> np.ndarray:
    """Count the tokens on which each unit is active, shape (n_units,)."""
    counts = np.zeros(units.shape[1], dtype=np.int64)
    for block in units.blocks():
        counts += np.bincount(block.units, minlength=len(counts))
    return counts


def count_blocks(
    units: sparse.csr_array | ActiveUnits, features: sparse.csr_array, *, most_counts: int = MOST_COUNTS
) -> Iterator[tuple[slice, np.ndarray]]:
    """Count the tokens on which a feature and a unit are both active, a block of features at a time.

    Takes as many additions as the sum over tokens of (active units x firing features), on all threads. Memory: the tokens of
    all firings, `most_counts` counts, and one block of the units.

    Parameters
    ----------
    units : csr_array or ActiveUnits, shape (n_tokens, n_units)
        Read once for every `most_counts` counts.
    features : csr_array, shape (n_tokens, n_features)
    most_counts : int
        Counts that are held at a time; decides nothing but memory and time.

    Yields
    ------
    slice
        Features of the block.
    ndarray of int32, shape (block, n_units)
    """
    units = active_units(units)
    n_features, n_units = features.shape[1], units.shape[1]
    indptr, tokens = tokens_by_feature(features)
    per_pass = max(1, min(n_features, most_counts // max(n_units, 1)))
    counts = np.empty((per_pass, n_units), dtype=np.int32)
    n_passes = -(-n_features // per_pass)
    with ThreadPoolExecutor(n_threads()) as pool, Bar("count", total=units.shape[0] * n_passes, unit="tokens") as bar:
        for first in range(0, n_features, per_pass):
            part = slice(first, min(first + per_pass, n_features))
            both = counts[: part.stop - first]
            both[:] = 0
            _count(units, (indptr[part.start : part.stop + 1], tokens), both, pool, bar)
            for start in range(0, len(both), _BLOCK):
                piece = both[start : start + _BLOCK]
                yield slice(first + start, first + start + len(piece)), piece


def tokens_by_feature(features: sparse.csr_array) -> tuple[np.ndarray, np.ndarray]:
    """List the tokens that each feature fires on.

    Parameters
    ----------
    features : csr_array, shape (n_tokens, n_features)

    Returns
    -------
    indptr : ndarray of int64, shape (n_features + 1,)
        Where each feature's tokens start.
    tokens : ndarray of int32, shape (n_firings,)
        Increasing within a feature.
    """
    from scipy import sparse

    # bytes stand in for activations: the conversion copies them too
    ones = sparse.csr_array(
        (np.broadcast_to(np.int8(1), features.nnz), features.indices, features.indptr), shape=features.shape
    )
    columns = ones.tocsc()
    return columns.indptr.astype(np.int64), columns.indices


def _count(
    units: ActiveUnits, firings: tuple[np.ndarray, np.ndarray], out: np.ndarray, pool: ThreadPoolExecutor, bar: Bar
) -> None:
    """Count one part of the features in one pass over the tokens."""
    from moe_probe.features.matching.kernels import count_together

    indptr, tokens = firings
    cursor, ends = indptr[:-1].copy(), indptr[1:]
    n_firings = max(int(indptr[-1] - indptr[0]), 1)
    # threads share the firings, not the features, evenly
    cuts = np.searchsorted(indptr, indptr[0] + n_firings * np.arange(1, n_threads()) // n_threads())
    parts = [slice(a, b) for a, b in zip([0, *cuts], [*cuts, len(ends)], strict=True) if a < b]
    fewest = _WORTH * len(ends) * units.shape[0] // n_firings
    for block in units.blocks():
        n_tokens = len(block.indptr) - 1
        step = max(_CACHED_UNITS * n_tokens // max(len(block.units), 1), fewest, 1)
        for first in range(0, n_tokens, step):
            stop = min(first + step, n_tokens)
            piece = block.start + first, block.start + stop, block.indptr[first : stop + 1], block.units

            def count(part: slice, piece: tuple[int, int, np.ndarray, np.ndarray] = piece) -> None:
                count_together(tokens, cursor[part], ends[part], piece, out[part])

            for _ in pool.map(count, parts):
                pass
            bar.update(stop - first)


def iter_hits(
    units: ActiveUnits,
    firings: tuple[np.ndarray, np.ndarray],
    pairs: tuple[np.ndarray, np.ndarray],
    *,
    most: int = MOST_HITS,
) -> Iterator[tuple[int, np.ndarray]]:
    """Look up, for pairs of a unit and a feature, whether the unit is active on each token that the feature fires on.

    Parameters
    ----------
    units : ActiveUnits
    firings : tuple of ndarray
        From `tokens_by_feature`.
    pairs : tuple of ndarray of int, shape (n_pairs,) each
        Units and features.
    most : int
        Firings that are looked up in one pass over the tokens; decides nothing but memory and time.

    Yields
    ------
    int
        Number of the pair, 0 to ``n_pairs - 1`` in turn.
    ndarray of bool, shape (firings of its feature,)
    """
    unit, feature = pairs
    indptr, tokens = firings
    size = indptr[feature + 1] - indptr[feature]
    in_total = np.concatenate([[0], np.cumsum(size)])
    first = 0
    with Bar("look pairs up", total=len(unit), unit="pairs") as bar:
        while first < len(unit):
            stop = max(first + 1, int(np.searchsorted(in_total, in_total[first] + most, side="right")) - 1)
            chosen = feature[first:stop]
            starts = in_total[first:stop] - in_total[first]
            hits = np.zeros(int(in_total[stop] - in_total[first]), dtype=bool)
            cursor, ends = indptr[chosen].copy(), indptr[chosen + 1].copy()
            _look_up(units, tokens, (cursor, ends, starts - indptr[chosen]), unit[first:stop], hits)
            for i, start in enumerate(starts):
                yield first + i, hits[start : start + size[first + i]]
                bar.update()
            first = stop


def _look_up(
    units: ActiveUnits,
    tokens: np.ndarray,
    firings: tuple[np.ndarray, np.ndarray, np.ndarray],
    unit: np.ndarray,
    hits: np.ndarray,
) -> None:
    """Look pairs up in one pass over the tokens, as many tokens at a time as there is memory for a bit a unit."""
    from moe_probe.features.matching.kernels import look_up, mark_active

    n_units = units.shape[1]
    step = max(8, _MARKS // max(n_units, 1) // 8 * 8)
    for block in units.blocks():
        n_tokens = len(block.indptr) - 1
        for first in range(0, n_tokens, step):
            stop = min(first + step, n_tokens)
            marks = np.zeros((n_units, -(-(stop - first) // 8)), dtype=np.uint8)
            mark_active(block.indptr[first : stop + 1], block.units, marks)
            look_up(tokens, firings, (block.start + first, block.start + stop, unit, marks), hits)
