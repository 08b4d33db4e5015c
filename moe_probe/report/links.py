"""Places of a report: their anchors, and text with links to them as HTML or as words alone."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import fields, is_dataclass, replace
from html import escape
from typing import TYPE_CHECKING, Any

from moe_probe.core.units import UnitRef
from moe_probe.report.content import Bar, Link

if TYPE_CHECKING:
    from moe_probe.report.content import Report, Rich


def unit_key(unit: UnitRef) -> str:
    """Return the anchor of a unit's card: ``expert-5-13``, ``group-5-4-13``, ``feature-layer_05-width_01024-334``.

    Parameters
    ----------
    unit : UnitRef

    Returns
    -------
    str
        The same in every report, whatever else it has.
    """
    source = re.sub(r"[^A-Za-z0-9_.-]", "-", unit.sae) if unit.sae else str(unit.layer)
    return "-".join([unit.kind, source, *map(str, sorted(unit.members))])


def expert_link(layer: int, expert: int, text: str = "") -> Link:
    """Link to the card of an expert; by default the words are its name.

    Parameters
    ----------
    layer, expert : int
    text : str

    Returns
    -------
    Link
    """
    return Link(text or f"layer {layer}, expert {expert}", unit_key(UnitRef((expert,), layer)))


def joined(parts: list[Rich], between: str = ", ") -> Rich:
    """Join texts to one, as ``str.join`` does.

    Parameters
    ----------
    parts : list of Rich
    between : str

    Returns
    -------
    Rich
    """
    out: list[str | Link] = []
    for number, part in enumerate(parts):
        out += ([between] if number and between else []) + list(_parts(part))
    return tuple(out)


def glued(*parts: Rich) -> Rich:
    """Join texts without anything between them.

    Parameters
    ----------
    *parts : Rich

    Returns
    -------
    Rich
    """
    return joined(list(parts), "")


def _parts(text: Rich | Bar) -> tuple[str | Link, ...]:
    if isinstance(text, Bar):
        return (text.text,)
    return text if isinstance(text, tuple) else (text,)


def plain(text: Rich | Bar) -> str:
    """Return the words alone."""
    return "".join(part.text if isinstance(part, Link) else part for part in _parts(text))


def html(text: Rich | Bar) -> str:
    """Render text and links as HTML, everything escaped."""
    return "".join(
        f'<a href="#{escape(part.key)}">{escape(part.text)}</a>' if isinstance(part, Link) else escape(part)
        for part in _parts(text)
    )


def resolved(report: Report) -> Report:
    """Turn links that lead nowhere into their words: not every unit has a card.

    Parameters
    ----------
    report : Report

    Returns
    -------
    Report
    """
    known = set(_keys(report))

    def kept(value: Any) -> Any:
        if isinstance(value, Link):
            return value if value.key in known else value.text
        if isinstance(value, tuple):
            return tuple(kept(v) for v in value)
        if is_dataclass(value) and not isinstance(value, type):
            changed = {f.name: kept(getattr(value, f.name)) for f in fields(value) if f.name not in ("figure", "inline")}
            return replace(value, **changed)
        return value

    out: Report = kept(report)
    return out


def _keys(value: Any) -> Iterator[str]:
    """Yield the anchors that sections and cards set."""
    if isinstance(value, tuple):
        for item in value:
            yield from _keys(item)
    elif is_dataclass(value) and not isinstance(value, type | Link):
        if (key := getattr(value, "key", "")) and type(value).__name__ in ("Section", "Card"):
            yield key
        for field in fields(value):
            if field.name not in ("figure", "inline"):
                yield from _keys(getattr(value, field.name))
