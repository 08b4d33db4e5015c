"""Plots of experts, layers and SAEs. Each function takes a result table and returns Axes, or an array of them; none saves."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from moe_probe.core.errors import MoeProbeError
from moe_probe.core.text import printable
from moe_probe.report.plots.drawing import (
    SMALL,
    colour_bar,
    layer_ticks,
    new_axes,
    new_figure,
    panel_grid,
    width_of,
    with_note,
)
from moe_probe.report.plots.panels import (
    ColourScale,
    draw_cells,
    draw_heat,
    ink_of_cells,
    lift_panels,
    lift_scale,
    load_panel,
    tested,
)
from moe_probe.report.plots.style import AMOUNTS, DIVERGING, PALE, on_cells

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes

#: Layers of pairs that are drawn, of models with up to 64 experts and of larger ones; of more, those where pairs differ most.
_PAIR_LAYERS = (9, 3)
#: Factor of pairs at which colours end.
_PAIR_END = 8


def load_heatmap(experts: pd.DataFrame, *, ax: Axes | None = None) -> Axes:
    """Draw each expert's load, relative to an even share, one row per layer; a cross marks an expert never selected.

    Parameters
    ----------
    experts : pandas.DataFrame
        Result ``experts``: columns ``layer, expert, load`` (share of the layer's selections, 0 to 1).
    ax : Axes, optional
        Where to draw; a figure of its own when omitted.

    Returns
    -------
    Axes
    """
    panel, scale = load_panel(experts)
    wide = panel.width > 64
    axes = ax or new_axes(10.5 if wide else 7.2, max(2.0, 1.1 + min(0.26 * len(panel.rows), 4.2)))
    image = draw_heat(axes, panel, scale, size=3 if wide else 8)
    layer_ticks(axes.yaxis, panel.rows, 24, fontsize=7)
    axes.tick_params(axis="x", labelsize=7)
    axes.set_ylabel("layer", **SMALL)
    axes.set_xlabel(with_note("expert", scale.note, width_of(axes)), **SMALL)
    colour_bar(image, axes, scale.label)
    return axes


def layer_profile(layers: pd.DataFrame) -> np.ndarray:
    """Draw, over the layers, how evenly experts are used and how much routing says about the topic.

    Parameters
    ----------
    layers : pandas.DataFrame
        Result ``layers``: ``layer, effective_experts, mi_topic_bits, mi_topic_null_bits, decode_accuracy, decode_baseline``.

    Returns
    -------
    ndarray of Axes, shape (3,)
    """
    shuffled = "shuffled topics"
    bits = "as counted, biased upwards" if layers["mi_topic_null_bits"].isna().all() else "measured, null subtracted"
    accuracy = (("decode_accuracy", "accuracy"), ("decode_baseline", shuffled))
    panels = (
        ("evenness of use", "effective number of experts", (("effective_experts", "used"),)),
        (
            "what a selection says about the topic",
            "bits per selection",
            (("mi_topic_bits", bits), ("mi_topic_null_bits", shuffled)),
        ),
        ("topic decoded from a document's routing", "share of held-out documents", accuracy),
    )
    grid = panel_grid(new_figure(9.2, 2.6), len(panels), len(panels))
    for axes, (title, unit, lines) in zip(grid, panels, strict=True):
        for (column, label), style in zip(lines, ("o-", "s--"), strict=False):
            axes.plot(layers["layer"], layers[column], style, label=label, markersize=4, linewidth=1.2)
        axes.set_title(title, fontsize=8.5)
        axes.set_xlabel("layer", **SMALL)
        axes.set_ylabel(unit, **SMALL)
        low, high = min(0.0, axes.get_ylim()[0]), axes.get_ylim()[1]
        axes.set_ylim(low, high + (0.3 if len(lines) > 1 else 0.06) * (high - low))  # room for the legend
        axes.set_axisbelow(True)
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.tick_params(labelsize=7)
        axes.grid(alpha=0.25)
        if len(lines) > 1:
            axes.legend(fontsize=7, frameon=False, loc="upper left")
    return grid


def topical_layer(expert_topics: pd.DataFrame) -> int:
    """Find the layer where lifts differ most."""
    return int(expert_topics.groupby("layer")["log2_lift"].var().idxmax())


def topic_heatmap(expert_topics: pd.DataFrame, *, layers: Sequence[int] | None = None) -> np.ndarray:
    """Draw log2 lift of every expert (columns) for every topic (rows), one panel per layer.

    Pairs that are not significant are pale. A dot marks what is significant and above average; a star what was replicated
    on held-out documents too.

    Parameters
    ----------
    expert_topics : pandas.DataFrame
        Result ``expert_topics``.
    layers : sequence of int, optional
        Layers to draw; the one where lifts differ most by default.

    Returns
    -------
    ndarray of Axes, shape (n_layers,)
    """
    layers = [topical_layer(expert_topics)] if layers is None else layers
    part, scale = expert_topics[expert_topics["layer"].isin(layers)], lift_scale(expert_topics)
    panels = lift_panels(part, panel="layer", row="topic", shown=layers)
    topics, few = panels[0].rows, panels[0].width <= 72
    columns = 1 if panels[0].width > 40 else min(2, len(layers))
    figure = new_figure(10.5, max(2.2, -(-len(layers) // columns) * (0.4 + 0.19 * len(topics)) + 0.6))
    grid = panel_grid(figure, len(layers), columns)
    image = None
    for axes, panel in zip(grid, panels, strict=True):
        image = draw_heat(axes, panel, scale, size=8 if few else 0)
        axes.set_title(panel.title, fontsize=8, pad=2)
        axes.set_yticks(range(len(topics)), [printable(t) for t in topics], fontsize=6.5)
        axes.tick_params(axis="x", labelsize=6.5)
    signs = "; dot: significant and above average; star: also replicated" if few else ""
    figure.supxlabel(with_note("expert", scale.note + signs, 10.5), **SMALL)
    colour_bar(image, grid, scale.label, shrink=0.9, extend="both")
    return grid


def pair_layers(coactivation: pd.DataFrame) -> list[int]:
    """Choose the layers whose pairs are drawn: all, or those where pairs differ most.

    Parameters
    ----------
    coactivation : pandas.DataFrame
        Result ``coactivation``.

    Returns
    -------
    list of int
    """
    pairs = coactivation[(coactivation["expert_a"] < coactivation["expert_b"]) & (coactivation["lift"] > 0)]
    spread = np.log2(pairs["lift"]).groupby(pairs["layer"]).var().fillna(0.0)
    most = _PAIR_LAYERS[int(coactivation[["expert_a", "expert_b"]].max().max()) >= 64]
    return sorted(int(layer) for layer in spread.nlargest(most).index)


def coactivation_heatmap(coactivation: pd.DataFrame, *, layers: Sequence[int] | None = None) -> np.ndarray:
    """Draw how often two experts are selected for the same token, against independence (log2), one panel per layer.

    The diagonal, an expert with itself, is grey.

    Parameters
    ----------
    coactivation : pandas.DataFrame
        Result ``coactivation``: ``layer, expert_a, expert_b, lift``.
    layers : sequence of int, optional
        Layers to draw; those of `pair_layers` by default.

    Returns
    -------
    ndarray of Axes, shape (n_layers,)

    Raises
    ------
    MoeProbeError
        When no pair has a lift: too few tokens.
    """
    layers = pair_layers(coactivation) if layers is None else layers
    if not layers:
        raise MoeProbeError("there are no pairs of experts to draw", "no pair can be compared with chance", "more documents")
    columns, end = min(3, len(layers)), float(np.log2(_PAIR_END))
    rows = -(-len(layers) // columns)
    figure = new_figure(3.1 * columns + 0.9, 2.9 * rows + 0.3)
    grid = panel_grid(figure, len(layers), columns)
    scale = ColourScale(DIVERGING, -end, end, "log2 (pairs seen / expected)", f"colours end at ±{end:.2g}; grey: no pair")
    image = None
    for axes, layer in zip(grid, layers, strict=True):
        pairs = coactivation[coactivation["layer"] == layer]
        a, b = pairs["expert_a"].to_numpy(), pairs["expert_b"].to_numpy()
        matrix = np.full((max(a.max(), b.max()) + 1,) * 2, np.nan)
        with np.errstate(divide="ignore"):
            matrix[a, b] = matrix[b, a] = np.clip(np.log2(pairs["lift"].to_numpy(dtype=float)), -end, end)
        np.fill_diagonal(matrix, np.nan)
        image = draw_cells(axes, matrix, scale)
        axes.set_aspect("equal")
        axes.set_title(f"layer {layer}", fontsize=8, pad=2)
        axes.tick_params(labelsize=6.5)
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.yaxis.get_major_locator().set_params(integer=True)
    figure.supxlabel(with_note("expert", scale.note, 3.1 * columns), **SMALL)
    figure.supylabel("expert", **SMALL)
    colour_bar(image, grid, scale.label, extend="both", shrink=max(0.35, 0.9 / rows))
    return grid


def explained_bars(explained: pd.DataFrame) -> np.ndarray:
    """Draw, per layer, what each factor adds after those before it, in both orders of entry.

    Parameters
    ----------
    explained : pandas.DataFrame
        Result ``explained``: ``layer, order, step, factor, bits`` (bits per selection).

    Returns
    -------
    ndarray of Axes, shape (2,)
    """
    colours = {"token": "#33638d", "previous token": "#7fb1d3", "position": "#b8b8b8", "topic": "#d95f02"}
    figure = new_figure(9.2, 3.0)
    panels = panel_grid(figure, 2, 2, sharey=True)
    for axes, order in zip(panels, ("token first", "topic first"), strict=True):
        part = explained[explained["order"] == order].sort_values(["step", "layer"])
        layers = sorted(part["layer"].unique())
        up, down = np.zeros(len(layers)), np.zeros(len(layers))
        for factor in part["factor"].unique():
            bits = part[part["factor"] == factor].set_index("layer")["bits"].reindex(layers).to_numpy(dtype=float)
            # what a factor costs on held-out documents is drawn below the axis, not hidden in the stack
            bottom = np.where(bits >= 0, up, down)
            axes.bar(range(len(layers)), bits, bottom=bottom, color=colours.get(factor), label=factor, width=0.8)
            up, down = up + np.maximum(bits, 0), down + np.minimum(bits, 0)
        axes.tick_params(labelsize=7)
        layer_ticks(axes.xaxis, layers, 13)
        axes.set_title(f"{order}, then the others", fontsize=9)
        axes.set_xlabel("layer", **SMALL)
        axes.axhline(0, color="black", linewidth=0.6)
        axes.grid(alpha=0.25, axis="y")
        axes.set_axisbelow(True)
    panels[0].set_ylabel("bits saved per selection\non held-out documents", **SMALL)
    figure.legend(*panels[0].get_legend_handles_labels(), fontsize=7, frameon=False, loc="outside right center")
    return panels


def token_class_heatmap(classes: pd.DataFrame, *, ax: Axes | None = None) -> Axes:
    """Draw the highest log2 lift that any expert of a layer has for each class of token, with the number of that expert.

    Cells of which no lift is significant are pale.

    Parameters
    ----------
    classes : pandas.DataFrame
        Result ``expert_token_classes``: ``layer, expert, token_class, log2_lift, significant, q_value``.
    ax : Axes, optional
        Where to draw; a figure of its own when omitted.

    Returns
    -------
    Axes
    """
    names, layers = list(dict.fromkeys(classes["token_class"])), sorted(classes["layer"].unique())
    order = ["significant", "log2_lift"]  # a significant lift stands before a larger one that may be noise
    best = classes.sort_values(order, kind="stable").groupby(["token_class", "layer"])[["expert", *order]].last()
    parts = (best[name].unstack().reindex(index=names, columns=layers).to_numpy(dtype=float) for name in best)
    experts, significant, values = parts
    limit = max(1.0, float(np.nanmax(values))) if np.isfinite(values).any() else 1.0
    pale = "; pale: not significant" if tested(classes) else ""
    scale = ColourScale(
        AMOUNTS, 0.0, limit, "log2 lift", f"number: the strongest expert of the layer; colours from 0 to {limit:.2g}{pale}"
    )
    axes = ax or new_axes(max(7.2, min(2.6 + 0.3 * len(layers), 16)), 1.2 + 0.24 * len(names))
    opacity = np.where(significant > 0, 1.0, PALE) if tested(classes) else None
    image = draw_cells(axes, values, scale, opacity=opacity)
    size = 6.5 if len(layers) <= 30 else 5
    for i, j in np.argwhere(np.isfinite(values)).tolist():
        light, dark = ink_of_cells(values[i : i + 1, j], scale)[0]
        if opacity is not None and opacity[i, j] < 1:
            light, dark = "#111111", "#ffffff"
        text = axes.text(j, i, f"{experts[i, j]:.0f}", ha="center", va="center", fontsize=size, color=light)
        on_cells([text], dark)
    axes.set_yticks(range(len(names)), names, fontsize=7)
    layer_ticks(axes.xaxis, layers, 32, fontsize=7)
    axes.set_xlabel(with_note("layer", scale.note, width_of(axes)), **SMALL)
    axes.set_ylabel("kind of token", **SMALL)
    colour_bar(image, axes, scale.label)
    return axes
