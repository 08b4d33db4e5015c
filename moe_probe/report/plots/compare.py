"""Figures that compare runs. Each function takes tables of a comparison and returns a Figure (`forest` draws into Axes)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from moe_probe.report.plots.drawing import SMALL, layer_shades, layer_ticks, new_figure, panel_grid, safe
from moe_probe.studies.compare import MEASURES

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

#: Colours of the sides, told apart by colour-blind eyes and in grey; markers differ as well.
_SIDES = ("#33638d", "#d95f02", "#4d9221", "#762a83", "#b8860b", "#666666")
_MARKS = "osD^vP"


def _figure(width: float, height: float) -> Figure:
    return new_figure(width, height, shown=False)  # notebooks show these themselves, with alternative text


def _plain(axes: Axes, *, grid: str = "y") -> None:
    axes.tick_params(labelsize=7.5)
    axes.grid(alpha=0.25, axis=grid)  # type: ignore[arg-type]
    axes.spines[["top", "right"]].set_visible(False)


def _legend(figure: Figure, axes: Axes, columns: int) -> None:
    handles = axes.get_legend_handles_labels()
    figure.legend(*handles, fontsize=8, frameon=False, ncols=columns, loc="outside upper left")


def _first_pair(*tables: pd.DataFrame) -> tuple[pd.Series, list[pd.DataFrame]]:
    """Return the first pair of sides of the last table, and the rows of every table that are of this pair."""
    pair = tables[-1][["side_a", "side_b"]].iloc[0]
    return pair, [t[(t[["side_a", "side_b"]] == pair).all(axis=1)] for t in tables]


def topic_differences(topics: pd.DataFrame) -> Figure:
    """Draw the lift of every topic's best expert in two runs, and the difference with its interval.

    Parameters
    ----------
    topics : pandas.DataFrame
        Result ``comparison_topics``, of one pair of runs; of several, the first is drawn.

    Returns
    -------
    Figure
    """
    pair, (part,) = _first_pair(topics)
    part = part.sort_values("difference", na_position="first")
    y = np.arange(len(part))
    figure = _figure(9.2, 1.3 + 0.29 * len(part))
    left, right = figure.subplots(1, 2, sharey=True)
    left.hlines(y, part["value_a"], part["value_b"], color="#c4cbd4", linewidth=1.5)
    for side, mark, colour in zip("ab", _MARKS, _SIDES, strict=False):
        left.plot(part[f"value_{side}"], y, mark, color=colour, markersize=5, label=safe(pair[f"side_{side}"]))
    left.set_yticks(y, [safe(t) for t in part["topic"]], fontsize=8)
    left.set_xlabel("log2 lift of the topic's best expert", **SMALL)
    left.axvline(1, color="black", linewidth=0.6, linestyle=":")
    forest(right, part)
    right.set_xlabel(f"difference: {safe(pair['side_b'])} minus {safe(pair['side_a'])}", **SMALL)
    for axes in (left, right):
        _plain(axes, grid="x")
    _legend(figure, left, 2)
    return figure


def forest(axes: Axes, table: pd.DataFrame) -> Axes:
    """Draw differences with their intervals into Axes, one row each; filled where they are beyond chance.

    Parameters
    ----------
    axes : Axes
    table : pandas.DataFrame
        Any table with ``difference, ci_low, ci_high, beyond``.

    Returns
    -------
    Axes
        Those given.
    """
    for y, row in enumerate(table.itertuples()):
        colour = "#1c2430" if row.beyond else "#97a1ad"
        filling = colour if row.beyond else "white"
        axes.plot([row.ci_low, row.ci_high], [y, y], color=colour, linewidth=1.3)
        axes.plot([row.difference], [y], "o", markersize=5, color=colour, markerfacecolor=filling)
    axes.axvline(0, color="black", linewidth=0.7)
    return axes


def layer_lines(
    layers: pd.DataFrame,
    *,
    measures: Sequence[str] = ("decode_accuracy", "decode_skill", "mi_bits", "effective_experts", "load_cv"),
) -> Figure:
    """Draw measures of layers over depth, one line per side; a star below layers that differ beyond chance.

    Parameters
    ----------
    layers : pandas.DataFrame
        Result ``comparison_layers``.
    measures : sequence of str
        Those that the table lacks are omitted.

    Returns
    -------
    Figure
    """
    measures = [m for m in measures if (layers["measure"] == m).any()]
    columns = len(measures) if len(measures) <= 4 else 3
    figure = _figure((3.05 if columns < 4 else 2.5) * columns + 0.2, 2.35 * -(-len(measures) // columns) + 0.4)
    panels = panel_grid(figure, len(measures), columns)
    style: Any = {"markersize": 4.5, "linewidth": 1.2}
    for axes, measure in zip(panels, measures, strict=True):
        part = layers[layers["measure"] == measure]
        first = part[part["side_b"] == part["side_b"].iloc[0]]
        lines = [(first["side_a"].iloc[0], first["layer_a"], first["value_a"])]
        lines += [(side, own["layer_a"], own["value_b"]) for side, own in part.groupby("side_b", sort=False)]
        for i, (side, x, y) in enumerate(lines):
            axes.plot(x.astype(float), y, "-" + _MARKS[i % 6], color=_SIDES[i % 6], label=safe(side), **style)
        axes.set_ylim(bottom=min(0.0, 1.05 * float(part[["value_a", "value_b"]].min().min())))
        low, high = axes.get_ylim()
        axes.set_ylim(low - 0.07 * (high - low), high + 0.04 * (high - low))
        marked = part.loc[part["beyond"], "layer_a"].astype(float)
        axes.plot(marked, np.full(len(marked), low - 0.02 * (high - low)), "*", color="black", markersize=5)
        axes.set_title(MEASURES.get(measure, measure), fontsize=9)
        axes.set_xlabel("layer", **SMALL)
        axes.xaxis.get_major_locator().set_params(integer=True)
        _plain(axes)
    _legend(figure, panels[0], 4)
    return figure


def alignment(experts: pd.DataFrame, layers: pd.DataFrame, *, saturation: pd.DataFrame | None = None) -> Figure:
    """Draw how well experts of one run match those of another, layer by layer, beside the null.

    Parameters
    ----------
    experts, layers : pandas.DataFrame
        Results ``aligned_experts`` and ``aligned_layers``, of one pair of runs; of several, the first is drawn.
    saturation : pandas.DataFrame, optional
        Result ``comparison_saturation``: a further panel.

    Returns
    -------
    Figure
    """
    _, (experts, layers) = _first_pair(experts, layers)
    names = {"tokens": "tokens of either that chose both", "documents": "correlation over documents"}
    measures = [m for m in names if (layers["measure"] == m).any()]
    n_panels = len(measures) + (saturation is not None)
    figure = _figure(3.1 * n_panels + 0.3, 2.9)
    grid = panel_grid(figure, n_panels, n_panels)
    for axes, measure in zip(grid, measures, strict=False):
        _matched(axes, experts[experts["measure"] == measure], layers[layers["measure"] == measure])
        axes.set_title(names[measure], fontsize=9)
    if saturation is not None:
        axes = grid[-1]
        axes.bar(range(len(saturation)), saturation["saturation"], color="#7fb1d3", width=0.7)
        axes.plot(range(len(saturation)), saturation["baseline"], "--", color="#d95f02", linewidth=1.2)
        axes.set_title("routing decisions already made", fontsize=9)
        axes.set_ylim(0, 1)
        _layers(axes, list(saturation["layer"]))
    _legend(figure, grid[0], 4)
    return figure


def _matched(axes: Axes, experts: pd.DataFrame, layers: pd.DataFrame) -> None:
    """Draw the scores of matched experts, and each layer's mean beside chance."""
    index = {layer: i for i, layer in enumerate(layers["layer"])}
    x = experts["layer"].map(index).astype(float) + (experts["expert"] / (experts["expert"].max() + 1) - 0.5) * 0.5
    same = (experts["expert"] == experts["other_expert"]).fillna(False).astype(bool)
    for mask, colour, label in ((same, "#4d9221", "same number"), (~same, _SIDES[0], "another number")):
        axes.plot(x[mask], experts.loc[mask, "score"], ".", color=colour, markersize=4, alpha=0.8, label=label)
    styles: dict[str, Any] = {
        "mean_score": {"label": "mean", "color": "black", "linewidth": 1.5},
        "null_mean": {"label": "chance", "color": "#d95f02", "linewidth": 1.2, "linestyle": "--"},
    }
    for column, style in styles.items():
        for i, value in enumerate(layers[column]):
            axes.plot([i - 0.32, i + 0.32], [value, value], **(style | {"label": None} if i else style))
    _layers(axes, list(index))


