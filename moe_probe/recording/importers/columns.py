"""Columns of an interchange table as arrays, or the row that is wrong in them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from moe_probe.core.errors import MoeProbeError
from moe_probe.core.text import label_text
from moe_probe.recording.importers.token_record import SourceRows

_EXACT = 2.0**53  # whole numbers up to this size are exact as floats
_LARGEST = np.iinfo(np.int64).max


def label_values(column: pa.ChunkedArray, name: str, source: SourceRows, *, needed: bool) -> list[str]:
    """Return the values of a label as strings, "" where there is none (null, NaN).

    Parameters
    ----------
    column : pyarrow.ChunkedArray
    name : str
        Name of the column, for messages.
    source : SourceRows
        The rows of the file that the values come from.
    needed : bool
        Whether every row must have one.

    Returns
    -------
    list of str

    Raises
    ------
    MoeProbeError
        When a value is a list, an object or bytes, or a needed one is missing, naming the row.
    """
    if pa.types.is_nested(column.type):
        raise MoeProbeError(
            f"{source.name(0)} has a '{name}' that is {column.type}",
            "a label has one value per document",
            "a string or a number",
        )
    values = _texts(column, name, source, "a label is a text or a number", "a column of strings or numbers")
    for row, value in enumerate(values):
        if needed and not value.strip():
            raise MoeProbeError(f"{source.name(row)} has no {name}", "", "every token needs its document and topic")
    return values


def _texts(column: pa.ChunkedArray, name: str, source: SourceRows, why: str, hint: str) -> list[str]:
    texts = []
    for row, value in enumerate(_values(column, name, source)):
        text = label_text(value)
        if text is None:
            raise MoeProbeError(f"{source.name(row)} has a '{name}' that is {type(value).__name__}", why, hint)
        texts.append(text)
    return texts


def _values(column: pa.ChunkedArray, name: str, source: SourceRows) -> list[Any]:
    try:
        return list(column.to_pylist())
    # text that is not UTF-8, the year 10,000, an unknown time zone
    except (OverflowError, ValueError, LookupError) as error:
        raise MoeProbeError(
            f"column '{name}' of {source.path} has values that cannot be read from {source.name(0)} on",
            f"{column.type}: {' '.join(str(error).split())}",
            "strings or numbers in the column",
        ) from error


def whole_numbers(column: pa.ChunkedArray, name: str, source: SourceRows) -> np.ndarray:
    """Return a column of integers, also where a library stores them as floats.

    Parameters
    ----------
    column : pyarrow.ChunkedArray
    name : str
        Name of the column, for messages.
    source : SourceRows
        The rows of the file that the values come from.

    Returns
    -------
    ndarray of int64, shape (n_rows,)

    Raises
    ------
    MoeProbeError
        When a value is missing or no integer, naming the row.
    """
    if column.null_count:
        row = int(np.asarray(column.is_null()).argmax())
        raise MoeProbeError(
            f"{source.name(row)} has no {name}", f"column '{name}' is not a whole number in every row", "whole numbers"
        )
    if not (pa.types.is_integer(column.type) or pa.types.is_floating(column.type)):
        raise MoeProbeError(
            f"column '{name}' of {source.path} is not a whole number in every row", f"found {column.type}", "whole numbers"
        )
    return _whole(column.to_numpy(), name, source, np.arange(len(column)))


def _whole(values: np.ndarray, name: str, source: SourceRows, row_of: np.ndarray) -> np.ndarray:
    """Convert values to int64; `row_of` is the row of each."""
    if values.dtype.kind == "f":
        bad = ~(np.isfinite(values) & (values == np.floor(values)) & (np.abs(values) < _EXACT))
    else:
        bad = values > np.uint64(_LARGEST) if values.dtype.kind == "u" else np.zeros(len(values), dtype=bool)
    if bad.any():
        at = int(bad.argmax())
        raise MoeProbeError(
            f"{source.name(int(row_of[at]))} has {values[at]:{'g' if values.dtype.kind == 'f' else ''}} in '{name}'",
            "that is not a whole number of 64 bits",
            "whole numbers",
        )
    return values.astype(np.int64)


def token_texts(column: pa.ChunkedArray, token_id: np.ndarray, source: SourceRows) -> list[str]:
    """Return the texts of tokens; the id where a row has none.

    Parameters
    ----------
    column : pyarrow.ChunkedArray
    token_id : ndarray of int, shape (n_rows,)
    source : SourceRows
        The rows of the file that the values come from.

    Returns
    -------
    list of str

    Raises
    ------
    MoeProbeError
        When a text is bytes, a list or an object, naming the row.
    """
    hint = "text or the vocabulary's piece; or omit the column and pass --tokenizer"
    texts = _texts(column, "token", source, "a token is a text", hint)
    missing = np.asarray(column.is_null())
    return [str(int(token_id[row])) if missing[row] else text for row, text in enumerate(texts)]


def lists(column: pa.ChunkedArray, name: str, source: SourceRows, *, whole: bool) -> tuple[np.ndarray, np.ndarray]:
    """Return lists as a rectangle.

    Parameters
    ----------
    column : pyarrow.ChunkedArray
    name : str
        Name of the column, for messages.
    source : SourceRows
        The rows of the file that the values come from.
    whole : bool
        Whether the values are expert ids (int64, -1 in missing slots) or weights (float64, 0 in missing slots).

    Returns
    -------
    values : ndarray, shape (n_rows, longest list, at least 1)
    lengths : ndarray of int, shape (n_rows,)

    Raises
    ------
    MoeProbeError
        When a row has no list, or one with a value that does not fit, naming the row.
    """
    array = column.combine_chunks()
    kind = array.type
    if column.null_count:
        row = int(np.asarray(column.is_null()).argmax())
        raise MoeProbeError(
            f"{source.name(row)} has no '{name}'",
            "every token needs a list for every layer",
            "an empty list where a token reached no expert",
        )
    if not (pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)):
        raise MoeProbeError(
            f"column '{name}' of {source.path} is not a list in every row",
            f"found {kind}",
            "a list of one number per selected expert",
        )
    lengths = np.asarray(pc.list_value_length(array)).astype(np.int64)
    flat = array.flatten()
    row_of = np.repeat(np.arange(len(lengths)), lengths)
    if flat.null_count:
        raise MoeProbeError(
            f"{source.name(int(row_of[np.asarray(flat.is_null()).argmax()]))} has a missing value in '{name}'",
            "",
            "omit slots that reached no expert from the list",
        )
    if len(flat) and not (pa.types.is_integer(flat.type) or pa.types.is_floating(flat.type)):
        raise MoeProbeError(
            f"column '{name}' of {source.path} has {flat.type} values", "", "whole numbers for experts, numbers for weights"
        )
    inside = np.arange(max(int(lengths.max(initial=0)), 1)) < lengths[:, None]
    out: np.ndarray = np.full(inside.shape, -1 if whole else 0, dtype=np.int64 if whole else np.float64)
    if len(flat):
        out[inside] = _whole(np.asarray(flat), name, source, row_of) if whole else np.asarray(flat)
    if whole and (out[inside] < 0).any():
        row = int(((out < 0) & inside).any(axis=1).argmax())
        raise MoeProbeError(
            f"{source.name(row)} has a negative id in '{name}'", "", "omit slots that reached no expert from the list"
        )
    return out, lengths


def column_of(values: list[Any], name: str, source: SourceRows) -> pa.Array:
    """Build a column from JSON values.

    Parameters
    ----------
    values : list
    name : str
        Name of the column, for messages.
    source : SourceRows
        The rows of the file that the values come from.

    Returns
    -------
    pyarrow.Array

    Raises
    ------
    MoeProbeError
        When the values are of several types, naming the row.
    """
    try:
        return pa.array(values)
    except (pa.ArrowInvalid, pa.ArrowTypeError, OverflowError) as error:
        for row, value in enumerate(values):  # the first value that does not go with those before it
            try:
                pa.array([*values[:1], value])
            except (pa.ArrowInvalid, pa.ArrowTypeError, OverflowError):
                raise MoeProbeError(
                    f"{source.name(row)} has a '{name}' of another type than the rows before",
                    f"{str(value)[:60]} and {str(values[0])[:60]}",
                    "the same type in every row",
                ) from error
        raise MoeProbeError(
            f"column '{name}' of {source.path} mixes types from {source.name(0)} on",
            str(error).splitlines()[0],
            "the same type in every row",
        ) from error
