"""Figures as markup inside a page: small drawings whose every mark says what it is when pointed at.

What they show is described in `moe_probe.report.plots.panels`, for the figures in files as well. All text is escaped here. No
mark is told by its colour alone: marks carry a ``<title>``, and what is significant carries a sign. Colours are classes, which
the page's style sheet (``figures.css``) defines for light and for dark pages.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from html import escape
from typing import TYPE_CHECKING, Any

import numpy as np

from moe_probe.core.text import cells, clipped, printable
from moe_probe.report.plots.panels import PALETTE, SHAPES, ColourScale, HeatPanel, PointPanel
from moe_probe.report.plots.style import AMOUNTS, DARK_PAGE, DIVERGING, PALE, dark_colour, dark_map, ink_on
from moe_probe.report.plots.summary import ANSWERS

if TYPE_CHECKING:
    import pandas as pd

    from moe_probe.report.content import Bar, Table

#: Marks (cells, points) that a drawing may have; beyond, an image is smaller and as readable.
MOST_MARKS = 6000
#: Characters of a topic's name beside its lift, or beside its row of a heat map.
_NAME = 26
#: Shades of a colour map, and the letters of their classes by the name of the map.
_SHADES = 40
_LETTERS = {DIVERGING.name: "d", AMOUNTS.name: "a"}


def text(value: object) -> str:
    """Text for use inside markup."""
    return escape(printable(str(value)))


def interval(bar: Bar) -> str:
    """Draw a number and its interval on a line, with marks for "no difference" and for the threshold.

    The numbers at the marks are for narrow screens, which have no header with the axis above.
    """
    x = _scale(bar)
    return (
        f'<svg class="bar" width="100" height="24" viewBox="0 0 100 24" aria-hidden="true">'
        f'<path class="plain" d="M{x(bar.null)} 1v12"/><path class="asked" d="M{x(bar.threshold)} 1v12"/>'
        f'<path class="range" d="M{x(bar.low)} 7H{x(bar.high)}"/>'
        f'<circle cx="{x(bar.value)}" cy="7" r="3"/>{_ticks(bar, 22)}</svg>'
    )


def _scale(bar: Bar) -> Callable[[float], str]:
    low, high = bar.axis
    return lambda value: f"{4 + 92 * (min(max(value, low), high) - low) / (high - low):.1f}"


def _ticks(bar: Bar, y: int) -> str:
    """Write the times at "no difference", at the threshold and at whole powers of two beyond it, as far as they fit."""
    x, beyond = _scale(bar), np.arange(np.floor(bar.threshold) + 1, bar.axis[1] + 0.01)
    shown = [bar.null, bar.threshold, *([float(beyond[-1])] if len(beyond) else [])]
    return "".join(
        f'<text class="tick" x="{x(value)}" y="{y}" text-anchor="{"middle" if value < bar.axis[1] else "end"}">'
        f"{2.0**value:.3g}×</text>"
        for value in shown
    )


def axis_of(table: Table, column: int) -> str:
    """Draw the axis of a column of intervals, for its header.

    Parameters
    ----------
    table : Table
    column : int

    Returns
    -------
    str
        Markup; "" for columns without intervals.
    """
    bars = [row[column] for row in table.rows if type(row[column]).__name__ == "Bar"]
    if not bars:
        return ""
    bar: Any = bars[0]
    x = _scale(bar)
    return (
        f'<svg class="bar axis" width="100" height="22" viewBox="0 0 100 22" role="img" aria-label="axis: '
        f'{2.0 ** bar.axis[0]:.2g} to {2.0 ** bar.axis[1]:.3g} times">'
        f'{_ticks(bar, 10)}<path class="plain" d="M4 20H96M{x(bar.null)} 13v7"/>'
        f'<path class="asked" d="M{x(bar.threshold)} 13v7"/></svg>'
    )


def heat(panel: HeatPanel, scale: ColourScale, tip: Callable[[Mapping[Any, Any]], str], *, size: int = 16) -> str:
    """Draw a heat map with a column for each expert.

    Parameters
    ----------
    panel : HeatPanel
    scale : ColourScale
    tip : callable
        From the record of a cell to what it says when pointed at.
    size : int
        Width and height of a cell, in pixels.

    Returns
    -------
    str
        Markup.
    """
    names = [clipped(printable(str(row)), _NAME) for row in panel.rows]
    left, top = 16 + round(5.8 * max(map(cells, names))), 20
    width, height = left + size * panel.width + 2, top + size * len(panel.rows) + 18
    parts = [_opened("heat", panel.title, (width, height), (left, 12))]
    middles = [f"{top + size * (i + 0.5) + 4:.0f}" for i in range(len(panel.rows))]
    for middle, name in zip(middles, names, strict=True):
        parts.append(f'<text class="tick" x="{left - 5}" y="{middle}" text-anchor="end">{text(name)}</text>')
    for i, cell in zip(panel.row_index, panel.cells.to_dict("records"), strict=True):
        if not np.isfinite(cell["value"]):
            continue
        x, share = left + size * int(cell["expert"]), (cell["value"] - scale.low) / (scale.high - scale.low)
        pale = " n" if cell["pale"] else ""
        parts.append(
            f'<rect class="{_shade(scale, share)}{pale}" x="{x}" y="{top + size * i}" width="{size}" height="{size}">'
            f"<title>{text(tip(cell))}</title></rect>"
        )
        if cell["sign"]:  # right behind its cell: the style sheet chooses black or white by the cell's shade
            parts.append(
                f'<text class="sign" x="{x + size / 2:.0f}" y="{middles[i]}" text-anchor="middle">{text(cell["sign"])}</text>'
            )
    for j in range(0, panel.width, max(1, -(-panel.width // 8))):
        parts.append(
            f'<text class="tick" x="{left + size * (j + 0.5):.0f}" y="{height - 6}" text-anchor="middle">{j}</text>'
        )
    return "".join(parts) + "</svg>"


def _opened(kind: str, title: str, size: tuple[int, int], at: tuple[int, int]) -> str:
    """Open a drawing of `size` pixels with its title at a place."""
    return (
        f'<svg class="{kind}" role="img" aria-label="{text(title)}" width="{size[0]}" height="{size[1]}" '
        f'viewBox="0 0 {size[0]} {size[1]}"><text class="title" x="{at[0]}" y="{at[1]}">{text(title)}</text>'
    )


def _shade(scale: ColourScale, share: float) -> str:
    """Class of the colour of a cell; share 0 is the first colour of the scale, 1 the last."""
    return f"{_LETTERS[scale.colours.name]}{round(float(np.clip(share, 0, 1)) * _SHADES)}"


def colours() -> dict[str, Any]:
    """Colours of classes, for the style sheet.

    Returns
    -------
    dict
        ``shades``: for every class of cells its colour on a light and on a dark page; ``inks``: for black and white, on light
        and on dark pages, the classes on which signs have it; ``points``, ``answers``: colours of labels and of answers;
        ``pale``: opacity; ``page``.
    """
    from matplotlib.colors import to_hex

    shades, inks = {}, {"light": {"#ffffff": [], "#111111": []}, "dark": {"#ffffff": [], "#111111": []}}  # type: ignore[var-annotated]
    for colour_map, letter in ((DIVERGING, "d"), (AMOUNTS, "a")):
        for i in range(_SHADES + 1):
            pair = colour_map(i / _SHADES), dark_map(colour_map)(i / _SHADES)
            shades[f"{letter}{i}"] = tuple(to_hex(colour) for colour in pair)
            for page, colour in zip(inks, pair, strict=True):
                inks[page][ink_on(colour)].append(f"{letter}{i}")
    points = [(colour, to_hex(dark_colour(colour))) for colour in PALETTE]
    answers = [(colour, to_hex(dark_colour(colour))) for colour, _, _ in ANSWERS.values()]
    return {"shades": shades, "inks": inks, "points": points, "answers": answers, "pale": PALE, "page": DARK_PAGE}


def lifts(table: pd.DataFrame, threshold: float, tip: Callable[[Mapping[Any, Any]], str]) -> str:
    """Draw the lift of every topic with its interval, largest first; it shrinks to a narrow screen and stays readable.

    Parameters
    ----------
    table : pandas.DataFrame
        ``topic, kind`` (a key of `moe_probe.report.plots.summary.ANSWERS`), ``log2_lift, ci_low, ci_high``.
    threshold : float
        Log2 lift that a verdict requires.
    tip : callable
        From the row of a topic to what its mark says when pointed at.

    Returns
    -------
    str
        Markup.
    """
    rows = table.sort_values("log2_lift", ascending=False, na_position="last", kind="stable").to_dict("records")
    names = [clipped(printable(str(row["topic"])), _NAME) for row in rows]
    known = table[["log2_lift", "ci_low", "ci_high"]].to_numpy(dtype=float)
    low = min(-0.5, float(np.nanmin(known)) - 0.1)
    high = max(threshold + 0.5, float(np.nanmax(known)) + 0.1)
    left, width, top, size = 14 + round(6.4 * max(map(cells, names))), 430, 24, 19
    bottom = top + size * len(rows)

    def x(value: float) -> str:
        return f"{left + (width - 12 - left) * (value - low) / (high - low):.1f}"

    parts = [
        f'<svg class="lifts" role="img" aria-label="lift of each topic" viewBox="0 0 {width} {bottom + 36}">',
        f'<path class="axis" d="M{x(0)} {top - 4}V{bottom}"/>',
        f'<path class="axis asked" d="M{x(threshold)} {top - 4}V{bottom}"/>',
        f'<text class="tick" x="{x(threshold)}" y="{top - 9}" text-anchor="middle">needed: {2.0**threshold:.3g}×</text>',
    ]
    for i, (row, name) in enumerate(zip(rows, names, strict=True)):
        y = top + size * i + size // 2
        parts.append(f'<text class="tick" x="{left - 8}" y="{y + 4}" text-anchor="end">{text(name)}</text>')
        value, *ends = (float(row[column]) for column in ("log2_lift", "ci_low", "ci_high"))
        if not np.isfinite(value):
            parts.append(f'<text class="tick" x="{left}" y="{y + 4}">not tested</text>')
            continue
        colour = _answer_class(row["kind"])
        if np.isfinite(ends).all():
            parts.append(f'<path class="{colour}" d="M{x(ends[0])} {y}H{x(ends[1])}" stroke-width="2"/>')
        mark = f"M{x(value)} {y}{_shape(row['kind'])}"
        parts.append(f'<path class="{colour}" d="{mark}" stroke-width="0"><title>{text(tip(row))}</title></path>')
    for power in np.arange(np.ceil(low), np.floor(high) + 1).tolist():
        parts.append(f'<text class="tick" x="{x(power)}" y="{bottom + 13}" text-anchor="middle">{2.0**power:g}×</text>')
    parts.append(
        f'<text class="tick" x="{(left + width) // 2}" y="{bottom + 29}" text-anchor="middle">lift over an average topic '
        "(95 % interval)</text></svg>"
    )
    return "".join(parts) + _kinds(table["kind"].tolist())


def _shape(kind: str) -> str:
    return next((path for path, marker in SHAPES if marker == ANSWERS[kind][1]), SHAPES[0][0])


def _answer_class(kind: str) -> str:
    """Class of the colour of a kind of answer."""
    return f"v{list(ANSWERS).index(kind)}"


def _kinds(kinds: Sequence[str]) -> str:
    """Say what the marks of lifts stand for, and how many topics have each."""
    items = "".join(
        f'<span><svg width="12" height="12" viewBox="-6 -6 12 12" aria-hidden="true"><path class="{_answer_class(kind)}" '
        f'd="M0 0{_shape(kind)}" stroke-width="0"/></svg> {text(name)} ({kinds.count(kind)})</span> '
        for kind, (_, _, name) in ANSWERS.items()
        if kind in kinds and kind != "untested"
    )
    return f'<p class="scale">{items}</p>'


def colour_bar(scale: ColourScale, ends: tuple[str, str], name: str) -> str:
    """Draw a colour bar.

    Parameters
    ----------
    scale : ColourScale
    ends : tuple of str
        What the first and the last colour stand for.
    name : str
        What the colours stand for.

    Returns
    -------
    str
        Markup.
    """
    shades = (_shade(scale, i / 14) for i in range(15))
    bar = "".join(f'<rect class="{shade}" x="{12 * i}" width="12" height="10"/>' for i, shade in enumerate(shades))
    return (
        f'<p class="scale">{text(ends[0])} <svg width="180" height="10" viewBox="0 0 180 10" aria-hidden="true">{bar}</svg> '
        f"{text(ends[1])} <span>{text(name)}</span></p>"
    )


def points(panel: PointPanel, tips: Sequence[str]) -> str:
    """Draw points in the plane; colour and shape by label.

    Parameters
    ----------
    panel : PointPanel
    tips : sequence of str
        What each point says when pointed at.

    Returns
    -------
    str
        Markup.
    """
    width, height, edge, top = 318, 300, 8, 22
    left = edge + _unit(panel.points["x"].to_numpy()) * (width - 2 * edge)
    down = top + edge + (1 - _unit(panel.points["y"].to_numpy())) * (height - top - 2 * edge)
    parts = [_opened("points", panel.title, (width, height), (edge, 14))]
    for group, label in enumerate(panel.labels):
        marks = "".join(
            f'<path d="M{left[i]:.1f} {down[i]:.1f}{SHAPES[group % len(SHAPES)][0]}"><title>{text(tips[i])}</title></path>'
            for i in np.flatnonzero(panel.points["label"] == label).tolist()
        )
        if marks:
            parts.append(f'<g class="p{group % len(PALETTE)}" data-pick="{group}">{marks}</g>')
    return "".join(parts) + "</svg>"


def _unit(values: np.ndarray) -> np.ndarray:
    span = float(values.max() - values.min())
    return (values - values.min()) / span if span else np.full(len(values), 0.5)


def legend(names: Sequence[str]) -> str:
    """Draw buttons of the labels; pressing one keeps its points and dims the others (the page's script does)."""
    items = "".join(
        f'<button type="button" aria-pressed="false" data-pick="{i}"><svg width="12" height="12" viewBox="-6 -6 12 12" '
        f'aria-hidden="true"><path class="p{i % len(PALETTE)}" d="M0 0{SHAPES[i % len(SHAPES)][0]}"/></svg> '
        f"{text(name)}</button>"
        for i, name in enumerate(names)
    )
    return f'<div class="legend" role="group" aria-label="Show one label only">{items}</div>'


def side_by_side(drawings: Sequence[str], below: str = "") -> str:
    """Put drawings side by side, as many as fit.

    Parameters
    ----------
    drawings : sequence of str
        Markup.
    below : str
        Markup under them.

    Returns
    -------
    str
        Markup.
    """
    return f'<div class="panels">{"".join(drawings)}</div>{below}'
