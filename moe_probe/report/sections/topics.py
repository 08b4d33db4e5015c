"""The section on experts and topics: a map of the model for every topic."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from moe_probe.report import svg
from moe_probe.report.content import Block, Picture, Section, Table, lift_text, number, probability
from moe_probe.report.plots import maps as plots_maps
from moe_probe.report.plots import routing as plots

if TYPE_CHECKING:
    import pandas as pd

    from moe_probe.core.results import Result

_ROWS = 40
#: Topics drawn; of more, those whose experts stand out most.
_TOPICS = 24


def topics_section(results: Mapping[str, Result]) -> Section:
    """Show which experts are used more for which topic, over all layers."""
    result = results["expert_topics"]
    table = result.table
    claimed = table[table["significant"] & (table["log2_lift"] > 0)]
    again = int(claimed["replicated"].sum())
    finding = (
        f"{len(claimed):,} of {len(table):,} pairs of expert and topic go together more than chance allows; {again:,} of "
        "them were found again on held-out documents"
    )
    if len(claimed):
        top = claimed.loc[claimed["log2_lift"].idxmax()]
        finding += (
            f". Strongest: layer {int(top['layer'])}, expert {int(top['expert'])} for {top['topic']}, lift "
            f"{lift_text(top)}, q {probability(top['q_value'])}"
        )
    blocks: list[Block] = [_picture(table, finding + ".")]
    blocks.append(_turned(table))
    strong = claimed.sort_values("log2_lift", ascending=False, kind="stable").head(_ROWS)
    if len(strong):
        rows = tuple(
            (
                str(int(r["layer"])),
                str(int(r["expert"])),
                str(r["topic"]),
                lift_text(r),
                f"{r['share']:.1%}",
                probability(r["p_value"]),
                probability(r["q_value"]),
                "yes" if r["replicated"] else "no",
            )
            for _, r in strong.iterrows()
        )
        blocks.append(
            Table(
                ("layer", "expert", "topic", "lift [95 %]", "share of topic", "p", "q", "replicated"),
                rows,
                heading=f"The {len(rows)} strongest of {len(claimed):,} pairs",
                note="All pairs are in results/expert_topics.parquet.",
            )
        )
    return Section(
        title="Which experts are used more for which topic?",
        finding=finding + ".",
        blocks=tuple(blocks),
        how=result.caption,
        limits="Experts of one layer share the selections, so that a rise of one is a fall of others: "
        "neighbouring claims are not independent findings.",
    )


def _picture(table: pd.DataFrame, finding: str) -> Picture:
    topics = sorted(table["topic"].unique())
    shown = "every topic"
    if len(topics) > _TOPICS:
        strength = table.groupby("topic")["log2_lift"].var()
        topics = sorted(strength.nlargest(_TOPICS).index)
        shown = f"the {_TOPICS} topics whose experts stand out most"
    limit = plots_maps.lift_limit(table)
    small = len(table[table["topic"].isin(topics)]) <= svg.MOST_MARKS
    ends = f"{2**-limit:.2f}× or less", f"{2**limit:.2f}× or more"
    per_topic = len(table) / table["topic"].nunique()
    signs = (
        "Pairs that are not significant are left white."
        if per_topic > plots_maps.MOST_CELLS and not small
        else "A dot: significant and above average; a star: found again on held-out documents. The colour of a pair without a "
        "sign may be noise."
    ) + (" Point at a cell for its numbers." if small else "")
    return Picture(
        "topic_panels",
        plots_maps.topic_panels(table, topics=topics),
        finding,
        f"The whole model, once for {shown}: a row a layer, a column an expert. Orange: used more than for an average topic, "
        f"blue: less; colours end at {ends[0]} and {ends[1]} (log2 lift of {number(limit, 1)}). {signs}",
        inline=_inline(table, topics, limit, ends) if small else "",
    )


def _inline(table: pd.DataFrame, topics: list[str], limit: float, ends: tuple[str, str]) -> str:
    layers = sorted(int(x) for x in table["layer"].unique())
    place = {layer: i for i, layer in enumerate(layers)}
    drawings = []
    for topic in topics:
        cells = _Cells(layers, int(table["expert"].max()) + 1, limit)
        for row in table[table["topic"] == topic].to_dict("records"):
            cells.fill(place[int(row["layer"])], row)
        drawings.append(cells.draw(topic))
    return svg.panels(drawings, further=svg.scale(ends[0], "an average topic", ends[1], "lift"))


class _Cells:
    """Cells of a heat map of log2 lift: a column an expert."""

    def __init__(self, rows: Sequence[Any], width: int, limit: float) -> None:
        self.rows, self.limit = rows, limit
        self.values = np.full((len(rows), width), np.nan)
        self.tips = [[""] * width for _ in rows]
        self.signs = [[""] * width for _ in rows]

    def fill(self, i: int, row: Mapping[Any, Any]) -> None:
        """Put a row of ``expert_topics`` into row `i` of the drawing."""
        j = int(row["expert"])
        if not np.isnan(row["log2_lift"]):
            self.values[i, j] = np.clip(0.5 + row["log2_lift"] / (2 * self.limit), 0, 1)
        self.tips[i][j] = (
            f"{row['topic']}: layer {int(row['layer'])}, expert {j}. Lift {lift_text(row)}, q "
            f"{probability(row['q_value'])}, {row['share']:.1%} of the topic's selections"
        )
        if row["significant"] and row["log2_lift"] > 0:
            self.signs[i][j] = "★" if row["replicated"] else "•"

    def draw(self, title: str, *, size: int = 16) -> str:
        """The drawing."""
        return svg.heat(
            self.values, self.tips, rows=self.rows, title=title, colours=plots_maps.DIVERGING, signs=self.signs, size=size
        )


def _turned(table: pd.DataFrame) -> Picture:
    """The layer where lifts differ most, topics by experts."""
    layer = int(table.groupby("layer")["log2_lift"].var().idxmax())
    part = table[table["layer"] == layer]
    shown = part["expert"].nunique() <= 64 and len(part) <= svg.MOST_MARKS / 2
    claimed = part[part["significant"] & part["replicated"] & (part["log2_lift"] > 0)]
    shared = claimed.groupby("expert")["topic"].nunique()
    finding = (
        f"In layer {layer}, where lifts differ most, {int((shared == 1).sum())} experts stand out for one topic and "
        f"{int((shared > 1).sum())} for several."
    )
    return Picture(
        "expert_topics",
        plots.topic_heatmap(table, layers=[layer]),
        finding,
        f"{finding} A row a topic, a column an expert; signs and colours as above. A column with one star is an expert of one "
        "topic; with several, one that topics share.",
        inline=_turned_inline(part, layer, plots_maps.lift_limit(table)) if shown else "",
    )


def _turned_inline(part: pd.DataFrame, layer: int, limit: float) -> str:
    topics = sorted(part["topic"].unique())
    cells = _Cells(topics, int(part["expert"].max()) + 1, limit)
    for row in part.to_dict("records"):
        cells.fill(topics.index(row["topic"]), row)
    return svg.panels([cells.draw(f"layer {layer}", size=24 if cells.values.shape[1] <= 32 else 16)])
