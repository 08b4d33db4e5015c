"""Rows of the files a corpus may come in: JSONL, CSV, Parquet, folders of text, `datasets` names."""

from __future__ import annotations

import csv
import gzip
import json
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from moe_probe.corpus.document import BadRow
from moe_probe.errors import MoeProbeError

Row = tuple[str, Mapping[str, Any] | BadRow]  # (file and line, row or why it cannot be read)

_JSONL = (".jsonl", ".jsonl.gz", ".ndjson")
_CSV = (".csv", ".csv.gz", ".tsv", ".tsv.gz")
_PARQUET = (".parquet",)
_HIDDEN = (".", "_")


def iter_rows(source: str | Path, *, name: str | None = None, split: str | None = None) -> Iterator[Row]:
    """Yield the rows of a corpus one at a time, each with the place it came from.

    Parameters
    ----------
    source : str or Path
        A file, a folder of such files, a folder of ``topic/subtopic/*.txt``, or the name of a
        data set for :func:`datasets.load_dataset` (written ``datasets:NAME``).
    name, split : str, optional
        Configuration and split of a `datasets` data set.

    Raises
    ------
    MoeProbeError
        When there is nothing to read at `source`, or its format is not known.
    """
    if str(source).startswith("datasets:"):
        yield from _datasets_rows(str(source).removeprefix("datasets:"), name=name, split=split)
        return
    path = Path(source)
    if not path.exists():
        raise MoeProbeError(f"there is no corpus at {path}", "no such file or folder",
                            "a .jsonl, .csv or .parquet file, a folder of topic/subtopic/*.txt, or datasets:NAME")
    if path.is_file():
        yield from _file_rows(path)
        return
    files = sorted(p for p in path.iterdir() if p.is_file() and _kind(p) is not None)
    if files:
        for file in files:
            yield from _file_rows(file)
        return
    yield from _folder_rows(path)


def _kind(path: Path) -> str | None:
    lower = path.name.lower()
    if lower.startswith(_HIDDEN):
        return None
    for kind, endings in (("jsonl", _JSONL), ("csv", _CSV), ("parquet", _PARQUET)):
        if lower.endswith(endings):
            return kind
    return None


def _file_rows(path: Path) -> Iterator[Row]:
    kind = _kind(path)
    if kind is None:
        raise MoeProbeError(f"the format of {path} is not known", f"its name ends in '{path.suffix}'",
                            "a file ending in .jsonl, .jsonl.gz, .csv, .tsv or .parquet")
    reader = {"jsonl": _jsonl_rows, "csv": _csv_rows, "parquet": _parquet_rows}[kind]
    try:
        yield from reader(path)
    except (OSError, EOFError) as error:
        raise MoeProbeError(f"{path} cannot be read", str(error), "check the file and its permissions") from error


def _open_text(path: Path) -> Any:
    # surrogateescape: a byte that is not UTF-8 must be reported with its line, not end the reading
    if path.name.endswith(".gz"):
        return gzip.open(path, "rt", encoding="utf-8", errors="surrogateescape", newline="")
    return path.open(encoding="utf-8-sig", errors="surrogateescape", newline="")


def _jsonl_rows(path: Path) -> Iterator[Row]:
    with _open_text(path) as lines:
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            where = f"{path}, line {number}"
            try:
                row = json.loads(line)
            except json.JSONDecodeError as error:
                yield where, BadRow(f"{where} is not JSON", str(error), "one JSON object a line, or --skip-bad")
                continue
            if not isinstance(row, dict):
                yield where, BadRow(f"{where} is not a JSON object", f"found {type(row).__name__}",
                                    "one JSON object a line, or --skip-bad")
                continue
            yield where, row


def _csv_rows(path: Path) -> Iterator[Row]:
    csv.field_size_limit(sys.maxsize)
    delimiter = "\t" if ".tsv" in path.name.lower() else ","
    with _open_text(path) as lines:
        reader = csv.DictReader(lines, delimiter=delimiter)
        for row in reader:
            where = f"{path}, line {reader.line_num}"
            if None in row or None in row.values():
                yield where, BadRow(f"{where} has another number of fields than the header", "",
                                    "quote fields that hold the delimiter, or --skip-bad")
                continue
            yield where, row


def _parquet_rows(path: Path) -> Iterator[Row]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        file = pq.ParquetFile(path)
    except pa.ArrowInvalid as error:
        raise MoeProbeError(f"{path} is not a Parquet file", str(error), "check the file") from error
    number = 0
    for batch in file.iter_batches(batch_size=256):
        for row in batch.to_pylist():
            number += 1
            yield f"{path}, row {number}", row


def _folder_rows(root: Path) -> Iterator[Row]:
    """``topic/subtopic/*.txt`` or ``topic/*.txt``: folder names are the labels."""
    files = sorted(p for p in root.rglob("*.txt") if len(p.relative_to(root).parts) in (2, 3))
    if not files:
        raise MoeProbeError(f"there is no corpus in {root}", "no .jsonl, .csv, .parquet or topic/*.txt in it",
                            "name the file, or lay texts out as topic/subtopic/NAME.txt")
    for path in files:
        parts = path.relative_to(root).parts
        try:
            text = path.read_text(encoding="utf-8")
        except UnicodeDecodeError as error:
            yield str(path), BadRow(f"{path} is not UTF-8 text", str(error), "convert it, or --skip-bad")
            continue
        row = {"id": "/".join(parts)[: -len(".txt")], "topic": parts[0], "text": text,
               "subtopic": parts[1] if len(parts) == 3 else ""}
        yield str(path), row


def _datasets_rows(dataset: str, *, name: str | None, split: str | None) -> Iterator[Row]:
    import datasets

    try:
        rows = datasets.load_dataset(dataset, name, split=split or "train", streaming=True)
    except Exception as error:  # `datasets` raises whatever its back-ends raise: name it all the same
        raise MoeProbeError(f"data set '{dataset}' cannot be loaded", f"{type(error).__name__}: {error}",
                            "check name, configuration and split, or give a local file") from error
    for number, row in enumerate(rows, start=1):
        yield f"datasets:{dataset}, row {number}", row
