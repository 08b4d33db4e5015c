"""Figures of many small maps: experts over layers, topic by topic, and units in the plane."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from moe_probe.core.text import printable
from moe_probe.report.plots.drawing import SMALL, colour_bar, layer_ticks, new_figure, panel_grid
from moe_probe.report.plots.panels import draw_heat, draw_points, lift_panels, lift_scale, map_panels

if TYPE_CHECKING:
    import pandas as pd

#: Experts times layers up to which a panel has room for signs.
MOST_CELLS = 1500


def topic_panels(expert_topics: pd.DataFrame, *, topics: Sequence[str]) -> np.ndarray:
    """Draw log2 lift of every expert (columns) in every layer (rows), one panel per topic.

    A dot marks what is significant and above average; a star what was replicated on held-out documents too. Where
    cells are too small for signs (more than `MOST_CELLS` a panel), pairs that are not significant are left white.

    Parameters
    ----------
    expert_topics : pandas.DataFrame
        Result ``expert_topics``.
    topics : sequence of str
        Topics to draw.

    Returns
    -------
    ndarray of Axes
    """
    panels = lift_panels(expert_topics, panel="topic", row="layer", shown=topics)
    layers, scale = panels[0].rows, lift_scale(expert_topics)
    n_cells = len(layers) * panels[0].width
    columns = min(4 if panels[0].width <= 64 else 3, len(topics))
    figure = new_figure(10.5, -(-len(topics) // columns) * (0.45 + min(1.6, 0.16 * len(layers))) + 0.4)
    grid = panel_grid(figure, len(topics), columns, sharex=True, sharey=True)
    image = None
    for axes, panel in zip(grid, panels, strict=True):
        if n_cells > MOST_CELLS:
            panel = replace(panel, cells=panel.cells[panel.cells["significant"]].assign(sign=""))
        image = draw_heat(axes, panel, scale, size=8 if n_cells <= 400 else 5)
        axes.set_title(printable(panel.title), fontsize=8, pad=2)
        axes.tick_params(labelsize=6.5)
        layer_ticks(axes.yaxis, layers, 8)
    figure.supxlabel("expert", **SMALL)
    figure.supylabel("layer", **SMALL)
    colour_bar(image, grid, scale.label, shrink=0.5, extend="both")
    return grid


def maps(table: pd.DataFrame) -> np.ndarray:
    """Draw experts, documents and tokens in the plane, one panel per kind of unit; colour and shape by label.

    Parameters
    ----------
    table : pandas.DataFrame
        Result ``maps``: ``unit, x, y, label``.

    Returns
    -------
    ndarray of Axes
    """
    panels = map_panels(table)
    figure = new_figure(3.4 * len(panels) + 1.6, 3.2)
    grid = panel_grid(figure, len(panels), len(panels))
    drawn: dict[str, Any] = {}
    for axes, panel in zip(grid, panels, strict=True):
        drawn = draw_points(axes, panel) | drawn
    names = sorted(drawn)[:30]
    figure.legend([drawn[n] for n in names], names, fontsize=6.5, frameon=False, loc="outside right center", markerscale=2)
    return grid
