"""What a report consists of, before anybody decides how it looks: sections of text, tables and figures."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from moe_probe.core.text import clipped

if TYPE_CHECKING:
    import numpy as np
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class Bar:
    """A number with its interval, drawn beside its text in HTML.

    Attributes
    ----------
    text : str
        The number and interval in words; all that Markdown shows.
    value, low, high : float
        On the scale of `ends`.
    ends : tuple of float
        What the left and the right end of the drawing stand for.
    plain, asked : float
        Where "no difference" lies, and what the rules ask for.
    """

    text: str
    value: float
    low: float
    high: float
    ends: tuple[float, float]
    plain: float
    asked: float


@dataclass(frozen=True)
class Table:
    """Rows of text and numbers; numbers are formatted here, once, for every face of the report.

    Attributes
    ----------
    columns : tuple of str
    rows : tuple of tuple
        Of str or `Bar`.
    marks : str, optional
        Column whose values become a CSS class of the row, and a badge (verdicts).
    note : str
        What the columns mean, and what is not shown.
    heading : str
        Stands on the fold where the table is long, and is the table's name for screen readers.
    more : tuple of (str, str)
        For every row a short text that is always seen, and a longer one under a fold.
    """

    columns: tuple[str, ...]
    rows: tuple[tuple[str | Bar, ...], ...]
    marks: str | None = None
    note: str = ""
    heading: str = ""
    more: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True)
class Picture:
    """A figure (or what a plot function returned), its file stem, alternative text (what it shows) and caption.

    `inline` is markup that stands in the image's place in HTML, made by `moe_probe.report.svg`, with all text
    in it escaped; Markdown shows the image.
    """

    name: str
    figure: Figure | Axes | np.ndarray
    alt: str
    caption: str
    inline: str = ""


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
class Node:
    """A node of a tree: what it is, facts in phrases, passages of text, and the nodes below it."""

    title: str
    facts: tuple[str, ...] = ()
    passages: tuple[Passage, ...] = ()
    children: tuple[Node, ...] = ()


@dataclass(frozen=True)
class Tree:
    """Nodes below one another, folded until they are asked for: nested folds in HTML, a nested list in Markdown."""

    heading: str
    nodes: tuple[Node, ...]


@dataclass(frozen=True)
class Facts:
    """Names and what is to be said of each: a run card, alerts, formulas. ``kind`` is a CSS class."""

    items: tuple[tuple[str, str], ...]
    kind: str = ""


@dataclass(frozen=True)
class Verbatim:
    """Text to copy or to save as ``file``."""

    heading: str
    text: str
    file: str


Block = Table | Picture | Cards | Tree | Facts | Verbatim | str


@dataclass(frozen=True)
class Section:
    """One question and what was found.

    Attributes
    ----------
    title : str
    finding : str
        The answer in a sentence or two.
    blocks : tuple of Table, Picture, Cards, Tree, Facts, Verbatim or str
    how, limits : str
        How it was computed; how it can mislead.
    key, short : str
        Anchor and name in the table of contents, given by `moe_probe.report.compose.compose`.
    """

    title: str
    finding: str
    blocks: tuple[Block, ...] = ()
    how: str = ""
    limits: str = ""
    key: str = ""
    short: str = ""


@dataclass(frozen=True)
class Answer:
    """A question people come with, the answer in a sentence or two, and the section that it rests on."""

    question: str
    answer: str
    key: str


@dataclass(frozen=True)
class Report:
    """A whole report: what was done, the answers in short, and the sections behind them."""

    title: str
    summary: tuple[str, ...]
    sections: tuple[Section, ...]
    answers: tuple[Answer, ...] = ()


def number(value: Any, digits: int = 2) -> str:
    """A number for reading: fixed digits, thousands separated, an en dash where there is none."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return "–"
    if isinstance(value, bool) or not isinstance(value, int | float):
        return str(value)
    if isinstance(value, int):
        return f"{value:,}"
    text = f"{value:,.{digits}f}"
    if not any(c in "123456789" for c in text):
        text = text.lstrip("-")  # no negative zero
    return text.replace("-", "−")


def probability(value: float) -> str:
    """A p- or q-value: three digits, never zero, and no pretence of knowing the far tail."""
    if value is None or math.isnan(value):
        return "–"
    if value < 1e-10:
        return "<1e-10"
    return f"{value:.3f}" if value >= 0.00095 else f"{value:.0e}"


def lift_text(row: Any, *, digits: int = 2) -> str:
    """Lift with its interval, of a row with ``log2_lift, ci_low, ci_high``."""
    if math.isnan(row["log2_lift"]):
        return "–"
    value, low, high = (number(float(2 ** row[c]), digits) for c in ("log2_lift", "ci_low", "ci_high"))
    return f"{value}× [{low}, {high}]"


def listed(words: Sequence[str]) -> str:
    """Words as an enumeration in a sentence."""
    words = list(words)
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}" if words else "none"


def some(words: Sequence[str], most: int = 8) -> str:
    """Words as an enumeration that stays short."""
    words = list(words)
    return listed(words) if len(words) <= most + 1 else f"{', '.join(words[:most])} and {len(words) - most} more"


def sae_name(path: str) -> str:
    """``layer_02/width_01024-residual`` and ``layer_02/width_01024_NAME`` as people say it; other text as it is."""
    found = re.fullmatch(r"layer_(\d+)/width_(\d+)(?:-((?:expert_output|router_input|[^_])+))?(?:_(.+))?", path)
    if found is None:
        return path
    layer, width, further, name = found.groups()
    described = [*(further.split("-") if further else []), *([name] if name else [])]
    return f"layer {int(layer)}, width {int(width):,}" + (f" ({', '.join(described)})" if described else "")


def cut(text: str, size: int = 60) -> str:
    """Text of at most `size` characters."""
    return clipped(text, size)
