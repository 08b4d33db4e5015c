"""Figures of many small maps: experts over layers, topic by topic, and units laid out in the plane."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.colors import LinearSegmentedColormap

from moe_probe.core.text import printable
from moe_probe.report.plots.drawing import new_figure as _figure

if TYPE_CHECKING:
    import pandas as pd

#: Blue (less) over white (no difference) to orange (more): told apart by colour-blind eyes and in grey print by the ends.
DIVERGING = LinearSegmentedColormap.from_list(
    "blue_orange", ["#0b3c6f", "#3f7fb5", "#a9cbe3", "#f7f7f5", "#f6c38b", "#d97a1c", "#8a3f00"]
)
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
#: Experts times layers up to which a panel has room for signs.
MOST_CELLS = 1500
_SMALL: Any = {"fontsize": 8}


def lift_limit(expert_topics: pd.DataFrame) -> float:
    """Log2 lift at which colours end: the 99th percentile of its size, from 1 to 3.

    A topic that never chose an expert has a lift near 0, whose logarithm would take up the whole scale.
    """
    return float(np.clip(np.nanpercentile(np.abs(expert_topics["log2_lift"]), 99), 1.0, 3.0))


def topic_panels(expert_topics: pd.DataFrame, *, topics: Sequence[str]) -> np.ndarray:
    """Draw log2 lift of every expert (columns) in every layer (rows), one panel a topic.

    A dot marks what is significant and above average; a star what was found again on held-out documents too. Where
    cells are too small for signs (more than `MOST_CELLS` a panel), pairs that are not significant are left white.

    Parameters
    ----------
    expert_topics : DataFrame
        Result ``expert_topics``.
    topics : sequence of str
        Topics to draw.

    Returns
    -------
    ndarray of Axes
    """
    layers = sorted(expert_topics["layer"].unique())
    n_experts = int(expert_topics["expert"].max()) + 1
    place = {layer: i for i, layer in enumerate(layers)}
    columns = min(4 if n_experts <= 64 else 3, len(topics))
    rows = -(-len(topics) // columns)
    figure = _figure(10.5, rows * (0.45 + min(1.6, 0.16 * len(layers))) + 0.4)
    grid = np.atleast_1d(figure.subplots(rows, columns, squeeze=False, sharex=True, sharey=True)).ravel()
    limit = lift_limit(expert_topics)
    crowded = len(layers) * n_experts > MOST_CELLS
    marks = 8 if len(layers) * n_experts <= 400 else 5
    for axes, topic in zip(grid, topics, strict=False):
        part = expert_topics[expert_topics["topic"] == topic]
        part = part[part["significant"]] if crowded else part
        lift = np.full((len(layers), n_experts), np.nan)
        lift[part["layer"].map(place), part["expert"]] = part["log2_lift"]
        image = axes.imshow(lift, aspect="auto", cmap=DIVERGING, vmin=-limit, vmax=limit, interpolation="nearest")
        claimed = part.iloc[:0] if crowded else part[part["significant"] & (part["log2_lift"] > 0)]
        for marker, size, chosen in (
            (".", marks / 3, claimed[~claimed["replicated"]]),
            ("*", marks, claimed[claimed["replicated"]]),
        ):
            axes.plot(
                chosen["expert"], chosen["layer"].map(place), marker, color="black", markersize=size, markeredgewidth=0
            )
        axes.set_title(printable(topic), fontsize=8, pad=2)
        axes.tick_params(labelsize=6.5)
        step = max(1, -(-len(layers) // 8))
        axes.set_yticks(range(0, len(layers), step), [str(x) for x in layers[::step]])
    for axes in grid[len(topics) :]:
        axes.axis("off")
    figure.supxlabel("expert", **_SMALL)
    figure.supylabel("layer", **_SMALL)
    bar = figure.colorbar(image, ax=grid.tolist(), shrink=0.5, pad=0.01, extend="both")
    bar.set_label("log2 lift", **_SMALL)
    bar.ax.tick_params(labelsize=7)
    return grid


def maps(table: pd.DataFrame) -> np.ndarray:
    """Draw the places of experts, documents and tokens in the plane, by label in colour and shape.

    Parameters
    ----------
    table : DataFrame
        Result ``maps``: ``unit, x, y, label``.

    Returns
    -------
    ndarray of Axes
    """
    units = list(dict.fromkeys(table["unit"]))
    labels = sorted(table["label"].unique())
    figure = _figure(3.4 * len(units) + 1.6, 3.2)
    found: dict[str, Any] = {}
    grid = np.atleast_1d(figure.subplots(1, len(units)))
    for axes, unit in zip(grid, units, strict=True):
        part = table[table["unit"] == unit]
        for i, label in enumerate(labels):
            inside = part[part["label"] == label]
            if len(inside):
                drawn = axes.scatter(
                    inside["x"],
                    inside["y"],
                    s=7,
                    color=PALETTE[i % len(PALETTE)],
                    linewidths=0,
                    marker=SHAPES[i % len(SHAPES)][1],
                )
                found.setdefault(printable(str(label)), drawn)
        axes.set_title(f"{len(part):,} {unit}s", fontsize=9)
        axes.set_xticks([])
        axes.set_yticks([])
    names = sorted(found)[:30]
    figure.legend([found[n] for n in names], names, fontsize=6.5, frameon=False, loc="outside right center", markerscale=2)
    return grid
