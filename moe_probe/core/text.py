"""Text from files as something safe to show, as wide as a terminal shows it; enumerations and numbers for sentences."""

from __future__ import annotations

import re
import shlex
import unicodedata
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from moe_probe.core.pieces import MARK, unspaced

if TYPE_CHECKING:
    import pandas as pd

#: Joiners of characters and emoji: without them Persian and Hindi words and families of emoji fall apart.
_JOINERS = "\u200c\u200d"
#: Whole numbers up to this size have one way of writing, as int or as float.
_EXACT = 2.0**53
#: Characters of a value in an enumeration.
_VALUE = 120
_SKIN_TONES = "".join(map(chr, range(0x1F3FB, 0x1F400)))
_BYTES_OR_ONE = re.compile(f"{MARK.pattern.replace('(', '(?:')}|.", re.DOTALL)
#: Two of these are drawn as one flag.
_FLAG_LETTERS = "".join(map(chr, range(0x1F1E6, 0x1F200)))


def printable(text: str) -> str:
    """Replace control characters by their codes: names and tokens must not steer a terminal or a page.

    Spaces of all widths and joiners of characters stay; what turns the direction of text round is shown by its code.
    """
    if text.isprintable():
        return text
    return "".join(
        c if c.isprintable() or c in "\n\t" or c in _JOINERS or unicodedata.category(c) == "Zs" else f"\\x{ord(c):02x}"
        for c in text
    )


def one_line(text: str) -> str:
    r"""Make a text of outside safe for one line of a terminal, a table or Markdown: it cannot begin a line of its own.

    Every line that a person reads goes through this: topics, names of files and models, labels and answers may have line
    breaks, which would pass for lines of this program.

    Parameters
    ----------
    text : str

    Returns
    -------
    str
        As `printable`, with line breaks and tabs as ``\n`` and ``\t``.
    """
    return printable(text).replace("\n", "\\n").replace("\t", "\\t")


def cells(text: str) -> int:
    """Count the columns of a terminal that a text takes: two for a wide character (Chinese, emoji), none for an accent."""
    if text.isascii():
        return len(text)
    from rich.cells import cell_len

    return cell_len(text)


def cut_to(text: str, size: int) -> str:
    """Clip a text to some columns of a terminal.

    Parameters
    ----------
    text : str
    size : int
        Columns at most, the ellipsis included.

    Returns
    -------
    str
    """
    if cells(text) <= size:
        return text
    if text.isascii():
        return f"{text[: size - 1]}…"
    out, room = "", size - 1
    for part in _signs(text):
        room -= cells(part)
        if room < 0:
            break
        out += part
    return f"{out}…"


def line_breaks(text: str, width: int) -> list[int]:
    """Break a line behind spaces, and between characters of scripts without spaces.

    No line begins with a closing sign or ends with an opening one.

    Parameters
    ----------
    text : str
    width : int
        Columns of a terminal at most; a longer word stays whole.

    Returns
    -------
    list of int
        Where lines after the first begin in the text.
    """
    out: list[int] = []
    room, start = width, 0
    for end in [*(i for i in range(1, len(text)) if _may_break(text[i - 1], text[i])), len(text)]:
        if start and cells(text[start:end].rstrip(" ")) > room:
            out.append(start)
            room = width
        room -= cells(text[start:end])
        start = end
    return out


def _may_break(before: str, after: str) -> bool:
    if " " in (before, after):
        return after != " "
    if unicodedata.category(before) in ("Ps", "Pi") or unicodedata.category(after) in ("Pe", "Pf", "Po", "Mn", "Mc"):
        return False
    return unspaced(before) or unspaced(after)


def clipped(text: str, size: int) -> str:
    """Clip a text to some characters.

    Parameters
    ----------
    text : str
    size : int
        Characters at most, the ellipsis included; signs and marked bytes stay whole.

    Returns
    -------
    str
    """
    if len(text) <= size:
        return text
    out = ""
    for sign in _signs(text[: size + 8]):
        if len(out) + len(sign) >= size:
            break
        out += sign
    return out.rstrip(" ,“") + "…"


def _signs(text: str) -> list[str]:
    """Split a text into signs.

    A sign is a character with the accents, joiners, variants and skin tones behind it; two letters that are a flag; or a marked
    byte (``⟨b2⟩``).
    """
    out: list[str] = []
    for c in _BYTES_OR_ONE.findall(text):
        if (
            out
            and len(c) == 1
            and (
                unicodedata.category(c) in ("Mn", "Me", "Mc")
                or c in _JOINERS
                or out[-1][-1] == "\u200d"
                or c in _SKIN_TONES
                or (c in _FLAG_LETTERS and len(out[-1]) == 1 and out[-1] in _FLAG_LETTERS)
            )
        ):
            out[-1] += c
        else:
            out.append(c)
    return out


