"""Columns of an interchange table as arrays, or the row that is wrong in them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from moe_probe.core.errors import MoeProbeError
from moe_probe.core.text import label_text

_EXACT = 2.0**53  # whole numbers up to this size are exact as floats
_LARGEST = np.iinfo(np.int64).max


@dataclass(frozen=True)
class Place:
    """Where a piece of a table comes from: ``rows`` numbers the rows (or lines) of the file."""

    path: Path
    unit: str
    rows: np.ndarray

    def name(self, row: int) -> str:
        """Name a row of the piece."""
        return f"{self.unit} {int(self.rows[row])} of {self.path}"


def label_values(column: pa.ChunkedArray, name: str, place: Place, *, needed: bool) -> list[str]:
    """Values of a label as strings, "" where there is none (null, NaN).

    Raises
    ------
    MoeProbeError
        When a value is a list, an object or bytes, or a needed one is missing, naming the row.
    """
    if pa.types.is_nested(column.type):
        raise MoeProbeError(
            f"{place.name(0)} has a '{name}' that is {column.type}",
            "a label has one value per document",
            "a string or a number",
        )
    values = []
    for row, value in enumerate(_values(column, name, place)):
        text = label_text(value)
        if text is None:
            raise MoeProbeError(
                f"{place.name(row)} has a '{name}' that is {type(value).__name__}",
                "a label is a text or a number",
                "a column of strings or numbers",
            )
        values.append(text)
    if needed:
        for row, value in enumerate(values):
            if not value.strip():
                raise MoeProbeError(f"{place.name(row)} has no {name}", "", "every token needs its document and topic")
    return values


def _values(column: pa.ChunkedArray, name: str, place: Place) -> list[Any]:
    try:
        return column.to_pylist()
    except (
        OverflowError,
        ValueError,
        LookupError,
    ) as error:  # text that is not UTF-8, the year 10,000, an unknown time zone
        raise MoeProbeError(
            f"column '{name}' of {place.path} has values that cannot be read from {place.name(0)} on",
            f"{column.type}: {' '.join(str(error).split())}",
            "strings or numbers in the column",
        ) from error


def whole_numbers(column: pa.ChunkedArray, name: str, place: Place) -> np.ndarray:
    """A column of integers, also where a library stores them as floats; shape (n_rows,).

    Raises
    ------
    MoeProbeError
        When a value is missing or no integer, naming the row.
    """
    if column.null_count:
        row = int(np.asarray(column.is_null()).argmax())
        raise MoeProbeError(
            f"{place.name(row)} has no {name}", f"column '{name}' is not a whole number in every row", "whole numbers"
        )
    if not (pa.types.is_integer(column.type) or pa.types.is_floating(column.type)):
        raise MoeProbeError(
            f"column '{name}' of {place.path} is not a whole number in every row", f"found {column.type}", "whole numbers"
        )
    return _whole(column.to_numpy(), name, place, np.arange(len(column)))


def _whole(values: np.ndarray, name: str, place: Place, row_of: np.ndarray) -> np.ndarray:
    """Values as int64; `row_of` is the row of each."""
    if values.dtype.kind == "f":
        bad = ~(np.isfinite(values) & (values == np.floor(values)) & (np.abs(values) < _EXACT))
    else:
        bad = values > np.uint64(_LARGEST) if values.dtype.kind == "u" else np.zeros(len(values), dtype=bool)
    if bad.any():
        at = int(bad.argmax())
        raise MoeProbeError(
            f"{place.name(int(row_of[at]))} has {values[at]:g} in '{name}'"
            if values.dtype.kind == "f"
            else f"{place.name(int(row_of[at]))} has {values[at]} in '{name}'",
            "that is not a whole number of 64 bits",
            "whole numbers",
        )
    return values.astype(np.int64)


def token_texts(column: pa.ChunkedArray, token_id: np.ndarray, place: Place) -> list[str]:
    """Texts of tokens; the id where a row has none.

    Raises
    ------
    MoeProbeError
        When a text is bytes, a list or an object, naming the row.
    """
    out = []
    for row, value in enumerate(_values(column, "token", place)):
        text = label_text(value)
        if text is None:
            raise MoeProbeError(
                f"{place.name(row)} has a 'token' that is {type(value).__name__}",
                "a token is a text",
                "text or the vocabulary's piece; or omit the column and pass --tokenizer",
            )
        out.append(str(int(token_id[row])) if value is None else text)
    return out


def lists(column: pa.ChunkedArray, name: str, place: Place, *, whole: bool) -> tuple[np.ndarray, np.ndarray]:
    """Lists as a rectangle.

    Parameters
    ----------
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
            f"{place.name(row)} has no '{name}'",
            "every token needs a list for every layer",
            "an empty list where a token reached no expert",
        )
    if not (pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)):
        raise MoeProbeError(
            f"column '{name}' of {place.path} is not a list in every row",
            f"found {kind}",
            "a list of one number per selected expert",
        )
    lengths = np.asarray(pc.list_value_length(array)).astype(np.int64)
    flat = array.flatten()
    row_of = np.repeat(np.arange(len(lengths)), lengths)
    if flat.null_count:
        raise MoeProbeError(
            f"{place.name(int(row_of[np.asarray(flat.is_null()).argmax()]))} has a missing value in '{name}'",
            "",
            "leave slots that reached no expert out of the list",
        )
    if len(flat) and not (pa.types.is_integer(flat.type) or pa.types.is_floating(flat.type)):
        raise MoeProbeError(
            f"column '{name}' of {place.path} holds {flat.type} values", "", "whole numbers for experts, numbers for weights"
        )
    inside = np.arange(max(int(lengths.max(initial=0)), 1)) < lengths[:, None]
    out: np.ndarray = np.full(inside.shape, -1 if whole else 0, dtype=np.int64 if whole else np.float64)
    if len(flat):
        out[inside] = _whole(np.asarray(flat), name, place, row_of) if whole else np.asarray(flat)
    if whole and (out[inside] < 0).any():
        row = int(((out < 0) & inside).any(axis=1).argmax())
        raise MoeProbeError(
            f"{place.name(row)} has a negative id in '{name}'", "", "leave slots that reached no expert out of the list"
        )
    return out, lengths


def column_of(values: list[Any], name: str, place: Place) -> pa.Array:
    """A column of JSON values.

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
                    f"{place.name(row)} has a '{name}' of another type than the rows before",
                    f"{str(value)[:60]} and {str(values[0])[:60]}",
                    "the same type in every row",
                ) from error
        raise MoeProbeError(
            f"column '{name}' of {place.path} mixes types from {place.name(0)} on",
            str(error).splitlines()[0],
            "the same type in every row",
        ) from error
