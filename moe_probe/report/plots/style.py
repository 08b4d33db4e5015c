"""How figures look in files and on dark backgrounds: one style for the report, `run.plot` and the documentation.

A figure is drawn once, in the colours of white paper; `darken` then replaces its colours. Greys run from the light ink to the
dark page, other colours become lighter, and the diverging colour map gets a dark middle. Layout, words and numbers stay.
"""

from __future__ import annotations

import colorsys
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

import numpy as np
from matplotlib import colormaps
from matplotlib.colors import Colormap, LinearSegmentedColormap, ListedColormap, to_rgb, to_rgba

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

#: Blue (less) over white (no difference) to orange (more): told apart by colour-blind eyes and in grey print by the ends.
DIVERGING = LinearSegmentedColormap.from_list(
    "blue_orange", ["#0b3c6f", "#3f7fb5", "#a9cbe3", "#f7f7f5", "#f6c38b", "#d97a1c", "#8a3f00"]
)
#: The same for dark backgrounds: the middle is dark, the ends are light.
DIVERGING_DARK = LinearSegmentedColormap.from_list(
    "blue_orange_dark", ["#cfe6ff", "#7db4ea", "#2f6798", "#232a33", "#8d5415", "#e8963a", "#ffe2b8"]
)
#: Amounts, from little (dark blue) to much (yellow), on any background.
AMOUNTS = colormaps["cividis"]
#: The page behind pale cells.
PAGE = ListedColormap(["#ffffff"], name="page")
#: Cells without a value: an expert with itself, a pair that was not measured.
EMPTY = "#a3a8ae"
#: Opacity of cells that are not significant.
PALE = 0.3
#: Page and ink of dark figures, as in the report.
DARK_PAGE, DARK_INK = "#141920", "#e6eaf0"
_DARK_GRID = "#29313b"
#: Settings of files: letters stay letters, and equal figures make equal bytes.
FILES: Any = {"svg.hashsalt": "moe_probe", "svg.fonttype": "none", "pdf.fonttype": 42}
#: What files say of themselves: no date, no version.
METADATA: Any = {
    "png": {"Software": None},
    "svg": {"Date": None, "Creator": None},
    "pdf": {"CreationDate": None, "Creator": None, "Producer": None},
}
#: Below this difference between its channels a colour is a grey.
_GREY = 0.13
_DARK_MAPS: dict[str, Colormap] = {
    DIVERGING.name: DIVERGING_DARK,
    PAGE.name: ListedColormap([DARK_PAGE], name="page_dark"),
}
#: Colour on a dark figure of what is written on cells: it depends on the cell, and not on the page.
_ON_CELLS: WeakKeyDictionary[Artist, str] = WeakKeyDictionary()


def ink_on(colour: Any) -> str:
    """Return black or white, whichever can be read on a colour."""
    red, green, blue = to_rgb(colour)
    return "#ffffff" if 0.299 * red + 0.587 * green + 0.114 * blue < 0.45 else "#111111"


def dark_map(colours: Colormap) -> Colormap:
    """Return the colour map that stands for another on dark backgrounds."""
    return _DARK_MAPS.get(colours.name, colours)


def dark_colour(colour: Any) -> tuple[float, float, float, float]:
    """Return the colour that stands for another on a dark background; opacity stays."""
    red, green, blue, alpha = to_rgba(colour)
    if max(red, green, blue) - min(red, green, blue) < _GREY:
        light = 0.299 * red + 0.587 * green + 0.114 * blue
        ink, page = np.array(to_rgb(DARK_INK)), np.array(to_rgb(DARK_PAGE))
        red, green, blue = (float(x) for x in ink + (page - ink) * light)
    else:
        hue, light, saturation = colorsys.rgb_to_hls(red, green, blue)
        red, green, blue = colorsys.hls_to_rgb(hue, 0.42 + 0.45 * light, saturation)
    return red, green, blue, alpha


def on_cells(artists: Iterable[Artist], dark: str) -> None:
    """Remember the colour that signs and numbers on cells have on a dark figure.

    Parameters
    ----------
    artists : iterable of Artist
        Texts and lines.
    dark : str
        Their colour.
    """
    for artist in artists:
        _ON_CELLS[artist] = dark


def darken(figure: Figure, axes: Axes | None = None) -> Figure:
    """Replace the colours of a figure by those for dark backgrounds, in place.

    Parameters
    ----------
    figure : matplotlib.figure.Figure
    axes : Axes, optional
        Only what is on them, and the background; the whole figure by default.

    Returns
    -------
    Figure
        The same.
    """
    parts = figure.findobj() if axes is None else axes.findobj()
    seen: set[int] = set()
    for artist in parts:
        if id(artist) not in seen:  # a tick's text is found under its tick and under its axis
            seen.add(id(artist))
            _recolour(artist)
    for drawn in figure.axes if axes is None else [axes]:
        colours: Any = {"color": DARK_INK, "labelcolor": DARK_INK, "grid_color": _DARK_GRID, "grid_alpha": 1.0}
        drawn.tick_params(which="both", **colours)  # ticks that are made later, when the figure is drawn
    figure.set_facecolor(DARK_PAGE)
    return figure


def _recolour(artist: Any) -> None:
    from matplotlib.cm import ScalarMappable
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch
    from matplotlib.text import Text

    if isinstance(artist, Line2D | Text):
        artist.set_color(_ON_CELLS.get(artist) or dark_colour(artist.get_color()))
    if isinstance(artist, Line2D):
        for part in ("markerfacecolor", "markeredgecolor"):
            _replace(artist, part)
    elif isinstance(artist, Patch):
        for part in ("facecolor", "edgecolor"):
            _replace(artist, part)
    elif isinstance(artist, ScalarMappable) and artist.get_array() is not None:
        artist.set_cmap(dark_map(artist.get_cmap()))
    elif hasattr(artist, "get_facecolors"):  # points, bars of intervals
        for part in ("facecolor", "edgecolor"):
            colours = getattr(artist, f"get_{part}")()
            if not isinstance(colours, str):
                getattr(artist, f"set_{part}")([dark_colour(c) for c in colours])


def _replace(artist: Any, part: str) -> None:
    """Replace one colour of an artist; what follows another colour, or is not drawn, stays as it is."""
    own = artist.__dict__.get(f"_{part}")
    if own is None or (isinstance(own, str) and own in ("auto", "none")):
        return
    colour = getattr(artist, f"get_{part}")()
    if not (isinstance(colour, str) and colour == "none"):
        getattr(artist, f"set_{part}")(dark_colour(colour) if artist not in _ON_CELLS else _ON_CELLS[artist])
