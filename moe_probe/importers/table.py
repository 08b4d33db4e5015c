"""The interchange table, version 1: Parquet or JSONL, a row per token, ``experts_L`` per MoE layer."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute
import pyarrow.parquet as pq

from moe_probe.errors import MoeProbeError
from moe_probe.importers.records import ImportOptions, TokenRecord, experts_of_layers, import_records
from moe_probe.trace import Trace
from moe_probe.trace.files import sha256_file

_REQUIRED = ("document", "topic", "position", "token_id")
_OPTIONAL = ("subtopic", "group", "split")
_ROWS = 16384


def import_table(path: str | Path, out: str | Path, *, options: ImportOptions | None = None,
                 mode: str = "new") -> Trace:
    """Import an interchange table (version 1) as a trace.

    The table has a row per token with ``document, topic`` (strings), optional ``subtopic, group, split``,
    ``position, token_id`` (integers), optional ``token``, and for each MoE layer L of the model
    ``experts_L`` (list of ids) and optionally ``weights_L`` (list of floats of the same length).
    Read in pieces: memory does not grow with the table.

    Raises
    ------
    MoeProbeError
        When a column is missing or wrong, naming column and row.
    """
    options = options or ImportOptions()
    source = _Source.open(Path(path), options)
    largest, widest = _scan(source)
    num_experts = experts_of_layers(source.layers, largest, options, source.declared)
    return import_records(
        lambda: _documents(source, options), out, layers=source.layers, num_experts=num_experts, top_k=widest,
        source=source.path.name, source_hash=sha256_file(source.path), has_weights=source.has_weights,
        options=options, mode=mode)


@dataclass(frozen=True)
class _Source:
    path: Path
    columns: tuple[str, ...]
    layers: tuple[int, ...]
    has_weights: bool
    declared: dict[int, int]

    @classmethod
    def open(cls, path: Path, options: ImportOptions) -> _Source:
        if not path.is_file():
            raise MoeProbeError(f"there is no table at {path}", "no such file", "a .parquet or .jsonl file")
        if path.suffix == ".parquet":
            try:
                schema = pq.read_schema(path)
            except pa.ArrowInvalid as error:
                raise MoeProbeError(f"{path} is not a Parquet file", str(error), "check the file") from error
            columns = tuple(schema.names)
            declared = {_layer(f.name): int(f.metadata[b"num_experts"]) for f in schema
                        if f.name.startswith("experts_") and f.metadata and b"num_experts" in f.metadata}
        elif path.suffix in (".jsonl", ".ndjson"):
            columns, declared = tuple(_first_row(path)), {}
        else:
            raise MoeProbeError(f"the format of {path} is not known", f"its name ends in '{path.suffix}'",
                                "an interchange table ending in .parquet or .jsonl")
        for name in (*_REQUIRED, *options.labels):
            if name not in columns:
                raise MoeProbeError(f"{path} has no column '{name}'", f"its columns are {', '.join(columns[:12])}",
                                    "docs/formats.md describes the interchange table")
        layers = tuple(sorted(_layer(c) for c in columns if re.fullmatch(r"experts_\d+", c)))
        if not layers:
            raise MoeProbeError(f"{path} has no routing", "no column is called experts_0, experts_1 ...",
                                "docs/formats.md describes the interchange table")
        weighted = [layer for layer in layers if f"weights_{layer}" in columns]
        if weighted and len(weighted) < len(layers):
            missing = next(layer for layer in layers if layer not in weighted)
            raise MoeProbeError(f"{path} has weights for some layers only", f"weights_{missing} is missing",
                                "weights for every layer or for none")
        return cls(path, columns, layers, bool(weighted), declared)

    def batches(self, columns: Sequence[str] | None = None) -> Iterator[tuple[int, pa.Table]]:
        """Yield pieces of the table with the number of their first row (counted from 1)."""
        row = 1
        if self.path.suffix == ".parquet":
            for batch in pq.ParquetFile(self.path).iter_batches(batch_size=_ROWS, columns=columns):
                yield row, pa.Table.from_batches([batch])
                row += batch.num_rows
            return
        rows: list[dict] = []
        with self.path.open(encoding="utf-8") as lines:
            for number, line in enumerate(lines, start=1):
                if line.strip():
                    rows.append(_json_row(self.path, number, line))
                if len(rows) == _ROWS:
                    yield row, _as_table(self.path, rows, columns or self.columns)
                    row, rows = row + len(rows), []
        if rows:
            yield row, _as_table(self.path, rows, columns or self.columns)


def _layer(column: str) -> int:
    return int(column.removeprefix("experts_"))


def _json_row(path: Path, number: int, line: str) -> dict:
    try:
        row = json.loads(line)
    except json.JSONDecodeError as error:
        raise MoeProbeError(f"{path}, line {number} is not JSON", str(error), "one JSON object a line") from error
    if not isinstance(row, dict):
        raise MoeProbeError(f"{path}, line {number} is not a JSON object", "", "one JSON object a line")
    return row


def _first_row(path: Path) -> list[str]:
    with path.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, start=1):
            if line.strip():
                return list(_json_row(path, number, line))
    raise MoeProbeError(f"{path} is empty", "", "an interchange table")


def _as_table(path: Path, rows: list[dict], columns: Sequence[str]) -> pa.Table:
    try:
        return pa.table({name: [row.get(name) for row in rows] for name in columns})
    except (pa.ArrowInvalid, pa.ArrowTypeError) as error:
        raise MoeProbeError(f"{path} mixes types within a column", str(error),
                            "the same type in every row") from error


def _scan(source: _Source) -> tuple[list[int], list[int]]:
    """Largest id and longest list of each layer."""
    largest, widest = [-1] * len(source.layers), [1] * len(source.layers)
    names = [f"experts_{layer}" for layer in source.layers]
    for first, table in source.batches(names):
        for place, name in enumerate(names):
            ids = _ragged(table[name], source.path, name, first, dtype=np.int64, empty=-1)
            widest[place] = max(widest[place], ids.shape[1])
            largest[place] = max(largest[place], int(ids.max(initial=-1)))
    return largest, widest


def _ragged(column: pa.ChunkedArray, path: Path, name: str, first: int, *, dtype: type, empty: float) -> np.ndarray:
    """Lists as a rectangle, shape (n_rows, longest), short lists filled with `empty`."""
    array = column.combine_chunks()
    if column.null_count or not (pa.types.is_list(array.type) or pa.types.is_large_list(array.type)
                                 or pa.types.is_fixed_size_list(array.type)):
        raise MoeProbeError(f"column '{name}' of {path} is not a list in every row", f"found {array.type}",
                            "a list of one number per selected expert")
    lengths = np.asarray(pa.compute.list_value_length(array))
    flat = array.flatten()
    if flat.null_count or (not (pa.types.is_integer(flat.type) or (
            dtype is np.float32 and pa.types.is_floating(flat.type))) and len(flat)):
        raise MoeProbeError(f"column '{name}' of {path} holds {flat.type} values", "or missing ones",
                            "whole numbers for experts, numbers for weights")
    inside = np.arange(max(int(lengths.max(initial=0)), 1)) < lengths[:, None]
    out: np.ndarray = np.full(inside.shape, empty, dtype=dtype)
    out[inside] = np.asarray(flat).astype(dtype)
    if dtype is np.int64 and (out[inside] < 0).any():
        row = first + int(np.argwhere((out < 0) & inside)[0, 0])
        raise MoeProbeError(f"row {row} of {path} has a negative id in '{name}'", "",
                            "leave slots that reached no expert out of the list")
    return out


def _documents(source: _Source, options: ImportOptions) -> Iterator[TokenRecord]:
    """Join the rows of each document, over the ends of the pieces."""
    pending: list[TokenRecord] = []
    for first, table in source.batches():
        for record in _split(source, table, first, options):
            if pending and pending[0].labels["document"] != record.labels["document"]:
                yield _joined(pending, source.path)
                pending = []
            pending.append(record)
    if pending:
        yield _joined(pending, source.path)


def _split(source: _Source, table: pa.Table, first: int, options: ImportOptions) -> Iterator[TokenRecord]:
    names = [c for c in ("document", "topic", *_OPTIONAL, *options.labels) if c in table.column_names]
    labels = {name: [("" if x is None else str(x)) for x in table[name].to_pylist()] for name in dict.fromkeys(names)}
    for name in ("document", "topic"):
        if "" in labels[name]:
            raise MoeProbeError(f"row {first + labels[name].index('')} of {source.path} has no {name}", "",
                                "every token needs its document and topic")
    numbers = {name: _integers(table[name], source.path, name) for name in ("position", "token_id")}
    tokens = [str(t) for t in table["token"].to_pylist()] if "token" in table.column_names else None
    experts = _stack(source, table, first, "experts", np.int64, -1)
    weights = _stack(source, table, first, "weights", np.float32, 0) if source.has_weights else None
    if weights is not None and weights.shape != experts.shape:
        raise MoeProbeError(f"weights and experts of {source.path} disagree in length", f"near row {first}",
                            "one weight per selected expert")
    documents = np.asarray(labels["document"], dtype=object)
    cuts = np.flatnonzero(documents[1:] != documents[:-1]) + 1
    for start, stop in zip([0, *cuts], [*cuts, len(documents)], strict=True):
        part = slice(int(start), int(stop))
        for name, values in labels.items():
            if any(value != values[part.start] for value in values[part]):
                raise _changed_labels(source.path, labels["document"][part.start], name)
        yield TokenRecord({k: v[part.start] for k, v in labels.items()}, numbers["token_id"][part],
                          numbers["position"][part], None if tokens is None else tokens[part], experts[part],
                          None if weights is None else weights[part])


def _integers(column: pa.ChunkedArray, path: Path, name: str) -> np.ndarray:
    if column.null_count or not pa.types.is_integer(column.type):
        raise MoeProbeError(f"column '{name}' of {path} is not a whole number in every row",
                            f"found {column.type}, {column.null_count} missing", "whole numbers")
    return column.to_numpy()


def _stack(source: _Source, table: pa.Table, first: int, kind: str, dtype: type, empty: float) -> np.ndarray:
    """All layers of one kind, shape (n_rows, n_layers, longest list)."""
    parts = [_ragged(table[f"{kind}_{layer}"], source.path, f"{kind}_{layer}", first, dtype=dtype, empty=empty)
             for layer in source.layers]
    out = np.full((table.num_rows, len(parts), max(p.shape[1] for p in parts)), empty, dtype=dtype)
    for place, part in enumerate(parts):
        out[:, place, :part.shape[1]] = part
    return out


def _changed_labels(path: Path, document: str, name: str) -> MoeProbeError:
    return MoeProbeError(f"document '{document}' of {path} changes its labels", f"its rows differ in '{name}'",
                         "one value per document")


def _joined(parts: list[TokenRecord], path: Path) -> TokenRecord:
    first = parts[0]
    for other in parts[1:]:
        for name, value in first.labels.items():
            if other.labels[name] != value:
                raise _changed_labels(path, first.labels["document"], name)
    slots = max(p.experts.shape[2] for p in parts)

    def wide(array: np.ndarray, empty: float) -> np.ndarray:
        return np.pad(array, ((0, 0), (0, 0), (0, slots - array.shape[2])), constant_values=empty)

    return TokenRecord(
        first.labels, np.concatenate([p.token_id for p in parts]), np.concatenate([p.position for p in parts]),
        None if first.tokens is None else [t for p in parts for t in (p.tokens or ())],
        np.concatenate([wide(p.experts, -1) for p in parts]),
        None if first.weights is None else np.concatenate([wide(p.weights, 0) for p in parts if p.weights is not None]))
