"""Plots that compare experts, groups and features. Each function takes a result table and returns Axes."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import numpy as np

from moe_probe.core.text import printable
from moe_probe.report.plots.drawing import SMALL, colour_bar, new_axes, new_figure, panel_grid, safe, width_of, with_note
from moe_probe.report.plots.panels import ColourScale, draw_cells, ink_of_cells
from moe_probe.report.plots.style import DIVERGING, PALE, on_cells

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
#: Layers drawn side by side.
_LAYERS = 6
_ORDER = {"load alone": 0, "topic": 1, "token": 2, "token and the one before": 3, "random directions": 4, "features": 5}


def prediction_bars(table: pd.DataFrame) -> np.ndarray:
    """Draw the recall of selected experts from each kind of input, one panel per layer.

    Of more than six layers, six are drawn, evenly spaced over depth; the figure says so.

    Parameters
    ----------
    table : pandas.DataFrame
        Result ``routing_predicted``: ``layer, width, inputs, recall, recall_low, recall_high``.

    Returns
    -------
    ndarray of Axes
    """
    every = sorted(table["layer"].unique())
    layers = [every[i] for i in np.linspace(0, len(every) - 1, min(len(every), _LAYERS)).round().astype(int)]
    table = table.assign(name=[safe(n) for n in input_names(table)], order=table["inputs"].map(_ORDER))
    names = list(dict.fromkeys(table.sort_values(["order", "width", "name"])["name"]))
    figure = new_figure(max(4.5, 2.4 * len(layers) + 1.6), max(3.2, 1.0 + 0.2 * len(names)))
    panels = panel_grid(figure, len(layers), len(layers), sharey=True)
    error: Any = {"error_kw": {"elinewidth": 0.8, "capsize": 1.5}}
    for axes, layer in zip(panels, layers, strict=True):
        for row in table[table["layer"] == layer].drop_duplicates("name", keep="last").itertuples():
            y, bounds = names.index(row.name), [[row.recall - row.recall_low], [row.recall_high - row.recall]]
            random = row.inputs == "random directions"
            colour = "#d95f02" if row.inputs == "features" else "#b8b8b8" if random else "#33638d"
            axes.barh(y, row.recall, color=colour, height=0.75, xerr=bounds, **error)
            axes.text(max(row.recall, row.recall_high) + 0.015, y, f"{row.recall:.0%}", va="center", fontsize=7)
        axes.set_title(f"layer {layer}", fontsize=9)
        axes.set_xlim(0, 1.14)  # room for the number beside a bar that is full
        axes.set_xticks([0, 0.25, 0.5, 0.75, 1.0], ["0", "25 %", "50 %", "75 %", "100 %"])
        axes.set_xlabel("recall of the selected experts", **SMALL)
        axes.tick_params(labelsize=7)
        axes.spines[["top", "right"]].set_visible(False)
    panels[0].set_yticks(range(len(names)), names, fontsize=7)
    panels[0].set_ylabel("predicted from", **SMALL)
    if len(layers) < len(every):
        figure.suptitle(f"{len(layers)} of {len(every)} layers", **SMALL)
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
        axes.set_title(f"separating {title} of the topic from others", fontsize=9)
        axes.set_xlabel("AUROC on held-out documents (0.5: chance)", **SMALL)
        axes.tick_params(labelsize=7)
        axes.grid(alpha=0.2, axis="x")
    panels[0].set_yticks(range(len(topics)), [printable(t) for t in topics], fontsize=8)
    figure.legend(*panels[0].get_legend_handles_labels(), fontsize=7, frameon=False, ncols=3, loc="outside lower center")
    return panels


def ablation_matrix(table: pd.DataFrame, *, ax: Axes | None = None) -> Axes:
    """Draw the rise of the loss, in nats per token, on every topic (columns) without every unit (rows).

    Cells whose interval includes 0 are pale. Where colours end below the largest change, the numbers of the cells outside
    are written into them.

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

    def matrix(column: str) -> np.ndarray:
        values: np.ndarray = (
            table.pivot(index="unit", columns="topic", values=column).loc[units, topics].to_numpy(dtype=float)
        )
        return values

    rises, low, high = (matrix(name) for name in ("delta_nats", "ci_low", "ci_high"))
    each = 0.5 if len(topics) <= 20 else 0.3
    axes = ax or new_axes(2.6 + each * len(topics), max(3.4, 1.9 + 0.24 * len(units)))
    end, outside = _end(rises)
    n = int(outside.sum())
    beyond = f"; {n} cell{'s' if n > 1 else ''} outside, with number{'s' if n > 1 else ''}" if n else ""
    note = f"colours end at ±{end:.2g}{beyond}; pale: interval includes 0; dot: claimed topic; star: confirmed"
    scale = ColourScale(DIVERGING, -end, end, "rise of the loss, nats per token", note)
    opacity = np.where((low <= 0) & (high >= 0), PALE, 1.0)
    image = draw_cells(axes, rises, scale, opacity=opacity)
    _numbers(axes, rises, outside, scale)
    claimed = table[table["held_to"]]
    for mark, size, part in (("o", 2.5, claimed), ("*", 8, claimed[claimed["confirmed"]])):
        for row in part.to_dict("records"):
            i, j = units.index(row["unit"]), topics.index(row["topic"])
            pale = bool(opacity[i, j] < 1)
            light, dark = ("#111111", "#ffffff") if pale else ink_of_cells(rises[i : i + 1, j], scale)[0]
            at = i + (0.27 if outside[i, j] else 0.0)
            on_cells(axes.plot(j, at, mark, color=light, markersize=size, linestyle=""), dark)
    axes.set_xticks(range(len(topics)), [printable(t) for t in topics], rotation=45, ha="right", fontsize=7)
    axes.set_yticks(range(len(units)), [_short(u) for u in units], fontsize=7)
    axes.set_xlabel(with_note("topic of the held-out documents", note, width_of(axes)), **SMALL)
    axes.set_ylabel("without", **SMALL)
    colour_bar(image, axes, scale.label, extend="both" if outside.any() else "neither")
    return axes


def _end(rises: np.ndarray) -> tuple[float, np.ndarray]:
    """Choose where colours end, and find the cells outside: none, unless few are far from all others."""
    sizes = np.abs(rises)
    known = sizes[np.isfinite(sizes)]
    usual = 2 * float(np.quantile(known, 0.98)) if len(known) else 0.0
    end = max(float(known[known <= usual].max()) if usual else float(known.max(initial=0.0)), 1e-6)
    return end, np.nan_to_num(sizes, nan=0.0) > end


def _numbers(axes: Axes, values: np.ndarray, chosen: np.ndarray, scale: ColourScale) -> None:
    for i, j in np.argwhere(chosen).tolist():
        light, dark = ink_of_cells(values[i : i + 1, j], scale)[0]
        text = axes.text(j, i - 0.12, f"{values[i, j]:+.2g}", ha="center", va="center", fontsize=5.5, color=light)
        on_cells([text], dark)


def _short(unit: str) -> str:
    match = re.fullmatch(r"layer_(\d+)/width_(\d+)(.*)", unit)
    return f"layer {int(match[1])}, {int(match[2]):,}{match[3]}" if match else unit
