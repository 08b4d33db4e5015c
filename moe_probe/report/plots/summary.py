"""The answer as one picture: every topic's lift with its interval, coloured by the verdict."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from moe_probe.report.plots.drawing import SMALL, figure_of, new_axes, safe
from moe_probe.studies.verdicts import UNTESTED, WEAK, grades

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes

#: Kind of answer: colour, marker, and what the legend calls it. Colours after Okabe and Ito; shapes differ as well.
ANSWERS = {
    "expert": ("#0072b2", "o", "has an expert"),
    "group": ("#009e73", "s", "has a group of experts"),
    "feature only": ("#cc79a7", "^", "has a feature, no expert"),
    "weak": ("#8a6d00", "D", "real but too small"),
    "none": ("#8c8c8c", "o", "no expert found"),
    "untested": ("#c4c4c4", "x", "not tested"),
}


def verdict_lifts(table: pd.DataFrame, *, min_log2_lift: float = 1.0, ax: Axes | None = None) -> Axes:
    """Draw the lift of every topic's expert, group or nearest candidate, with its 95 % interval, coloured by verdict.

    Parameters
    ----------
    table : pandas.DataFrame
        Result ``verdicts``: ``topic, verdict, grade, log2_lift, ci_low, ci_high``.
    min_log2_lift : float
        The threshold, which is drawn; it is in the result's ``params``.
    ax : Axes, optional
        Where to draw; a new figure by default.

    Returns
    -------
    Axes
        The lift is on a logarithmic axis; topics with the largest are at the top.
    """
    kind = answer_kinds(table)
    table = table.assign(kind=kind).sort_values("log2_lift", na_position="first", kind="stable")
    axes = new_axes(7.2, 1.5 + 0.3 * len(table)) if ax is None else ax
    for y, row in enumerate(table.to_dict("records")):
        colour, marker, _ = ANSWERS[row["kind"]]
        value, low, high = (float(row[name]) for name in ("log2_lift", "ci_low", "ci_high"))
        if not np.isfinite(value):
            axes.text(0.02, y, "not tested", va="center", fontsize=7, color="#666666", transform=axes.get_yaxis_transform())
            continue
        bounds = np.nan_to_num([[value - low], [high - value]], nan=0.0).clip(0.0)
        style: Any = {"color": colour, "markersize": 5, "linewidth": 1.6}
        axes.errorbar(value, y, xerr=bounds, fmt=marker, **style)
    _frame(axes, table, min_log2_lift)
    _legend(axes, table["kind"], own=ax is None)
    return axes


def answer_kinds(table: pd.DataFrame) -> pd.Series:
    """Name the kind of answer of every topic: a key of `ANSWERS`.

    Parameters
    ----------
    table : pandas.DataFrame
        Result ``verdicts``.

    Returns
    -------
    pandas.Series of str
        The verdict; where that is "none", "weak" for an effect that is real but small, "untested" where nothing was tested.
    """
    grade, none = grades(table), table["verdict"] == "none"
    kind = table["verdict"].where(~(none & (grade == WEAK)), "weak")
    return kind.where(~(none & (grade == UNTESTED)), "untested")


def by_answer(table: pd.DataFrame) -> pd.DataFrame:
    """Order topics by their answers: clearest kind first, within a kind the largest lift first.

    Parameters
    ----------
    table : pandas.DataFrame
        Result ``verdicts``.

    Returns
    -------
    pandas.DataFrame
    """
    rank = answer_kinds(table).map(list(ANSWERS).index)
    order = table.assign(_rank=rank).sort_values(["_rank", "log2_lift"], ascending=[True, False], kind="stable").index
    return table.loc[order]


def _frame(axes: Axes, table: pd.DataFrame, threshold: float) -> None:
    """Lines at no difference and at the threshold, names of the topics, and a scale in times."""
    axes.axvline(0, color="#444444", linewidth=0.8)
    axes.axvline(threshold, color="#444444", linewidth=1.0, linestyle="--")
    known = table[["log2_lift", "ci_low", "ci_high"]].to_numpy(dtype=float)
    known = known[np.isfinite(known)]
    low = min(-0.5, float(known.min()) - 0.1) if len(known) else -0.5
    high = max(threshold + 0.5, float(known.max()) + 0.1) if len(known) else threshold + 0.5
    axes.set_xlim(low, high)
    ticks = np.arange(np.ceil(low), np.floor(high) + 1)
    axes.set_xticks(ticks, [f"{2.0**t:g}×" for t in ticks], fontsize=8)
    axes.set_ylim(-0.7, len(table) - 0.3)
    axes.set_yticks(range(len(table)), [safe(topic) for topic in table["topic"]], fontsize=8)
    axes.annotate(
        f"needed: {2**threshold:.3g}×",
        (threshold, 1.0),
        xycoords=("data", "axes fraction"),
        xytext=(0, 3),
        textcoords="offset points",
        ha="center",
        fontsize=7,
    )
    axes.set_xlabel("lift over an average topic (95 % interval)", **SMALL)
    axes.grid(axis="x", alpha=0.25)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.tick_params(axis="y", length=0)


def _legend(axes: Axes, kinds: pd.Series, *, own: bool) -> None:
    from matplotlib.lines import Line2D

    shown = [(*ANSWERS[kind], int((kinds == kind).sum())) for kind in ANSWERS if (kinds == kind).any()]
    handles = [
        Line2D([], [], color=colour, marker=marker, linestyle="", markersize=5, label=f"{name} ({n})")
        for colour, marker, name, n in shown
    ]
    style: Any = {"handles": handles, "fontsize": 7, "frameon": False}
    if own:  # the figure makes room for it
        figure_of(axes).legend(**style, ncols=3, loc="outside lower center")
    else:  # the smallest lifts are at the bottom: there is room beside them
        axes.legend(**style, loc="lower right")
