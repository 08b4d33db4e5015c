"""What figures of many cells or points show, described once: drawn by matplotlib here, as SVG by `moe_probe.report.svg`.

Colours: cividis for amounts, and a diverging map centred on "no difference" for lifts; both can be told apart with
colour-blind eyes. Cells that were tested and are not significant are pale.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.colors import Colormap

from moe_probe.core.text import printable
from moe_probe.report.plots.style import AMOUNTS, DIVERGING, EMPTY, PAGE, PALE, dark_map, ink_on, on_cells

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes

#: Ten colours after Okabe and Ito and Tol, dark enough for white paper; labels beyond repeat them in another shape.
PALETTE = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#8a6d00", "#56b4e9", "#332288", "#882255", "#117733", "#666666")
#: Shapes as SVG paths from the middle of a point, and as matplotlib markers. Seven against ten colours: 70 labels differ.
SHAPES = (
    ("m-2.6 0a2.6 2.6 0 1 0 5.2 0a2.6 2.6 0 1 0-5.2 0", "o"),
    ("m-2.4-2.4h4.8v4.8h-4.8z", "s"),
    ("m0-3.2l3 5.4h-6z", "^"),
    ("m0-3.4l2.8 3.4l-2.8 3.4l-2.8-3.4z", "D"),
    ("m0 3.2l3-5.4h-6z", "v"),
    ("m-3-1h2v-2h2v2h2v2h-2v2h-2v-2h-2z", "P"),
    ("m-3.2 0l5.4-3v6z", "<"),
)
#: Signs of cells: significant and above average; also replicated on held-out documents; never selected. As matplotlib
#: markers: marker, size beside the largest, width of its edge.
SIGNIFICANT, REPLICATED, NEVER = "•", "★", "×"
_MARKERS = {SIGNIFICANT: (".", 0.6, 0.0), REPLICATED: ("*", 1.0, 0.0), NEVER: ("x", 0.5, 1.0)}


@dataclass(frozen=True)
class ColourScale:
    """Values between which colours run.

    Attributes
    ----------
    colours : matplotlib Colormap
    low, high : float
        Values of the first and the last colour; values outside have these colours too.
    label : str
        What the values are, with the unit.
    note : str
        Where colours end, and what pale cells are.
    """

    colours: Colormap
    low: float
    high: float
    label: str
    note: str


@dataclass(frozen=True)
class HeatPanel:
    """One heat map with a column for each expert.

    Attributes
    ----------
    title : str
    rows : tuple
        Names of the rows, from top to bottom.
    width : int
        Number of columns.
    cells : pandas.DataFrame
        One row per cell: ``row`` (a name in `rows`), ``expert`` (the column), ``value`` (NaN: left empty), ``sign``,
        ``pale`` (tested and not significant), and the columns that describe the cell when it is pointed at.
    """

    title: str
    rows: tuple[Any, ...]
    width: int
    cells: pd.DataFrame

    @property
    def row_index(self) -> np.ndarray:
        """Row of every cell, from the top."""
        index = {name: i for i, name in enumerate(self.rows)}
        return np.array([index[name] for name in self.cells["row"]], dtype=int)


@dataclass(frozen=True)
class PointPanel:
    """Points in the plane.

    Attributes
    ----------
    title : str
    labels : tuple of str
        All labels of the figure; a label's index decides its colour and shape.
    points : pandas.DataFrame
        One row per point: ``x, y, label``, and the columns that describe the point when it is pointed at.
    """

    title: str
    labels: tuple[str, ...]
    points: pd.DataFrame


def load_panel(experts: pd.DataFrame) -> tuple[HeatPanel, ColourScale]:
    """Describe the load of every expert (columns) of every layer (rows), relative to an even share of the layer.

    Parameters
    ----------
    experts : pandas.DataFrame
        Result ``experts``: columns ``layer, expert, load``.

    Returns
    -------
    panel : HeatPanel
    scale : ColourScale
    """
    relative = experts["load"] * experts.groupby("layer")["expert"].transform("size")
    cells = experts.assign(row=experts["layer"], value=relative, sign=np.where(experts["load"] == 0, NEVER, ""), pale=False)
    layers = tuple(sorted(int(x) for x in experts["layer"].unique()))
    panel = HeatPanel("layers (rows) and experts (columns)", layers, int(experts["expert"].max()) + 1, cells)
    high, never = max(2.0, float(relative.max())), "; cross: never selected" if (experts["load"] == 0).any() else ""
    return panel, ColourScale(
        AMOUNTS, 0.0, high, "load / even share", f"colours from 0 to {high:.3g}; 1: an even share{never}"
    )


def tested(table: pd.DataFrame) -> bool:
    """Whether any row of a table of lifts was tested: a record of sums by topic allows no test, and nothing is pale."""
    return bool(table["q_value"].notna().any())


def lift_scale(expert_topics: pd.DataFrame) -> ColourScale:
    """Choose the log2 lift at which colours end: the 99th percentile of its size, from 1 to 3.

    A topic that never chose an expert has a lift near 0, whose logarithm would take up the whole scale.
    """
    end = float(np.clip(np.nanpercentile(np.abs(expert_topics["log2_lift"]), 99), 1.0, 3.0))
    pale = "; pale: not significant" if tested(expert_topics) else "; none could be tested"
    return ColourScale(DIVERGING, -end, end, "log2 lift", f"colours end at ±{end:.2g}{pale}")


def lift_panels(expert_topics: pd.DataFrame, *, panel: str, row: str, shown: Sequence[Any]) -> list[HeatPanel]:
    """Describe the log2 lift of every expert (columns), with signs for what is significant and replicated.

    Parameters
    ----------
    expert_topics : pandas.DataFrame
        Result ``expert_topics``.
    panel, row : str
        Which column has a panel for each value and which a row: ``topic`` and ``layer``, or ``layer`` and ``topic``.
    shown : sequence
        Values of `panel` to draw.

    Returns
    -------
    list of HeatPanel
        One for each value of `shown`.
    """
    above = expert_topics["significant"] & (expert_topics["log2_lift"] > 0)
    sign = np.select([above & expert_topics["replicated"], above], [REPLICATED, SIGNIFICANT], "")
    pale = ~expert_topics["significant"].astype(bool) & tested(expert_topics)
    cells = expert_topics.assign(row=expert_topics[row], value=expert_topics["log2_lift"], sign=sign, pale=pale)
    rows = tuple(sorted(expert_topics[row].unique()))
    width = int(expert_topics["expert"].max()) + 1
    title = "layer {}" if panel == "layer" else "{}"
    return [HeatPanel(title.format(name), rows, width, cells[cells[panel] == name]) for name in shown]


def map_panels(maps: pd.DataFrame, *, most: int | None = None) -> list[PointPanel]:
    """Describe the map of each kind of unit.

    Parameters
    ----------
    maps : pandas.DataFrame
        Result ``maps``: ``unit, x, y, label``.
    most : int, optional
        Points of a panel at most; of more, an even choice.

    Returns
    -------
    list of PointPanel
        One for each unit; all have the labels of the whole table.
    """
    labels = tuple(sorted(maps["label"].astype(str).unique()))
    panels = []
    for unit, points in maps.assign(label=maps["label"].astype(str)).groupby("unit", sort=False):
        if most is not None and len(points) > most:
            points = points.iloc[np.linspace(0, len(points) - 1, most).astype(int)]
        panels.append(PointPanel(f"{len(points):,} {unit}s", labels, points))
    return panels


def draw_heat(axes: Axes, panel: HeatPanel, scale: ColourScale, *, size: float) -> Any:
    """Draw a heat map into Axes, without naming rows.

    Parameters
    ----------
    axes : Axes
    panel : HeatPanel
    scale : ColourScale
    size : float
        Of the largest sign, in points; 0 for no signs.

    Returns
    -------
    matplotlib image
    """
    index, columns = panel.row_index, panel.cells["expert"].to_numpy()
    values, opacity = np.full((2, len(panel.rows), panel.width), np.nan)
    values[index, columns] = panel.cells["value"]
    opacity[index, columns] = np.where(panel.cells["pale"].to_numpy(dtype=bool), PALE, 1.0)
    image = draw_cells(axes, values, scale, opacity=np.nan_to_num(opacity, nan=1.0))
    for sign, (marker, share, edge) in _MARKERS.items() if size else ():
        signed = (panel.cells["sign"] == sign).to_numpy(dtype=bool)
        style: Any = {"marker": marker, "markersize": size * share, "markeredgewidth": edge, "linestyle": "none"}
        for inks, chosen in _by_ink(panel.cells["value"].to_numpy(dtype=float), scale, signed):
            on_cells(axes.plot(columns[chosen], index[chosen], color=inks[0], **style), inks[1])
    return image


def draw_cells(axes: Axes, values: np.ndarray, scale: ColourScale, *, opacity: np.ndarray | None = None) -> Any:
    """Draw a matrix of values as cells; those without a value are grey.

    Parameters
    ----------
    axes : Axes
    values : ndarray
    scale : ColourScale
    opacity : ndarray, optional
        Of every cell, from 0 to 1.

    Returns
    -------
    matplotlib image
    """
    known = np.isfinite(values)
    solid = opacity is None or bool((opacity[known] == 1).all())
    axes.set_facecolor(EMPTY if solid or not known.all() else "white")
    if not solid and not known.all():  # pale cells let the page through, not the grey of cells without a value
        axes.imshow(np.where(known, 1.0, np.nan), cmap=PAGE, vmin=0, vmax=1, aspect="auto", interpolation="nearest")
    style: Any = {"alpha": np.where(known, 1.0 if opacity is None else opacity, 0.0)}
    if solid and known.all():
        style = {}
    limits: Any = {"vmin": scale.low, "vmax": scale.high, "interpolation": "nearest"}
    return axes.imshow(np.where(known, values, 0.0), aspect="auto", cmap=scale.colours, **style, **limits)


def ink_of_cells(values: np.ndarray, scale: ColourScale) -> list[tuple[str, str]]:
    """Choose colours in which signs can be read on cells.

    Parameters
    ----------
    values : ndarray
        Of the cells.
    scale : ColourScale

    Returns
    -------
    list of (str, str)
        For every cell the colour on a light figure, and the one on a dark figure.
    """
    shares = np.clip((values - scale.low) / (scale.high - scale.low), 0, 1)
    return [(ink_on(scale.colours(share)), ink_on(dark_map(scale.colours)(share))) for share in shares]


def _by_ink(values: np.ndarray, scale: ColourScale, chosen: np.ndarray) -> list[tuple[tuple[str, str], np.ndarray]]:
    rows = np.flatnonzero(chosen)
    inks = ink_of_cells(values[rows], scale)
    return [(ink, rows[[i for i, other in enumerate(inks) if other == ink]]) for ink in dict.fromkeys(inks)]


def draw_points(axes: Axes, panel: PointPanel) -> dict[str, Any]:
    """Draw points into Axes.

    Parameters
    ----------
    axes : Axes
    panel : PointPanel

    Returns
    -------
    dict of str to matplotlib collection
        What was drawn, by label, for a legend.
    """
    drawn = {}
    size = 7 if len(panel.points) <= 2000 else 3
    for i, label in enumerate(panel.labels):
        points = panel.points[panel.points["label"] == label]
        if len(points):
            style: Any = {"color": PALETTE[i % len(PALETTE)], "marker": SHAPES[i % len(SHAPES)][1]}
            style["rasterized"] = len(panel.points) > 2000  # an image of many points is smaller than a path for each
            drawn[printable(label)] = axes.scatter(points["x"], points["y"], s=size, linewidths=0, **style)
    axes.set_title(panel.title, fontsize=9)
    axes.set_xticks([])
    axes.set_yticks([])
    return drawn
