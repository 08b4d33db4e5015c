"""Figures as markup inside a page: small drawings whose every mark says what it is when pointed at.

All text is escaped here. Colours are those of the PNG figures; no mark is told by its colour alone: marks carry a
``<title>``, and what is significant carries a sign.
"""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import TYPE_CHECKING, Any

import numpy as np

from moe_probe.core.text import cells, printable
from moe_probe.report.plots.maps import DIVERGING, PALETTE, SHAPES

if TYPE_CHECKING:
    from moe_probe.report.content import Bar

#: Marks (cells, points) that a drawing may have; beyond, an image is smaller and as readable.
MOST_MARKS = 6000


def text(value: object) -> str:
    """Text for use inside markup."""
    return escape(printable(str(value)))


def interval(bar: Bar) -> str:
    """A number and its interval on a line, with marks for "no difference" and for what is asked."""
    low, high = bar.ends

    def place(value: float) -> str:
        return f"{4 + 92 * (min(max(value, low), high) - low) / (high - low):.1f}"

    return (
        f'<svg class="bar" width="100" height="14" viewBox="0 0 100 14" aria-hidden="true">'
        f'<path class="plain" d="M{place(bar.plain)} 1v12"/><path class="asked" d="M{place(bar.asked)} 1v12"/>'
        f'<path class="range" d="M{place(bar.low)} 7H{place(bar.high)}"/>'
        f'<circle cx="{place(bar.value)}" cy="7" r="3"/></svg>'
    )


def heat(
    values: np.ndarray,
    tips: Sequence[Sequence[str]],
    *,
    rows: Sequence[Any],
    title: str,
    colours: Any,
    signs: Sequence[Sequence[str]] | None = None,
    size: int = 16,
) -> str:
    """A heat map: a column an expert, a row a layer or a topic.

    Parameters
    ----------
    values : ndarray, shape (n_rows, n_columns)
        From 0 to 1 on the scale of `colours`; NaN is left empty.
    tips : sequence of sequence of str
        What each cell says when pointed at.
    rows : sequence
        Names of the rows.
    title : str
    colours : callable
        From numbers to colours, as a matplotlib colour map.
    signs : sequence of sequence of str, optional
        A character in the cell.
    size : int
        Of a cell, in pixels.
    """
    from matplotlib.colors import to_hex

    left, top = 16 + round(5.8 * max(cells(printable(str(row))) for row in rows)), 20
    height, width = values.shape
    parts = [
        f'<svg class="heat" role="img" aria-label="{text(title)}" width="{left + size * width + 2}" '
        f'height="{top + size * height + 18}" viewBox="0 0 {left + size * width + 2} {top + size * height + 18}">'
        f'<text class="title" x="{left}" y="12">{text(title)}</text>'
    ]
    for i in range(height):
        middle = f"{top + size * (i + 0.5) + 4:.0f}"
        parts.append(f'<text class="tick" x="{left - 5}" y="{middle}" text-anchor="end">{text(rows[i])}</text>')
        for j in range(width):
            if not np.isfinite(values[i, j]):
                continue
            x, y = left + size * j, top + size * i
            colour = to_hex(colours(round(float(values[i, j]) * 60) / 60))
            parts.append(
                f'<rect x="{x}" y="{y}" width="{size}" height="{size}" fill="{colour}">'
                f"<title>{text(tips[i][j])}</title></rect>"
            )
            if signs is not None and signs[i][j]:
                ink = "#fff" if _dark(colour) else "#111"
                parts.append(
                    f'<text class="sign" x="{x + size / 2:.0f}" y="{middle}" text-anchor="middle" fill="{ink}">'
                    f"{text(signs[i][j])}</text>"
                )
    step = max(1, -(-width // 8))
    below = top + size * height + 12
    ticks = "".join(
        f'<text class="tick" x="{left + size * (j + 0.5):.0f}" y="{below}" text-anchor="middle">{j}</text>'
        for j in range(0, width, step)
    )
    return "".join(parts) + ticks + "</svg>"


def _dark(colour: str) -> bool:
    red, green, blue = (int(colour[i : i + 2], 16) for i in (1, 3, 5))
    return 0.299 * red + 0.587 * green + 0.114 * blue < 110


def scale(low: str, middle: str, high: str, name: str, *, colours: Any = DIVERGING) -> str:
    """A colour bar with the limits in words."""
    from matplotlib.colors import to_hex

    cells = "".join(f'<rect x="{12 * i}" width="12" height="10" fill="{to_hex(colours(i / 14))}"/>' for i in range(15))
    return (
        f'<p class="scale">{text(low)} <svg width="180" height="10" viewBox="0 0 180 10" aria-hidden="true">{cells}</svg> '
        f"{text(high)} <span>{text(name)}{text('; middle: ' + middle) if middle else ''}</span></p>"
    )


def points(
    x: np.ndarray, y: np.ndarray, labels: Sequence[str], tips: Sequence[str], *, title: str, names: Sequence[str]
) -> str:
    """Points in the plane that say what they are; colour and shape by label (its place in `names`)."""
    width, height, edge, top = 318, 300, 8, 22
    place = {name: i for i, name in enumerate(names)}
    left = edge + _unit(x) * (width - 2 * edge)
    down = top + edge + (1 - _unit(y)) * (height - top - 2 * edge)
    parts = [
        f'<svg class="points" role="img" aria-label="{text(title)}" width="{width}" height="{height}" '
        f'viewBox="0 0 {width} {height}"><text class="title" x="{edge}" y="14">{text(title)}</text>'
    ]
    order = np.argsort([place[label] for label in labels], kind="stable")
    for group in range(len(names)):
        mine = [i for i in order if place[labels[i]] == group]
        if mine:
            marks = "".join(
                f'<path d="M{left[i]:.1f} {down[i]:.1f}{SHAPES[group % len(SHAPES)][0]}">'
                f"<title>{text(tips[i])}</title></path>"
                for i in mine
            )
            parts.append(f'<g data-pick="{group}" fill="{PALETTE[group % len(PALETTE)]}">{marks}</g>')
    return "".join(parts) + "</svg>"


def _unit(values: np.ndarray) -> np.ndarray:
    span = float(values.max() - values.min())
    return (values - values.min()) / span if span else np.full(len(values), 0.5)


def legend(names: Sequence[str]) -> str:
    """Buttons of the labels; pressing one keeps its points and dims the others (the page's script does)."""
    items = "".join(
        f'<button type="button" aria-pressed="false" data-pick="{i}"><svg width="12" height="12" viewBox="-6 -6 12 12" '
        f'aria-hidden="true"><path d="M0 0{SHAPES[i % len(SHAPES)][0]}" fill="{PALETTE[i % len(PALETTE)]}"/></svg> '
        f"{text(name)}</button>"
        for i, name in enumerate(names)
    )
    return f'<div class="legend" role="group" aria-label="Show one label only">{items}</div>'


def panels(drawings: Sequence[str], *, further: str = "") -> str:
    """Drawings side by side, as many as fit."""
    return f'<div class="panels">{"".join(drawings)}</div>{further}'
