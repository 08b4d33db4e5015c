"""JSON Lines, JSON arrays and pretty-printed objects, read as one sequence of values."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from moe_probe.core.errors import MoeProbeError
from moe_probe.core.text import repeated
from moe_probe.core.textfiles.filelist import format_of
from moe_probe.core.textfiles.limits import check_json
from moe_probe.core.textfiles.opener import BadLineError, open_text

_SURROGATE = re.compile("[\ud800-\udfff]")
#: What a JSON source must contain for its strings to hold NUL or a surrogate: only then are they searched.
_SUSPECT = re.compile(r"\\u(?:0000|[dD][89a-fA-F])")


def read_json(path: str | Path) -> Any:
    """Read a file that holds one JSON value.

    Raises
    ------
    MoeProbeError
        When it is not JSON, naming the line; see also :func:`scan_json_rows`.
    """
    path = Path(path)
    with open_text(path) as file:
        text = file.read().lstrip("\ufeff")
        if file.limit is not None:
            check_json(text, path, 1, file.limit)
    try:
        return _parse(text, path, 1)
    except BadLineError as error:  # its advice is for a value per line
        raise MoeProbeError(error.what, error.why, "check the file") from error


def read_json_rows(path: str | Path) -> Iterator[tuple[int, Any]]:
    """Yield the values of a JSON Lines file or of a JSON array, with the line each begins at.

    The same as :func:`scan_json_rows`, but the first value that cannot be read ends the reading.

    Raises
    ------
    MoeProbeError
        See :func:`scan_json_rows`.
    """
    for line, value in scan_json_rows(path):
        if isinstance(value, BadLineError):
            raise value
        yield line, value


def scan_json_rows(path: str | Path) -> Iterator[tuple[int, Any]]:
    """Yield the values of a JSON Lines file or of a JSON array, or why one cannot be read.

    JSON Lines are streamed. A file that begins with an array of objects, or with an object over
    several lines, is read whole: the elements of the array, or the objects, are the values.

    Yields
    ------
    line : int
        Line at which the value begins, counted from 1.
    value : Any or BadLineError
        `BadLineError` for a line that is not JSON, not UTF-8, nested too deep, names a field twice,
        or has a string with NUL or half a surrogate pair (no encoding can write it).

    Raises
    ------
    MoeProbeError
        As :func:`open_text`; and where an array is broken, since what follows cannot be read.
    """
    path, number, first = Path(path), 0, True
    with open_text(path) as lines:
        while True:
            number += 1
            try:
                line = lines.readline()
            except BadLineError as error:
                yield number, error
                continue
            if not line:
                return
            line = line.lstrip("\ufeff")  # concatenated files keep their marks
            if not line.strip():
                continue
            if lines.limit is not None:
                check_json(line, path, number, lines.limit)
            value = _try_parse(line, path, number)
            if first and _begins_whole(value, line, path):
                text = line + lines.read()
                if lines.limit is not None:
                    check_json(text, path, number, lines.limit)
                yield from _json_whole(text, path, number)
                return
            first = False
            yield number, value


def _try_parse(line: str, path: Path, number: int) -> Any:
    try:
        return _parse(line, path, number)
    except BadLineError as error:
        return error


def _begins_whole(value: Any, line: str, path: Path) -> bool:
    """Whether the first line begins an array, or an object over several lines, rather than JSON Lines."""
    named = format_of(path) == ".json"
    if isinstance(value, BadLineError):
        return line.lstrip()[0] in "[{" and (named or line.rstrip()[-1] in "[{,")
    return isinstance(value, list) and (named or any(isinstance(item, dict) for item in value))


class _RepeatedFieldError(ValueError):
    """A field that is named twice in one object."""


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    out = dict(pairs)
    if len(out) < len(pairs):
        raise _RepeatedFieldError(repeated(name for name, _ in pairs))
    return out


_DECODER = json.JSONDecoder(object_pairs_hook=_object)


def _parse(text: str, path: Path, line: int) -> Any:
    value, end = _decode(text, _skip(text, 0), path, line)
    if text[end:].strip():
        raise BadLineError.at(
            line,
            f"{path}, line {line + text.count(chr(10), 0, end)} is not JSON",
            "more text follows the value",
            "one JSON value per line",
        )
    return value


def _decode(text: str, start: int, path: Path, line: int) -> tuple[Any, int]:
    """Decode the value at `start`, which lies on a line of the file; returns it and where it ends."""
    where = f"{path}, line {line}"
    try:
        value, end = _DECODER.raw_decode(text, start)
    except json.JSONDecodeError as error:
        # what is missing belongs to the end of what is there, not to the line after it
        missing = len(text[: error.pos].rstrip()) if error.msg.startswith("Expecting ',' delimiter") else error.pos
        at, column = line + text.count("\n", start, missing), missing - text.rfind("\n", 0, missing)
        raise BadLineError.at(
            at, f"{path}, line {at} is not JSON", f"{error.msg} at column {column}", "one JSON object per line"
        ) from error
    except _RepeatedFieldError as error:
        raise BadLineError.at(
            line,
            f"{where} names the field '{error}' twice",
            "it is not known which of the two is meant",
            "rename one of them",
        ) from error
    except RecursionError as error:
        raise BadLineError.at(line, f"{where} is nested too deep to be read", "", "one flat JSON object per line") from error
    except ValueError as error:  # a number of thousands of digits
        raise BadLineError.at(line, f"{where} is not JSON", str(error), "one JSON object per line") from error
    if _SUSPECT.search(text, start, end):
        field = _unwritable(value)
        if field is not None:
            raise BadLineError.at(
                line,
                f"{where} has characters that are not text (NUL or half a surrogate pair)",
                f"they are in {field}" if field else "",
                "clean the file",
            )
    return value, end


def _json_whole(text: str, path: Path, line: int) -> Iterator[tuple[int, Any]]:
    """Yield the values of arrays, or values one after another over several lines."""
    at, counted, in_array = 0, 0, False
    while True:
        at = _skip(text, at)
        line, counted = line + text.count("\n", counted, at), at
        if at >= len(text):
            if in_array:
                raise MoeProbeError(f"{path} is cut off", "its JSON array is not closed", "copy or download it again")
            return
        if not in_array and text[at] == "[":
            at, in_array = _skip(text, at + 1), True
            if text[at : at + 1] != "]":
                continue
        if in_array and text[at] == "]":
            at, in_array = at + 1, False
            continue
        try:
            value, at = _decode(text, at, path, line)
        except BadLineError as error:
            raise MoeProbeError(error.what, error.why, "check the file") from error
        yield line, value
        at = _skip(text, at)
        if in_array and text[at : at + 1] == ",":
            at += 1
        elif in_array and at < len(text) and text[at] != "]":
            raise MoeProbeError(f"{path}, line {line} is not JSON", "a comma is missing after the element", "check the file")


def _skip(text: str, at: int) -> int:
    while at < len(text) and text[at] in " \t\r\n\ufeff":
        at += 1
    return at


def _unwritable(value: Any) -> str | None:
    """Name of the field with NUL or a surrogate, "" where it has no name, None where all is well."""
    left: list[tuple[str, Any]] = [("", value)]
    while left:
        name, item = left.pop()
        if isinstance(item, str) and is_unwritable(item):
            return name
        if isinstance(item, dict):
            if any(is_unwritable(key) for key in item):
                return "the name of a field"
            left += [(name or f"'{key}'", inner) for key, inner in item.items()]
        elif isinstance(item, list):
            left += [(name, inner) for inner in item]
    return None


def is_unwritable(text: str) -> bool:
    """Whether a string has NUL or half a surrogate pair, which no file of text or table can store."""
    return "\x00" in text or (not text.isascii() and _SURROGATE.search(text) is not None)
