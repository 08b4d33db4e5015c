"""Plots that hold experts, groups and features against each other. Each function takes a table and returns Axes."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import numpy as np

from moe_probe.core.text import printable
from moe_probe.report.plots.drawing import new_figure as _figure
from moe_probe.report.plots.drawing import panel
from moe_probe.report.plots.maps import DIVERGING

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes

#: Kinds of units, from plain to rich, with colours that stay apart for colour-blind eyes and in print.
KINDS = {
    "expert": ("#33638d", "best expert"),
    "experts": ("#7fb1d3", "best group of experts"),
    "feature": ("#d95f02", "best feature"),
    "features": ("#f4b183", "best set of features"),
    "token": ("#5e5e5e", "best token"),
    "tokens": ("#b0b0b0", "best set of tokens"),
}
_ORDER = {"load alone": 0, "topic": 1, "token": 2, "token and the one before": 3, "random directions": 4, "features": 5}
_SMALL: Any = {"fontsize": 8}


def prediction_bars(table: pd.DataFrame) -> np.ndarray:
    """Draw the recall of chosen experts from each kind of input, a panel a layer.

    Parameters
    ----------
    table : DataFrame
        Result ``routing_predicted``: ``layer, width, inputs, recall, recall_low, recall_high``.
    """
    layers = sorted(table["layer"].unique())[:6]
    figure = _figure(max(4.5, 2.4 * len(layers) + 1.6), 3.2)
    panels = np.atleast_1d(figure.subplots(1, len(layers), sharey=True))
    table = table.assign(name=[n.replace("$", r"\$") for n in input_names(table)], place=table["inputs"].map(_ORDER))
    names = list(dict.fromkeys(table.sort_values(["place", "width", "name"])["name"]))
    colours = ["#d95f02" if n.startswith("features") else "#b8b8b8" if n.startswith("random") else "#33638d" for n in names]
    for axes, layer in zip(panels, layers, strict=True):
        part = table[table["layer"] == layer]
        values = {row.name: (row.recall, row.recall_low, row.recall_high) for row in part.itertuples()}
        for i, name in enumerate(names):
            if name in values:
                recall, low, high = values[name]
                axes.barh(
                    i,
                    recall,
                    color=colours[i],
                    height=0.75,
                    xerr=[[recall - low], [high - recall]],
                    error_kw={"elinewidth": 0.8, "capsize": 1.5},
                )
                axes.text(
                    0.02,
                    i,
                    f"{recall:.0%}",
                    va="center",
                    fontsize=7,
                    color="black" if name.startswith("random") else "white",
                )
        axes.set_title(f"layer {layer}", fontsize=9)
        axes.set(xlim=(0, 1))
        axes.set_xlabel("recall of the chosen experts", **_SMALL)
        axes.tick_params(labelsize=7)
        axes.spines[["top", "right"]].set_visible(False)
    panels[0].set_yticks(range(len(names)), names, fontsize=7)
    return panels


def input_names(table: pd.DataFrame) -> list[str]:
    """Names of the inputs of ``routing_predicted``: with the width, and the rest of the folder's name where SAEs share it."""
    shared = table.duplicated(["layer", "inputs", "width"], keep=False).any()
    saes = table["sae"].astype(str) if shared and "sae" in table else [""] * len(table)
    return [
        f"{what}, {int(width):,}{re.sub(r'^layer_[0-9]+/width_[0-9]+', '', printable(sae))}" if width else str(what)
        for what, width, sae in zip(table["inputs"], table["width"], saes, strict=True)
    ]


def carriers(table: pd.DataFrame) -> np.ndarray:
    """Draw, for every topic, the held-out AUROC of the best unit of each kind: of documents and of tokens.

    Parameters
    ----------
    table : DataFrame
        Result ``carriers``.
    """
    single = table[table["kind"] == "expert"].sort_values("auroc_document")
    topics = single["topic"].tolist()
    figure = _figure(8.6, 1.2 + 0.42 * len(topics))
    panels = figure.subplots(1, 2, sharey=True)
    for axes, name, title in zip(panels, ("document", "token"), ("documents", "single tokens"), strict=True):
        for shift, (kind, (colour, label)) in enumerate(KINDS.items()):
            part = table[table["kind"] == kind].set_index("topic").reindex(topics)
            place = np.arange(len(topics)) + 0.35 - 0.14 * shift
            value = part[f"auroc_{name}"].to_numpy(dtype=float)
            error = np.abs(part[[f"{name}_low", f"{name}_high"]].to_numpy(dtype=float).T - value)
            axes.errorbar(
                value, place, xerr=error, fmt="os^Dvp"[shift], markersize=3.5, linewidth=1, color=colour, label=label
            )
        axes.axvline(0.5, color="black", linewidth=0.6, linestyle=":")
        axes.set_title(f"telling {title} of the topic", fontsize=9)
        axes.set_xlabel("AUROC on held-out documents", **_SMALL)
        axes.tick_params(labelsize=7)
        axes.grid(alpha=0.2, axis="x")
    panels[0].set_yticks(range(len(topics)), [printable(t) for t in topics], fontsize=8)
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, fontsize=7, frameon=False, ncols=3, loc="outside lower center")
    return panels


def ablation_matrix(table: pd.DataFrame, *, ax: Axes | None = None) -> Axes:
    """Draw the rise of the loss on every topic (columns) without every unit (rows).

    Parameters
    ----------
    table : DataFrame
        Result ``ablation``.
    ax : Axes, optional
        Where to draw; a figure of its own when left out.
    """
    units, topics = list(dict.fromkeys(table["unit"])), sorted(table["topic"].unique())
    rises = table.pivot(index="unit", columns="topic", values="delta_nats").loc[units, topics].to_numpy(dtype=float)
    axes = panel(ax, 1.9 + 0.5 * len(topics), 1.3 + 0.24 * len(units))
    end = max(float(np.nanquantile(np.abs(rises), 0.98)), 1e-6)
    image = axes.imshow(rises, cmap=DIVERGING, vmin=-end, vmax=end, aspect="auto")
    place = {u: i for i, u in enumerate(units)}, {t: i for i, t in enumerate(topics)}
    for mark, size, part in (("o", 2.5, table[table["held_to"]]), ("*", 9, table[table["held_to"] & table["confirmed"]])):
        axes.plot(
            [place[1][t] for t in part["topic"]],
            [place[0][u] for u in part["unit"]],
            mark,
            color="black",
            markersize=size,
            linestyle="",
        )
    axes.set_xticks(range(len(topics)), [printable(t) for t in topics], rotation=45, ha="right", fontsize=7)
    axes.set_yticks(range(len(units)), [_short(u) for u in units], fontsize=7)
    bar = axes.figure.colorbar(image, ax=axes, pad=0.01)
    bar.set_label("rise of the loss, nats", **_SMALL)
    bar.ax.tick_params(labelsize=7)
    return axes


def _short(unit: str) -> str:
    found = re.fullmatch(r"layer_(\d+)/width_(\d+)(.*)", unit)
    return f"layer {int(found[1])}, {int(found[2]):,}{found[3]}" if found else unit
