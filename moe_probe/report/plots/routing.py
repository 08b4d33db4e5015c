"""Plots of result tables. Each function takes tables and returns matplotlib Axes, or an array of them; none saves.

Colours: cividis for amounts, and a diverging map centred on "no difference" for lifts; both can be told
apart with colour-blind eyes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from moe_probe.core.text import printable
from moe_probe.report.plots.drawing import new_figure as _figure
from moe_probe.report.plots.drawing import panel
from moe_probe.report.plots.maps import DIVERGING

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes

_TEXT: Any = {"fontsize": 8}


def _matrix(table: pd.DataFrame, rows: str, columns: str, values: str, *, order: Sequence[Any]) -> np.ndarray:
    wide = table.pivot(index=rows, columns=columns, values=values).reindex(index=list(order))
    return wide.to_numpy(dtype=float)


def load_heatmap(experts: pd.DataFrame, *, ax: Axes | None = None) -> Axes:
    """Draw each expert's load, relative to an even share, one row a layer.

    Parameters
    ----------
    experts : DataFrame
        Result ``experts``: columns ``layer, expert, load`` (share of the layer's selections).
    ax : Axes, optional
        Where to draw; a figure of its own when left out.
    """
    layers = sorted(experts["layer"].unique())
    load = _matrix(experts, "layer", "expert", "load", order=layers)
    relative = load * np.isfinite(load).sum(1, keepdims=True)
    axes = panel(ax, 7.2, 0.9 + min(0.26 * len(layers), 4.2))
    image = axes.imshow(relative, aspect="auto", cmap="cividis", vmin=0, vmax=max(2.0, float(np.nanmax(relative))))
    dead = np.argwhere(load == 0)
    axes.plot(dead[:, 1], dead[:, 0], "x", color="white", markersize=4)
    _layer_ticks(axes, layers)
    axes.set_xlabel("expert", **_TEXT)
    bar = axes.figure.colorbar(image, ax=axes, pad=0.01)
    bar.set_label("load / even share", **_TEXT)
    bar.ax.tick_params(labelsize=7)
    return axes


def layer_profile(layers: pd.DataFrame) -> np.ndarray:
    """Draw, over the layers, how evenly experts are used and how much routing tells of the topic.

    Parameters
    ----------
    layers : DataFrame
        Result ``layers``: ``layer, effective_experts, mi_topic_bits, mi_topic_null_bits,
        decode_accuracy, decode_baseline``.
    """
    panels = [
        ("effective experts", [("effective_experts", "used", "o-")]),
        (
            "bits about the topic\nper selection",
            [("mi_topic_bits", "measured, null removed", "o-"), ("mi_topic_null_bits", "shuffled topics", "s--")],
        ),
        (
            "topic decoded from\na document's routing",
            [("decode_accuracy", "accuracy", "o-"), ("decode_baseline", "shuffled topics", "s--")],
        ),
    ]
    drawn = _figure(9.2, 2.5).subplots(1, len(panels))
    for axes, (title, lines) in zip(drawn, panels, strict=True):
        for column, label, style in lines:
            axes.plot(layers["layer"], layers[column], style, label=label, markersize=4, linewidth=1.2)
        axes.set_title(title, fontsize=9)
        axes.set_xlabel("layer", **_TEXT)
        axes.set_ylim(bottom=0)
        axes.tick_params(labelsize=7)
        axes.grid(alpha=0.25)
        if len(lines) > 1:
            axes.legend(fontsize=7, frameon=False)
    return drawn


def topic_heatmap(expert_topics: pd.DataFrame, *, layers: Sequence[int]) -> np.ndarray:
    """Draw log2 lift of every expert for every topic, one panel a layer.

    A dot marks what is significant, a star what is significant and was found again on held-out documents.

    Parameters
    ----------
    expert_topics : DataFrame
        Result ``expert_topics``.
    layers : sequence of int
        Layers to draw.
    """
    topics = sorted(expert_topics["topic"].unique())
    width = expert_topics[expert_topics["layer"].isin(layers)].groupby("layer")["expert"].nunique().max()
    columns = 1 if width > 40 else min(2, len(layers))
    rows = -(-len(layers) // columns)
    figure = _figure(10.5, rows * (0.6 + 0.19 * len(topics)))
    grid = np.atleast_1d(figure.subplots(rows, columns, squeeze=False)).ravel()
    # a topic that never chose an expert has a lift near 0, whose logarithm would take up the whole scale
    limit = float(np.clip(np.nanpercentile(np.abs(expert_topics["log2_lift"]), 99), 1.0, 3.0))
    image = None
    for axes, layer in zip(grid, layers, strict=False):
        part = expert_topics[expert_topics["layer"] == layer]
        lift = _matrix(part, "topic", "expert", "log2_lift", order=topics)
        image = axes.imshow(lift, aspect="auto", cmap=DIVERGING, vmin=-limit, vmax=limit)
        claimed = part[part["significant"] & (part["log2_lift"] > 0)]
        for marker, size, chosen in ((".", 3, claimed[~claimed["replicated"]]), ("*", 6, claimed[claimed["replicated"]])):
            axes.plot(
                chosen["expert"],
                [topics.index(t) for t in chosen["topic"]],
                marker,
                color="black",
                markersize=size,
                linestyle="none",
            )
        axes.set_title(f"layer {layer}", fontsize=8, pad=2)
        axes.set_yticks(range(len(topics)), [printable(t) for t in topics], fontsize=6.5)
        axes.tick_params(axis="x", labelsize=6.5)
        axes.set_xlabel("expert", fontsize=7, labelpad=1)
    for axes in grid[len(layers) :]:
        axes.axis("off")
    if image is not None:
        bar = figure.colorbar(image, ax=grid.tolist(), shrink=0.5, pad=0.01, extend="both")
        bar.set_label("log2 lift", **_TEXT)
        bar.ax.tick_params(labelsize=7)
    return grid[: len(layers)]


def coactivation_heatmap(coactivation: pd.DataFrame, *, layers: Sequence[int]) -> np.ndarray:
    """Draw how often two experts serve the same token, against independence (log2), one panel a layer.

    Parameters
    ----------
    coactivation : DataFrame
        Result ``coactivation``: ``layer, expert_a, expert_b, lift``.
    layers : sequence of int
    """
    columns = min(3, len(layers))
    rows = -(-len(layers) // columns)
    figure = _figure(3.1 * columns + 0.6, 2.9 * rows)
    grid = np.atleast_1d(figure.subplots(rows, columns, squeeze=False)).ravel()
    image = None
    for axes, layer in zip(grid, layers, strict=False):
        part = coactivation[coactivation["layer"] == layer]
        size = int(part[["expert_a", "expert_b"]].to_numpy().max()) + 1
        matrix = np.full((size, size), np.nan)
        with np.errstate(divide="ignore"):
            values = np.clip(np.log2(part["lift"].to_numpy(dtype=float)), -3, 3)
        a, b = part["expert_a"].to_numpy(), part["expert_b"].to_numpy()
        matrix[a, b] = matrix[b, a] = values
        np.fill_diagonal(matrix, np.nan)
        image = axes.imshow(matrix, cmap=DIVERGING, vmin=-3, vmax=3)
        axes.set_title(f"layer {layer}", fontsize=8, pad=2)
        axes.tick_params(labelsize=6.5)
    for axes in grid[len(layers) :]:
        axes.axis("off")
    if image is not None:
        bar = figure.colorbar(image, ax=grid.tolist(), shrink=0.6, pad=0.01)
        bar.set_label("log2 (pairs seen / expected), cut at 3", **_TEXT)
        bar.ax.tick_params(labelsize=7)
    return grid[: len(layers)]


def explained_bars(explained: pd.DataFrame) -> np.ndarray:
    """Draw, per layer, what each factor adds after those before it, in both orders of entry.

    Parameters
    ----------
    explained : DataFrame
        Result ``explained``: ``layer, order, step, factor, bits, base_bits``.
    """
    colours = {"token": "#33638d", "previous token": "#7fb1d3", "position": "#b8b8b8", "topic": "#d95f02"}
    figure = _figure(9.2, 3.0)
    panels = figure.subplots(1, 2, sharey=True)
    for axes, order in zip(panels, ("token first", "topic first"), strict=True):
        part = explained[explained["order"] == order].sort_values(["step", "layer"])
        layers = sorted(part["layer"].unique())
        up, down = np.zeros(len(layers)), np.zeros(len(layers))
        for factor in part["factor"].unique():
            bits = part[part["factor"] == factor].set_index("layer")["bits"].reindex(layers).to_numpy(dtype=float)
            # what a factor costs on unseen documents is drawn below the axis, not hidden in the stack
            axes.bar(
                range(len(layers)),
                bits,
                bottom=np.where(bits >= 0, up, down),
                color=colours.get(factor),
                label=factor,
                width=0.8,
            )
            up, down = up + np.maximum(bits, 0), down + np.minimum(bits, 0)
        step = max(1, -(-len(layers) // 13))
        axes.set_xticks(range(0, len(layers), step), [str(x) for x in layers[::step]], fontsize=7)
        axes.set_title(f"{order}, then the others", fontsize=9)
        axes.set_xlabel("layer", **_TEXT)
        axes.axhline(0, color="black", linewidth=0.6)
        axes.tick_params(labelsize=7)
        axes.grid(alpha=0.25, axis="y")
    panels[0].set_ylabel("bits per selection saved\non unseen documents", **_TEXT)
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, fontsize=7, frameon=False, loc="outside right center")
    return panels


def token_class_heatmap(classes: pd.DataFrame, *, ax: Axes | None = None) -> Axes:
    """Draw the highest log2 lift that any expert of a layer has for each class of token.

    Parameters
    ----------
    classes : DataFrame
        Result ``expert_token_classes``: ``layer, token_class, log2_lift, significant``.
    ax : Axes, optional
        Where to draw; a figure of its own when left out.
    """
    names = list(dict.fromkeys(classes["token_class"]))
    best = classes[classes["significant"]].groupby(["token_class", "layer"])["log2_lift"].max().reset_index()
    layers = sorted(classes["layer"].unique())
    matrix = _matrix(best, "token_class", "layer", "log2_lift", order=names)
    held = sorted(best["layer"].unique())
    full = np.full((len(names), len(layers)), np.nan)
    full[:, [layers.index(x) for x in held]] = matrix
    axes = panel(ax, 7.2, 0.8 + 0.24 * len(names))
    image = axes.imshow(full, aspect="auto", cmap="cividis", vmin=0)
    axes.set_yticks(range(len(names)), names, fontsize=7)
    step = max(1, len(layers) // 24)
    axes.set_xticks(range(0, len(layers), step), [str(x) for x in layers[::step]], fontsize=7)
    axes.set_xlabel("layer", **_TEXT)
    bar = axes.figure.colorbar(image, ax=axes, pad=0.01)
    bar.set_label("log2 lift of the strongest expert", **_TEXT)
    bar.ax.tick_params(labelsize=7)
    return axes


def _layer_ticks(axes: Axes, layers: Sequence[int]) -> None:
    step = max(1, len(layers) // 24)
    axes.set_yticks(range(0, len(layers), step), [str(x) for x in layers[::step]], fontsize=7)
    axes.set_ylabel("layer", **_TEXT)
    axes.tick_params(axis="x", labelsize=7)


def sae_pareto(quality: pd.DataFrame) -> np.ndarray:
    """Draw variance unexplained against sparsity, and loss recovered against width; a colour per layer.

    Parameters
    ----------
    quality : DataFrame
        Result ``sae_quality``: columns ``layer, width, l0, fvu, ce_recovered, ce_recovered_low, ce_recovered_high``.
    """
    from matplotlib import colormaps

    drawn = _figure(7.2, 3.0).subplots(1, 2)
    left, right = drawn
    layers = sorted(quality["layer"].unique())
    shades = dict(zip(layers, colormaps["cividis"](np.linspace(0.05, 0.85, len(layers))), strict=True))
    sizes = {w: 18 + 22 * i for i, w in enumerate(sorted(quality["width"].unique()))}
    for layer in layers:
        part = quality[quality["layer"] == layer].sort_values(["width", "l0"])
        left.scatter(
            part["l0"],
            part["fvu"],
            s=[sizes[w] for w in part["width"]],
            color=shades[layer],
            label=f"layer {layer}",
            alpha=0.85,
        )
        for _, same in part.groupby("width"):
            left.plot(same["l0"], same["fvu"], color=shades[layer], linewidth=0.8, alpha=0.6)
        known = part[part["ce_recovered"].notna()]
        if len(known):
            error = [known["ce_recovered"] - known["ce_recovered_low"], known["ce_recovered_high"] - known["ce_recovered"]]
            right.errorbar(
                known["width"],
                known["ce_recovered"],
                yerr=error,
                fmt="o-",
                markersize=3,
                linewidth=1,
                capsize=2,
                color=shades[layer],
            )
    left.set(xlabel="active latents a token (L0)", ylabel="variance unexplained (FVU)", ylim=(0, None), xlim=(0, None))
    right.set(xlabel="width", ylabel="loss recovered", xscale="log")
    right.set_xticks(sorted(sizes), [f"{w:,}" for w in sorted(sizes)])
    right.minorticks_off()
    for axes in (left, right):
        axes.tick_params(labelsize=7)
        axes.xaxis.label.set_size(8)
        axes.yaxis.label.set_size(8)
        axes.spines[["top", "right"]].set_visible(False)
    left.legend(fontsize=7, frameon=False)
    return drawn
