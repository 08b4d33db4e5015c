"""Columns of an interchange table as arrays, or the row that is wrong in them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from moe_probe.core.errors import MoeProbeError, error_text
from moe_probe.core.text import label_text
from moe_probe.recording.importers.token_record import SourceRows, check_lists

_EXACT = 2.0**53  # whole numbers up to this size are exact as floats
_OMIT = "omit slots that reached no expert from the list"
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
        what = f"has a '{name}' that is {column.type}"
        raise source.error(0, what, "a label has one value per document", "a string or a number")
    values = _texts(column, name, source, "a label is a text or a number", "a column of strings or numbers")
    for row, value in enumerate(values):
        if needed and not value.strip():
            raise source.error(row, f"has no {name}", "", "every token needs its document and topic")
    return values


def _texts(column: pa.ChunkedArray, name: str, source: SourceRows, why: str, hint: str) -> list[str]:
    texts = []
    for row, value in enumerate(_values(column, name, source)):
        text = label_text(value)
        if text is None:
            raise source.error(row, f"has a '{name}' that is {type(value).__name__}", why, hint)
        texts.append(text)
    return texts


def _values(column: pa.ChunkedArray, name: str, source: SourceRows) -> list[Any]:
    try:
        return list(column.to_pylist())
    # text that is not UTF-8, the year 10,000, an unknown time zone
    except (OverflowError, ValueError, LookupError) as error:
        raise MoeProbeError(
            f"column '{name}' of {source.path} has values that cannot be read from {source.name(0)} on",
            f"{column.type}: {error_text(error)}",
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
        raise source.error(row, f"has no {name}", f"column '{name}' is not a whole number in every row", "whole numbers")
    if not (pa.types.is_integer(column.type) or pa.types.is_floating(column.type)):
        raise MoeProbeError(
            f"column '{name}' of {source.path} is not a whole number in every row",
            f"its type is {column.type}",
            "whole numbers",
        )
    return _whole(column.to_numpy(), name, source, np.arange(len(column)))


def _whole(values: np.ndarray, name: str, source: SourceRows, row_of: np.ndarray) -> np.ndarray:
    """Convert values to int64; `row_of` is the row of each."""
    if values.dtype.kind == "f":
        bad = ~(np.isfinite(values) & (values == np.floor(values)) & (np.abs(values) < _EXACT))
    else:
        bad = values > np.uint64(_LARGEST) if values.dtype.kind == "u" else np.zeros(len(values), dtype=bool)
    if bad.any():
        value, row = values[bad.argmax()], int(row_of[bad.argmax()])
        what = f"has {value:{'g' if values.dtype.kind == 'f' else ''}} in '{name}'"
        raise source.error(row, what, "that is not a whole number of 64 bits", "whole numbers")
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


def lists(
    column: pa.ChunkedArray, name: str, source: SourceRows, *, whole: bool, n_layers: int = 1
) -> tuple[np.ndarray, np.ndarray]:
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
    n_layers : int
        Layers that will have as many slots as the longest list.

    Returns
    -------
    values : ndarray, shape (n_rows, longest list, at least 1)
    lengths : ndarray of int, shape (n_rows,)

    Raises
    ------
    MoeProbeError
        When a row has no list, one with a value that does not fit, or a much longer one than other rows, naming the row.
    """
    array = column.combine_chunks()
    kind = array.type
    if column.null_count:
        row = int(np.asarray(column.is_null()).argmax())
        why, hint = "every token needs a list for every layer", "an empty list where a token reached no expert"
        raise source.error(row, f"has no '{name}'", why, hint)
    if not (pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)):
        raise MoeProbeError(
            f"column '{name}' of {source.path} is not a list in every row",
            f"its type is {kind}",
            "a list of one number per selected expert",
        )
    lengths = np.asarray(pc.list_value_length(array)).astype(np.int64)
    flat = array.flatten()
    row_of = np.repeat(np.arange(len(lengths)), lengths)
    if flat.null_count:
        row = int(row_of[np.asarray(flat.is_null()).argmax()])
        raise source.error(row, f"has a missing value in '{name}'", "", _OMIT)
    if len(flat) and not (pa.types.is_integer(flat.type) or pa.types.is_floating(flat.type)):
        raise MoeProbeError(
            f"column '{name}' of {source.path} has {flat.type} values", "", "whole numbers for experts, numbers for weights"
        )
    check_lists(lengths, n_layers, source.name)
    inside = np.arange(max(int(lengths.max(initial=0)), 1)) < lengths[:, None]
    out: np.ndarray = np.full(inside.shape, -1 if whole else 0, dtype=np.int64 if whole else np.float64)
    if len(flat):
        out[inside] = _whole(np.asarray(flat), name, source, row_of) if whole else np.asarray(flat)
    if whole and (out[inside] < 0).any():
        row = int(((out < 0) & inside).any(axis=1).argmax())
        raise source.error(row, f"has a negative id in '{name}'", "", _OMIT)
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
                what = f"has a '{name}' of another type than the rows before"
                why = f"{str(value)[:60]} and {str(values[0])[:60]}"
                raise source.error(row, what, why, "the same type in every row") from error
        what = f"column '{name}' of {source.path} mixes types from {source.name(0)} on"
        raise MoeProbeError(what, error_text(error), "the same type in every row") from error
