"""Where plots are drawn (on the caller's Axes, or on a figure of their own), and the parts that many of them share."""

from __future__ import annotations

import io
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from moe_probe.core.text import printable

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis
    from matplotlib.figure import Figure

#: Size of the names of axes.
SMALL: Any = {"fontsize": 8}


def safe(text: object) -> str:
    """Text for a figure: no control characters, and dollar signs are dollar signs, not the beginning of a formula."""
    return printable(str(text)).replace("$", r"\$")


def new_figure(width: float, height: float, *, shown: bool = True) -> Figure:
    """Make a figure.

    Parameters
    ----------
    width, height : float
        In inches.
    shown : bool
        Register it with pyplot where that works interactively, so that a notebook shows it by itself.

    Returns
    -------
    Figure
    """
    import matplotlib

    from moe_probe.report.plots.fonts import FittedFigure

    size: Any = {"figsize": (width, height), "layout": "constrained", "dpi": 110}
    if shown and matplotlib.is_interactive() and "matplotlib.pyplot" in sys.modules:
        interactive: Figure = sys.modules["matplotlib.pyplot"].figure(FigureClass=FittedFigure, **size)
        return interactive
    return FittedFigure(**size)  # no global state, nothing to close, no display needed


def new_axes(width: float, height: float) -> Axes:
    """Make a figure of one panel, and return its Axes.

    Parameters
    ----------
    width, height : float
        In inches.

    Returns
    -------
    Axes
    """
    return new_figure(width, height).subplots()


def panel_grid(figure: Figure, n: int, columns: int, **options: Any) -> np.ndarray:
    """Make Axes for `n` panels, row by row; those left over in the last row are hidden.

    Parameters
    ----------
    figure : Figure
    n, columns : int
        Panels, and panels side by side.
    **options
        Of `matplotlib.figure.Figure.subplots`.

    Returns
    -------
    ndarray of Axes, shape (n,)
    """
    grid: np.ndarray = figure.subplots(-(-n // columns), columns, squeeze=False, **options).ravel()
    for axes in grid[n:]:
        axes.axis("off")
    return grid[:n]


def figure_of(drawn: Figure | Axes | np.ndarray) -> Figure:
    """Return the figure that a plot function has drawn on, whatever it returned: Axes, an array of Axes, or the figure."""
    from matplotlib.figure import Figure

    first: Any = drawn.flat[0] if isinstance(drawn, np.ndarray) else drawn
    figure = first if isinstance(first, Figure) else first.figure
    assert isinstance(figure, Figure)
    return figure


def png_bytes(drawn: Figure | Axes | np.ndarray) -> bytes:
    """Return a figure as a PNG file; the same figure makes the same bytes: no date, no version inside."""
    from moe_probe.report.plots.fonts import quiet_glyphs

    buffer = io.BytesIO()
    with quiet_glyphs():
        figure_of(drawn).savefig(buffer, format="png", metadata={"Software": None})
    return buffer.getvalue()


def svg_bytes(drawn: Figure | Axes | np.ndarray) -> bytes:
    """Return a figure as an SVG file, its letters as outlines; on one machine the same figure makes the same bytes."""
    import matplotlib

    from moe_probe.report.plots.fonts import quiet_glyphs

    buffer = io.BytesIO()
    with matplotlib.rc_context({"svg.hashsalt": "moe_probe", "svg.fonttype": "path"}), quiet_glyphs():
        figure_of(drawn).savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    return buffer.getvalue()


def colour_bar(image: Any, axes: Axes | np.ndarray, label: str, **options: Any) -> None:
    """Put a colour bar beside Axes.

    Parameters
    ----------
    image : matplotlib image
        What is drawn on them.
    axes : Axes or ndarray of Axes
    label : str
        What colours stand for, with the unit.
    **options
        Of `matplotlib.figure.Figure.colorbar`.
    """
    beside: Any = axes.tolist() if isinstance(axes, np.ndarray) else axes
    bar = figure_of(axes).colorbar(image, ax=beside, pad=0.01, **options)
    bar.set_label(label, **SMALL)
    bar.ax.tick_params(labelsize=7)


def layer_ticks(axis: Axis, layers: Sequence[int], most: int, **options: Any) -> None:
    """Name layers along an axis on which they stand one after another.

    Parameters
    ----------
    axis : matplotlib Axis
    layers : sequence of int
    most : int
        Names at most; of more layers, every second, third, ... is named.
    **options
        Of the names.
    """
    step = max(1, -(-len(layers) // most))
    axis.set_ticks(range(0, len(layers), step), [str(x) for x in layers[::step]], **options)


def layer_shades(layers: Sequence[int], end: float = 0.85) -> dict[int, Any]:
    """Return a colour for every layer, from dark to light with depth.

    Parameters
    ----------
    layers : sequence of int
    end : float
        Where on the colour map the last layer lies, from 0 to 1.

    Returns
    -------
    dict of int to colour
    """
    from matplotlib import colormaps

    return dict(zip(layers, colormaps["cividis"](np.linspace(0.05, end, len(layers))), strict=True))
