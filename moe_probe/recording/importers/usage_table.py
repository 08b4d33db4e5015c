"""Counts that are not arrays: a long table with a row per document, layer and expert; sums by topic as JSON."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv as pacsv

from moe_probe.core.errors import MoeProbeError, UsageError, error_text
from moe_probe.core.files import sha256_file, sha256_json
from moe_probe.core.routing import dropped_id
from moe_probe.core.text import some_of
from moe_probe.core.textfiles import read_json, refuse_repeated
from moe_probe.recording.corpus.parquet import DAMAGED, ParquetTable
from moe_probe.recording.importers.arrayfile import IN_MEMORY
from moe_probe.recording.importers.columns import label_values, whole_numbers
from moe_probe.recording.importers.labels import DocumentLabels, find_labels
from moe_probe.recording.importers.options import ImportOptions, ImportSource
from moe_probe.recording.importers.plan import some
from moe_probe.recording.importers.token_record import SourceRows
from moe_probe.recording.importers.usage_block import UsageBlock

_CELLS = 1 << 21  # counts of a block
_COUNTS = ("count", "selections")
_NEEDED = ("document", "layer", "expert")
_LARGEST_LAYER = 1_000_000
#: Cells of layers and experts, or of layers and documents, that a table may have whatever its number of rows is ...
_MOST_CELLS = 1 << 22
_THINLY = 64  # ... and cells per row beyond that


@dataclass(frozen=True)
class UsageTable:
    """A long table, sorted by document.

    Attributes
    ----------
    source : ImportSource
    documents : list of dict of str to str
        Labels of the documents that have a row.
    tokens : ndarray of float or None, shape (n_documents,)
    cells : ndarray of int, shape (n_rows, 3)
        Document, column of the layer, expert.
    values : dict of str to ndarray, shape (n_rows,)
        ``counts``, optionally ``gate, saliency``.
    width : int
        Experts of the widest layer.
    notes : tuple of str
        What the user should know about it.
    """

    source: ImportSource
    documents: list[dict[str, str]]
    tokens: np.ndarray | None
    cells: np.ndarray
    values: Mapping[str, np.ndarray]
    width: int
    notes: tuple[str, ...]

    def blocks(self) -> Iterator[UsageBlock]:
        """Yield the documents in blocks."""
        n_layers = len(self.source.layers)
        step = max(1, _CELLS // (n_layers * self.width))
        for start in range(0, len(self.documents), step):
            documents = self.documents[start : start + step]
            begin, end = np.searchsorted(self.cells[:, 0], [start, start + len(documents)])
            document, layer, expert = self.cells[begin:end].T
            dense: dict[str, np.ndarray] = {}
            for name, values in self.values.items():
                dense[name] = np.zeros((len(documents), n_layers, self.width), dtype=values.dtype)
                dense[name][document - start, layer, expert] = values[begin:end]
            tokens = None if self.tokens is None else self.tokens[start : start + len(documents)]
            yield UsageBlock(documents, dense["counts"], tokens, dense.get("gate"), dense.get("saliency"))


def is_usage_table(source: object) -> bool:
    """Whether a source is a long table: a file of rows, or a DataFrame."""
    if isinstance(source, str | Path):
        return Path(source).suffix.lower() in (".parquet", ".csv", ".tsv")
    return hasattr(source, "to_dict") and hasattr(source, "columns")


def open_usage_table(source: Any, documents: Any, topic: str | None, options: ImportOptions) -> UsageTable:
    """Read a long table and its labels.

    Parameters
    ----------
    source : path or DataFrame
    documents : as `find_labels` takes it, optional
        Labels by the name of the document. A table that has a column of topics itself needs none.
    topic : str, optional
        One topic for all documents.
    options : ImportOptions

    Returns
    -------
    UsageTable

    Raises
    ------
    MoeProbeError
        Naming the row: a number that is none, an expert past the end, a cell that comes twice, a document without labels.
    """
    path, table = _read(source)
    refuse_repeated(path, table.column_names)
    missing = [name for name in _NEEDED if name not in table.column_names]
    counts = [name for name in _COUNTS if name in table.column_names]
    if missing or len(counts) != 1:
        missing += [] if counts else ["count"]
        what = f"{path} has no column '{missing[0]}'" if missing else f"{path} has the columns count and selections"
        raise MoeProbeError(what, f"its columns are {some_of(table.column_names, 12)}", "document, layer, expert, count")
    rows = SourceRows(path, "row", np.arange(1, table.num_rows + 1))
    if not table.num_rows:
        raise MoeProbeError(f"{path} is empty", "", "a row per document, layer and expert")
    names, code = _documents(table["document"], rows)
    layer, expert = (_ids(table[name], name, rows) for name in ("layer", "expert"))
    values = {"counts": whole_numbers(table[counts[0]], counts[0], rows)}
    _check_cells(layer, int(expert.max()) + 1, len(names), rows)
    values |= {name: _numbers(table[name], name, rows) for name in ("gate", "saliency") if name in table.column_names}
    _check_values(values, counts[0], rows)
    layers, column = np.unique(layer, return_inverse=True)
    order = np.lexsort((expert, column, code))
    cells = np.stack([code, column, expert], axis=1)[order]
    twice = (cells[1:] == cells[:-1]).all(axis=1)
    if twice.any():
        row = int(order[int(twice.argmax()) + 1])
        what = f"has document '{names[code[row]]}', layer {layer[row]} and expert {expert[row]} a second time"
        raise rows.error(row, what, "", "one row per document, layer and expert")
    labels, tokens, notes = _labels(table, rows, (names, code), (path, documents, topic), options)
    width = int(expert.max()) + 1
    if options.num_experts is None:
        notes.append(f"number of experts guessed from the largest id seen: {width}; pass --num-experts N")
    elif isinstance(options.num_experts, int):
        width = max(width, options.num_experts)
    digest = sha256_json([_digest(path, table), labels, None if tokens is None else tokens.tolist(), options.top_k])
    sorted_values = {name: array[order] for name, array in values.items()}
    found = ImportSource(layers.tolist(), path.name, digest, kind="long table of counts (usage)")
    return UsageTable(found, labels, tokens, cells, sorted_values, width, tuple(notes))


def read_topic_counts(path: Path) -> tuple[UsageBlock, ImportSource, int | None]:
    """Read sums of selections by topic: ``{"layers": [0, 7], "top_k": 8, "counts": {"law": [[counts of layer 0], ...]}}``.

    Parameters
    ----------
    path : Path
        JSON. The counts may stand under ``top_k`` and the number of experts per token under ``k``, as OLMoE's are kept.

    Returns
    -------
    block : UsageBlock
        A document per topic, which has its name.
    source : ImportSource
    top_k : int or None

    Raises
    ------
    MoeProbeError
        When the file is no such object, or topics differ in their layers or experts.
    """
    data = read_json(path)
    data = data if isinstance(data, dict) else {}
    counts = data.get("counts", data.get("top_k"))
    if not isinstance(counts, dict) or not counts:
        hint = '{"layers": [0, 7], "top_k": 8, "counts": {"law": [[...], [...]]}}'
        raise MoeProbeError(f"{path} has no counts by topic", "it is no object with an object 'counts'", hint)
    try:
        stacked = [np.array(rows, dtype=np.float64) for rows in counts.values()]
    except (TypeError, ValueError, OverflowError) as error:
        raise MoeProbeError(
            f"{path} has counts that are no rectangle of numbers", error_text(error), "a list per layer"
        ) from error
    shapes = {rows.shape for rows in stacked}
    if len(shapes) > 1 or len(next(iter(shapes))) != 2 or 0 in next(iter(shapes)):
        why = f"their shapes are {some_of(sorted(shapes))}"
        raise MoeProbeError(
            f"{path} has topics whose counts differ in shape", why, "layer and expert, the same for every topic"
        )
    n_layers = len(stacked[0])
    layers = data.get("layers", list(range(n_layers)))
    if not isinstance(layers, list) or len(layers) != n_layers or not all(type(n) is int and n >= 0 for n in layers):
        raise MoeProbeError(
            f"'layers' of {path} does not number {n_layers} layers", f"it is {str(layers)[:60]}", "[0, 7, 15]"
        )
    top_k = data.get("k", data.get("top_k") if counts is data.get("counts") else None)
    if top_k is not None and (type(top_k) is not int or top_k < 1):
        raise MoeProbeError(f"{path} has no number of experts per token", f"it has {str(top_k)[:40]}", '"top_k": 8')
    documents = [{"document": topic, "topic": topic} for topic in counts]
    source = ImportSource(layers, path.name, sha256_file(path), sums=True, kind="sums by topic (usage)")
    return UsageBlock(documents, np.stack(stacked)), source, top_k


def _read(source: Any) -> tuple[Path, pa.Table]:
    if not isinstance(source, str | Path):
        try:
            return IN_MEMORY, pa.Table.from_pandas(source, preserve_index=False)
        except (pa.ArrowInvalid, pa.ArrowTypeError) as error:
            raise MoeProbeError("the table cannot be read", error_text(error), "columns of one type each") from error
    path = Path(source)
    if not path.is_file():
        raise MoeProbeError(f"there is no file {path}", "", "a long table in .parquet or .csv")
    try:
        if path.suffix.lower() == ".parquet":
            return path, ParquetTable(path).whole()
        delimiter = "\t" if path.suffix.lower() == ".tsv" else ","
        options = pacsv.ConvertOptions(column_types={"document": pa.string()})
        table = pacsv.read_csv(path, parse_options=pacsv.ParseOptions(delimiter=delimiter), convert_options=options)
        refuse_repeated(path, table.column_names)  # names that are no UTF-8 fail here
        return path, table
    except DAMAGED as error:
        raise MoeProbeError(f"{path} cannot be read", error_text(error), "a table in .parquet or .csv") from error


def _digest(path: Path, table: pa.Table) -> str:
    if path != IN_MEMORY:
        return sha256_file(path)
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    return hashlib.sha256(sink.getvalue()).hexdigest()


def _ids(column: pa.ChunkedArray, name: str, rows: SourceRows) -> np.ndarray:
    values = whole_numbers(column, name, rows)
    most = _LARGEST_LAYER if name == "layer" else dropped_id("uint16") - 1
    bad = (values < 0) | (values > most)
    if bad.any():
        row = int(bad.argmax())
        raise rows.error(row, f"has the {name} {values[row]}", f"numbers are from 0 to {most:,}", f"check the column {name}")
    return values


def _check_cells(layer: np.ndarray, width: int, n_documents: int, rows: SourceRows) -> None:
    """Refuse few rows that would make large arrays: their layers, experts or documents are spread too thinly."""
    n_layers, n_rows = len(np.unique(layer)), len(layer)
    for cells, what in ((n_layers * width, f"{width:,} experts"), (n_layers * n_documents, f"{n_documents:,} documents")):
        if cells > _MOST_CELLS and cells > _THINLY * n_rows:
            raise MoeProbeError(
                f"{rows.path} has {n_rows:,} rows for {n_layers:,} layers and {what}",
                f"an array of all of them would have {cells:,} numbers",
                "check the columns layer, expert and document",
            )


def _numbers(column: pa.ChunkedArray, name: str, rows: SourceRows) -> np.ndarray:
    if not (pa.types.is_integer(column.type) or pa.types.is_floating(column.type)):
        raise MoeProbeError(f"column '{name}' of {rows.path} is not a number in every row", f"its type is {column.type}", "")
    return np.asarray(column.cast(pa.float64()).to_numpy())


def _check_values(values: Mapping[str, np.ndarray], counts: str, rows: SourceRows) -> None:
    for name, array in values.items():
        with np.errstate(invalid="ignore"):
            bad = ~((array >= 0) & (array < np.inf))
        if bad.any():
            row = int(bad.argmax())
            raise rows.error(row, f"has {array[row]:g} in '{counts if name == 'counts' else name}'", "", "0 or more")


def _documents(column: pa.ChunkedArray, rows: SourceRows) -> tuple[list[str], np.ndarray]:
    """Distinct names in the order of their first rows, and the number of each row's name."""
    if column.null_count or pa.types.is_nested(column.type):
        label_values(column, "document", rows, needed=True)  # names the row
    encoded = column.combine_chunks().dictionary_encode()
    code = encoded.indices.to_numpy(zero_copy_only=False).astype(np.int64)
    _, first = np.unique(code, return_index=True)
    return label_values(pa.chunked_array([encoded.dictionary]), "document", rows.take(first), needed=True), code


