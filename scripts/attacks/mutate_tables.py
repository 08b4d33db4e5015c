"""Damage to Parquet tables that stay Parquet: other types, names, values, rows, and tables far larger than their files."""

from __future__ import annotations

import functools
import io
import random
from collections.abc import Callable
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

Change = Callable[[random.Random, bytes], bytes]
_ODD: tuple[Any, ...] = (
    pa.string(), pa.large_string(), pa.binary(), pa.int8(), pa.int64(), pa.uint64(), pa.float64(), pa.float32(), pa.bool_(),
    pa.date32(),
    pa.timestamp("us"), pa.time64("us"), pa.decimal128(20, 3), pa.list_(pa.int32()), pa.list_(pa.string()), pa.null(),
    pa.struct([("a", pa.int32())]), pa.map_(pa.string(), pa.int32()), pa.dictionary(pa.int32(), pa.string()), pa.binary(4),
)  # fmt: skip


def _written(table: pa.Table, *, groups: int | None = None, **options: Any) -> bytes:
    out = io.BytesIO()
    pq.write_table(table, out, row_group_size=groups or max(1, table.num_rows), **options)
    return out.getvalue()


def _table(data: bytes) -> tuple[pa.Table, int]:
    """Read a table, and the rows of its first row group."""
    file = pq.ParquetFile(io.BytesIO(data))
    size = file.metadata.row_group(0).num_rows if file.metadata.num_row_groups else 1
    return file.read(use_threads=False), max(1, size)


def _example(rng: random.Random, kind: Any, n: int) -> pa.Array:
    """Values of any type, some of them missing."""
    import datetime
    import decimal

    if pa.types.is_null(kind):
        return pa.nulls(n)
    number = rng.choice((0, 1, -1, 7, 100))
    one: Any = number
    if pa.types.is_dictionary(kind) or pa.types.is_string(kind) or pa.types.is_large_string(kind):
        one = rng.choice(("", "x", "a\nb", "0", "\x00"))
        if pa.types.is_dictionary(kind):
            return pa.array([one] * n, pa.string()).dictionary_encode()
    elif pa.types.is_binary(kind) or pa.types.is_fixed_size_binary(kind):
        one = b"\xff\xfe\x00x"
    elif pa.types.is_boolean(kind):
        one = bool(number % 2)
    elif pa.types.is_date(kind):
        one = datetime.date(2020, 1, 1)
    elif pa.types.is_timestamp(kind):
        one = datetime.datetime(2020, 1, 1)
    elif pa.types.is_time(kind):
        one = datetime.time(1)
    elif pa.types.is_decimal(kind):
        one = decimal.Decimal(number)
    elif pa.types.is_list(kind):
        one = ["x"] if pa.types.is_string(kind.value_type) else [number, None]
    elif pa.types.is_struct(kind):
        one = {"a": number}
    elif pa.types.is_map(kind):
        one = [("a", number)]
    elif pa.types.is_unsigned_integer(kind):
        one = abs(number)
    values = [one] * n
    for _ in range(rng.choice((0, 0, 1, 2)) if n else 0):
        values[rng.randrange(n)] = None
    return pa.array(values, kind)


def _retyped(rng: random.Random, data: bytes) -> bytes:
    table, size = _table(data)
    at = rng.randrange(table.num_columns)
    return _written(
        table.set_column(at, table.column_names[at], _example(rng, rng.choice(_ODD), table.num_rows)), groups=size
    )


def _cast(rng: random.Random, data: bytes) -> bytes:
    """Keep the values in another type, as other writers may."""
    table, size = _table(data)
    at = rng.randrange(table.num_columns)
    kind = rng.choice((pa.int64(), pa.float64(), pa.string(), pa.large_string(), pa.int8(), pa.uint32(), pa.bool_()))
    return _written(table.set_column(at, table.column_names[at], table.column(at).cast(kind, safe=False)), groups=size)


def _renamed(rng: random.Random, data: bytes) -> bytes:
    """Rename, remove, repeat or swap columns."""
    table, size = _table(data)
    names = table.column_names
    at, other = rng.randrange(len(names)), rng.randrange(len(names))
    kind = rng.randrange(5)
    if kind == 0:
        return _written(table.remove_column(at), groups=size)
    if kind == 1:
        return _written(table.append_column(names[at], table.column(other)), groups=size)
    if kind == 2:
        names[at], names[other] = names[other], names[at]
    else:
        names[at] = rng.choice((f"{names[at]}x", "", "a.b", "a\nb", names[other], "x" * 5000))
    return _written(table.rename_columns(names), groups=size)