def _layers(axes: Axes, layers: list[int]) -> None:
    layer_ticks(axes.xaxis, layers, 16)
    axes.set_xlabel("layer", **SMALL)
    _plain(axes)


def label_scatter(experts: pd.DataFrame) -> Figure:
    """Draw what two labels explain of every expert's usage, and how many experts of a layer each label explains better.

    Parameters
    ----------
    experts : pandas.DataFrame
        Result ``comparison_experts``, of one pair of labels; of several, the first is drawn.

    Returns
    -------
    Figure
    """
    pair, (part,) = _first_pair(experts)
    layers = sorted(part["layer"].unique())
    figure = _figure(9.2, 3.6)
    left, right = figure.subplots(1, 2, width_ratios=(1.1, 1))
    for layer, colour in layer_shades(layers, 0.95).items():
        own = part[part["layer"] == layer]
        left.scatter(own["value_a"], own["value_b"], s=16, color=colour, label=f"layer {layer}", linewidths=0)
    high = 1.05 * float(part[["value_a", "value_b"]].max().max())
    left.plot([0, high], [0, high], color="black", linewidth=0.7, linestyle=":")
    left.set_xlabel(f"variance of usage explained by {safe(pair['side_a'])}", **SMALL)
    left.set_ylabel(f"by {safe(pair['side_b'])}", **SMALL)
    if len(layers) <= 12:
        left.legend(fontsize=7, frameon=False)
    counts = part.groupby(["layer", "follows"]).size().unstack(fill_value=0).reindex(layers)
    bottom = np.zeros(len(layers))
    for name, colour in ((pair["side_a"], _SIDES[0]), (pair["side_b"], _SIDES[1]), ("neither", "#c4cbd4")):
        if name in counts:
            right.bar(range(len(layers)), counts[name], bottom=bottom, color=colour, width=0.75, label=safe(name))
            bottom += counts[name].to_numpy()
    right.set_title("experts by the label that explains them better", fontsize=9)
    right.legend(fontsize=7.5, frameon=False, ncols=3, loc="upper center", bbox_to_anchor=(0.5, -0.18))
    _layers(right, layers)
    _plain(left, grid="both")
    return figure


