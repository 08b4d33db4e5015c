"""Rows of comma- or tab-separated files."""

from __future__ import annotations

import csv
import sys
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from moe_probe.core.errors import MoeProbeError
from moe_probe.core.textfiles.filelist import format_of
from moe_probe.core.textfiles.jsonrows import is_unwritable
from moe_probe.core.textfiles.limits import too_long
from moe_probe.core.textfiles.opener import BadLineError, TextFile, open_text


def scan_csv_rows(path: str | Path) -> Iterator[tuple[int, Any]]:
    """Yield the rows of a CSV or TSV file with a header, or why one cannot be read.

    Yields
    ------
    line : int
        Line at which the row begins, counted from 1.
    row : dict of str to str, or BadLineError
        `BadLineError` for a row with another number of fields than the header, an unclosed quote, text that
        is not UTF-8, or NUL. Lines without a field are passed over.

    Raises
    ------
    MoeProbeError
        As :func:`moe_probe.core.textfiles.open_text`; and when the header cannot be read or names a column twice.
    """
    path = Path(path)
    csv.field_size_limit(min(sys.maxsize, 2**31 - 1))  # the limit is a C long, which has 32 bits on Windows
    with open_text(path, newline="") as lines:
        # strict: without it a quote that is never closed swallows the rest of the file in silence
        counted = _CountedLines(lines, path)
        reader = csv.reader(counted, delimiter=_delimiter(path), strict=True)
        names: list[str] = []
        while True:
            line = reader.line_num + 1
            counted.used = 0
            row = _next(reader, path, line)
            if row is None:
                return
            if isinstance(row, list) and names and len(row) not in (0, len(names)):
                row = BadLineError.at(
                    line,
                    f"{path}, line {line} has {len(row)} fields, the header has {len(names)}",
                    "",
                    "quote fields that hold the delimiter",
                )
            if isinstance(row, BadLineError):
                if not names:
                    raise row
                yield line, row
            elif row and names:
                yield line, dict(zip(names, row, strict=True))
            elif row:
                names = row
                refuse_repeated(path, names)
                _refuse_other_delimiter(path, names)


class _CountedLines:
    """Lines of a file; those of one row, which quotes may join, have no more characters than a line may have."""

    def __init__(self, lines: TextFile, path: Path) -> None:
        self._lines, self._path, self.used = lines, path, 0

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        line = next(self._lines)
        self.used += len(line)
        if self._lines.limit is not None and self.used > self._lines.limit:
            raise too_long(f"a row of {self._path}", self._lines.limit)
        return line


def read_csv(path: str | Path) -> tuple[list[str], list[dict[str, str]]]:
    """Read a small CSV or TSV file whole: the names of its columns, and its rows.

    Raises
    ------
    MoeProbeError
        At the first row that cannot be read; see :func:`scan_csv_rows`.
    """
    rows = []
    for _, row in scan_csv_rows(path):
        if isinstance(row, BadLineError):
            raise row
        rows.append(row)
    with open_text(path, newline="") as lines:
        reader = csv.reader(lines, delimiter=_delimiter(Path(path)))
        return next((names for names in reader if names), []), rows


def _delimiter(path: Path) -> str:
    return "\t" if format_of(path) == ".tsv" else ","


def _next(reader: Any, path: Path, line: int) -> list[str] | BadLineError | None:
    try:
        row: list[str] = next(reader)
    except StopIteration:
        return None
    except BadLineError as error:
        return error
    except csv.Error as error:
        return BadLineError.at(
            line, f"{path}, line {line} is not CSV", str(error), "close every quote, and double a quote inside quotes"
        )
    if any(is_unwritable(field) for field in row):
        return BadLineError.at(line, f"{path}, line {line} has characters that are not text (NUL)", "", "clean the file")
    return row


def _refuse_other_delimiter(path: Path, names: list[str]) -> None:
    """Refuse a header of one column that is several, separated by something else."""
    sign, called = next(
        (
            (s, c)
            for s, c in (("\t", "tabs"), (";", "semicolons"), (",", "commas"), ("|", "bars"))
            if len(names) == 1 and s in names[0]
        ),
        ("", ""),
    )
    if sign:
        raise MoeProbeError(
            f"the columns of {path} are separated by {called}",
            f"its header is {names[0][:80]!r}; .csv files are separated by commas, .tsv files by tabs",
            {"\t": "name the file NAME.tsv", ",": "name the file NAME.csv"}.get(sign, "convert the file"),
        )


def refuse_repeated(path: str | Path, names: Iterable[str]) -> None:
    """Refuse a table that names a column twice.

    Columns without a name, such as spreadsheets leave at the end, may come several times: nobody can mean them.

    Parameters
    ----------
    path : str or Path
        Named in the message.
    names : iterable of str
        Columns.

    Raises
    ------
    MoeProbeError
        Naming the column: which of the two is meant is not known.
    """
    for name, times in Counter(names).items():
        if name and times > 1:
            raise MoeProbeError(
                f"{path} has {times} columns called '{name}'",
                "it is not known which of them is meant",
                "rename or remove the others",
            )
