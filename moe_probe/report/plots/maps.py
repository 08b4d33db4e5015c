"""Figures of many small maps: experts over layers, topic by topic, and units in the plane."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from moe_probe.core.text import printable
from moe_probe.report.plots.drawing import SMALL, colour_bar, layer_ticks, new_figure, panel_grid, with_note
from moe_probe.report.plots.panels import draw_heat, draw_points, lift_panels, lift_scale, map_panels

if TYPE_CHECKING:
    import pandas as pd

#: Topics drawn at most, and the height that their panels may fill, in inches.
MOST_TOPICS, _HEIGHT = 24, 33.0
#: Inches that panels side by side share, and those of a title.
_WIDTH, _TITLE = 9.4, 0.4
#: Panels side by side, by experts up to which there are as many.
_COLUMNS = ((16, 4), (40, 3), (72, 2))
#: Below this width or height, in points, a cell has no room for a sign.
_ROOM = 3.5
#: Labels that a legend names.
_NAMES = 30


class PanelSize(NamedTuple):
    """How the maps of topics are laid out: panels side by side, height of a panel, largest sign in points (0: none)."""

    columns: int
    height: float
    sign: float

    @property
    def most(self) -> int:
        """Topics for which there is room."""
        return max(1, min(MOST_TOPICS, int(_HEIGHT / (self.height + _TITLE)) * self.columns))


def panel_size(expert_topics: pd.DataFrame) -> PanelSize:
    """Choose the size of a map of all layers and experts, so that its cells can be seen.

    Parameters
    ----------
    expert_topics : pandas.DataFrame
        Result ``expert_topics``.

    Returns
    -------
    PanelSize
    """
    n_layers, n_experts = expert_topics["layer"].nunique(), int(expert_topics["expert"].max()) + 1
    columns = next((n for most, n in _COLUMNS if n_experts <= most), 1)
    width = (_WIDTH / columns - 0.2) / n_experts
    height = min(max(width, 0.036), 0.16)
    smallest = 72 * min(width, height)
    return PanelSize(columns, height * n_layers, min(8.0, 0.8 * smallest) if smallest >= _ROOM else 0.0)


def shown_topics(expert_topics: pd.DataFrame) -> list[str]:
    """Choose the topics that are drawn: all, or those whose experts stand out most.

    Parameters
    ----------
    expert_topics : pandas.DataFrame
        Result ``expert_topics``.

    Returns
    -------
    list of str
        In the order of the alphabet.
    """
    strength = expert_topics.groupby("topic")["log2_lift"].var()
    return sorted(strength.nlargest(panel_size(expert_topics).most).index)


def topic_panels(expert_topics: pd.DataFrame, *, topics: Sequence[str] | None = None) -> np.ndarray:
    """Draw log2 lift of every expert (columns) in every layer (rows), one panel per topic.

    Pairs that are not significant are pale. A dot marks what is significant and above average; a star what was replicated
    on held-out documents too. Where cells are too small for signs there are none.

    Parameters
    ----------
    expert_topics : pandas.DataFrame
        Result ``expert_topics``.
    topics : sequence of str, optional
        Topics to draw; those of `shown_topics` by default.

    Returns
    -------
    ndarray of Axes
    """
    topics = shown_topics(expert_topics) if topics is None else topics
    panels, scale = lift_panels(expert_topics, panel="topic", row="layer", shown=topics), lift_scale(expert_topics)
    size, n_topics = panel_size(expert_topics), expert_topics["topic"].nunique()
    columns = min(size.columns, len(topics))
    height = -(-len(topics) // columns) * (size.height + _TITLE) + 0.6
    figure = new_figure(10.5, max(2.4, height))
    grid = panel_grid(figure, len(topics), columns, sharex=True, sharey=True)
    image = None
    for axes, panel in zip(grid, panels, strict=True):
        image = draw_heat(axes, panel, scale, size=size.sign)
        axes.set_title(printable(panel.title), fontsize=8, pad=2)
        axes.tick_params(labelsize=6.5)
        layer_ticks(axes.yaxis, panel.rows, max(4, min(16, int(size.height / 0.16))))
    signs = "; dot: significant and above average; star: also replicated" if size.sign else ""
    figure.supxlabel(with_note("expert", scale.note + signs, 10.5), **SMALL)
    figure.supylabel("layer", **SMALL)
    if len(topics) < n_topics:
        figure.suptitle(f"{len(topics)} of {n_topics} topics", **SMALL)
    colour_bar(image, grid, scale.label, extend="both", **_bar(max(2.4, height)))
    return grid


def _bar(height: float) -> dict[str, Any]:
    """Length of a colour bar beside many panels: three inches, at the top."""
    shrink = min(0.9, max(0.05, 3.0 / height))
    return {"shrink": shrink, "anchor": (0.0, 1.0 if height > 6 else 0.5), "aspect": 20}


def maps(table: pd.DataFrame) -> np.ndarray:
    """Draw experts, documents and tokens in the plane, one panel per kind of unit; colour and shape by label.

    Parameters
    ----------
    table : pandas.DataFrame
        Result ``maps``: ``unit, x, y, label``.

    Returns
    -------
    ndarray of Axes
    """
    panels = map_panels(table)
    figure = new_figure(3.4 * len(panels) + 1.6, 3.4)
    grid = panel_grid(figure, len(panels), len(panels))
    drawn: dict[str, Any] = {}
    for axes, panel in zip(grid, panels, strict=True):
        drawn = draw_points(axes, panel) | drawn
        axes.set_xlabel("UMAP 1 (no unit)", **SMALL)
    grid[0].set_ylabel("UMAP 2 (no unit)", **SMALL)
    names = sorted(drawn)
    more = f"and {len(names) - _NAMES} more" if len(names) > _NAMES else None
    figure.legend(
        [drawn[n] for n in names[:_NAMES]],
        names[:_NAMES],
        title=more,
        title_fontsize=6.5,
        fontsize=6.5,
        frameon=False,
        loc="outside right center",
        markerscale=2,
    )
    return grid
