"""Counts of selections, as plain arrays: nothing here knows of files or models."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from moe_probe.core.schema import Evidence

if TYPE_CHECKING:
    import pandas as pd

    from moe_probe.core.schema import MoeLayer

#: Rows of ids that are checked at once.
_ROWS = 1 << 10
_BLOCK = 1 << 16  # tokens turned into a 0/1 matrix at a time
#: Seconds that a pair of slots takes, over those of an entry of that matrix's product.
_PAIR_COST = 16


def dropped_id(dtype: np.dtype | type | str) -> int:
    """Return the value that marks a slot without an expert: the largest of the unsigned integer type."""
    return int(np.iinfo(np.dtype(dtype)).max)


@dataclass(frozen=True)
class Usage:
    """Selections and gate mass per document, layer and expert: what document statistics need.

    Attributes
    ----------
    selections : ndarray of int64, shape (n_documents, n_layers, max_experts)
        How many tokens of the document chose the expert (special tokens left out).
        Columns past a layer's own number of experts are zero.
    gate_mass : ndarray of float64, same shape, or None
        Sum of the gate weights of those selections; None for a trace without weights.
    layers : tuple of MoeLayer
    documents : pandas.DataFrame, n_documents rows
        Columns ``document, topic, subtopic, group, split, n_tokens`` and further labels.
    saliency : ndarray of float64, same shape as `selections`, or None
        Sum of gate weight times norm of the expert's output over those selections; None where it was not recorded. Divided
        by `selections` it is the score of REAP (arXiv:2510.13999).
    evidence : Evidence
        Level of the record that the counts come from. At the level of counts rows are sums by topic and no observations:
        nothing is tested.
    """

    selections: np.ndarray
    gate_mass: np.ndarray | None
    layers: tuple[MoeLayer, ...]
    documents: pd.DataFrame
    saliency: np.ndarray | None = None
    evidence: Evidence = Evidence.DOCUMENTS

    def usage(self) -> Usage:
        """Return itself, so that analyses take a trace or the counts alone."""
        return self

    @property
    def has_gate_mass(self) -> bool:
        """Whether gate weights are known."""
        return self.gate_mass is not None

    def summed(self, code: np.ndarray, n: int, *, measure: str = "selections") -> np.ndarray:
        """Sum selections (or gate mass, or saliency) over the documents of one code.

        Parameters
        ----------
        code : ndarray of int, shape (n_documents,)
            Row of the result that a document counts for; -1 leaves it out.
        n : int
            Rows of the result.
        measure : {"selections", "gate_mass", "saliency"}
            Gate mass and saliency only where the trace has them.

        Returns
        -------
        ndarray of float64, shape (n, n_columns)
            A column is one (layer, expert), real experts only, layer by layer.
        """
        values, use = getattr(self, measure), code >= 0
        out = np.zeros((n, int(self.num_experts.sum())))
        for index, columns in enumerate(self.columns):
            np.add.at(out[:, columns], code[use], values[use, index, : columns.stop - columns.start])
        return out

    def document_totals(self, measure: str = "selections") -> np.ndarray:
        """Sum selections (or gate mass) of every document over layers and experts, shape (n_documents,)."""
        return np.asarray(getattr(self, measure).sum((1, 2)))

    def pieces(self, measure: str = "selections") -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
        """Yield what is not zero of selections, gate mass or saliency, piece by piece.

        Parameters
        ----------
        measure : {"selections", "gate_mass", "saliency"}

        Yields
        ------
        document, column, value : ndarray, shape (n,)
            Row in `documents`; column as `summed` has them; what the measure is there. Documents in their order within a
            column.
        """
        values = getattr(self, measure)
        for index, columns in enumerate(self.columns):
            part = values[:, index, : columns.stop - columns.start]
            document, expert = np.nonzero(part)
            yield document, columns.start + expert, part[document, expert]

    def dtype(self, measure: str) -> np.dtype:
        """Return the type of a measure's values in `pieces`.

        Parameters
        ----------
        measure : {"selections", "gate_mass", "saliency"}

        Returns
        -------
        dtype
        """
        values: np.ndarray = getattr(self, measure)
        return values.dtype

    def select(self, rows: np.ndarray, documents: pd.DataFrame) -> Usage:
        """Keep some documents, in memory.

        Parameters
        ----------
        rows : ndarray of int, shape (n_rows,)
            Rows of `documents`, in any order.
        documents : pandas.DataFrame, n_rows rows
            What is to be said of them.

        Returns
        -------
        Usage
            Of selections and, where they are known, gate mass.
        """
        mass = None if self.gate_mass is None else self.gate_mass[rows]
        return Usage(self.selections[rows], mass, self.layers, documents, evidence=self.evidence)

    @property
    def columns(self) -> list[slice]:
        """Columns of every layer, where layers are side by side."""
        ends = np.cumsum(self.num_experts)
        return [slice(int(end - n), int(end)) for end, n in zip(ends, self.num_experts, strict=True)]

    @property
    def num_experts(self) -> np.ndarray:
        """Number of experts of each layer, shape (n_layers,)."""
        return np.array([layer.num_experts for layer in self.layers])


def count_selections(
    experts: np.ndarray, *, unit: np.ndarray, n_units: int, num_experts: int, weights: np.ndarray | None = None
) -> np.ndarray:
    """Count, per unit and expert, the selections of one layer (or sum their gate weights).

    Parameters
    ----------
    experts : ndarray of unsigned int, shape (n_tokens, n_slots)
        Expert ids of one layer; the largest value of the type marks an empty slot.
    unit : ndarray of int, shape (n_tokens,)
        Row of the result that a token counts for (its document, say); -1 leaves the token out.
    n_units, num_experts : int
        Rows and columns of the result.
    weights : ndarray of float, shape (n_tokens, n_slots), optional
        Gate weights to sum instead of counting.

    Returns
    -------
    ndarray, shape (n_units, num_experts)
        int64 counts, or float64 sums of weights.
    """
    codes = selection_codes(experts, unit=unit, n_units=n_units, num_experts=num_experts)
    return count_codes(codes, n_units, num_experts, weights)


def selection_codes(experts: np.ndarray, *, unit: np.ndarray, n_units: int, num_experts: int) -> np.ndarray:
    """Compute which cell of a table of units and experts each selection counts for.

    Parameters
    ----------
    experts, unit, n_units, num_experts
        As `count_selections`.

    Returns
    -------
    ndarray of int64, shape (n_tokens, n_slots)
        ``unit * num_experts + expert``; ``n_units * num_experts`` for slots and tokens that are left out.
    """
    # a cell past the end is much faster than picking the others
    codes = experts + np.where(unit >= 0, unit, 0).astype(np.int64)[:, None] * num_experts
    codes[(experts == dropped_id(experts.dtype)) | (unit < 0)[:, None]] = n_units * num_experts
    return codes


def count_codes(codes: np.ndarray, n_units: int, num_experts: int, weights: np.ndarray | None = None) -> np.ndarray:
    """Count selections by the cells that `selection_codes` gives them (or sum their gate weights).

    Parameters
    ----------
    codes : ndarray of int64, shape (n_tokens, n_slots)
    n_units, num_experts : int
    weights : ndarray of float, shape (n_tokens, n_slots), optional

    Returns
    -------
    ndarray, shape (n_units, num_experts)
        As `count_selections`.
    """
    size = n_units * num_experts
    summed = None if weights is None else weights.astype(np.float64).ravel()
    return np.bincount(codes.ravel(), weights=summed, minlength=size + 1)[:size].reshape(n_units, num_experts)


def past_highest(ids: np.ndarray) -> np.ndarray:
    """Return one more than the highest id of each layer, shape (n_layers,); 0 where all slots are empty.

    The mark of an empty slot is the largest value of its type: one more is 0. Some rows at a time stay in the processor's cache,
    and their maxima over rows are of whole rows: ten times as fast as the maxima of the array over two axes.

    Parameters
    ----------
    ids : ndarray of uint8 or uint16, shape (n_tokens, n_layers, n_slots)

    Returns
    -------
    ndarray of the same type
    """
    rows = ids.reshape(len(ids), ids.shape[1] * ids.shape[2])
    highest = np.zeros(rows.shape[1], dtype=ids.dtype)
    for start in range(0, len(rows), _ROWS):
        np.maximum(highest, (rows[start : start + _ROWS] + 1).max(axis=0), out=highest)
    return np.asarray(highest.reshape(ids.shape[1:]).max(axis=1, initial=0))


def load_cv(load: np.ndarray) -> np.ndarray:
    """Compute the coefficient of variation of expert loads (population standard deviation over mean).

    The balance measure of Shazeer et al. 2017, arXiv:1701.06538, section 4.
    """
    load = np.asarray(load, dtype=np.float64)
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.asarray(load.std(-1) / load.mean(-1))


def coactivation(experts: np.ndarray, *, num_experts: int) -> np.ndarray:
    """Count the tokens that chose both of two experts in one layer.

    Parameters
    ----------
    experts : ndarray of unsigned int, shape (n_tokens, n_slots)
        Expert ids of one layer; the largest value of the type marks an empty slot.
    num_experts : int

    Returns
    -------
    ndarray of int64, shape (num_experts, num_experts)
        Entry (i, j) counts tokens with i and j among their slots; the diagonal counts tokens with i.
        Divide row i by its diagonal for OLMoE's expert co-activation (arXiv:2409.02060).
    """
    n_slots = experts.shape[1]
    if n_slots * n_slots * _PAIR_COST <= num_experts * num_experts and len(experts):
        return _paired(experts, num_experts)
    counts = np.zeros((num_experts, num_experts))
    for start in range(0, len(experts), _BLOCK):
        block = experts[start : start + _BLOCK]
        token, slot = np.nonzero(block != dropped_id(experts.dtype))
        chosen = np.zeros((len(block), num_experts), dtype=np.float32)  # counts of a block are exact in float32
        chosen[token, block[token, slot]] = 1
        counts += chosen.T @ chosen
    return counts.astype(np.int64)


def _paired(experts: np.ndarray, num_experts: int) -> np.ndarray:
    """Count tokens by pairs of their slots: fewer operations than a product where few of many experts are chosen."""
    size = num_experts + 1  # the last one: empty slots
    slots = np.minimum(experts.T.astype(np.int32), num_experts)
    counts = np.zeros(size * size, dtype=np.int64)
    for i, first in enumerate(slots):
        row = first * size
        for second in slots[i:]:
            counts += np.bincount(row + second, minlength=size * size)
    table = counts.reshape(size, size)[:num_experts, :num_experts]
    both = table + table.T
    np.fill_diagonal(both, np.diag(table))
    return both
