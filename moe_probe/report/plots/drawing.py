"""Where plots are drawn (on the caller's Axes, or on a figure of their own), and the parts that many of them share."""

from __future__ import annotations

import io
import sys
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from moe_probe.core.text import printable

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis
    from matplotlib.figure import Figure

#: Size of the names of axes.
SMALL: Any = {"fontsize": 8}
#: Formats of the report's figures; those that are written where nothing else is asked for; the resolution of PNG files.
KINDS = WRITTEN = ("png", "svg", "pdf")
FILE_DPI = 300


def safe(text: object) -> str:
    """Text for a figure: no control characters, and dollar signs are dollar signs, not the beginning of a formula."""
    from matplotlib import rcParams

    shown = printable(str(text))
    # where formulas are off, as in the report, matplotlib would write the backslash
    return shown.replace("$", r"\$") if rcParams["text.parse_math"] else shown


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


def finished(drawn: Axes | np.ndarray, dark: bool, ax: Axes | None = None) -> Figure:
    """Return the figure of what was drawn, darkened where asked for.

    Parameters
    ----------
    drawn : Axes or ndarray of Axes
    dark : bool
    ax : Axes, optional
        Of the caller: only what is on them becomes dark.

    Returns
    -------
    Figure
    """
    from moe_probe.report.plots.style import darken

    figure = figure_of(drawn)
    return darken(figure, ax) if dark else figure


@dataclass(frozen=True)
class FigureFiles:
    """A figure in all forms.

    Attributes
    ----------
    files : dict of str to bytes
        Contents of the files, by suffix: ``png`` (300 dpi), ``svg`` and ``pdf``.
    light, dark : bytes
        PNG for the page, on a light and on a dark background; empty where the page draws the figure itself.
    """

    files: dict[str, bytes]
    light: bytes = b""
    dark: bytes = b""


def figure_files(drawn: Figure | Axes | np.ndarray, *, kinds: Sequence[str] = KINDS, in_page: bool = True) -> FigureFiles:
    """Return a figure in the forms that the report needs; afterwards the figure itself may be dark.

    Parameters
    ----------
    drawn : Figure, Axes or ndarray of Axes
    kinds : sequence of str
        Of `KINDS`.
    in_page : bool
        The page shows it as an image.

    Returns
    -------
    FigureFiles
    """
    from moe_probe.report.plots.style import darken

    if not kinds and not in_page:
        return FigureFiles({})
    figure = _laid_out(drawn)
    files = {kind: _printed(figure, kind, FILE_DPI) for kind in kinds}
    if not in_page:
        return FigureFiles(files)
    light = _few_colours(_printed(figure, "png", figure.dpi))
    return FigureFiles(files, light, _few_colours(_printed(darken(figure), "png", figure.dpi)))


def page_png(drawn: Figure | Axes | np.ndarray) -> bytes:
    """Return a figure as a small PNG file of 256 colours, for a page."""
    figure = _laid_out(drawn)
    return _few_colours(_printed(figure, "png", figure.dpi))


def _laid_out(drawn: Figure | Axes | np.ndarray) -> Figure:
    """Lay a figure out for good: that costs as much as drawing, and is needed once only."""
    figure = figure_of(drawn)
    figure.draw_without_rendering()
    figure.set_layout_engine("none")
    return figure


def _printed(figure: Figure, kind: str, dpi: float) -> bytes:
    """Print a figure that has been laid out; `savefig` would draw it twice, once for the layout."""
    from matplotlib import rc_context
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.backends.backend_pdf import FigureCanvasPdf
    from matplotlib.backends.backend_svg import FigureCanvasSVG

    from moe_probe.report.plots.fonts import quiet_glyphs
    from moe_probe.report.plots.style import FILES, METADATA

    canvases: Any = {"png": FigureCanvasAgg, "svg": FigureCanvasSVG, "pdf": FigureCanvasPdf}
    buffer, before = io.BytesIO(), figure.dpi
    with rc_context(FILES), quiet_glyphs():
        try:
            figure.dpi = dpi
            getattr(canvases[kind](figure), f"print_{kind}")(buffer, metadata=METADATA[kind])
        finally:
            figure.dpi = before
    return buffer.getvalue()


def _few_colours(png: bytes) -> bytes:
    """Reduce an image to 256 colours, which is what a page needs: half the size."""
    from PIL import Image

    buffer, image = io.BytesIO(), Image.open(io.BytesIO(png)).convert("RGB")
    # colours that are rare in cells still have to be smooth in the colour bar
    image.quantize(256, method=Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE).save(buffer, "PNG")
    return buffer.getvalue()


def png_bytes(drawn: Figure | Axes | np.ndarray) -> bytes:
    """Return a figure as a PNG file; the same figure makes the same bytes: no date, no version inside."""
    return _saved(figure_of(drawn), "png")


def svg_bytes(drawn: Figure | Axes | np.ndarray) -> bytes:
    """Return a figure as an SVG file, its letters as outlines; on one machine the same figure makes the same bytes."""
    return _saved(figure_of(drawn), "svg", settings={"svg.fonttype": "path"})


def _saved(figure: Figure, kind: str, *, settings: Any = None, **options: Any) -> bytes:
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    from moe_probe.report.plots.fonts import quiet_glyphs
    from moe_probe.report.plots.style import FILES, METADATA

    buffer = io.BytesIO()
    with rc_context({**FILES, **(settings or {})}), quiet_glyphs():
        Figure.savefig(figure, buffer, format=kind, metadata=METADATA[kind], **options)
    return buffer.getvalue()


def width_of(axes: Axes) -> float:
    """Width of Axes in inches, as far as it is known before the figure is laid out."""
    return float(figure_of(axes).get_figwidth() * axes.get_position().width)


def with_note(name: str, note: str, width: float) -> str:
    """Put a note under the name of an axis, in lines that fit.

    Parameters
    ----------
    name, note : str
        The note says where colours end and what pale cells are: beside a colour bar there is no room for it.
    width : float
        Of the axis, in inches.

    Returns
    -------
    str
    """
    return "\n".join([name, *textwrap.wrap(note, max(32, int(16 * width)))])


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
