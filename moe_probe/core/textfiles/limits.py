"""How much text a compressed file may unpack to, and how much memory its JSON may take.

A kilobyte of gzip unpacks to a megabyte, and a megabyte of JSON to some thirty of memory. A plain file is as large as it is; of
a compressed one a line may have `line_limit` characters, a text that is read whole `text_limit`, and all of it `text_limit` and
`PER_BYTE` bytes for each byte of the file. The environment variable `SETTING` changes the first two.
"""

from __future__ import annotations

import os
from pathlib import Path

from moe_probe.core.errors import MoeProbeError, UsageError

#: Environment variable with the megabytes that a line of a compressed file may unpack to.
SETTING = "MOE_PROBE_MAX_LINE_MB"
_DEFAULT = 25
#: Lines that a text may be as long as: of a JSON array, or an object over several lines.
_TEXT = 4
#: Bytes that a byte of a compressed file may unpack to, on the average of what is read, behind the first `text_limit`.
PER_BYTE = 200
#: Array that is unpacked as a whole, in lines.
_ARRAY = 20
# Bytes that CPython takes for an object, a list, and an entry of either, rounded up: what a value of JSON is before it is read.
_OBJECT, _LIST, _ENTRY = 240, 72, 40


def line_limit() -> int:
    """Return the characters that a line of a compressed file may have.

    Raises
    ------
    UsageError
        When the environment variable is no number above 0.
    """
    given = os.environ.get(SETTING, "").strip()
    try:
        megabytes = float(given) if given else float(_DEFAULT)
    except ValueError:
        megabytes = 0.0
    if not 0 < megabytes < 1e6:
        raise UsageError(f"{SETTING} is {given[:40]!r}", "it is a number of megabytes above 0", f"{SETTING}={_DEFAULT}")
    return int(megabytes * 1e6)


def text_limit() -> int:
    """Return the characters that a compressed file may have where it is read whole."""
    return _TEXT * line_limit()


def array_limit() -> int:
    """Return the bytes that a compressed array may have where it is read whole."""
    return _ARRAY * line_limit()


def too_long(what: str, limit: int, unit: str = "characters") -> MoeProbeError:
    """Build the error for something that unpacks to more than its limit.

    Parameters
    ----------
    what : str
        Names it and its file.
    limit : int
    unit : str
        What the limit counts.

    Returns
    -------
    MoeProbeError
    """
    factor = max(1.0, limit / line_limit())
    return MoeProbeError(
        f"{what} unpacks to more than {limit:,} {unit}",
        "a small compressed file may hold more than memory does",
        f"unpack the file first, or set the environment variable {SETTING} to more than {limit / factor / 1e6:g}",
    )


def json_memory(text: str | bytes) -> int:
    """Estimate the memory that the values of a JSON text take, before they are read.

    Parameters
    ----------
    text : str or bytes

    Returns
    -------
    int
        Bytes, from its brackets and commas: an upper bound for small values, but for the text itself.
    """
    if isinstance(text, str):
        return text.count("{") * _OBJECT + text.count("[") * _LIST + text.count(",") * _ENTRY
    return text.count(b"{") * _OBJECT + text.count(b"[") * _LIST + text.count(b",") * _ENTRY


def check_json(text: str, path: Path, line: int, limit: int) -> None:
    """Refuse JSON of a compressed file whose values would take much more memory than its text.

    Parameters
    ----------
    text : str
    path : Path
    line : int
        At which it begins, for the message.
    limit : int
        Characters that a line may have; memory may be forty times as much.

    Raises
    ------
    MoeProbeError
    """
    if (needed := json_memory(text)) > _ENTRY * limit:
        raise MoeProbeError(
            f"{path}, line {line} would take {needed / 1e9:.1f} GB of memory",
            f"it unpacks to {len(text):,} characters with very many brackets",
            f"unpack the file first, or set the environment variable {SETTING} to more than {limit / 1e6:g}",
        )
