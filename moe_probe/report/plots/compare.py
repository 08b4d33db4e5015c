"""Figures that hold runs against each other. Each function takes tables of a comparison and returns a Figure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from moe_probe.core.text import printable
from moe_probe.studies.compare.summary import MEASURES

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

#: Colours of the sides, told apart by colour-blind eyes and in grey; markers differ as well.
_SIDES = ("#33638d", "#d95f02", "#4d9221", "#762a83", "#b8860b", "#666666")
_MARKS = "osD^vP"
_SMALL: Any = {"fontsize": 8}


def safe(text: object) -> str:
    """Text for a figure: no control characters, and dollar signs are dollar signs, not the beginning of a formula."""
    return printable(str(text)).replace("$", r"\$")


def _figure(width: float, height: float) -> Figure:
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained", dpi=110)


def _plain(axes: Axes, *, grid: str = "y") -> None:
    axes.tick_params(labelsize=7.5)
    axes.grid(alpha=0.25, axis=grid)  # type: ignore[arg-type]
    axes.spines[["top", "right"]].set_visible(False)


def topic_differences(topics: pd.DataFrame) -> Figure:
    """Draw the lift of every topic's best expert in two runs, and the difference with its interval.

    Parameters
    ----------
    topics : DataFrame
        Result ``comparison_topics``, of one pair of runs; of several, the first is drawn.
    """
    pair = topics[["side_a", "side_b"]].iloc[0]
    part = topics[(topics[["side_a", "side_b"]] == pair).all(axis=1)].sort_values("difference", na_position="first")
    place = np.arange(len(part))
    figure = _figure(9.2, 1.3 + 0.29 * len(part))
    left, right = figure.subplots(1, 2, sharey=True)
    left.hlines(place, part["value_a"], part["value_b"], color="#c4cbd4", linewidth=1.5)
    for i, side in enumerate("ab"):
        left.plot(part[f"value_{side}"], place, _MARKS[i], color=_SIDES[i], markersize=5, label=safe(pair[f"side_{side}"]))
    left.set_yticks(place, [safe(t) for t in part["topic"]], fontsize=8)
    left.set_xlabel("log2 lift of the topic's best expert", **_SMALL)
    left.axvline(1, color="black", linewidth=0.6, linestyle=":")
    forest(right, part)
    right.set_xlabel(f"difference: {safe(pair['side_b'])} less {safe(pair['side_a'])}", **_SMALL)
    for axes in (left, right):
        _plain(axes, grid="x")
    handles, labels = left.get_legend_handles_labels()
    figure.legend(handles, labels, fontsize=8, frameon=False, ncols=2, loc="outside upper left")
    return figure


def forest(axes: Axes, table: pd.DataFrame) -> Axes:
    """Draw differences with their intervals into axes, a row each; filled where they are beyond chance.

    Parameters
    ----------
    axes : matplotlib Axes
    table : DataFrame
        Any table with ``difference, ci_low, ci_high, beyond``.
    """
    for place, row in enumerate(table.itertuples()):
        colour = "#1c2430" if row.beyond else "#97a1ad"
        axes.plot([row.ci_low, row.ci_high], [place, place], color=colour, linewidth=1.3)
        axes.plot(
            [row.difference], [place], "o", markersize=5, color=colour, markerfacecolor=colour if row.beyond else "white"
        )
    axes.axvline(0, color="black", linewidth=0.7)
    return axes


def layer_lines(
    layers: pd.DataFrame,
    *,
    measures: Sequence[str] = ("decode_accuracy", "decode_skill", "mi_bits", "effective_experts", "load_cv"),
) -> Figure:
    """Draw measures of layers over depth, a line for every side; a star under layers that differ beyond chance.

    Parameters
    ----------
    layers : DataFrame
        Result ``comparison_layers``.
    measures : sequence of str
        Those that the table does not hold are left out.
    """
    held = [m for m in measures if (layers["measure"] == m).any()]
    columns = len(held) if len(held) <= 4 else 3
    rows = -(-len(held) // columns)
    figure = _figure((3.05 if columns < 4 else 2.5) * columns + 0.2, 2.35 * rows + 0.4)
    panels = np.atleast_1d(figure.subplots(rows, columns, squeeze=False)).ravel()
    for axes, measure in zip(panels, held, strict=False):
        part = layers[layers["measure"] == measure]
        first = part[part["side_b"] == part["side_b"].iloc[0]]
        axes.plot(
            first["layer_a"].astype(float),
            first["value_a"],
            "-" + _MARKS[0],
            color=_SIDES[0],
            markersize=4.5,
            linewidth=1.2,
            label=safe(first["side_a"].iloc[0]),
        )
        for i, (side, own) in enumerate(part.groupby("side_b", sort=False), start=1):
            axes.plot(
                own["layer_a"].astype(float),
                own["value_b"],
                "-" + _MARKS[i % 6],
                color=_SIDES[i % 6],
                markersize=4.5,
                linewidth=1.2,
                label=safe(side),
            )
        axes.set_ylim(bottom=min(0.0, 1.05 * float(part[["value_a", "value_b"]].min().min())))
        low, high = axes.get_ylim()
        axes.set_ylim(low - 0.07 * (high - low), high + 0.04 * (high - low))
        marked = part.loc[part["beyond"], "layer_a"].astype(float)
        axes.plot(marked, np.full(len(marked), low - 0.02 * (high - low)), "*", color="black", markersize=5)
        axes.set_title(MEASURES.get(measure, measure), fontsize=9)
        axes.set_xlabel("layer", **_SMALL)
        axes.xaxis.get_major_locator().set_params(integer=True)
        _plain(axes)
    for axes in panels[len(held) :]:
        axes.axis("off")
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, fontsize=8, frameon=False, ncols=4, loc="outside upper left")
    return figure


def alignment(experts: pd.DataFrame, layers: pd.DataFrame, *, saturation: pd.DataFrame | None = None) -> Figure:
    """Draw how well experts of one run match those of another, layer by layer, beside the null.

    Parameters
    ----------
    experts, layers : DataFrame
        Results ``aligned_experts`` and ``aligned_layers``, of one pair of runs; of several, the first is drawn.
    saturation : DataFrame, optional
        Result ``comparison_saturation``: a further panel.
    """
    pair = layers[["side_a", "side_b"]].iloc[0]
    experts, layers = (t[(t[["side_a", "side_b"]] == pair).all(axis=1)] for t in (experts, layers))
    names = {"tokens": "tokens of either that chose both", "documents": "correlation over documents"}
    measures = [m for m in names if (layers["measure"] == m).any()]
    panels = len(measures) + (saturation is not None)
    figure = _figure(3.1 * panels + 0.3, 2.9)
    grid = np.atleast_1d(figure.subplots(1, panels))
    for axes, measure in zip(grid, measures, strict=False):
        mine, sums = experts[experts["measure"] == measure], layers[layers["measure"] == measure]
        place = {layer: i for i, layer in enumerate(sums["layer"])}
        at = mine["layer"].map(place).astype(float) + (mine["expert"] / (mine["expert"].max() + 1) - 0.5) * 0.5
        own = (mine["expert"] == mine["other_expert"]).fillna(False).astype(bool)
        for chosen, colour, label in ((own, "#4d9221", "same number"), (~own, _SIDES[0], "another number")):
            axes.plot(at[chosen], mine.loc[chosen, "score"], ".", color=colour, markersize=4, alpha=0.8, label=label)
        for x, mean, null in zip(place.values(), sums["mean_score"], sums["null_mean"], strict=True):
            axes.plot([x - 0.32, x + 0.32], [mean, mean], color="black", linewidth=1.5, label="mean" if x == 0 else None)
            axes.plot(
                [x - 0.32, x + 0.32],
                [null, null],
                color="#d95f02",
                linewidth=1.2,
                linestyle="--",
                label="chance" if x == 0 else None,
            )
        axes.set_title(names[measure], fontsize=9)
        _layers(axes, list(place))
    if saturation is not None:
        axes = grid[-1]
        axes.bar(range(len(saturation)), saturation["saturation"], color="#7fb1d3", width=0.7)
        axes.plot(range(len(saturation)), saturation["baseline"], "--", color="#d95f02", linewidth=1.2)
        axes.set_title("choices made already", fontsize=9)
        axes.set_ylim(0, 1)
        _layers(axes, list(saturation["layer"]))
    handles, labels = grid[0].get_legend_handles_labels()
    figure.legend(handles, labels, fontsize=8, frameon=False, ncols=4, loc="outside upper left")
    return figure


def _layers(axes: Axes, layers: list[int]) -> None:
    step = max(1, len(layers) // 16)
    axes.set_xticks(range(0, len(layers), step), [str(x) for x in layers[::step]])
    axes.set_xlabel("layer", **_SMALL)
    _plain(axes)


def label_scatter(experts: pd.DataFrame) -> Figure:
    """Draw what two labels explain of every expert's usage against each other, and whom the experts of a layer follow.

    Parameters
    ----------
    experts : DataFrame
        Result ``comparison_experts``, of one pair of labels; of several, the first is drawn.
    """
    from matplotlib import colormaps

    pair = experts[["side_a", "side_b"]].iloc[0]
    part = experts[(experts[["side_a", "side_b"]] == pair).all(axis=1)]
    layers = sorted(part["layer"].unique())
    shades = dict(zip(layers, colormaps["cividis"](np.linspace(0, 0.95, len(layers))), strict=True))
    figure = _figure(9.2, 3.6)
    left, right = figure.subplots(1, 2, width_ratios=(1.1, 1))
    for layer in layers:
        own = part[part["layer"] == layer]
        left.scatter(own["value_a"], own["value_b"], s=16, color=shades[layer], label=f"layer {layer}", linewidths=0)
    high = 1.05 * float(part[["value_a", "value_b"]].max().max())
    left.plot([0, high], [0, high], color="black", linewidth=0.7, linestyle=":")
    left.set_xlabel(f"variance of usage explained by {safe(pair['side_a'])}", **_SMALL)
    left.set_ylabel(f"by {safe(pair['side_b'])}", **_SMALL)
    if len(layers) <= 12:
        left.legend(fontsize=7, frameon=False)
    counts = part.groupby(["layer", "follows"]).size().unstack(fill_value=0).reindex(layers)
    bottom = np.zeros(len(layers))
    for name, colour in ((pair["side_a"], _SIDES[0]), (pair["side_b"], _SIDES[1]), ("neither", "#c4cbd4")):
        if name in counts:
            right.bar(range(len(layers)), counts[name], bottom=bottom, color=colour, width=0.75, label=safe(name))
            bottom += counts[name].to_numpy()
    right.set_title("experts by what explains them better", fontsize=9)
    right.legend(fontsize=7.5, frameon=False, ncols=3, loc="upper center", bbox_to_anchor=(0.5, -0.18))
    _layers(right, layers)
    _plain(left, grid="both")
    return figure


def sae_lines(
    saes: pd.DataFrame, *, measures: Sequence[str] = ("fvu", "ce_recovered", "good_labels", "topics_carried")
) -> Figure:
    """Draw what SAEs leave, recover, name and carry against their width: a colour a layer, a marker a run.

    Parameters
    ----------
    saes : DataFrame
        Result ``comparison_saes``.
    measures : sequence of str
    """
    from matplotlib import colormaps

    held = [m for m in measures if saes.loc[saes["measure"] == m, "value"].notna().any()]
    layers, sides = sorted(saes["layer"].unique()), list(dict.fromkeys(saes["side"]))
    shades = dict(zip(layers, colormaps["cividis"](np.linspace(0.05, 0.85, len(layers))), strict=True))
    figure = _figure(2.6 * len(held) + 0.2, 2.9)
    for axes, measure in zip(np.atleast_1d(figure.subplots(1, len(held))), held, strict=True):
        for (side, layer), own in saes[saes["measure"] == measure].groupby(["side", "layer"], sort=False):
            own = own.sort_values("width")
            name = f"layer {layer}" + (f", {safe(side)}" if len(sides) > 1 else "")
            bars = own[["value", "ci_low", "ci_high"]].to_numpy(dtype=float)
            error = np.nan_to_num(np.abs(bars[:, 1:] - bars[:, :1]).T)
            axes.errorbar(
                own["width"],
                own["value"],
                yerr=error,
                fmt="-" + _MARKS[sides.index(side) % 6],
                markersize=4,
                linewidth=1.1,
                capsize=2,
                color=shades[layer],
                label=name,
            )
        axes.set_xscale("log")
        widths = sorted(saes["width"].unique())
        axes.set_xticks(widths, [f"{w:,}" for w in widths])
        axes.minorticks_off()
        axes.set_title(MEASURES.get(measure, measure), fontsize=9)
        axes.set_xlabel("width", **_SMALL)
        axes.set_ylim(bottom=0)
        _plain(axes)
    handles, labels = axes.get_legend_handles_labels()
    figure.legend(handles, labels, fontsize=8, frameon=False, ncols=6, loc="outside upper left")
    return figure
