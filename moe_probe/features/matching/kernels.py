"""Inner loops over sparse arrays, compiled; they let go of the interpreter lock, so that threads share the work."""

from __future__ import annotations

import numba
import numpy as np


@numba.njit(nogil=True, cache=True)
def count_together(
    tokens: np.ndarray, cursor: np.ndarray, ends: np.ndarray, block: tuple[int, int, np.ndarray, np.ndarray], out: np.ndarray
) -> None:
    """Add one for every unit that is active where a feature fires, for the tokens of one block.

    Parameters
    ----------
    tokens : ndarray of int32, shape (n_firings,)
        Tokens that features fire on, feature by feature, increasing within each.
    cursor : ndarray of int64, shape (n_features,)
        First firing of every feature that was not counted yet; moved on in place.
    ends : ndarray of int64, shape (n_features,)
        Where the firings of every feature end.
    block : tuple
        First token of the block and the one behind its last; start of every token's units and the units themselves.
    out : ndarray of int32, shape (n_features, n_units)
        Counts, added to in place.
    """
    start, stop, indptr, units = block
    for feature in range(len(cursor)):
        row = out[feature]
        at = cursor[feature]
        while at < ends[feature] and tokens[at] < stop:
            token = tokens[at] - start
            for unit in range(indptr[token], indptr[token + 1]):
                row[units[unit]] += 1
            at += 1
        cursor[feature] = at


@numba.njit(nogil=True, cache=True)
def mark_active(indptr: np.ndarray, units: np.ndarray, marks: np.ndarray) -> None:
    """Set the bit of every token, in the row of each unit that is active on it.

    Parameters
    ----------
    indptr : ndarray of int, shape (n_tokens + 1,)
        Where each token's units start.
    units : ndarray of int32
        The units.
    marks : ndarray of uint8, shape (n_units, ceil(n_tokens / 8))
        Set in place.
    """
    for token in range(len(indptr) - 1):
        bit = np.uint8(1 << (token & 7))
        for at in range(indptr[token], indptr[token + 1]):
            marks[units[at], token >> 3] |= bit


@numba.njit(nogil=True, cache=True)
def look_up(
    tokens: np.ndarray,
    firings: tuple[np.ndarray, np.ndarray, np.ndarray],
    block: tuple[int, int, np.ndarray, np.ndarray],
    hits: np.ndarray,
) -> None:
    """Write down whether a pair's unit is active where its feature fires, for the tokens of one block.

    Parameters
    ----------
    tokens : ndarray of int32, shape (n_firings,)
        Tokens that features fire on, feature by feature, increasing within each.
    firings : tuple of ndarray of int64, shape (n_pairs,) each
        First firing of every pair's feature that was not looked at yet (moved on in place); where its firings end; what has to
        be added to a firing's number to have its place in `hits`.
    block : tuple
        First token of the block and the one behind its last; every pair's unit; marks from `mark_active`.
    hits : ndarray of bool
        Written in place.
    """
    cursor, ends, shift = firings
    start, stop, units, marks = block
    for pair in range(len(cursor)):
        at = cursor[pair]
        while at < ends[pair] and tokens[at] < stop:
            token = tokens[at] - start
            hits[shift[pair] + at] = (marks[units[pair], token >> 3] >> (token & 7)) & 1 == 1
            at += 1
        cursor[pair] = at


@numba.njit(nogil=True, cache=True)
def count_by_group(indptr: np.ndarray, units: np.ndarray, row: np.ndarray, group: np.ndarray, counts: np.ndarray) -> None:
    """Add one for every active unit to the count of its token's group.

    Parameters
    ----------
    indptr : ndarray of int, shape (n_tokens + 1,)
        Where each token's units start.
    units : ndarray of int32
        The units.
    row : ndarray of int, shape (n_units,)
        Row of every unit in `counts`; -1 for units that are left out.
    group : ndarray of int, shape (n_tokens,)
        Column of every token.
    counts : ndarray of int32, shape (n_rows, n_groups)
        Added to in place.
    """
    for token in range(len(indptr) - 1):
        for at in range(indptr[token], indptr[token + 1]):
            if row[units[at]] >= 0:
                counts[row[units[at]], group[token]] += 1
