"""Counts of a trace as they lie on disk: summed while they are read, so that no table of all documents is held."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from typing_extensions import override

from moe_probe.core.routing import Usage
from moe_probe.core.schema import Evidence
from moe_probe.recording.trace.opened import open_usage

if TYPE_CHECKING:
    import pandas as pd

    from moe_probe.core.schema import MoeLayer

#: Rows of the table that are read at a time.
_ROWS = 1 << 18


class StoredUsage(Usage):
    """`Usage` of a trace on disk.

    `summed`, `pieces`, `select` and `document_totals` read the table piece by piece, in the order of documents, so that their
    sums have the very bits of sums over the arrays. The arrays `selections`, `gate_mass` and `saliency` are made when
    they are asked for; they take 16 bytes for every document, layer and expert. No analysis asks for them.

    Parameters
    ----------
    root : Path
        Folder of the trace.
    layers : tuple of MoeLayer
    documents : pandas.DataFrame
    evidence : Evidence
        Of the trace.
    """

    def __new__(cls, *_: Any, **fields: Any) -> Usage:  # type: ignore[misc]
        """Make counts of a trace; or, where `dataclasses.replace` passes all fields of a `Usage`, counts in memory."""
        return Usage(**fields) if "selections" in fields else super().__new__(cls)

    def __init__(
        self,
        root: Path,
        layers: tuple[MoeLayer, ...],
        documents: pd.DataFrame,
        evidence: Evidence = Evidence.DOCUMENTS,
    ) -> None:
        # the fields of a frozen dataclass; its arrays are properties here
        fields = {"layers": layers, "documents": documents, "evidence": evidence, "_root": root}
        for name, value in fields.items():
            object.__setattr__(self, name, value)

    _root: Path

    @override
    def __repr__(self) -> str:
        return f"StoredUsage({len(self.documents):,} documents, {len(self.layers)} layers)"

    @property
    @override
    def has_gate_mass(self) -> bool:
        return "gate_mass" in self._measures

    @cached_property
    def _measures(self) -> tuple[str, ...]:
        names = open_usage(self._root).names
        return tuple(name for name in ("selections", "gate_mass", "saliency") if name in names)

    @override
    def summed(self, code: np.ndarray, n: int, *, measure: str = "selections") -> np.ndarray:
        out = np.zeros((n, int(self.num_experts.sum())))
        flat, width = out.reshape(-1), out.shape[1]
        for document, column, value in self.pieces(measure):
            unit = code[document]
            cell = unit * width + column
            use = unit >= 0
            np.add.at(flat, cell[use], value[use].astype(np.float64))
        return out

    @override
    def pieces(self, measure: str = "selections") -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
        starts = np.array([columns.start for columns in self.columns])
        for document, layer, expert, value in self._pieces(measure):
            yield document, starts[layer] + expert, value

    @override
    def dtype(self, measure: str) -> np.dtype:
        return open_usage(self._root).dtype(measure)

    @override
    def select(self, rows: np.ndarray, documents: pd.DataFrame) -> Usage:
        kept, place = np.unique(rows, return_inverse=True)
        number = np.full(len(self.documents), -1)
        number[kept] = np.arange(len(kept))
        arrays = {"selections": np.int64} | ({"gate_mass": np.float64} if self.has_gate_mass else {})
        read = {name: self._dense(name, kind, number)[place] for name, kind in arrays.items()}
        return Usage(read["selections"], read.get("gate_mass"), self.layers, documents, evidence=self.evidence)

    @override
    def document_totals(self, measure: str = "selections") -> np.ndarray:
        return self._totals[measure]

    @cached_property
    def _totals(self) -> dict[str, np.ndarray]:
        out = {}
        for measure in self._measures:
            total = np.zeros(len(self.documents))
            for document, _, _, value in self._pieces(measure):
                np.add.at(total, document, value.astype(np.float64))
            out[measure] = total
        return out

    @cached_property
    def selections(self) -> np.ndarray:
        """Selections per document, layer and expert; read-only."""
        return self._dense("selections", np.int64)

    @cached_property
    def gate_mass(self) -> np.ndarray | None:
        """Gate mass per document, layer and expert, or None; read-only."""
        return self._dense("gate_mass", np.float64) if self.has_gate_mass else None

    @cached_property
    def saliency(self) -> np.ndarray | None:
        """Saliency per document, layer and expert, or None where it was not recorded; read-only."""
        return self._dense("saliency", np.float64) if "saliency" in self._measures else None

    def _dense(self, measure: str, dtype: type, number: np.ndarray | None = None) -> np.ndarray:
        """Make the array of all documents, or of those whose `number` (n_documents,), a row of the array, is not -1."""
        n = len(self.documents) if number is None else int(number.max(initial=-1)) + 1
        array: np.ndarray = np.zeros((n, len(self.layers), int(self.num_experts.max())), dtype=dtype)
        for document, layer, expert, value in self._pieces(measure):
            row = document if number is None else number[document]
            use = slice(None) if number is None else row >= 0
            array[row[use], layer[use], expert[use]] = value[use]
        array.flags.writeable = False
        return array

    def _pieces(self, measure: str) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]]:
        """Yield document, ordinal of the layer, expert and value of the rows, in order."""
        numbers = [layer.layer for layer in self.layers]
        order = np.argsort(numbers)
        known = np.array(numbers)[order]
        names, table = ["document", "layer", "expert", measure], open_usage(self._root)
        if measure not in table.names:
            raise table.damaged(f"it has no column '{measure}'")
        cells = len(self.documents) * int(self.num_experts.sum())
        if table.n_rows > cells:
            raise table.damaged(f"it has {table.n_rows:,} rows for {cells:,} pairs of document and expert")
        for batch in table.batches(_ROWS, names):
            # other integers may wrap: what is then out of range is refused below
            document, number, expert = (batch[name].to_numpy().astype(np.int64) for name in names[:3])
            value = batch[measure].to_numpy()
            layer = order[np.minimum(np.searchsorted(known, number), len(known) - 1)]
            wrong = (
                (document < 0)
                | (document >= len(self.documents))
                | (np.array(numbers)[layer] != number)
                | (expert < 0)
                | (expert >= self.num_experts[layer])
                | ~((value >= 0) & (value < np.inf))
            )
            if wrong.any():
                raise table.damaged("a row names a document, layer or expert that is not there, or a number out of range")
            yield document, layer, expert, value
