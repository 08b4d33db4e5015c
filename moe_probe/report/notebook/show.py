"""Tables, sentences and figures as a notebook shows them: text from corpora stays text."""

from __future__ import annotations

import base64
import html
import io
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from moe_probe.core.text import printable

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure


class Shown:
    """Something with an HTML face for notebooks and a plain one for terminals.

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
        return self._plain


def escaped(text: object) -> str:
    """Text as HTML that shows it: no markup, no control characters, and nothing that a page would set as a formula."""
    out = html.escape(printable(str(text)))
    # a dollar or backslash alone in an element begins no formula
    return out.replace("\\", "<span>&#92;</span>").replace("$", "<span>&#36;</span>")


def sentences(lines: Sequence[str]) -> Shown:
    """Show sentences as a list."""
    items = "".join(f"<li>{escaped(line)}</li>" for line in lines)
    return Shown(f'<ul class="tex2jax_ignore mathjax_ignore">{items}</ul>', "\n".join(f"- {printable(x)}" for x in lines))


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
        Which, in this order; those that the table lacks are left out.
    names : mapping of str to str, optional
        Headings for columns; others are their names with spaces.
    digits : int
        Decimal places; numbers below one hundredth get two significant digits. p- and q-values: two significant.
    rows : int
        At most so many, with a note of how many more there are.

    Returns
    -------
    Shown
    """
    held = [c for c in (columns or table.columns) if c in table.columns]
    heads = [(names or {}).get(c, str(c).replace("_", " ")) for c in held]
    cells = [
        [_cell(value, column, digits) for column, value in zip(held, row, strict=True)]
        for row in table[held].head(rows).itertuples(index=False)
    ]
    numeric = [
        c not in ("layer", "expert")
        and (np.issubdtype(table[c].dtype, np.number) if isinstance(table[c].dtype, np.dtype) else False)
        for c in held
    ]
    head = "".join(
        f'<th class="number">{escaped(h)}</th>' if n else f"<th>{escaped(h)}</th>"
        for h, n in zip(heads, numeric, strict=True)
    )
    body = "".join(
        "<tr>"
        + "".join(
            f'<td class="number">{escaped(x)}</td>' if n else f"<td>{escaped(x)}</td>"
            for x, n in zip(row, numeric, strict=True)
        )
        + "</tr>"
        for row in cells
    )
    more = f"<p>{len(table) - rows:,} more rows are in the table.</p>" if len(table) > rows else ""
    plain = "\n".join("\t".join(printable(x) for x in row) for row in [heads, *cells])
    return Shown(
        f'<div class="scroll tex2jax_ignore mathjax_ignore"><table><thead><tr>{head}</tr></thead>'
        f"<tbody>{body}</tbody></table>{more}</div>",
        plain,
    )


def wide(table: pd.DataFrame, *, rows: str, across: str, values: str) -> pd.DataFrame:
    """Spread a column of a long table over several, keeping the order of first appearance."""
    order = list(dict.fromkeys(table[rows])), list(dict.fromkeys(table[across]))
    spread = table.pivot(index=rows, columns=across, values=values).loc[order[0], order[1]]
    spread.columns.name = None
    return spread.reset_index()


def _cell(value: Any, column: str, digits: int) -> str:
    if value is None or value is np.nan or (isinstance(value, float) and math.isnan(value)) or str(value) == "<NA>":
        return "–"
    if isinstance(value, bool | np.bool_):
        return "yes" if value else ""
    if isinstance(value, int | np.integer):
        return f"{int(value):,}"
    if not isinstance(value, float | np.floating):
        return str(value)
    number = float(value)
    if column in ("p_value", "q_value"):
        return "<1e-10" if number < 1e-10 else f"{number:.3f}" if number >= 0.0009995 else f"{number:.0e}"
    small = number != 0 and abs(number) < 10.0 ** (1 - digits)
    return (f"{number:#.2g}" if small else f"{number:,.{digits}f}").replace("-", "−")


def picture(figure: Figure, alt: str) -> Picture:
    """Show a matplotlib figure with a sentence that says what is to be seen."""
    return Picture(figure, alt)


class Picture:
    """A figure with its alternative text; the same figure gives the same bytes."""

    def __init__(self, figure: Figure, alt: str) -> None:
        self.figure, self.alt = figure, alt

    def _repr_mimebundle_(self, **_: Any) -> tuple[dict[str, str], dict[str, dict[str, str]]]:
        from moe_probe.report.plots.fonts import quiet_glyphs

        buffer = io.BytesIO()
        with quiet_glyphs():
            self.figure.savefig(buffer, format="png", metadata={"Software": None})
        return (
            {"image/png": base64.b64encode(buffer.getvalue()).decode(), "text/plain": printable(self.alt)},
            {"image/png": {"alt": printable(self.alt)}},
        )

    def __repr__(self) -> str:
        return printable(self.alt)
