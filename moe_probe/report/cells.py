"""Values of result tables as text: one format for every face of the report, and tables made from frames."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from moe_probe.core.text import is_missing
from moe_probe.report.content import Bar, Rich, Table

if TYPE_CHECKING:
    import pandas as pd

#: A row of a result table, by column.
Row = Mapping[Any, Any]
#: How a value is written: digits after the point, a format such as ``".1%"``, or a function of the value.
Format = int | str | Callable[[Any], str]
#: How a cell is made: from a column as it is, from (column, format), or by a function of the row.
Cell = str | tuple[str, Format] | Callable[[Row], Rich | Bar]


def table_of(frame: pd.DataFrame, cells: Mapping[str, Cell], *, heading: str = "", note: str = "") -> Table:
    """Make a table of the report from a result table.

    Parameters
    ----------
    frame : pandas.DataFrame
        One row for each row of the table.
    cells : mapping of str to Cell
        Headings of the columns, and how their cells are made.
    heading, note : str
        See `Table`.

    Returns
    -------
    Table
    """
    makers = [_maker(cell) for cell in cells.values()]
    rows = tuple(tuple(make(row) for make in makers) for row in frame.to_dict("records"))
    return Table(tuple(cells), rows, heading=heading, note=note)


def _maker(cell: Cell) -> Callable[[Row], Rich | Bar]:
    if callable(cell):
        return cell
    if isinstance(cell, str):
        return lambda row: formatted(row.get(cell), str)
    column, how = cell
    return lambda row: formatted(row.get(column), how)


def formatted(value: Any, how: Format) -> str:
    """Write a value; an en dash where there is none.

    Parameters
    ----------
    value : object
    how : Format

    Returns
    -------
    str
    """
    if is_missing(value):
        return "–"
    if callable(how):
        return how(value)
    if isinstance(how, int):
        return number(float(value), how)
    return format(int(value), how) if how == "," else format(float(value), how)


def ranged(column: str, ends: str, how: Format = 2) -> Callable[[Row], str]:
    """Make cells of numbers with their intervals: ``0.12 [0.10, 0.14]``.

    Parameters
    ----------
    column : str
        Of the number.
    ends : str
        The interval is in ``{ends}_low`` and ``{ends}_high``.
    how : Format
        Of all three.

    Returns
    -------
    callable
        From a row to text.
    """

    def cell(row: Row) -> str:
        if is_missing(row.get(column)):
            return "–"
        value, low, high = (formatted(row.get(name), how) for name in (column, f"{ends}_low", f"{ends}_high"))
        return f"{value} (no interval)" if low == high == "–" else f"{value} [{low}, {high}]"

    return cell


def lift_cell(prefix: str = "", digits: int = 2) -> Callable[[Row], str]:
    """Make cells of lifts with their intervals: ``1.50× [1.40, 1.63]``.

    Parameters
    ----------
    prefix : str
        The row has ``{prefix}log2_lift, {prefix}ci_low, {prefix}ci_high``.
    digits : int
        After the point.

    Returns
    -------
    callable
        From a row to text.
    """

    def cell(row: Row) -> str:
        if is_missing(row[f"{prefix}log2_lift"]):
            return "–"
        names = (f"{prefix}{name}" for name in ("log2_lift", "ci_low", "ci_high"))
        value, low, high = (number(float(2 ** row[name]), digits) for name in names)
        return f"{value}× [{low}, {high}]"

    return cell


def lift_text(row: Row) -> str:
    """Write the lift of a row with ``log2_lift, ci_low, ci_high``, with its interval."""
    return lift_cell()(row)


def number(value: Any, digits: int = 2) -> str:
    """Write a number for reading: fixed digits, thousands separated, an en dash where there is none.

    Parameters
    ----------
    value : object
        Whole numbers have no digits after the point; what is no number is written as it is.
    digits : int
        After the point.

    Returns
    -------
    str
    """
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
    """Write a p- or q-value: three digits, never zero, and no pretence of knowing the far tail."""
    if value is None or math.isnan(value):
        return "–"
    if value < 1e-10:
        return "<1e-10"
    return f"{value:.3f}" if value >= 0.00095 else f"{value:.0e}"


def yes_no(value: Any) -> str:
    """Write a truth value as a word."""
    return "yes" if value else "no"


def spelled(members: Any) -> str:
    """Write several units, given as ``3+7``."""
    return str(members).replace("+", ", ")


def sae_name(path: str) -> str:
    """Name an SAE by its folder (``layer_02/width_01024-residual``, ``layer_02/width_01024_NAME``); other text stays."""
    match = re.fullmatch(r"layer_(\d+)/width_(\d+)(?:-((?:expert_output|router_input|[^_])+))?(?:_(.+))?", path)
    if match is None:
        return path
    layer, width, site, name = match.groups()
    further = [*(site.split("-") if site else []), *([name] if name else [])]
    return f"layer {int(layer)}, width {int(width):,}" + (f" ({', '.join(further)})" if further else "")