def _labels(
    table: pa.Table,
    rows: SourceRows,
    coded: tuple[list[str], np.ndarray],
    given: tuple[Path, Any, str | None],
    options: ImportOptions,
) -> tuple[list[dict[str, str]], np.ndarray | None, list[str]]:
    """Labels and tokens of the documents, by their names."""
    (path, documents, topic), names = given, coded[0]
    if topic is not None:
        find_labels(None, documents, topic, options)  # refuses what excludes --topic
        return [{"document": name, "topic": topic} for name in names], None, []
    if documents is None and options.columns.topic in table.column_names:
        labels = _inside(table, rows, coded, options)
    else:
        labels = find_labels(None if path == IN_MEMORY else path, documents, None, options)
    known: dict[str, int] = {}
    for number, row in enumerate(labels.rows or []):
        if known.setdefault(row["document"], number) != number:
            raise MoeProbeError(f"document '{row['document']}' comes twice in {labels.name}", "", "a row per document")
    if unknown := [name for name in names if name not in known]:
        why = f"{labels.name} has no row for it"
        raise MoeProbeError(f"document '{unknown[0]}' of {path} has no labels", why, "a row per document, with its name")
    chosen = [known[name] for name in names]
    without = sorted(set(known) - set(names))
    notes = [f"left out: {some(without, 'document')} without a row in {path.name}"] if without else []
    tokens = None if labels.tokens is None else labels.tokens[chosen]
    return [(labels.rows or [])[number] for number in chosen], tokens, notes


def _inside(
    table: pa.Table, rows: SourceRows, coded: tuple[list[str], np.ndarray], options: ImportOptions
) -> DocumentLabels:
    """Labels from the long table itself: one value per document."""
    columns = options.columns
    wanted = [columns.topic, columns.subtopic, columns.group, columns.split, columns.tokens, *options.labels]
    kept = list(dict.fromkeys(name for name in wanted if name in table.column_names and name != "document"))
    if columns.document != "document":
        raise UsageError("--id-column cannot be used with a long table", "its column is called document", "rename it")
    names, code = coded
    _, first = np.unique(code, return_index=True)
    labels: dict[str, list[Any]] = {"document": names}
    for name in kept:
        values = table[name].combine_chunks()
        encoded = values.dictionary_encode(null_encoding="encode").indices.to_numpy(zero_copy_only=False)
        other = encoded != encoded[first][code]
        if other.any():
            row = int(other.argmax())
            raise rows.error(row, f"changes the '{name}' of document '{names[code[row]]}'", "", "one value per document")
        labels[name] = values.take(pa.array(first)).to_pylist()
    return find_labels(None, labels, None, options)