def sae_lines(
    saes: pd.DataFrame, *, measures: Sequence[str] = ("fvu", "ce_recovered", "good_labels", "topics_carried")
) -> Figure:
    """Draw measures of SAEs against their width: one colour per layer, one marker per run.

    Parameters
    ----------
    saes : pandas.DataFrame
        Result ``comparison_saes``.
    measures : sequence of str
        Those without a value are omitted.

    Returns
    -------
    Figure
    """
    measures = [m for m in measures if saes.loc[saes["measure"] == m, "value"].notna().any()]
    sides, widths = list(dict.fromkeys(saes["side"])), sorted(saes["width"].unique())
    shades = layer_shades(sorted(saes["layer"].unique()))
    figure = _figure(2.6 * len(measures) + 0.2, 2.9)
    panels = panel_grid(figure, len(measures), len(measures))
    style: Any = {"markersize": 4, "linewidth": 1.1, "capsize": 2}
    for axes, measure in zip(panels, measures, strict=True):
        for (side, layer), own in saes[saes["measure"] == measure].groupby(["side", "layer"], sort=False):
            own = own.sort_values("width")
            name = f"layer {layer}" + (f", {safe(side)}" if len(sides) > 1 else "")
            bars = own[["value", "ci_low", "ci_high"]].to_numpy(dtype=float)
            error = np.nan_to_num(np.abs(bars[:, 1:] - bars[:, :1]).T)
            mark, colour = "-" + _MARKS[sides.index(side) % 6], shades[layer]
            axes.errorbar(own["width"], own["value"], yerr=error, fmt=mark, color=colour, label=name, **style)
        axes.set_xscale("log")
        axes.set_xticks(widths, [f"{w:,}" for w in widths])
        axes.minorticks_off()
        axes.set_title(MEASURES.get(measure, measure), fontsize=9)
        axes.set_xlabel("width", **SMALL)
        axes.set_ylim(bottom=0)
        _plain(axes)
    _legend(figure, panels[-1], 6)
    return figure
