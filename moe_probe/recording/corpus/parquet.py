"""Parquet files that a user brings: sizes are checked before memory is taken, and what is read is checked before it is used.

A kilobyte of Parquet may declare millions of rows, or repeat one long text in each of them. Text is therefore read as codes, and
its whole length is known before it is written out.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from moe_probe.core.errors import MoeProbeError, error_text
from moe_probe.core.textfiles import refuse_no_file

#: What damage makes pyarrow raise; names of columns that are no UTF-8 are decoded by Python.
DAMAGED = (pa.ArrowException, OSError, UnicodeDecodeError)
#: Values of a column that a file of any size may have, and values per byte of a larger one.
_VALUES, _VALUES_PER_BYTE = 1 << 20, 64
#: The same for the bytes of text in all columns that are read.
_TEXT, _TEXT_PER_BYTE = 1 << 27, 64
#: Bytes that are decoded together, and rows at most.
_DECODED, _MOST_ROWS = 1 << 24, 4096
_COPY = "copy or download it again"


class ParquetTable:
    """A Parquet file, opened.

    Parameters
    ----------
    path : Path

    Attributes
    ----------
    schema : pyarrow.Schema
        As the file has it.

    Raises
    ------
    MoeProbeError
        When it is no Parquet file, is damaged, or declares more values than a file of its size has.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            refuse_no_file(path)
            self._size = path.stat().st_size
            file = pq.ParquetFile(path)
            self.schema: pa.Schema = file.schema_arrow
            values = _most_values(file.metadata)
            self._at_once = _rows_at_once(file.metadata)
            texts = [field.name for field in self.schema if _is_text(field.type)]
            # codes instead of text: a million rows of one long text take the memory of one
            self._file = pq.ParquetFile(path, metadata=file.metadata, read_dictionary=texts)
        except DAMAGED as error:
            raise MoeProbeError(f"{path} is not a Parquet file", error_text(error), "check the file") from error
        if not 0 <= values <= _VALUES + _VALUES_PER_BYTE * self._size:
            raise MoeProbeError(
                f"{path} declares {values:,} values in a column",
                f"it has {self._size:,} bytes, and a file of that size has {_VALUES + _VALUES_PER_BYTE * self._size:,} at most",
                "write the table again without such repetition, or as JSON Lines",
            )

    def batches(self, n_rows: int, columns: Sequence[str] | None = None) -> Iterator[pa.RecordBatch]:
        """Yield some rows after the other.

        Parameters
        ----------
        n_rows : int
            Rows of a batch at most.
        columns : sequence of str, optional
            All columns without it.

        Yields
        ------
        pyarrow.RecordBatch
            Checked as a whole: offsets within their buffers, text in UTF-8.

        Raises
        ------
        MoeProbeError
            When the file is damaged, naming the row behind which it is.
        """
        row = text = 0
        names = None if columns is None else list(columns)
        try:
            for wide in self._file.iter_batches(batch_size=max(n_rows, self._at_once), columns=names):
                wide.validate(full=True)
                text += _text_bytes(wide)
                self._check_text(text, row + wide.num_rows)
                for start in range(0, wide.num_rows, n_rows):
                    batch = self._plain(wide.slice(start, n_rows))
                    yield batch
                    row += batch.num_rows
        except DAMAGED as error:
            raise MoeProbeError(f"{self.path} is damaged behind row {row}", error_text(error), _COPY) from error

    def whole(self) -> pa.Table:
        """Read all rows; see `batches`."""
        batches = list(self.batches(1 << 16))
        return pa.Table.from_batches(batches) if batches else self.schema.remove_metadata().empty_table()

    def _check_text(self, total: int, n_rows: int) -> None:
        """Refuse more text, in the rows up to here, than a file of this size has."""
        if total > _TEXT + _TEXT_PER_BYTE * self._size:
            raise MoeProbeError(
                f"{self.path} has {total:,} bytes of text in its first {n_rows:,} rows",
                f"the file has {self._size:,} bytes",
                "write the table again without such repetition, or as JSON Lines",
            )

    def _plain(self, batch: pa.RecordBatch) -> pa.RecordBatch:
        """Write text out, as the schema has it."""
        kinds = {
            name: self.schema.field(at).type for at, name in enumerate(self.schema.names)
        }  # repeated names: refused later
        plain = [
            column.cast(kinds[name]) if pa.types.is_dictionary(column.type) and _is_text(kinds[name]) else column
            for name, column in zip(batch.schema.names, batch.columns, strict=True)
        ]
        return pa.RecordBatch.from_arrays(plain, names=batch.schema.names)


def _is_text(kind: pa.DataType) -> bool:
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_binary(kind))


def _text_bytes(batch: pa.RecordBatch) -> int:
    """Return the bytes of text that the codes of a batch stand for."""
    total = 0
    for column in batch.columns:
        if pa.types.is_dictionary(column.type) and _is_text(column.type.value_type):
            lengths = pc.binary_length(column.dictionary).take(column.indices)
            total += int(pc.sum(lengths).as_py() or 0)
    return total


def _rows_at_once(metadata: pq.FileMetaData) -> int:
    """Return how many rows are decoded together: each time, all codes of a row group are built and checked again."""
    declared: int = sum(metadata.row_group(i).total_byte_size for i in range(metadata.num_row_groups))
    per_row: int = max(1, declared // max(1, metadata.num_rows))
    return int(min(_MOST_ROWS, max(1, _DECODED // per_row)))


def _most_values(metadata: pq.FileMetaData) -> int:
    """Return the values of the column that declares the most, in all row groups together; -1 for a negative number.

    A column without lists has a value for each row, and is not asked: where it is damaged, pyarrow's metadata ends the process,
    while its reader says what is wrong.
    """
    lists = [i for i in range(metadata.num_columns) if metadata.schema.column(i).max_repetition_level]
    totals = {-1: metadata.num_rows} | dict.fromkeys(lists, 0)
    for group in (metadata.row_group(i) for i in range(metadata.num_row_groups)):
        if group.num_rows < 0:
            return -1
        for i in lists:
            n = group.column(i).num_values
            if n < 0:
                return -1
            totals[i] += n
    return max(totals.values()) if min(totals.values()) >= 0 else -1
