"""Rows of one file of a corpus: JSON, CSV, Parquet, Arrow."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from moe_probe.core.errors import MoeProbeError, error_text
from moe_probe.core.textfiles import (
    BadLineError,
    format_of,
    refuse_no_file,
    refuse_repeated,
    scan_csv_rows,
    scan_json_rows,
)
from moe_probe.recording.corpus.document import BadRowError

if TYPE_CHECKING:
    import pyarrow as pa

Row = tuple[str, Mapping[str, Any] | BadRowError]  # (file and line, row or why it cannot be read)


def read_rows(path: Path) -> Iterator[Row]:
    """Yield the rows of a file one at a time, each with file and line.

    Raises
    ------
    MoeProbeError
        When the format is not known, the file cannot be read, or it names a column twice.
    """
    reader = _READERS.get(format_of(path))
    if reader is None:
        hint = "a file ending in .jsonl, .json, .csv, .tsv or .parquet (also .gz or .zst), or .arrow"
        raise MoeProbeError(f"the format of {path} is not known", f"its name ends in '{path.suffix}'", hint)
    try:
        yield from reader(path)
    except OSError as error:
        if error.errno is None:  # pyarrow reports damage so
            raise MoeProbeError(f"{path} is damaged or cut off", error_text(error), "copy or download it again") from error
        why = error.strerror or str(error)
        raise MoeProbeError(f"{path} cannot be read", why, "check the file and its permissions") from error


def _json_rows(path: Path) -> Iterator[Row]:
    for number, value in scan_json_rows(path):
        where = f"{path}, line {number}"
        if isinstance(value, BadLineError):
            yield where, BadRowError.of(value)
        elif not isinstance(value, dict):
            why = f"it is a {type(value).__name__}"
            yield where, BadRowError(f"{where} is not a JSON object", why, "one JSON object per line, or --skip-bad")
        else:
            yield where, value


def _csv_rows(path: Path) -> Iterator[Row]:
    for number, row in scan_csv_rows(path):
        yield f"{path}, line {number}", BadRowError.of(row) if isinstance(row, BadLineError) else row


def _parquet_rows(path: Path) -> Iterator[Row]:
    from moe_probe.recording.corpus.parquet import ParquetTable

    table = ParquetTable(path)
    yield from _batch_rows(path, table.schema, table.batches(256))


def _arrow_rows(path: Path) -> Iterator[Row]:
    """Rows of an Arrow stream, as `datasets` saves them, or of an Arrow file."""
    import pyarrow as pa

    refuse_no_file(path)
    with pa.OSFile(str(path), "rb") as source:
        try:
            if source.read(6) == b"ARROW1":
                whole = pa.ipc.open_file(source)
                schema, batches = whole.schema, (whole.get_batch(i) for i in range(whole.num_record_batches))
            else:
                source.seek(0)
                stream = pa.ipc.open_stream(source)
                schema, batches = stream.schema, (batch for batch in stream)
        except (pa.ArrowException, UnicodeDecodeError) as error:
            raise MoeProbeError(f"{path} is not an Arrow file", error_text(error), "check the file") from error
        yield from _batch_rows(path, schema, map(_validated, batches))


def _validated(batch: pa.RecordBatch) -> pa.RecordBatch:
    """Check a batch as `ParquetTable` does: offsets of a damaged file may lead anywhere, reading them would end the process."""
    batch.validate(full=True)
    return batch


def _batch_rows(path: Path, schema: pa.Schema, batches: Iterable[pa.RecordBatch]) -> Iterator[Row]:
    import pyarrow as pa

    number = 0
    try:
        refuse_repeated(path, schema.names)
        classes = class_names(schema.metadata)
        for batch in batches:
            for start in range(0, batch.num_rows, 256):
                for row in _rows_of(path, batch.slice(start, 256)):
                    number += 1
                    yield named_classes(row, classes, f"{path}, row {number}")
    except (pa.ArrowException, UnicodeDecodeError) as error:
        raise MoeProbeError(
            f"{path} is damaged after row {number}", error_text(error), "copy or download it again"
        ) from error


def _rows_of(path: Path, batch: pa.RecordBatch) -> list[dict[str, Any]]:
    try:
        return list(batch.to_pylist())
    except (OverflowError, ValueError, LookupError) as error:  # such as the year 10,000, or a time zone that is not known
        for name, column in zip(batch.schema.names, batch.columns, strict=True):
            try:
                column.to_pylist()
            except (OverflowError, ValueError, LookupError):
                what = f"column '{name}' of {path} has values that cannot be read"
                hint = "remove the column, or store it as text"
                raise MoeProbeError(what, f"{column.type}: {error_text(error)}", hint) from error
        raise


def class_names(metadata: Mapping[bytes, bytes] | None) -> dict[str, list[str]]:
    """Return the names of the classes of each ClassLabel column, from the schema that `datasets` leaves in a file."""
    try:
        features = json.loads((metadata or {})[b"huggingface"])["info"]["features"]
        return {
            name: list(kind["names"])
            for name, kind in features.items()
            if isinstance(kind, dict) and kind.get("_type") == "ClassLabel" and kind.get("names")
        }
    except (KeyError, TypeError, ValueError, AttributeError):
        return {}


def named_classes(row: dict[str, Any], classes: Mapping[str, list[str]], where: str) -> Row:
    """Replace the number of a class by its name; -1 is a missing label, as in `datasets`.

    Parameters
    ----------
    row : dict of str to object
        Is changed.
    classes : mapping of str to list of str
        Names of the classes by column.
    where : str
        File and row, for messages.

    Returns
    -------
    tuple of str and (dict or BadRowError)
        `where`, and the row or why it cannot be read.
    """
    for name, names in classes.items():
        value = row.get(name)
        if not isinstance(value, int) or isinstance(value, bool):
            continue
        if not -1 <= value < len(names):
            what, why = f"{where}: '{name}' is class {value}", f"the file names {len(names)} classes"
            return where, BadRowError(what, why, "mend the file, or --skip-bad to omit such rows")
        row[name] = names[value] if value >= 0 else None
    return where, row


_READERS: dict[str, Callable[[Path], Iterator[Row]]] = {
    ".jsonl": _json_rows,
    ".ndjson": _json_rows,
    ".json": _json_rows,
    ".csv": _csv_rows,
    ".tsv": _csv_rows,
    ".parquet": _parquet_rows,
    ".arrow": _arrow_rows,
}
#: Endings (in any case, also compressed) of files with one row per document.
TABLES = tuple(_READERS)
