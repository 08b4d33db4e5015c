"""Parquet tables that someone else may have written: columns, types and declared sizes are checked before memory is taken."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from moe_probe.core.errors import MoeProbeError, error_text
from moe_probe.core.text import repeated
from moe_probe.core.untrusted import file_size

#: Kinds of columns: which types of a file are read as one.
KINDS: Mapping[str, Callable[[Any], bool]] = {
    "whole numbers": pa.types.is_integer,
    "numbers": lambda kind: pa.types.is_floating(kind) or pa.types.is_integer(kind),
    "text": lambda kind: (
        pa.types.is_string(kind)
        or pa.types.is_large_string(kind)
        or (
            pa.types.is_dictionary(kind)
            and (pa.types.is_string(kind.value_type) or pa.types.is_large_string(kind.value_type))
        )
    ),
    "yes or no": pa.types.is_boolean,
}
#: Rows and bytes of text that any file may hold, and as many more for each of its bytes.
_ROWS, _ROWS_PER_BYTE = 1 << 20, 64
_TEXT, _TEXT_PER_BYTE = 1 << 28, 64
# The exceptions that pyarrow raises for damaged files. ArrowInvalid is a ValueError, as is text that is not UTF-8;
# ArrowMemoryError is no ArrowException: a page declares gigabytes.
_DAMAGED = (pa.ArrowException, OSError, ValueError, KeyError, OverflowError, pa.ArrowMemoryError)


class StrangeTable:
    """A Parquet file, opened; its columns have the kinds that were asked for.

    Parameters
    ----------
    path : Path
    kinds : mapping of str to str
        Columns that it needs, and the kind of each (`KINDS`).
    others : str
        Kind of all further columns; any where empty.
    hint : str
        What the user can try.
    data : bytes, optional
        What the file holds, where it was read already.

    Attributes
    ----------
    names : list of str
        Columns.
    schema : pyarrow.Schema
        What all columns are read as.
    n_rows : int
    group_rows : list of int
        Rows of each row group.

    Raises
    ------
    MoeProbeError
        When it is no Parquet file, a column is missing, there twice or of another kind, or it declares more rows than a file of
        its size can have.
    """

    def __init__(
        self, path: Path, kinds: Mapping[str, str], *, others: str = "", hint: str, data: bytes | None = None
    ) -> None:
        self.path, self._hint = path, hint
        self._size = file_size(path, hint=hint) if data is None else len(data)
        try:
            # tables are read without the metadata of pandas or of Arrow's own types: the columns say what they are
            self._file = pq.ParquetFile(path if data is None else pa.BufferReader(data))
            schema, metadata = self._file.schema_arrow, self._file.metadata
            self.group_rows = [metadata.row_group(i).num_rows for i in range(metadata.num_row_groups)]
            self.names = [str(name) for name in schema.names]
            self._types = list(schema.types)
        except _DAMAGED as error:
            raise self.damaged(error_text(error)) from error
        self.n_rows = sum(self.group_rows)
        if min(self.group_rows, default=0) < 0 or self.n_rows != metadata.num_rows:
            raise self.damaged("its row groups do not add up to its rows")
        if self.n_rows > _ROWS + _ROWS_PER_BYTE * self._size:
            raise self.damaged(f"it declares {self.n_rows:,} rows in {self._size:,} bytes")
        self._check_kinds(kinds, others)
        texts = [n for n, kind in zip(self.names, self._types, strict=True) if KINDS["text"](kind)]
        types = (pa.string() if name in texts else kind for name, kind in zip(self.names, self._types, strict=True))
        self.schema = pa.schema(list(zip(self.names, types, strict=True)))
        try:  # text is read as codes: a million rows of one long text take the memory of one
            source = path if data is None else pa.BufferReader(data)
            self._file = pq.ParquetFile(source, metadata=metadata, read_dictionary=texts)
        except _DAMAGED as error:
            raise self.damaged(error_text(error)) from error

    def damaged(self, why: str) -> MoeProbeError:
        """Make the error on this file.

        Parameters
        ----------
        why : str

        Returns
        -------
        MoeProbeError
        """
        return MoeProbeError(f"{self.path} cannot be read", why, self._hint)

    def _check_kinds(self, kinds: Mapping[str, str], others: str) -> None:
        if (twice := repeated(self.names)) is not None:
            raise self.damaged(f"it has the column '{twice[:60]}' twice")
        known = set(self.names)
        missing = [name for name in kinds if name not in known]
        if missing:
            raise self.damaged(f"it has no column '{missing[0]}'")
        for name, kind in zip(self.names, self._types, strict=True):
            due = kinds.get(name, others)
            if due and not KINDS[due](kind):
                raise self.damaged(f"its column '{name[:60]}' has the type {str(kind)[:60]}; expected {due}")

    def dtype(self, name: str) -> np.dtype:
        """Return the type of a column of numbers.

        Raises
        ------
        MoeProbeError
            When there is no such column.
        """
        if name not in self.names:
            raise self.damaged(f"it has no column '{name}'")
        dtype: np.dtype = np.dtype(self._types[self.names.index(name)].to_pandas_dtype())
        return dtype

    def group(self, number: int, columns: Sequence[str]) -> pa.Table:
        """Read columns of a row group.

        Parameters
        ----------
        number : int
        columns : sequence of str

        Returns
        -------
        pyarrow.Table
            Without missing values; text as strings.

        Raises
        ------
        MoeProbeError
            When there is no such group, a page is damaged, a value is missing, or there is more text than a file of its size has.
        """
        if not 0 <= number < len(self.group_rows):
            raise self.damaged(f"it has {len(self.group_rows)} row groups; number {number} is needed, counted from 0")
        try:
            table = self._file.read_row_group(number, columns=list(columns))
        except _DAMAGED as error:
            raise self.damaged(error_text(error)) from error
        return self._plain(table, self.group_rows[number])

    def whole(self, columns: Sequence[str]) -> pa.Table:
        """Read columns of all rows; see `group`."""
        try:
            table = self._file.read(columns=list(columns))
        except _DAMAGED as error:
            raise self.damaged(error_text(error)) from error
        return self._plain(table, self.n_rows)

    def batches(self, size: int, columns: Sequence[str]) -> Iterator[pa.Table]:
        """Yield columns of some rows after the other.

        Parameters
        ----------
        size : int
            Rows at a time.
        columns : sequence of str

        Yields
        ------
        pyarrow.Table
            See `group`.
        """
        try:
            pieces = self._file.iter_batches(size, columns=list(columns))
        except _DAMAGED as error:
            raise self.damaged(error_text(error)) from error
        left = self.n_rows
        while True:
            try:
                batch = next(pieces, None)
            except _DAMAGED as error:
                raise self.damaged(error_text(error)) from error
            if batch is None:
                break
            left -= batch.num_rows
            yield self._plain(pa.Table.from_batches([batch]), batch.num_rows)
        if left:
            raise self.damaged("it has other rows than it declares")

    def _plain(self, table: pa.Table, n_rows: int) -> pa.Table:
        """Turn codes into text, and refuse what pyarrow lets through."""
        if table.num_rows != n_rows:
            raise self.damaged(f"it has {table.num_rows:,} rows where it declares {n_rows:,}")
        for at, name in enumerate(table.column_names):
            column = table.column(at)
            if column.null_count:
                raise self.damaged(f"its column '{name[:60]}' lacks a value")
            if pa.types.is_dictionary(column.type):
                table = table.set_column(at, name, self._text(column))
        return table.replace_schema_metadata(None)

    def _text(self, column: pa.ChunkedArray) -> pa.ChunkedArray:
        import pyarrow.compute as pc

        try:
            column.validate(full=True)  # codes within the dictionary, text in UTF-8
            total = 0
            for chunk in column.chunks:
                lengths = pc.binary_length(chunk.dictionary).take(chunk.indices)
                total += pc.sum(lengths).as_py() or 0
            if total > _TEXT + _TEXT_PER_BYTE * self._size:
                raise self.damaged(f"it has {total:,} bytes of text in {self._size:,} bytes")
            return column.cast(pa.string())
        except _DAMAGED as error:
            raise self.damaged(error_text(error)) from error
