"""The figure of the table of models: how much routing depends on the topic, against the number of experts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from moe_probe.core.schema import Evidence
from moe_probe.core.text import clipped, listed
from moe_probe.report.plots.drawing import SMALL, new_figure, safe
from moe_probe.studies.models_table.cells import corpus_name, titles

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from moe_probe.studies.models_table import ModelRow

#: Colours of corpora, told apart by colour-blind eyes (Okabe and Ito 2008), dark ones first.
_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#000000", "#e69f00", "#56b4e9", "#8c6d00")
#: Markers of levels of evidence.
_MARKS = {Evidence.WORDS: "o", Evidence.TOKENS: "s", Evidence.DOCUMENTS: "D", Evidence.COUNTS: "X"}
#: Factor between models with one number of experts, drawn side by side.
_ASIDE = 1.11
#: Points between the names of two models.
_LINE = 10.0
#: Letters of a corpus's name.
_NAME = 60
#: Ticks of the square-root axes, as far as they reach.
_TICKS = {
    "bits": (0, 0.01, 0.05, 0.1, 0.2, 0.3, 0.4, 0.6, 0.8, 1, 1.5, 2, 3),
    "share": (0, 0.2, 1, 2, 5, 10, 15, 20, 30, 40, 60, 80, 100),
}


def topic_information(rows: Sequence[ModelRow]) -> Figure:
    """Draw bits of topic per selection, and their share of the largest possible, against experts per layer.

    The upright axes are of square roots, so that models with few experts can be told apart and zero has a place.

    Parameters
    ----------
    rows : sequence of ModelRow
        Rows without a null (summed counts) are named below the panels and not drawn.

    Returns
    -------
    Figure
        Two panels, 800 pixels wide at 100 dpi. Markers: mean over layers; lines: range over layers; short grey lines: null.
    """
    figure = new_figure(8.0, 4.3, shown=False)
    left, right = figure.subplots(1, 2)
    drawn = [i for i, row in enumerate(rows) if row.information.mean is not None]
    colours = _colours([rows[i] for i in drawn])
    x = _beside([max(rows[i].experts) for i in drawn])
    names = [safe(titles(rows)[i]) for i in drawn]
    kept = [rows[i] for i in drawn]
    for axes, part in ((left, "bits"), (right, "share")):
        for at, row in zip(x, kept, strict=True):
            _marker(axes, at, row, colours[row.corpus.documents_hash], part=part)
        _frame(axes, [max(row.experts) for row in kept])
        _height(axes, [_value(row, part) for row in kept], _TICKS[part])
    left.set_ylabel("bits of topic per selection (square-root axis)", **SMALL)
    right.set_ylabel("% of the largest possible (square-root axis)", **SMALL)
    _legend(figure, kept, colours)
    left_out = [safe(title) for i, title in enumerate(titles(rows)) if i not in drawn]
    if left_out:
        figure.supxlabel(f"Not testable, so not drawn: {listed(left_out, 6)}", fontsize=7.5)
    for axes, part in ((left, "bits"), (right, "share")):
        _names(figure, axes, x, [_value(row, part)[0] for row in kept], names)
    return figure


def _colours(rows: Sequence[ModelRow]) -> dict[str, str]:
    """Return a colour for the documents of every row; of more corpora than colours, these begin again."""
    known = list(dict.fromkeys(row.corpus.documents_hash for row in rows))
    return {name: _COLOURS[i % len(_COLOURS)] for i, name in enumerate(known)}


def _beside(experts: Sequence[int]) -> np.ndarray:
    """Position of every row: its number of experts, rows of one number side by side."""
    out = np.empty(len(experts))
    for n in set(experts):
        same = [i for i, other in enumerate(experts) if other == n]
        out[same] = n * _ASIDE ** (np.arange(len(same)) - (len(same) - 1) / 2)
    return out


def _value(row: ModelRow, part: str) -> tuple[float, float, float, float]:
    """Mean, lowest and highest layer, and null."""
    i = row.information
    if part == "bits":
        return _known(i.mean), _known(i.smallest), _known(i.largest), _known(i.null)
    mean, low, high, null = (100 * _known(v) for v in (i.share_mean, i.share_smallest, i.share_largest, i.share_null))
    return mean, low, high, null


def _known(value: float | None) -> float:
    return np.nan if value is None else value


def _marker(axes: Axes, x: float, row: ModelRow, colour: str, *, part: str) -> None:
    mean, low, high, null = _value(row, part)
    axes.vlines(x, low, high, color=colour, linewidth=1.6, alpha=0.75)
    axes.plot([x], [mean], _MARKS[row.evidence], color=colour, markersize=7, markeredgecolor="white", markeredgewidth=0.8)
    axes.hlines(null, x / 1.07, x * 1.07, color="#7a828c", linewidth=1.8)


def _frame(axes: Axes, experts: Sequence[int]) -> None:
    axes.set_xscale("log", base=2)
    low, high = (min(experts), max(experts)) if experts else (8, 8)
    ticks = [2**k for k in range(int(np.floor(np.log2(low))), int(np.ceil(np.log2(high))) + 1)]
    axes.set_xlim(ticks[0] / 1.6, ticks[-1] * 2.2)
    axes.set_xticks(ticks, [str(t) for t in ticks], fontsize=8)
    axes.minorticks_off()
    axes.set_xlabel("experts per layer", **SMALL)
    axes.tick_params(labelsize=8)
    axes.axhline(0, color="#c4cbd4", linewidth=0.8, zorder=0)
    axes.grid(alpha=0.25, axis="y")
    axes.spines[["top", "right"]].set_visible(False)


def _height(axes: Axes, values: Sequence[tuple[float, ...]], ticks: Sequence[float]) -> None:
    """Scale the upright axis by signed square roots, from a little below zero to a little above the largest value."""
    known = [v for row in values for v in row if np.isfinite(v)]
    high, low = max([*known, ticks[1]]), min([*known, 0.0])
    axes.set_yscale("function", functions=(lambda v: np.sign(v) * np.sqrt(np.abs(v)), lambda v: np.sign(v) * np.square(v)))
    axes.set_ylim(low - 0.003 * high, 1.12 * high)
    shown = [tick for tick in ticks if tick <= 1.12 * high]
    axes.set_yticks(shown, [f"{tick:g}" for tick in shown], fontsize=8)
    axes.minorticks_off()


def _legend(figure: Figure, rows: Sequence[ModelRow], colours: dict[str, str]) -> None:
    from matplotlib.lines import Line2D

    plain: dict[str, Any] = {"linestyle": "", "markersize": 6}
    named = {row.corpus.documents_hash: f"{clipped(corpus_name(row), _NAME)}, by {row.corpus.label}" for row in rows}
    handles = [Line2D([], [], marker="o", color=colours[key], label=safe(name), **plain) for key, name in named.items()]
    levels = [level for level in _MARKS if level in {row.evidence for row in rows}]
    handles += [Line2D([], [], marker=_MARKS[level], color="#5b6470", label=level.value, **plain) for level in levels]
    handles.append(Line2D([], [], color="#7a828c", linewidth=1.8, label="null: topics permuted"))
    columns = 1 if any(len(name) > _NAME // 2 for name in named.values()) else 2
    figure.legend(handles=handles, fontsize=7.5, frameon=False, ncols=max(columns, 2), loc="outside upper left")


def _names(figure: Figure, axes: Axes, x: np.ndarray, y: Sequence[float], names: Sequence[str]) -> None:
    """Write names beside markers; those of markers that lie close together are moved apart."""
    from matplotlib.patheffects import withStroke

    figure.draw_without_rendering()  # the scales are final only then
    places = axes.transData.transform(np.column_stack([x, y])) * 72 / figure.dpi if len(x) else np.empty((0, 2))
    taken: list[tuple[float, float]] = []
    for i in np.argsort(places[:, 1], kind="stable"):
        across, up = places[i]
        for other_across, other_up in taken:
            if abs(across - other_across) < 6 * len(names[i]) and up < other_up + _LINE:
                up = other_up + _LINE
        taken.append((across, up))
        axes.annotate(
            names[i],
            (float(x[i]), y[i]),
            xytext=(7, float(up - places[i, 1])),
            textcoords="offset points",
            fontsize=8,
            va="center",
            path_effects=[withStroke(linewidth=2.5, foreground="white")],  # lines of other models pass behind
        )
