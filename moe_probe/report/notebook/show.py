"""Tables, sentences and figures as a notebook shows them: text from corpora stays text."""

from __future__ import annotations

import base64
import html
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from moe_probe.core.text import is_missing, one_line, printable
from moe_probe.report.cells import probability

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure


class Shown:
    """HTML for notebooks, and plain text for terminals.

    Parameters
    ----------
    page, plain : str
        HTML that is safe to show, and text.
    """

    def __init__(self, page: str, plain: str) -> None:
        self._page, self._plain = page, plain

    def _repr_html_(self) -> str:
        return self._page

    def __repr__(self) -> str:
        """Return the plain text."""
        return self._plain


def escaped(text: object) -> str:
    """Escape text for HTML: no markup, no control characters, and nothing that a page would set as a formula."""
    out = html.escape(printable(str(text)))
    # a dollar or backslash alone in an element begins no formula
    return out.replace("\\", "<span>&#92;</span>").replace("$", "<span>&#36;</span>")


def sentences(lines: Sequence[str]) -> Shown:
    """Show sentences as a list."""
    items = "".join(f"<li>{escaped(line)}</li>" for line in lines)
    return Shown(f'<ul class="tex2jax_ignore mathjax_ignore">{items}</ul>', "\n".join(f"- {one_line(x)}" for x in lines))


def show(
    table: pd.DataFrame,
    *,
    columns: Sequence[str] | None = None,
    names: Mapping[str, str] | None = None,
    digits: int = 2,
    rows: int = 200,
) -> Shown:
    """Show a table with its numbers rounded and its text escaped.

    Parameters
    ----------
    table : pandas.DataFrame
    columns : sequence of str, optional
        Which, in this order; those that the table lacks are omitted.
    names : mapping of str to str, optional
        Headings for columns; others are their names with spaces.
    digits : int
        Decimal places; smaller numbers get two significant digits; p- and q-values as in the report.
    rows : int
        At most so many, with a note of how many more there are.

    Returns
    -------
    Shown
    """
    shown = [c for c in (columns or table.columns) if c in table.columns]
    heads = [(names or {}).get(c, str(c).replace("_", " ")) for c in shown]
    cells = [
        [_cell(value, column, digits) for column, value in zip(shown, row, strict=True)]
        for row in table[shown].head(rows).itertuples(index=False)
    ]
    numeric = [isinstance(table[c].dtype, np.dtype) and np.issubdtype(table[c].dtype, np.number) for c in shown]
    kinds = [' class="number"' if n and c not in ("layer", "expert") else "" for c, n in zip(shown, numeric, strict=True)]

    def line(tag: str, texts: Sequence[str]) -> str:
        made = (f"<{tag}{kind}>{escaped(text)}</{tag}>" for text, kind in zip(texts, kinds, strict=True))
        return f"<tr>{''.join(made)}</tr>"

    body = "".join(line("td", row) for row in cells)
    more = f"<p>{len(table) - rows:,} more rows are in the table.</p>" if len(table) > rows else ""
    plain = "\n".join("\t".join(one_line(x) for x in row) for row in [heads, *cells])
    return Shown(
        f'<div class="scroll tex2jax_ignore mathjax_ignore"><table><thead>{line("th", heads)}</thead>'
        f"<tbody>{body}</tbody></table>{more}</div>",
        plain,
    )


def wide(table: pd.DataFrame, *, rows: str, across: str, values: str) -> pd.DataFrame:
    """Spread a column of a long table over several, keeping the order of first appearance.

    Parameters
    ----------
    table : pandas.DataFrame
    rows, across, values : str
        Columns whose values become the rows, the headings and the cells.

    Returns
    -------
    pandas.DataFrame
    """
    order = list(dict.fromkeys(table[rows])), list(dict.fromkeys(table[across]))
    spread = table.pivot(index=rows, columns=across, values=values).loc[order[0], order[1]]
    spread.columns.name = None
    # a run may be called as the column of rows is
    return spread.rename(columns={rows: f"{rows} (run)"}).reset_index()


def _cell(value: Any, column: str, digits: int) -> str:
    if is_missing(value):
        return "–"
    if isinstance(value, bool | np.bool_):
        return "yes" if value else ""
    if isinstance(value, int | np.integer):
        return f"{int(value):,}"
    if not isinstance(value, float | np.floating):
        return str(value)
    number = float(value)
    if column in ("p_value", "q_value"):
        return probability(number)
    small = number != 0 and abs(number) < 10.0 ** (1 - digits)
    return (f"{number:#.2g}" if small else f"{number:,.{digits}f}").replace("-", "−")


def picture(figure: Figure, alt: str) -> Picture:
    """Show a matplotlib figure with alternative text.

    Parameters
    ----------
    figure : Figure
    alt : str
        A sentence that says what the figure shows.

    Returns
    -------
    Picture
    """
    return Picture(figure, alt)


class Picture:
    """A figure with its alternative text; the same figure gives the same bytes."""

    def __init__(self, figure: Figure, alt: str) -> None:
        self.figure, self.alt = figure, alt

    def _repr_mimebundle_(self, **_: Any) -> tuple[dict[str, str], dict[str, dict[str, str]]]:
        from moe_probe.report.plots.drawing import png_bytes

        return (
            {"image/png": base64.b64encode(png_bytes(self.figure)).decode(), "text/plain": printable(self.alt)},
            {"image/png": {"alt": printable(self.alt)}},
        )

    def __repr__(self) -> str:
        """Return the alternative text."""
        return printable(self.alt)
