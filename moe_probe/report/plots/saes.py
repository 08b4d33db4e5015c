"""Figures of sparse autoencoders: how much they leave unexplained, and what is lost with them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from moe_probe.report.plots.drawing import layer_shades, new_figure, panel_grid

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes

#: Markers of widths, from narrow to wide.
_MARKS = "os^DvP<>"
#: L0 of SAEs that differ by less than this factor is one L0, at which only widths can be compared.
_SAME = 1.1


def sae_pareto(quality: pd.DataFrame) -> np.ndarray:
    """Draw variance unexplained and loss recovered of every SAE; one colour per layer, one marker per width.

    Variance unexplained is drawn against active latents per token (L0). Where all SAEs have the same L0, and would lie above
    each other, it is drawn against width.

    Parameters
    ----------
    quality : pandas.DataFrame
        Result ``sae_quality``: columns ``layer, width, l0, fvu, ce_recovered, ce_recovered_low, ce_recovered_high``.

    Returns
    -------
    ndarray of Axes, shape (2,)
    """
    figure = new_figure(7.6, 3.3)
    grid = panel_grid(figure, 2, 2)
    left, right = grid
    shades = layer_shades(sorted(quality["layer"].unique()))
    marks = {w: _MARKS[i % len(_MARKS)] for i, w in enumerate(sorted(quality["width"].unique()))}
    one_l0 = len(quality) > 1 and quality["l0"].max() <= _SAME * quality["l0"].min()
    x = "width" if one_l0 else "l0"
    for layer, colour in shades.items():
        part = quality[quality["layer"] == layer].sort_values(["width", "l0"])
        for _, line in [(0, part)] if one_l0 else part.groupby("width"):
            left.plot(line[x], line["fvu"], color=colour, linewidth=0.9, alpha=0.7)
        _points(left, part, (x, "fvu"), marks, colour)
        known = part[part["ce_recovered"].notna()]
        if len(known):
            right.plot(known["width"], known["ce_recovered"], color=colour, linewidth=0.9, alpha=0.7)
            _points(right, known, ("width", "ce_recovered"), marks, colour)
    left.set(ylabel="variance unexplained (FVU, 0 to 1)", ylim=(0, 1.08 * float(quality["fvu"].max())))
    if one_l0:
        _widths(left, list(marks))
        left.set_title(f"L0 of all: {quality['l0'].mean():.3g} active latents per token", fontsize=8)
    else:
        left.set(xlabel="active latents per token (L0)", xlim=(0, None))
    right.set(ylabel="loss recovered (1: all of it)")
    _widths(right, list(marks))
    if quality["ce_recovered"].isna().all():
        right.text(0.5, 0.5, "not measured", ha="center", va="center", fontsize=8, transform=right.transAxes)
    for axes in grid:
        axes.tick_params(labelsize=7)
        axes.xaxis.label.set_size(8)
        axes.yaxis.label.set_size(8)
        axes.grid(alpha=0.2)
        axes.spines[["top", "right"]].set_visible(False)
    _legend(figure, shades, marks)
    return grid


def _points(axes: Axes, part: pd.DataFrame, columns: tuple[str, str], marks: dict[int, str], colour: Any) -> None:
    """Draw a marker for each SAE, with the interval of the loss recovered."""
    x, y = columns
    for row in part.to_dict("records"):
        low, high = (row.get(f"{y}_{end}", np.nan) for end in ("low", "high"))
        bounds = np.nan_to_num([[row[y] - low], [high - row[y]]], nan=0.0).clip(0.0)
        style: Any = {"color": colour, "markersize": 5, "linewidth": 1.1, "capsize": 2 if bounds.any() else 0}
        axes.errorbar(row[x], row[y], yerr=bounds, fmt=marks[row["width"]], **style)


def _widths(axes: Axes, widths: list[int]) -> None:
    """Put an axis of widths below a panel."""
    axes.set(xscale="log", xlabel="width (latents)")
    axes.set_xticks(widths, [f"{w:,}" for w in widths])
    axes.minorticks_off()
    axes.set_xlim(widths[0] / 1.6, widths[-1] * 1.6)


def _legend(figure: Any, shades: dict[int, Any], marks: dict[int, str]) -> None:
    from matplotlib.lines import Line2D

    handles = [Line2D([], [], color=colour, linewidth=2, label=f"layer {layer}") for layer, colour in shades.items()]
    handles += [
        Line2D([], [], color="#666666", marker=mark, linestyle="", markersize=5, label=f"width {width:,}")
        for width, mark in marks.items()
    ]
    figure.legend(handles=handles, fontsize=7, frameon=False, ncols=6, loc="outside lower center")
