"""Figures of feature splitting."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from moe_probe.core.text import printable
from moe_probe.report.plots.drawing import SMALL, new_axes

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes

#: Trees that are drawn, and their colours.
_TREES = {"this run": "#d95f02", "parents of another seed": "#f4b183", "same width, another seed": "#7fb1d3"}
_STEP = ["layer", "parent_width", "child_width"]


def purity_bars(table: pd.DataFrame, *, ax: Axes | None = None) -> Axes:
    """Draw how often two siblings' firings are about one topic, between the random level and a feature with itself.

    Parameters
    ----------
    table : pandas.DataFrame
        Result ``tree_subjects``.
    ax : Axes, optional
        Where to draw; a figure of its own when omitted.

    Returns
    -------
    Axes
    """
    table = table[table["nodes"] > 0]
    steps = table[_STEP].drop_duplicates().reset_index(drop=True)
    axes = ax or new_axes(7.2, 0.75 * len(steps) + 1.4)
    for i, (tree, colour) in enumerate(_TREES.items()):
        rows = table[table["tree"] == tree].merge(steps.assign(y=steps.index + 0.25 * (i - 1)), on=_STEP)
        axes.hlines(rows["y"], rows["expected"], rows["ceiling"], color="#b8b8b8", linewidth=1)
        for end in ("expected", "ceiling"):
            axes.plot(rows[end], rows["y"], "|", color="#4a4a4a", markersize=9)
        axes.plot(rows["purity"], rows["y"], "o", color=colour, markersize=6, label=tree)
    names = [printable(f"layer {layer}, {parent:,} to {child:,}") for layer, parent, child in steps.itertuples(index=False)]
    axes.set_yticks(np.arange(len(steps)), names, fontsize=8)
    axes.set_ylim(len(steps) - 0.5, -0.5)
    axes.set_xlabel(
        "probability that firings of two siblings share a topic (bars: random tree; a feature with itself)", **SMALL
    )
    axes.set_xlim(left=0)
    axes.tick_params(labelsize=8)
    axes.legend(fontsize=8, loc="best", frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
    return axes
