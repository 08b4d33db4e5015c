"""Figures of feature splitting."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from moe_probe.core.text import printable
from moe_probe.report.plots.drawing import panel

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes

_TREES = {
    "this run": ("#d95f02", "this run"),
    "parents of another seed": ("#f4b183", "parents of another seed"),
    "same width, another seed": ("#7fb1d3", "same width, another seed"),
}


def purity_bars(table: pd.DataFrame, *, ax: Axes | None = None) -> Axes:
    """Draw how often siblings' firings are about one topic, between what is random and what a feature has with itself.

    Parameters
    ----------
    table : DataFrame
        Result ``tree_subjects``.
    ax : Axes, optional
        Drawn into; a new figure's when left out.

    Returns
    -------
    Axes
    """
    rows = table[table["nodes"] > 0]
    places = list(dict.fromkeys(zip(rows["layer"], rows["parent_width"], rows["child_width"], strict=True)))
    ax = panel(ax, 7.2, 0.75 * len(places) + 1.4)
    for tree, (colour, name) in _TREES.items():
        mine = rows[rows["tree"] == tree]
        y = [
            places.index(key) + 0.25 * (list(_TREES).index(tree) - 1)
            for key in zip(mine["layer"], mine["parent_width"], mine["child_width"], strict=True)
        ]
        ax.hlines(y, mine["expected"], mine["ceiling"], color="#b8b8b8", linewidth=1)
        ax.plot(mine["expected"], y, "|", color="#4a4a4a", markersize=9)
        ax.plot(mine["ceiling"], y, "|", color="#4a4a4a", markersize=9)
        ax.plot(mine["purity"], y, "o", color=colour, markersize=6, label=name)
    ax.set_yticks(
        np.arange(len(places)), [printable(f"layer {layer}, {a:,} to {b:,}") for layer, a, b in places], fontsize=8
    )
    ax.invert_yaxis()
    ax.set_xlabel(
        "chance that firings of two siblings are about one topic (bars: at random; a feature with itself)", fontsize=8
    )
    ax.tick_params(labelsize=8)
    ax.legend(fontsize=8, loc="best", frameon=False)
    ax.spines[["top", "right"]].set_visible(False)
    return ax
