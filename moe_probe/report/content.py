"""What a report consists of, before anybody decides how it looks: sections of text, tables and figures."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import groupby
from typing import TYPE_CHECKING

from moe_probe.core.text import sentences

if TYPE_CHECKING:
    import numpy as np
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class Link:
    """Words that lead to another place of the report: ``key`` is the anchor of a section or card."""

    text: str
    key: str


#: Text, of which some words may be links. A link without a target in the report is shown as its words.
Rich = str | Link | tuple[str | Link, ...]


@dataclass(frozen=True)
class Bar:
    """A number with its interval, drawn beside its text in HTML.

    Attributes
    ----------
    text : str
        The number and interval as text; all that Markdown shows.
    value, low, high : float
        On the scale of `axis`.
    axis : tuple of float
        What the left and the right end of the drawing stand for.
    null, threshold : float
        Where "no difference" lies, and what a verdict requires.
    """

    text: str
    value: float
    low: float
    high: float
    axis: tuple[float, float]
    null: float
    threshold: float


@dataclass(frozen=True)
class Table:
    """Rows of text and formatted numbers, the same in every face of the report; see `moe_probe.report.cells.table_of`.

    Attributes
    ----------
    columns : tuple of str
    rows : tuple of tuple
        Of text, links or `Bar`.
    marks : str, optional
        Column whose values become a CSS class of the row, and a badge (verdicts).
    note : str
        What the columns mean, and what is not shown; at most 50 words.
    heading : str
        Shown on the fold where the table is long; the table's name for screen readers.
    details : tuple of (str, str)
        For every row a short text that is always seen, and a longer one under a fold.
    """

    columns: tuple[str, ...]
    rows: tuple[tuple[Rich | Bar, ...], ...]
    marks: str | None = None
    note: str = ""
    heading: str = ""
    details: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True)
class Picture:
    """A figure (or what a plot function returned), its file stem, alternative text (what it shows) and caption.

    The caption has one sentence on what is shown and one on how to read it, at most 50 words. `inline` is markup that
    replaces the image in HTML, made by `moe_probe.report.svg`, with all text in it escaped; Markdown shows the image.
    """

    name: str
    figure: Figure | Axes | np.ndarray
    alt: str
    caption: str
    inline: str = ""


@dataclass(frozen=True)
class Passage:
    """A piece of text with parts shaded: ``pieces`` are (text, strength), strength 0 (none) to 4."""

    name: Rich
    pieces: tuple[tuple[str, int], ...]


@dataclass(frozen=True)
class Passages:
    """Passages that are shown at once, under one heading; ``note`` says how they were chosen and what the shades are."""

    heading: str
    passages: tuple[Passage, ...]
    note: str = ""


@dataclass(frozen=True)
class Card:
    """What is known of one unit: a title, facts by name, and passages of text. ``key`` is its anchor, the same in each report."""

    title: str
    facts: tuple[tuple[str, Rich], ...]
    passages: tuple[Passage, ...] = ()
    key: str = ""


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
    """Names and a text for each: a run card, alerts, formulas. ``kind`` is a CSS class."""

    items: tuple[tuple[str, Rich], ...]
    kind: str = ""


@dataclass(frozen=True)
class Verbatim:
    """Text to copy or to save as ``file``."""

    heading: str
    text: str
    file: str


Block = Table | Picture | Passages | Cards | Tree | Facts | Verbatim | str


@dataclass(frozen=True)
class Section:
    """One question and its answer.

    Attributes
    ----------
    title : str
    finding : str
        The answer in a sentence or two.
    blocks : tuple of Table, Picture, Passages, Cards, Tree, Facts, Verbatim or str
    how, limits : str
        How it was computed; how it can mislead. Shown under a fold, one bullet per sentence.
    key, short, group : str
        Anchor, name in the table of contents, and part of the report, given by `moe_probe.report.compose.compose`.
    shown : int, optional
        So many blocks are seen at once; the others are under a fold, and in Markdown in a file of the section. None: all are
        seen, and the section has no file of its own.
    """

    title: str
    finding: str
    blocks: tuple[Block, ...] = ()
    how: str = ""
    limits: str = ""
    key: str = ""
    short: str = ""
    group: str = ""
    shown: int | None = None

    @property
    def seen(self) -> tuple[Block, ...]:
        """Blocks that are seen at once."""
        return self.blocks[: self.shown]

    @property
    def folded(self) -> tuple[Block, ...]:
        """Blocks under the fold."""
        return () if self.shown is None else self.blocks[self.shown :]

    @property
    def headline(self) -> str:
        """First sentence of the finding."""
        return next(iter(sentences(self.finding)), "")

    @property
    def story(self) -> str:
        """What the finding says after its first sentence."""
        return " ".join(sentences(self.finding)[1:])


@dataclass(frozen=True)
class Answer:
    """A question of readers, the answer in a few sentences, and the section that it rests on: its anchor, its name.

    ``opens``: the section that the report begins with says it, so that the page does not repeat it.
    """

    question: str
    answer: str
    key: str
    section: str = ""
    opens: bool = False


@dataclass(frozen=True)
class Report:
    """A whole report: what was done, short answers, and the sections behind them."""

    title: str
    summary: tuple[str, ...]
    sections: tuple[Section, ...]
    answers: tuple[Answer, ...] = ()

    @property
    def groups(self) -> tuple[tuple[str, tuple[Section, ...]], ...]:
        """Sections by the part of the report that they belong to, in the order of the page."""
        return tuple((group, tuple(sections)) for group, sections in groupby(self.sections, key=lambda s: s.group))
