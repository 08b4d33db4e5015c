"""Usage shares of many groups and experts, held as counts and divided block of columns by block of columns.

As float64, shares of 100,000 groups x 6,144 experts take 4.9 GB, and every step of a test would copy them. Counts of a group
of documents fit into 16 bits as a rule, and sums of gate weights of single documents are float32 on disk: 1.2 and 2.5 GB.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from moe_probe.core.routing import Usage

#: Bytes of float64 shares from which on they are held as a `ShareTable`.
DENSE_BYTES = 1 << 28
#: Columns that are worked on at a time, about.
_WIDTH = 64


class ShareTable:
    """Shares (n_groups, n_columns) that are computed when columns of them are asked for; they have the bits of an array.

    ``table[:, columns]`` is an ndarray of float64, ``table[rows]`` a table of some groups on the same memory, ``table[rows,
    columns]`` an ndarray again. ``np.asarray(table)`` makes all of it. Make one with `ShareTable.summed`.

    Parameters
    ----------
    parts : sequence of (rows, sums)
        Sums of selections or gate weights of groups: rows of the table, shape (n,), and ndarray of any number type, shape (n,
        n_columns).
    totals : ndarray of float64, shape (n_groups, n_layers)
        Sum of every group over a layer.
    mean : ndarray of float64, shape (n_columns,)
        Shares of a group without any in the layer.
    layer_index : ndarray of int, shape (n_columns,)
        Ordinal of the column's layer, never decreasing.
    """

    #: Operators of arrays are not defined: ask for columns, or for all of it with np.asarray.
    __array_ufunc__ = None

    def __init__(
        self,
        parts: Sequence[tuple[np.ndarray, np.ndarray]],
        totals: np.ndarray,
        mean: np.ndarray,
        layer_index: np.ndarray,
        rows: np.ndarray | None = None,
    ) -> None:
        self._parts, self.totals, self._mean, self._layer_index = tuple(parts), totals, mean, layer_index
        self._rows = rows

    @classmethod
    def summed(cls, usage: Usage, code: np.ndarray, n: int, *, measure: str = "selections") -> tuple[ShareTable, int]:
        """Sum usage over the documents of a group and make the table of its shares.

        Parameters
        ----------
        usage : Usage
        code : ndarray of int, shape (n_documents,)
            Group of every document; -1 leaves it out.
        n : int
            Number of groups.
        measure : {"selections", "gate_mass"}

        Returns
        -------
        table : ShareTable
        filled : int
            Pairs of group and layer without any, which have the mean of all groups.
        """
        parts = _counts(usage, code, n) if measure == "selections" else _masses(usage, code, n, measure)
        n_columns = int(usage.num_experts.sum())
        totals, mean, filled = np.empty((n, len(usage.layers))), np.zeros(n_columns), 0
        layer_index = np.repeat(np.arange(len(usage.layers)), usage.num_experts)
        table = cls(parts, totals, mean, layer_index)
        for index, columns in enumerate(usage.columns):
            layer = table._sums(columns)
            total = totals[:, index] = layer.sum(1)
            empty = int((total == 0).sum())
            if empty:
                mean[columns] = layer.sum(0) / max(total.sum(), 1)
            filled += empty
        return table, filled

    @property
    def shape(self) -> tuple[int, int]:
        """Groups and columns."""
        return len(self), len(self._layer_index)

    def __len__(self) -> int:
        """Return the number of groups."""
        return len(self.totals) if self._rows is None else len(self._rows)

    def __getitem__(self, key: Any) -> Any:
        """Return a table of some groups; or, with columns, an ndarray."""
        if not isinstance(key, tuple):
            every = np.arange(len(self.totals)) if self._rows is None else self._rows
            return ShareTable(self._parts, self.totals, self._mean, self._layer_index, every[key])
        rows, columns = key
        if not (isinstance(rows, slice) and rows == slice(None)):
            return self[rows][:, columns]
        if isinstance(columns, int | np.integer):
            return self._shares(np.array([columns]))[:, 0]
        out = self._shares(np.arange(self.shape[1])[columns])
        # columns picked from an array lie in memory column by column, and sums over them are formed in that order
        return out if isinstance(columns, slice) else out[:, np.arange(out.shape[1])]

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        """All shares."""
        return np.asarray(self._shares(np.arange(self.shape[1])), dtype=dtype)

    def _shares(self, columns: np.ndarray) -> np.ndarray:
        """Divide the sums of some columns (indices) by their layers' totals."""
        out = self._sums(columns)
        totals = self.totals if self._rows is None else self.totals[self._rows]
        layers = self._layer_index[columns]
        for layer in np.unique(layers):
            at, total = np.flatnonzero(layers == layer), totals[:, layer]
            with np.errstate(invalid="ignore"):
                part = out[:, at] / total[:, None]
            part[total == 0] = self._mean[columns[at]]
            out[:, at] = part
        return out

    def _sums(self, columns: np.ndarray | slice) -> np.ndarray:
        """Return sums of some columns, float64, (n_groups, n)."""
        index = np.arange(self.shape[1])[columns] if isinstance(columns, slice) else columns
        out = np.empty((len(self), len(index)))
        for start in range(0, len(index), _WIDTH):  # few at a time: the rows of all groups are picked before those asked for
            part = index[start : start + _WIDTH]
            block = slice(int(part[0]), int(part[-1]) + 1)
            whole = (np.diff(part) == 1).all()  # a block is read faster than columns picked one by one
            out[:, start : start + _WIDTH] = self._read(block if whole else part)
        return out

    def _read(self, columns: np.ndarray | slice) -> np.ndarray:
        if len(self._parts) == 1:  # its rows are those of the table
            block = self._parts[0][1][:, columns]
            return block if self._rows is None else block[self._rows]
        pieces = [sums[:, columns].astype(np.float64) for _, sums in self._parts]
        block = np.empty((len(self.totals), pieces[0].shape[1]))
        for (rows, _), piece in zip(self._parts, pieces, strict=True):
            block[rows] = piece
        return block if self._rows is None else block[self._rows]


