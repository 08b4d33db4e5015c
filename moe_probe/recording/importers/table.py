"""The interchange table, version 1: Parquet or JSON, a row per token, ``experts_L`` per MoE layer."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa

from moe_probe.core.errors import MoeProbeError
from moe_probe.core.files import sha256_files
from moe_probe.core.textfiles import expand
from moe_probe.recording.importers.columns import Place, label_values, lists, token_texts, whole_numbers
from moe_probe.recording.importers.records import ImportOptions, Recording, import_records
from moe_probe.recording.importers.survey import TokenRecord
from moe_probe.recording.importers.tablefile import TableFile
from moe_probe.recording.trace import Trace

_OPTIONAL = ("subtopic", "group", "split")


def import_table(path: str | Path, out: str | Path, *, options: ImportOptions | None = None, mode: str = "new") -> Trace:
    """Import an interchange table (version 1) as a trace.

    The table has a row per token with ``document, topic`` (strings), optional ``subtopic, group, split``,
    ``position, token_id`` (integers), optional ``token``, and for each MoE layer L of the model
    ``experts_L`` (list of ids), optionally ``weights_L`` (list of floats of the same length) and
    ``num_experts_L`` (the layer's number of experts). Read in pieces: memory does not grow with the table.

    Parameters
    ----------
    path : str or Path
        Parquet, JSON Lines or a JSON array, plain or compressed; a folder of such files or a glob.

    Raises
    ------
    MoeProbeError
        When a column is missing or wrong, naming column and row.
    """
    options = options or ImportOptions()
    tables = [
        TableFile.open(file, options.labels) for file in expand(path, (".parquet", ".jsonl", ".ndjson", ".json")).files
    ]
    if not tables:
        raise MoeProbeError(
            f"there is no table under {path}",
            "no file there ends in .parquet or .jsonl",
            "an interchange table ending in .parquet or .jsonl",
        )
    for other in tables[1:]:
        if (sorted(other.layers), other.has_weights) != (sorted(tables[0].layers), tables[0].has_weights):
            raise MoeProbeError(
                f"{other.path} has other layers than {tables[0].path}",
                f"{sorted(other.layers)[:5]} and {sorted(tables[0].layers)[:5]}, or weights in one only",
                "tables of one model",
            )
    declared = {layer: n for table in tables for layer, n in table.num_experts.items()}
    reader = _Reader(tables, options, declared)
    digest = sha256_files([table.path for table in tables])
    return import_records(
        reader.documents,
        out,
        Recording(sorted(tables[0].layers), Path(path).name, digest, declared),
        options=options,
        mode=mode,
    )


@dataclass(frozen=True)
class _Reader:
    """Documents of some tables; `declared` takes up what columns say about the number of experts."""

    tables: Sequence[TableFile]
    options: ImportOptions
    declared: dict[int, int]

    def documents(self) -> Iterator[TokenRecord]:
        """Join the rows of each document, over the ends of the pieces."""
        pending: list[TokenRecord] = []
        for table in self.tables:
            for rows, piece in table.pieces((*_OPTIONAL, *self.options.labels)):
                for record in self._split(table, piece, rows):
                    if pending and pending[0].labels["document"] != record.labels["document"]:
                        yield _joined(pending)
                        pending = []
                    pending.append(record)
        if pending:
            yield _joined(pending)

    def _split(self, table: TableFile, piece: pa.Table, rows: np.ndarray) -> Iterator[TokenRecord]:
        place = Place(table.path, table.unit, rows)
        names = dict.fromkeys(c for c in ("document", "topic", *_OPTIONAL, *self.options.labels) if c in piece.column_names)
        labels = {name: label_values(piece[name], name, place, needed=name in ("document", "topic")) for name in names}
        position, token_id = (whole_numbers(piece[name], name, place) for name in ("position", "token_id"))
        tokens = token_texts(piece["token"], token_id, place) if "token" in piece.column_names else None
        experts, weights = self._routing(table, piece, place)
        self._declare(table, piece, place)
        documents = np.asarray(labels["document"], dtype=object)
        cuts = np.flatnonzero(documents[1:] != documents[:-1]) + 1
        for start, stop in itertools.pairwise([0, *map(int, cuts), len(documents)]):
            part = slice(start, stop)
            values = {
                name: _one(labels["document"][start], name, column[part], (place, start)) for name, column in labels.items()
            }
            yield TokenRecord(
                values,
                token_id[part],
                position[part],
                None if tokens is None else tokens[part],
                experts[part],
                None if weights is None else weights[part],
                file=str(table.path),
                unit=table.unit,
                rows=rows[part],
            )

    def _routing(self, table: TableFile, piece: pa.Table, place: Place) -> tuple[np.ndarray, np.ndarray | None]:
        """Experts and weights, shape (n_rows, n_layers, longest list)."""
        experts, weights = [], []
        for layer in sorted(table.layers):
            name = table.layers[layer]
            ids, lengths = lists(piece[f"experts_{name}"], f"experts_{name}", place, whole=True)
            experts.append(ids)
            if table.has_weights:
                values, other = lists(piece[f"weights_{name}"], f"weights_{name}", place, whole=False)
                if (lengths != other).any():
                    row = int((lengths != other).argmax())
                    raise MoeProbeError(
                        f"{place.name(row)} has lists of unequal length in layer {layer}",
                        f"experts: {lengths[row]}, weights: {other[row]}",
                        "one weight per selected expert",
                    )
                weights.append(values)
        return _stacked(experts, -1), _stacked(weights, 0) if table.has_weights else None

    def _declare(self, table: TableFile, piece: pa.Table, place: Place) -> None:
        for layer, name in table.layers.items():
            if f"num_experts_{name}" in piece.column_names:
                values = whole_numbers(piece[f"num_experts_{name}"], f"num_experts_{name}", place)
                before = self.declared.setdefault(layer, int(values[0]))
                if (values != before).any() or before < 1:
                    row = int((values != before).argmax())
                    raise MoeProbeError(
                        f"{place.name(row)} gives layer {layer} {values[row]} experts",
                        f"the rows before give it {before}" if values[row] != before else "",
                        "one number of experts per layer, 1 or more",
                    )


def _stacked(parts: Sequence[np.ndarray], empty: float) -> np.ndarray:
    slots = max(part.shape[1] for part in parts)
    return np.stack([np.pad(part, ((0, 0), (0, slots - part.shape[1])), constant_values=empty) for part in parts], axis=1)


def _one(document: str, name: str, values: Sequence[str], at: tuple[Place, int]) -> str:
    """The one value of a label in a document; rows that do not have it follow the others."""
    there = dict.fromkeys(value for value in values if value)
    if len(there) > 1:
        row = next(i for i, value in enumerate(values) if value and value != next(iter(there)))
        raise _changed(document, name, at[0].name(at[1] + row))
    return next(iter(there), "")


def _changed(document: str, name: str, where: str) -> MoeProbeError:
    return MoeProbeError(
        f"document '{document}' changes its labels",
        f"{where} has another '{name}' than the rows before",
        "one value per document",
    )


def _joined(parts: list[TokenRecord]) -> TokenRecord:
    if len(parts) == 1:
        return parts[0]
    labels = dict(parts[0].labels)
    for other in parts[1:]:
        for name, value in other.labels.items():
            if value and labels.get(name) and labels[name] != value:
                raise _changed(labels["document"], name, other.where(0))
            labels[name] = labels.get(name) or value
    slots = max(p.experts.shape[2] for p in parts)

    def wide(array: np.ndarray, empty: float) -> np.ndarray:
        return np.pad(array, ((0, 0), (0, 0), (0, slots - array.shape[2])), constant_values=empty)

    return parts[0]._replace(
        labels=labels,
        token_id=np.concatenate([p.token_id for p in parts]),
        position=np.concatenate([p.position for p in parts]),
        tokens=None if any(p.tokens is None for p in parts) else [t for p in parts for t in (p.tokens or ())],
        experts=np.concatenate([wide(p.experts, -1) for p in parts]),
        weights=None
        if parts[0].weights is None
        else np.concatenate([wide(p.weights, 0) for p in parts if p.weights is not None]),
        rows=np.concatenate([p.rows for p in parts if p.rows is not None]),
    )
