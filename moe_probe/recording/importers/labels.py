"""Labels of documents whose routing is in arrays: a table beside the arrays, whose row i is document i."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from moe_probe.core.errors import MoeProbeError, UsageError, did_you_mean
from moe_probe.core.text import is_missing, label_text, some_of
from moe_probe.recording.corpus.document import BadRowError
from moe_probe.recording.corpus.readers import read_rows
from moe_probe.recording.importers.label_columns import LabelColumns
from moe_probe.recording.importers.options import ImportOptions

#: Names of the table of labels, where it lies beside the arrays.
BESIDE = ("documents.parquet", "documents.csv")


_DEFAULTS = LabelColumns()


@dataclass(frozen=True)
class DocumentLabels:
    """Labels of documents, in order.

    Attributes
    ----------
    rows : list of dict of str to str, or None
        ``document, topic`` and further labels; None where one topic is given for however many documents there are.
    topic : str
        That topic.
    tokens : ndarray of float, shape (n_documents,), or None
        Numbers of tokens, where the table has them.
    name : str
        Name of the table in messages.
    """

    rows: list[dict[str, str]] | None
    topic: str = ""
    tokens: np.ndarray | None = None
    name: str = ""

    def of(self, number: int) -> dict[str, str]:
        """Return the labels of a document by its number."""
        if self.rows is None:
            return {"document": f"{self.topic}/{number:04d}", "topic": self.topic}
        return self.rows[number]

    def check_number(self, n: int, what: str) -> None:
        """Refuse a number of documents that is not that of the labels.

        Parameters
        ----------
        n : int
        what : str
            What has so many.

        Raises
        ------
        MoeProbeError
        """
        if self.rows is not None and len(self.rows) != n:
            raise MoeProbeError(
                f"{what} has {n:,} documents, and {self.name} has {len(self.rows):,}",
                "row i of the labels is document i of the arrays",
                "one row of labels per document, or --topic NAME for all of them",
            )


def find_labels(
    arrays: Path | None, documents: Any, topic: str | None, options: ImportOptions, *, named_by_topic: bool = False
) -> DocumentLabels:
    """Read labels from where they are given, or from beside the arrays.

    Parameters
    ----------
    arrays : Path or None
        File of the arrays; None for arrays in memory.
    documents : path, DataFrame, mapping of columns, or sequence of mappings, optional
    topic : str, optional
        One topic for all documents; then no table is read.
    options : ImportOptions
        Its `columns` and `labels` name columns.
    named_by_topic : bool
        Name documents after their topics, where the table has no column for their names.

    Returns
    -------
    DocumentLabels

    Raises
    ------
    MoeProbeError
        When there is no table, or a row of it has no topic.
    UsageError
        When two of the sources are given.
    """
    if topic is not None:
        if documents is not None:
            raise UsageError("--topic and --documents exclude each other", "either can give the topics", "one of the two")
        if options.labels or options.columns != _DEFAULTS:
            raise UsageError(
                "--topic excludes options that name columns of labels", "no table of labels is read then", "omit one"
            )
        if not topic.strip():
            raise UsageError("--topic is empty", "", "--topic NAME")
        return DocumentLabels(None, topic)
    if documents is None:
        if arrays is None:
            raise UsageError("there are no labels", "", "documents=TABLE, with a row for every document, or topic=NAME")
        documents = _beside(arrays)
    if isinstance(documents, str | Path):
        name, rows = str(documents), _file_rows(Path(documents))
    else:
        name, rows = "the table of documents", _memory_rows(documents)
    return _read(rows, name, options, named_by_topic=named_by_topic)


def _beside(arrays: Path) -> Path:
    found = [path for path in (arrays.parent / name for name in BESIDE) if path.is_file()]
    if len(found) == 1:
        return found[0]
    raise UsageError(
        f"there are {'several tables' if found else 'no labels'} beside {arrays}",
        f"{' and '.join(path.name for path in found)}" if found else f"no {' or '.join(BESIDE)}, whose row i is document i",
        "--documents FILE, or --topic NAME for all documents",
    )


def _file_rows(path: Path) -> Iterator[tuple[str, Mapping[str, Any]]]:
    if not path.is_file():
        raise MoeProbeError(f"there is no table of documents at {path}", "no such file", "--documents FILE")
    for where, row in read_rows(path):
        if isinstance(row, BadRowError):
            raise MoeProbeError(row.what, row.why, "correct the row")
        yield where, row


def _memory_rows(table: Any) -> Iterator[tuple[str, Mapping[str, Any]]]:
    if hasattr(table, "to_dict"):  # a DataFrame
        table = table.to_dict("records")
    elif isinstance(table, Mapping):
        sizes = {name: len(values) for name, values in table.items()}
        if len(set(sizes.values())) > 1:
            raise MoeProbeError("the columns of documents differ in length", f"{sizes}", "one value per document")
        table = [dict(zip(table, row, strict=True)) for row in zip(*table.values(), strict=True)]
    for number, row in enumerate(table):
        yield f"document {number}", row


def _read(
    rows: Iterable[tuple[str, Mapping[str, Any]]], name: str, options: ImportOptions, *, named_by_topic: bool
) -> DocumentLabels:
    columns = options.columns
    read_from = {"document": columns.document, "topic": columns.topic, "subtopic": columns.subtopic, "group": columns.group}
    read_from |= {"split": columns.split} | {label: label for label in options.labels}
    out: list[dict[str, str]] = []
    tokens: list[float] = []
    for number, (where, row) in enumerate(rows):
        if not number:
            _check_columns(row, name, options)
        labels = {label: _text(row, column, where) for label, column in read_from.items()}
        if not labels["topic"].strip():
            raise MoeProbeError(f"{where} has no topic", f"'{columns.topic}' is empty", "a topic for every document")
        if named_by_topic and columns.document not in row and any(labels["topic"] == other["topic"] for other in out):
            what = f"{where}: topic '{labels['topic']}' comes a second time"
            raise MoeProbeError(what, "sums have one row per topic", "rows added up by topic, or a column of names for them")
        if columns.document not in row:
            labels["document"] = labels["topic"] if named_by_topic else f"{number:07d}"
        out.append(labels)
        if columns.tokens in row:
            tokens.append(_number(row[columns.tokens], columns.tokens, where))
    if not out:
        raise MoeProbeError(f"{name} has no document", "it has no row", "one row per document")
    return DocumentLabels(out, tokens=np.array(tokens) if tokens else None, name=name)


def _check_columns(row: Mapping[str, Any], name: str, options: ImportOptions) -> None:
    """Refuse a table without the columns that were named; those that nobody named may be missing, but for the topic."""
    columns = options.columns
    for field in ("topic", "document", "subtopic", "group", "split", "tokens"):
        column = getattr(columns, field)
        if column not in row and (field == "topic" or column != getattr(_DEFAULTS, field)):
            flag = f"--{'id' if field == 'document' else field}-column NAME"
            _missing(row, column, name, flag)
    for label in options.labels:
        if label not in row:
            _missing(row, label, name, "--label NAME")


def _missing(row: Mapping[str, Any], column: str, name: str, flag: str) -> None:
    why = f"its columns are {some_of(row, 12)}"
    raise MoeProbeError(f"{name} has no column '{column}'", why, f"{flag}; {did_you_mean(column, [str(k) for k in row])}")


def _text(row: Mapping[str, Any], column: str, where: str) -> str:
    text = label_text(row.get(column))
    if text is None:
        what = f"{where} has a '{column}' that is a {type(row[column]).__name__}"
        raise MoeProbeError(what, "a label is a text or a number", "one value per document")
    return text


def _number(value: Any, column: str, where: str) -> float:
    try:
        return float("nan") if is_missing(value) else float(value)
    except (TypeError, ValueError) as error:
        raise MoeProbeError(f"{where} has {str(value)[:40]!r} in '{column}'", "that is no number of tokens", "") from error
