"""What a report consists of, before anybody decides how it looks: sections of text, tables and figures."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class Table:
    """Rows of text and numbers; numbers are formatted here, once, for every face of the report.

    ``marks`` names a column whose values become a CSS class of the row (verdicts).
    """

    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    marks: str | None = None
    note: str = ""


@dataclass(frozen=True)
class Picture:
    """A figure, or what a plot function returned, with its file stem, alternative text and caption."""

    name: str
    figure: Figure | Axes | np.ndarray
    alt: str
    caption: str


@dataclass(frozen=True)
class Passage:
    """A piece of text with parts shaded: ``pieces`` are (text, strength), strength 0 (none) to 4."""

    name: str
    pieces: tuple[tuple[str, int], ...]


@dataclass(frozen=True)
class Card:
    """What there is to say of one unit: a title, facts by name, and passages of text."""

    title: str
    facts: tuple[tuple[str, str], ...]
    passages: tuple[Passage, ...] = ()


@dataclass(frozen=True)
class Cards:
    """Cards under one heading, folded until they are asked for."""

    heading: str
    cards: tuple[Card, ...]


@dataclass(frozen=True)
class Section:
    """One question and what was found.

    Attributes
    ----------
    title : str
    finding : str
        The answer in a sentence or two.
    blocks : tuple of Table, Picture, Cards or str
    how, limits : str
        How it was computed; how it can mislead.
    """

    title: str
    finding: str
    blocks: tuple[Table | Picture | Cards | str, ...] = ()
    how: str = ""
    limits: str = ""


@dataclass(frozen=True)
class Report:
    """A whole report."""

    title: str
    summary: tuple[str, ...]
    sections: tuple[Section, ...]
    card: Mapping[str, str]
    alerts: tuple[str, ...] = ()
    citations: tuple[str, ...] = field(default=())


def number(value: Any, digits: int = 2) -> str:
    """A number for reading: fixed digits, thousands separated, an en dash where there is none."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return "–"
    if isinstance(value, bool) or not isinstance(value, int | float):
        return str(value)
    if isinstance(value, int):
        return f"{value:,}"
    return f"{value:,.{digits}f}".replace("-", "−")


def probability(value: float) -> str:
    """A p- or q-value: three digits, never zero, and no pretence of knowing the far tail."""
    if value is None or math.isnan(value):
        return "–"
    if value < 1e-10:
        return "<1e-10"
    return f"{value:.3f}" if value >= 0.0009995 else f"{value:.0e}"


def listed(words: Sequence[str]) -> str:
    """Words as an enumeration in a sentence."""
    words = list(words)
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}" if words else "none"