def table_lines(table: pd.DataFrame, *, most: int | None = None) -> list[str]:
    """Lay out a table for a terminal: columns aligned by the width of characters, a dash where a value is missing.

    Parameters
    ----------
    table : pandas.DataFrame
    most : int, optional
        Columns that a cell takes at most.

    Returns
    -------
    list of str
        Headings, then a line for each row: a cell with line breaks stays one cell.
    """
    if table.empty:
        return ["no rows"]
    columns = []
    for i, name in enumerate(table.columns):
        column = table.iloc[:, i]
        if column.dtype.kind in "iuf":  # as many decimals in every row
            values = [v.strip() for v in column.to_string(index=False, header=False).split("\n")]
        else:
            values = [one_line(str(v)) for v in column]
        values = ["–" if is_missing(v) else text for v, text in zip(column, values, strict=True)]
        shown = [one_line(str(name)), *(v if most is None else cut_to(v, most) for v in values)]
        width = max(map(cells, shown))
        columns.append([" " * (width - cells(v)) + v for v in shown])
    return [" ".join(row) for row in zip(*columns, strict=True)]


def some_of(values: Iterable[object], most: int = 5, joint: str = ", ") -> str:
    """Enumerate values, briefly however many there are.

    Parameters
    ----------
    values : iterable
    most : int
        Examples shown where there are more; one more than these is still shown.
    joint : str
        Text between two values.

    Returns
    -------
    str
        ``"a, b, c"``, or ``"a, b, c, d, e and 35 more (40 in all)"``; ``"none"`` for no value.
    """
    words = [clipped(str(value), _VALUE) for value in values]
    if len(words) <= most + 1:
        return joint.join(words) or "none"
    return f"{joint.join(words[:most])} and {len(words) - most:,} more ({len(words):,} in all)"


def listed(words: Iterable[object], most: int | None = None) -> str:
    """Enumerate words in a sentence.

    Parameters
    ----------
    words : iterable
    most : int, optional
        Words shown where there are more; one more than these is still shown.

    Returns
    -------
    str
        ``"a, b and c"``, or ``"a, b and 5 more"``; ``"none"`` for no word.
    """
    shown = [str(word) for word in words]
    if most is not None and len(shown) > most + 1:
        shown[most:] = [f"{len(shown) - most} more"]
    return " and ".join([", ".join(shown[:-1]), shown[-1]] if len(shown) > 1 else shown) or "none"


def repeated(names: Iterable[str]) -> str | None:
    """Return the first name that comes a second time; None where each comes once."""
    seen: set[str] = set()
    for name in names:
        if name in seen:
            return name
        seen.add(name)
    return None


def is_missing(value: Any) -> bool:
    """Whether a value of a table is None, NaN or pandas.NA (which has no truth value when it is compared)."""
    if value is None:
        return True
    try:
        return bool(value != value)
    except TypeError:
        return True


def label_text(value: Any) -> str | None:
    """Convert a label's value to text: "" where it is missing, None where it is neither text nor a number.

    3 and 3.0 are one label: libraries turn whole numbers into floats where a value is missing.
    """
    if value is None or (isinstance(value, float) and is_missing(value)):
        return ""
    if isinstance(value, bytes | bytearray | list | tuple | Mapping | set):
        return None
    if isinstance(value, float) and value.is_integer() and abs(value) < _EXACT:
        value = int(value)
    return value if isinstance(value, str) else str(value)


def figure(value: Any, spec: str = ".3f", missing: str = "not tested") -> str:
    """Format a number in a sentence: ``f"q {figure(q, '.3g')}"``.

    Parameters
    ----------
    value : float or None
    spec : str
        As `format` takes it.
    missing : str
        Text where there is no number.

    Returns
    -------
    str
    """
    return missing if is_missing(value) else format(float(value), spec)


def bracket(low: Any, high: Any, spec: str = ".3f") -> str:
    """Format an interval in a sentence: ``[0.1, 0.3]``, a dash for an end that is not known.

    Parameters
    ----------
    low, high : float or None
    spec : str
        As `format` takes it.

    Returns
    -------
    str
    """
    return f"[{figure(low, spec, '–')}, {figure(high, spec, '–')}]"


#: Where a sentence ends, and the next begins; "et al. 2017", "e.g. 3" and "vs. 5" are not torn apart.
_NEXT = re.compile(r"(?<=[.?!])(?<! al\.)(?<!e\.g\.)(?<!i\.e\.)(?<! vs\.)\s+(?=[A-Z0-9“\"'(]|[a-z]+: )")


def sentences(text: str) -> list[str]:
    """Split a text into its sentences; abbreviations and numbers are not torn apart."""
    return _NEXT.split(text.strip()) if text else []


def quoted(path: object) -> str:
    """Write a path as a command that a message names can be pasted with it into a shell."""
    return shlex.quote(str(path))
