"""The interchange table, version 1: Parquet or JSON, one row per token, ``experts_L`` per MoE layer."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pyarrow as pa

from moe_probe.core.errors import MoeProbeError
from moe_probe.core.files import sha256_files
from moe_probe.core.textfiles import expand
from moe_probe.recording.importers.columns import label_values, lists, token_texts, whole_numbers
from moe_probe.recording.importers.options import ImportOptions, ImportSource
from moe_probe.recording.importers.records import import_records
from moe_probe.recording.importers.tablefile import TABLES, TableFile
from moe_probe.recording.importers.token_record import SourceRows, TokenRecord, check_lists, widen
from moe_probe.recording.trace import Trace
from moe_probe.recording.trace.shard import DOCUMENT_COLUMNS


def import_table(path: str | Path, out: str | Path, *, options: ImportOptions | None = None, mode: str = "new") -> Trace:
    """Import an interchange table (version 1) as a trace.

    The table has one row per token with ``document, topic`` (strings), optional ``subtopic, group, split``,
    ``position, token_id`` (integers), optional ``token``, and for each MoE layer L of the model
    ``experts_L`` (list of ids), optionally ``weights_L`` (list of floats of the same length) and
    ``num_experts_L`` (the layer's number of experts). Read in pieces: memory does not grow with the table.

    Parameters
    ----------
    path : str or Path
        Parquet, JSON Lines or a JSON array, plain or compressed; a folder of such files or a glob.
    out : str or Path
        Folder of the trace.
    options : ImportOptions, optional
    mode : {"new", "resume", "force"}
        What to do with a trace that exists: refuse, continue it, start over.

    Returns
    -------
    Trace
        Sealed; `Trace.warnings` says what was guessed or omitted.

    Raises
    ------
    MoeProbeError
        When a column is missing or wrong, naming column and row.
    """
    options = options or ImportOptions()
    tables = [TableFile.open(file, options.labels) for file in expand(path, TABLES).files]
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
    digest = sha256_files([table.path for table in tables])
    source = ImportSource(sorted(tables[0].layers), Path(path).name, digest, declared, kind="interchange table (table)")
    return import_records(_Reader(tables, options, declared).documents, out, source, options=options, mode=mode)


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
            for numbers, piece in table.pieces((*DOCUMENT_COLUMNS, *self.options.labels)):
                for record in self._split(table, piece, SourceRows(table.path, table.unit, numbers)):
                    if pending and pending[0].labels["document"] != record.labels["document"]:
                        yield _joined(pending)
                        pending = []
                    pending.append(record)
        if pending:
            yield _joined(pending)

    def _split(self, table: TableFile, piece: pa.Table, source: SourceRows) -> Iterator[TokenRecord]:
        names = dict.fromkeys(c for c in (*DOCUMENT_COLUMNS, *self.options.labels) if c in piece.column_names)
        labels = {name: label_values(piece[name], name, source, needed=name in ("document", "topic")) for name in names}
        position, token_id = (whole_numbers(piece[name], name, source) for name in ("position", "token_id"))
        tokens = token_texts(piece["token"], token_id, source) if "token" in piece.column_names else None
        experts, weights = self._routing(table, piece, source)
        self._declare(table, piece, source)
        documents = np.asarray(labels["document"], dtype=object)
        cuts = np.flatnonzero(documents[1:] != documents[:-1]) + 1
        for start, stop in itertools.pairwise([0, *map(int, cuts), len(documents)]):
            part = slice(start, stop)
            own = source.take(part)
            yield TokenRecord(
                {name: _one(labels["document"][start], name, column[part], own) for name, column in labels.items()},
                token_id[part],
                position[part],
                None if tokens is None else tokens[part],
                experts[part],
                None if weights is None else weights[part],
                source=own,
            )

    def _routing(self, table: TableFile, piece: pa.Table, source: SourceRows) -> tuple[np.ndarray, np.ndarray | None]:
        """Return experts and weights, shape (n_rows, n_layers, longest list)."""
        experts, weights = [], []
        for layer in sorted(table.layers):
            name = table.layers[layer]
            ids, lengths = lists(piece[f"experts_{name}"], f"experts_{name}", source, whole=True, n_layers=len(table.layers))
            experts.append(ids)
            if table.has_weights:
                values, other = lists(piece[f"weights_{name}"], f"weights_{name}", source, whole=False)
                if (lengths != other).any():
                    row = int((lengths != other).argmax())
                    what = f"has lists of unequal length in layer {layer}"
                    why = f"experts: {lengths[row]}, weights: {other[row]}"
                    raise source.error(row, what, why, "one weight per selected expert")
                weights.append(values)
        return np.stack(widen(experts, -1), axis=1), np.stack(widen(weights, 0), axis=1) if table.has_weights else None

    def _declare(self, table: TableFile, piece: pa.Table, source: SourceRows) -> None:
        for layer, name in table.layers.items():
            if f"num_experts_{name}" in piece.column_names:
                values = whole_numbers(piece[f"num_experts_{name}"], f"num_experts_{name}", source)
                before = self.declared.setdefault(layer, int(values[0]))
                if (values != before).any() or before < 1:
                    row = int((values != before).argmax())
                    why = f"the rows before give it {before}" if values[row] != before else ""
                    what = f"gives layer {layer} {values[row]} experts"
                    raise source.error(row, what, why, "one number of experts per layer, 1 or more")


def _one(document: str, name: str, values: Sequence[str], source: SourceRows) -> str:
    """Return the one value of a label in a document; rows without it follow the others."""
    present = list(dict.fromkeys(value for value in values if value))
    if len(present) > 1:
        raise _changed(document, name, source.name(values.index(present[1])))
    return present[0] if present else ""


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
    sources = [part.source for part in parts if part.source is not None]
    slots = np.concatenate([(part.experts >= 0).sum(axis=2).max(axis=1, initial=0) for part in parts])
    numbers = np.concatenate([source.numbers for source in sources])
    check_lists(slots, parts[0].experts.shape[1], lambda token: sources[0].unit + f" {numbers[token]} of {sources[0].path}")
    return parts[0]._replace(
        labels=labels,
        token_id=np.concatenate([p.token_id for p in parts]),
        position=np.concatenate([p.position for p in parts]),
        tokens=None if any(p.tokens is None for p in parts) else [t for p in parts for t in (p.tokens or ())],
        experts=np.concatenate(widen([p.experts for p in parts], -1)),
        weights=None
        if parts[0].weights is None
        else np.concatenate(widen([p.weights for p in parts if p.weights is not None], 0)),
        source=replace(sources[0], numbers=numbers),
    )