#: Shares of groups: an array, or a table of the same numbers that is too large for one.
Shares = np.ndarray | ShareTable


def column_blocks(shares: Shares) -> list[slice]:
    """Cut columns into the blocks that are worked on at a time.

    Parameters
    ----------
    shares : ndarray or ShareTable, shape (n_groups, n_columns)

    Returns
    -------
    list of slice
        One of all columns of an array; blocks of some 64 of a table, none of a single column, since numpy adds up the rows
        of a lone column in another order.
    """
    n = shares.shape[1]
    ends = np.linspace(0, n, 1 + max(1, n // _WIDTH if isinstance(shares, ShareTable) else 1)).astype(int)
    return [slice(int(a), int(b)) for a, b in itertools.pairwise(ends)]


def _counts(usage: Usage, code: np.ndarray, n: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """Sum the selections of `n` groups, in the shortest unsigned integers that hold them."""
    used, tokens = code >= 0, usage.documents["n_tokens"].to_numpy()
    # a token chooses an expert once, so that no count exceeds the tokens; counts of other programs may, then it is all of them
    for largest in (tokens, usage.document_totals()):
        kind = np.min_scalar_type(int(np.bincount(code[used], weights=largest[used], minlength=n).max(initial=0)))
        out = np.zeros((n, int(usage.num_experts.sum())), dtype=kind)
        for document, column, value in usage.pieces():
            if (value > largest[document]).any():
                break
            _add(out, code[document], column, value)
        else:
            return [(np.arange(n), out)]
    raise AssertionError("a count exceeds the sum of all counts of its document")


def _masses(usage: Usage, code: np.ndarray, n: int, measure: str) -> list[tuple[np.ndarray, np.ndarray]]:
    """Sum gate weights: those of one document in the type that they have on disk, of several in float64."""
    lone = np.bincount(code[code >= 0], minlength=n) <= 1
    parts = []
    for rows, kind in ((lone, usage.dtype(measure)), (~lone, np.dtype(np.float64))):
        number = np.append(np.where(rows, np.cumsum(rows) - 1, -1), -1)  # the last one: no group
        out = np.zeros((int(rows.sum()), int(usage.num_experts.sum())), dtype=kind)
        for document, column, value in usage.pieces(measure) if len(out) else ():
            _add(out, number[code[document]], column, value)
        parts.append((np.flatnonzero(rows), out))
    return parts[:1] if lone.all() else parts


def _add(sums: np.ndarray, row: np.ndarray, column: np.ndarray, value: np.ndarray) -> None:
    """Add values to their cells of a table; a row of -1 is left out."""
    use = row >= 0
    np.add.at(sums.reshape(-1), row[use] * sums.shape[1] + column[use], value[use].astype(sums.dtype))