def _valued(rng: random.Random, data: bytes) -> bytes:
    """Replace some values by others of the type: far out of range, missing, empty, very long."""
    table, size = _table(data)
    at = rng.randrange(table.num_columns)
    kind, values = table.schema.field(at).type, table.column(at).to_pylist()
    if pa.types.is_integer(kind):
        bits = kind.bit_width - pa.types.is_signed_integer(kind)
        odd: tuple[Any, ...] = (-1, 0, 1, 10**6, 10**9, 2**bits - 1, -(2**bits), None)
        odd = tuple(v for v in odd if v is None or -(2**bits) * (bits % 8 != 0) <= v < 2**bits)
    elif pa.types.is_floating(kind):
        odd = (float("nan"), float("inf"), -1.0, 1e300, 0.5, None)
    elif pa.types.is_boolean(kind):
        odd = (True, False, None)
    elif pa.types.is_string(kind):
        odd = ("", " ", "x", "a\nb", "\x1b[31m", "\x00", "x" * 1_000_000, None, "nan", "é")
    else:
        odd = (None,)
    for _ in range(rng.choice((1, 1, 4, 1000)) if values else 0):
        values[rng.randrange(len(values))] = rng.choice(odd)
    return _written(table.set_column(at, table.schema.field(at), pa.array(values, kind)), groups=size)


def _rows(rng: random.Random, data: bytes) -> bytes:
    """Remove, repeat or mix rows, or cut other row groups."""
    table, size = _table(data)
    n, kind = table.num_rows, rng.randrange(6)
    if kind == 0:
        return _written(table.slice(0, rng.randrange(n + 1)), groups=size)
    if kind == 1:
        return _written(pa.concat_tables([table, table.slice(0, rng.randrange(n + 1))]), groups=size)
    if kind == 2:
        order = list(range(n))
        rng.shuffle(order)
        return _written(table.take(order), groups=size)
    if kind == 3:
        return _written(table.slice(0, 0), groups=size)
    return _written(table, groups=rng.choice((1, 2, 3, size + 1, n + 1, max(1, size - 1))))


def _metadata(rng: random.Random, data: bytes) -> bytes:
    table, size = _table(data)
    odd = rng.choice(
        ({b"pandas": b"{"}, {b"pandas": b'{"columns": 1, "index_columns": [{}]}'}, {b"huggingface": b"["}, {b"": b"\xff"})
    )
    return _written(table.replace_schema_metadata(odd), groups=size)


@functools.cache
def _swollen_column(text: bool) -> Any:
    """3 GB of text that take some kilobytes in a file, or 20 million zeros."""
    if text:
        return pa.DictionaryArray.from_arrays(pa.repeat(pa.scalar(0, pa.int8()), 3_000_000), pa.array(["x" * 1000]))
    return pa.repeat(pa.scalar(0, pa.int8()), 20_000_000)


def _swollen(rng: random.Random, data: bytes) -> bytes:
    """A small file that declares millions of rows, or gigabytes of text."""
    table, _size = _table(data)
    if rng.random() > 0.1:  # it takes seconds
        return _metadata(rng, data)
    text = any(pa.types.is_string(field.type) for field in table.schema) and rng.random() < 0.7
    column = _swollen_column(text)
    columns = {}
    for field in table.schema:
        if pa.types.is_string(field.type):
            columns[field.name] = column if text else pa.DictionaryArray.from_arrays(column, pa.array(["x"]))
        elif pa.types.is_primitive(field.type):
            columns[field.name] = pa.repeat(pa.scalar(0, pa.int8()), len(column)).cast(field.type)
    return _written(pa.table(columns), compression="zstd", store_schema=False)


PARQUET: dict[str, Change] = {
    "column of another type": _retyped,
    "column cast": _cast,
    "columns renamed": _renamed,
    "table values changed": _valued,
    "more table values changed": _valued,
    "rows changed": _rows,
    "table metadata changed": _metadata,
    "table swollen": _swollen,
}
