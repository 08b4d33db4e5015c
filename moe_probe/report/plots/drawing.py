"""Where plots are drawn: on the caller's Axes, or on a figure of their own."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def new_figure(width: float, height: float) -> Figure:
    """Make a figure; one that a notebook shows by itself where pyplot is at work interactively.

    Parameters
    ----------
    width, height : float
        In inches.
    """
    import matplotlib
    from matplotlib.figure import Figure

    from moe_probe.report.plots.fonts import FittedLayout

    size: Any = {"figsize": (width, height), "layout": FittedLayout(), "dpi": 110}
    if matplotlib.is_interactive() and "matplotlib.pyplot" in sys.modules:
        return sys.modules["matplotlib.pyplot"].figure(**size)
    return Figure(**size)  # no global state, nothing to close, no display needed


def panel(ax: Axes | None, width: float, height: float) -> Axes:
    """Axes to draw one panel on: those given, else those of a new figure of that many inches."""
    return ax if ax is not None else new_figure(width, height).subplots()


def figure_of(drawn: Figure | Axes | np.ndarray) -> Figure:
    """The figure that a plot function has drawn on, whatever it returned: Axes, an array of Axes, or the figure itself."""
    from matplotlib.figure import Figure

    first: Any = drawn.flat[0] if isinstance(drawn, np.ndarray) else drawn
    figure = first if isinstance(first, Figure) else first.figure
    assert isinstance(figure, Figure)
    return figure
