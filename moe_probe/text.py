"""Text from files as something safe to show, and enumerations and numbers for sentences."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any


def printable(text: str) -> str:
    """Replace control characters by their codes: names and tokens must not steer a terminal or a page."""
    return "".join(c if c.isprintable() or c in "\n\t" else f"\\x{ord(c):02x}" for c in text)


def some_of(values: Iterable[object], most: int = 5, joint: str = ", ") -> str:
    """Values as an enumeration that stays short however many there are.

    Parameters
    ----------
    values : iterable
    most : int
        Examples shown where there are more; one more than these is still shown whole.
    joint : str
        What stands between two values.

    Returns
    -------
    str
        ``"a, b, c"``, or ``"a, b, c, d, e and 35 more (40 in all)"``; ``"none"`` for no value.
    """
    words = [_short(str(value)) for value in values]
    if len(words) <= most + 1:
        return joint.join(words) or "none"
    return f"{joint.join(words[:most])} and {len(words) - most:,} more ({len(words):,} in all)"


def _short(text: str, size: int = 120) -> str:
    return text if len(text) <= size else text[: size - 1].rstrip() + "…"


def is_missing(value: Any) -> bool:
    """Whether a value of a table is None, NaN or pandas.NA (which has no truth value when it is compared)."""
    if value is None:
        return True
    try:
        return bool(value != value)
    except TypeError:
        return True


def figure(value: Any, spec: str = ".3f", missing: str = "not tested") -> str:
    """A number in a sentence, or what to say where there is none: ``f"q {figure(q, '.3g')}"``."""
    return missing if is_missing(value) else format(float(value), spec)


def bracket(low: Any, high: Any, spec: str = ".3f") -> str:
    """An interval in a sentence, a dash for an end that is not known: ``[0.1, 0.3]``."""
    return f"[{figure(low, spec, '–')}, {figure(high, spec, '–')}]"
