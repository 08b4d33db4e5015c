"""Plots of experts, layers and SAEs. Each function takes a result table and returns Axes, or an array of them; none saves."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from moe_probe.core.text import printable
from moe_probe.report.plots.drawing import SMALL, colour_bar, layer_shades, layer_ticks, new_axes, new_figure, panel_grid
from moe_probe.report.plots.panels import DIVERGING, draw_heat, lift_panels, lift_scale, load_panel

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes


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
    axes = ax or new_axes(7.2, 0.9 + min(0.26 * len(panel.rows), 4.2))
    image = draw_heat(axes, panel, scale, size=8)
    layer_ticks(axes.yaxis, panel.rows, 24, fontsize=7)
    axes.tick_params(axis="x", labelsize=7)
    axes.set_ylabel("layer", **SMALL)
    axes.set_xlabel("expert", **SMALL)
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
    panels = (
        ("effective experts", (("effective_experts", "used"),)),
        (
            "bits about the topic\nper selection",
            (("mi_topic_bits", bits), ("mi_topic_null_bits", shuffled)),
        ),
        ("topic decoded from\na document's routing", (("decode_accuracy", "accuracy"), ("decode_baseline", shuffled))),
    )
    grid = panel_grid(new_figure(9.2, 2.5), len(panels), len(panels))
    for axes, (title, lines) in zip(grid, panels, strict=True):
        for (column, label), style in zip(lines, ("o-", "s--"), strict=False):
            axes.plot(layers["layer"], layers[column], style, label=label, markersize=4, linewidth=1.2)
        axes.set_title(title, fontsize=9)
        axes.set_xlabel("layer", **SMALL)
        axes.set_ylim(bottom=0)
        axes.tick_params(labelsize=7)
        axes.grid(alpha=0.25)
        if len(lines) > 1:
            axes.legend(fontsize=7, frameon=False)
    return grid


def topic_heatmap(expert_topics: pd.DataFrame, *, layers: Sequence[int]) -> np.ndarray:
    """Draw log2 lift of every expert (columns) for every topic (rows), one panel per layer.

    A dot marks what is significant and above average; a star what was replicated on held-out documents too.

    Parameters
    ----------
    expert_topics : pandas.DataFrame
        Result ``expert_topics``.
    layers : sequence of int
        Layers to draw.

    Returns
    -------
    ndarray of Axes, shape (n_layers,)
    """
    part, scale = expert_topics[expert_topics["layer"].isin(layers)], lift_scale(expert_topics)
    panels = lift_panels(part, panel="layer", row="topic", shown=layers)
    topics = panels[0].rows
    columns = 1 if panels[0].width > 40 else min(2, len(layers))
    grid = panel_grid(new_figure(10.5, -(-len(layers) // columns) * (0.6 + 0.19 * len(topics))), len(layers), columns)
    image = None
    for axes, panel in zip(grid, panels, strict=True):
        image = draw_heat(axes, panel, scale, size=8)
        axes.set_title(panel.title, fontsize=8, pad=2)
        axes.set_yticks(range(len(topics)), [printable(t) for t in topics], fontsize=6.5)
        axes.tick_params(axis="x", labelsize=6.5)
        axes.set_xlabel("expert", fontsize=7, labelpad=1)
    colour_bar(image, grid, scale.label, shrink=0.5, extend="both")
    return grid


def coactivation_heatmap(coactivation: pd.DataFrame, *, layers: Sequence[int]) -> np.ndarray:
    """Draw how often two experts are selected for the same token, against independence (log2), one panel per layer.

    Parameters
    ----------
    coactivation : pandas.DataFrame
        Result ``coactivation``: ``layer, expert_a, expert_b, lift``.
    layers : sequence of int
        Layers to draw.

    Returns
    -------
    ndarray of Axes, shape (n_layers,)
    """
    columns = min(3, len(layers))
    grid = panel_grid(new_figure(3.1 * columns + 0.6, 2.9 * -(-len(layers) // columns)), len(layers), columns)
    image = None
    for axes, layer in zip(grid, layers, strict=True):
        pairs = coactivation[coactivation["layer"] == layer]
        a, b = pairs["expert_a"].to_numpy(), pairs["expert_b"].to_numpy()
        matrix = np.full((max(a.max(), b.max()) + 1,) * 2, np.nan)
        with np.errstate(divide="ignore"):
            matrix[a, b] = matrix[b, a] = np.clip(np.log2(pairs["lift"].to_numpy(dtype=float)), -3, 3)
        np.fill_diagonal(matrix, np.nan)
        image = axes.imshow(matrix, cmap=DIVERGING, vmin=-3, vmax=3)
        axes.set_title(f"layer {layer}", fontsize=8, pad=2)
        axes.tick_params(labelsize=6.5)
    colour_bar(image, grid, "log2 (pairs seen / expected), cut at 3", shrink=0.6)
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
    panels[0].set_ylabel("bits saved per selection\non held-out documents", **SMALL)
    figure.legend(*panels[0].get_legend_handles_labels(), fontsize=7, frameon=False, loc="outside right center")
    return panels


def token_class_heatmap(classes: pd.DataFrame, *, ax: Axes | None = None) -> Axes:
    """Draw the highest log2 lift that any expert of a layer has for each class of token.

    Parameters
    ----------
    classes : pandas.DataFrame
        Result ``expert_token_classes``: ``layer, token_class, log2_lift, significant``.
    ax : Axes, optional
        Where to draw; a figure of its own when omitted.

    Returns
    -------
    Axes
    """
    names, layers = list(dict.fromkeys(classes["token_class"])), sorted(classes["layer"].unique())
    best = classes[classes["significant"]].groupby(["token_class", "layer"])["log2_lift"].max().unstack()
    axes = ax or new_axes(7.2, 0.8 + 0.24 * len(names))
    values = best.reindex(index=names, columns=layers).to_numpy(dtype=float)
    image = axes.imshow(values, aspect="auto", cmap="cividis", vmin=0)
    axes.set_yticks(range(len(names)), names, fontsize=7)
    layer_ticks(axes.xaxis, layers, 24, fontsize=7)
    axes.set_xlabel("layer", **SMALL)
    colour_bar(image, axes, "log2 lift of the strongest expert")
    return axes


def sae_pareto(quality: pd.DataFrame) -> np.ndarray:
    """Draw variance unexplained against sparsity, and loss recovered against width; one colour per layer.

    Parameters
    ----------
    quality : pandas.DataFrame
        Result ``sae_quality``: columns ``layer, width, l0, fvu, ce_recovered, ce_recovered_low, ce_recovered_high``.

    Returns
    -------
    ndarray of Axes, shape (2,)
    """
    grid = panel_grid(new_figure(7.2, 3.0), 2, 2)
    left, right = grid
    shades = layer_shades(sorted(quality["layer"].unique()))
    sizes = {w: 18 + 22 * i for i, w in enumerate(sorted(quality["width"].unique()))}
    for layer, colour in shades.items():
        part = quality[quality["layer"] == layer].sort_values(["width", "l0"])
        marks = [sizes[w] for w in part["width"]]
        left.scatter(part["l0"], part["fvu"], s=marks, color=colour, label=f"layer {layer}", alpha=0.85)
        for _, same in part.groupby("width"):
            left.plot(same["l0"], same["fvu"], color=colour, linewidth=0.8, alpha=0.6)
        known = part[part["ce_recovered"].notna()]
        if len(known):
            kept = known["ce_recovered"]
            error = [kept - known["ce_recovered_low"], known["ce_recovered_high"] - kept]
            right.errorbar(known["width"], kept, yerr=error, fmt="o-", markersize=3, linewidth=1, capsize=2, color=colour)
    left.set(xlabel="active latents per token (L0)", ylabel="variance unexplained (FVU)", ylim=(0, None), xlim=(0, None))
    right.set(xlabel="width", ylabel="loss recovered", xscale="log")
    right.set_xticks(sorted(sizes), [f"{w:,}" for w in sorted(sizes)])
    right.minorticks_off()
    for axes in grid:
        axes.tick_params(labelsize=7)
        axes.xaxis.label.set_size(8)
        axes.yaxis.label.set_size(8)
        axes.spines[["top", "right"]].set_visible(False)
    left.legend(fontsize=7, frameon=False)
    return grid
