"""Plots that compare experts, groups and features. Each function takes a result table and returns Axes."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import numpy as np

from moe_probe.core.text import printable
from moe_probe.report.plots.drawing import SMALL, colour_bar, new_axes, new_figure, panel_grid, safe
from moe_probe.report.plots.panels import DIVERGING

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


def prediction_bars(table: pd.DataFrame) -> np.ndarray:
    """Draw the recall of selected experts from each kind of input, one panel per layer (six at most).

    Parameters
    ----------
    table : pandas.DataFrame
        Result ``routing_predicted``: ``layer, width, inputs, recall, recall_low, recall_high``.

    Returns
    -------
    ndarray of Axes
    """
    layers = sorted(table["layer"].unique())[:6]
    panels = panel_grid(new_figure(max(4.5, 2.4 * len(layers) + 1.6), 3.2), len(layers), len(layers), sharey=True)
    table = table.assign(name=[safe(n) for n in input_names(table)], order=table["inputs"].map(_ORDER))
    names = list(dict.fromkeys(table.sort_values(["order", "width", "name"])["name"]))
    error: Any = {"error_kw": {"elinewidth": 0.8, "capsize": 1.5}}
    for axes, layer in zip(panels, layers, strict=True):
        for row in table[table["layer"] == layer].drop_duplicates("name", keep="last").itertuples():
            y, bounds = names.index(row.name), [[row.recall - row.recall_low], [row.recall_high - row.recall]]
            random = row.inputs == "random directions"
            colour = "#d95f02" if row.inputs == "features" else "#b8b8b8" if random else "#33638d"
            axes.barh(y, row.recall, color=colour, height=0.75, xerr=bounds, **error)
            axes.text(0.02, y, f"{row.recall:.0%}", va="center", fontsize=7, color="black" if random else "white")
        axes.set_title(f"layer {layer}", fontsize=9)
        axes.set(xlim=(0, 1))
        axes.set_xlabel("recall of the selected experts", **SMALL)
        axes.tick_params(labelsize=7)
        axes.spines[["top", "right"]].set_visible(False)
    panels[0].set_yticks(range(len(names)), names, fontsize=7)
    return panels


def input_names(table: pd.DataFrame) -> list[str]:
    """Name the inputs of ``routing_predicted``: with the width, and the rest of the folder's name where SAEs share it."""
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
    table : pandas.DataFrame
        Result ``carriers``.

    Returns
    -------
    ndarray of Axes, shape (2,)
    """
    topics = table[table["kind"] == "expert"].sort_values("auroc_document")["topic"].tolist()
    figure = new_figure(8.6, 1.2 + 0.42 * len(topics))
    panels = panel_grid(figure, 2, 2, sharey=True)
    style: Any = {"markersize": 3.5, "linewidth": 1}
    for axes, name, title in zip(panels, ("document", "token"), ("documents", "single tokens"), strict=True):
        for shift, (kind, (colour, label)) in enumerate(KINDS.items()):
            part = table[table["kind"] == kind].set_index("topic").reindex(topics)
            y = np.arange(len(topics)) + 0.35 - 0.14 * shift
            value = part[f"auroc_{name}"].to_numpy(dtype=float)
            error = np.abs(part[[f"{name}_low", f"{name}_high"]].to_numpy(dtype=float).T - value)
            axes.errorbar(value, y, xerr=error, fmt="os^Dvp"[shift], color=colour, label=label, **style)
        axes.axvline(0.5, color="black", linewidth=0.6, linestyle=":")
        axes.set_title(f"telling {title} of the topic", fontsize=9)
        axes.set_xlabel("AUROC on held-out documents", **SMALL)
        axes.tick_params(labelsize=7)
        axes.grid(alpha=0.2, axis="x")
    panels[0].set_yticks(range(len(topics)), [printable(t) for t in topics], fontsize=8)
    figure.legend(*panels[0].get_legend_handles_labels(), fontsize=7, frameon=False, ncols=3, loc="outside lower center")
    return panels


def ablation_matrix(table: pd.DataFrame, *, ax: Axes | None = None) -> Axes:
    """Draw the rise of the loss, in nats per token, on every topic (columns) without every unit (rows).

    Parameters
    ----------
    table : pandas.DataFrame
        Result ``ablation``.
    ax : Axes, optional
        Where to draw; a figure of its own when omitted.

    Returns
    -------
    Axes
    """
    units, topics = list(dict.fromkeys(table["unit"])), sorted(table["topic"].unique())
    rises = table.pivot(index="unit", columns="topic", values="delta_nats").loc[units, topics].to_numpy(dtype=float)
    axes = ax or new_axes(1.9 + 0.5 * len(topics), 1.3 + 0.24 * len(units))
    end = max(float(np.nanquantile(np.abs(rises), 0.98)), 1e-6)
    image = axes.imshow(rises, cmap=DIVERGING, vmin=-end, vmax=end, aspect="auto")
    claimed = table[table["held_to"]]
    for mark, size, part in (("o", 2.5, claimed), ("*", 9, claimed[claimed["confirmed"]])):
        x, y = [topics.index(t) for t in part["topic"]], [units.index(u) for u in part["unit"]]
        axes.plot(x, y, mark, color="black", markersize=size, linestyle="")
    axes.set_xticks(range(len(topics)), [printable(t) for t in topics], rotation=45, ha="right", fontsize=7)
    axes.set_yticks(range(len(units)), [_short(u) for u in units], fontsize=7)
    colour_bar(image, axes, "rise of the loss, nats per token")
    return axes


def _short(unit: str) -> str:
    match = re.fullmatch(r"layer_(\d+)/width_(\d+)(.*)", unit)
    return f"layer {int(match[1])}, {int(match[2]):,}{match[3]}" if match else unit
