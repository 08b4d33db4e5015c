"""Parts of HTML for notebooks: all text is escaped, nothing is fetched, colours follow the notebook's own."""

from __future__ import annotations

import html
from collections.abc import Iterable, Sequence

from moe_probe.core.text import clipped, is_missing, printable

_CELL = "padding:2px 8px;text-align:left;vertical-align:top"


def escaped(value: object) -> str:
    """Escape text so that HTML shows it."""
    return html.escape(printable(str(value)), quote=True)


def table_html(columns: Sequence[object], rows: Iterable[Sequence[object]]) -> str:
    """Render a table.

    Parameters
    ----------
    columns : sequence
        Headings.
    rows : iterable of sequence
        Cells, which are text.

    Returns
    -------
    str
    """
    head = "".join(f'<th style="{_CELL}">{escaped(c)}</th>' for c in columns)
    body = "".join("<tr>" + "".join(f'<td style="{_CELL}">{escaped(c)}</td>' for c in row) + "</tr>" for row in rows)
    return f'<table style="border-collapse:collapse"><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>'


def facts_html(facts: Iterable[tuple[object, object]]) -> str:
    """Render names with their values, one line each."""
    rows = "".join(
        f'<tr><th style="{_CELL}">{escaped(name)}</th><td style="{_CELL}">{escaped(value)}</td></tr>'
        for name, value in facts
    )
    return f'<table style="border-collapse:collapse"><tbody>{rows}</tbody></table>'


def folded_html(summary: object, inside: str) -> str:
    """Render markup that opens at a click on its summary.

    Parameters
    ----------
    summary : object
        Text.
    inside : str
        Markup.

    Returns
    -------
    str
    """
    return f"<details><summary>{escaped(summary)}</summary>{inside}</details>"


def card_html(title: object, *parts: str) -> str:
    """Render a frame with a title.

    Parameters
    ----------
    title : object
        Text.
    *parts : str
        Markup below it.

    Returns
    -------
    str
    """
    return (
        '<div style="border:1px solid #8888;border-radius:6px;padding:8px 12px;margin:4px 0;max-width:70em">'
        f'<div style="font-weight:bold;margin-bottom:4px">{escaped(title)}</div>{"".join(parts)}</div>'
    )


def shaded_html(pieces: Iterable[tuple[str, int]]) -> str:
    """Render parts of a text with a shade each, given as (text, strength from 0 (none) to 4)."""
    out = []
    for text, strength in pieces:
        shade = f' style="background:rgba(217,95,2,{0.17 * strength:.2f})"' if strength else ""
        out.append(f"<span{shade}>{escaped(text)}</span>")
    return f'<div dir="auto" style="white-space:pre-wrap;font-family:monospace;margin:2px 0">{"".join(out)}</div>'


def shown(value: object) -> str:
    """Format a table's value for readers: floats with four digits, a dash where it is missing, long texts and lists clipped."""
    if isinstance(value, float) or type(value).__name__ in ("float32", "float64"):
        return "–" if is_missing(value) else f"{value:.4g}"
    if isinstance(value, str):
        return clipped(value, 80)
    if isinstance(value, Iterable):  # tokens and weights of an excerpt
        items = [shown(v) for v in value]
        return ", ".join(items[:4]) + (f" … ({len(items)})" if len(items) > 4 else "")
    return str(value)
