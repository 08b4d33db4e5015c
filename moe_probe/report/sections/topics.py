"""The section on experts and topics: a map of the model for every topic."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from moe_probe.report import svg
from moe_probe.report.cells import lift_text, probability, table_of, yes_no
from moe_probe.report.content import Block, Picture, Section
from moe_probe.report.plots import maps as plots_maps
from moe_probe.report.plots import routing as plots
from moe_probe.report.plots.panels import ColourScale, lift_panels, lift_scale, tested

if TYPE_CHECKING:
    import pandas as pd

    from moe_probe.core.results import Result

_ROWS = 40


def topics_section(results: Mapping[str, Result]) -> Section:
    """Show which experts are used more for which topic, over all layers."""
    result = results["expert_topics"]
    table = result.table
    claimed = table[table["significant"] & (table["log2_lift"] > 0)]
    if table["q_value"].isna().all():
        finding = f"None of {len(table):,} pairs of expert and topic can be tested; lifts are shown without intervals."
    else:
        finding = _finding(claimed, len(table))
    scale = lift_scale(table)
    blocks: list[Block] = [_by_topic(table, scale, finding), _one_layer(table, scale)]
    if len(claimed):
        strong = claimed.sort_values("log2_lift", ascending=False, kind="stable").head(_ROWS)
        blocks.append(
            table_of(
                strong,
                {
                    "layer": "layer",
                    "expert": "expert",
                    "topic": "topic",
                    "lift [95 %]": lift_text,
                    "share of topic": ("share", ".1%"),
                    "p": ("p_value", probability),
                    "q": ("q_value", probability),
                    "replicated": ("replicated", yes_no),
                },
                heading=f"The {len(strong)} strongest of {len(claimed):,} pairs",
                note="All pairs are in results/expert_topics.parquet.",
            )
        )
    return Section(
        title="Which experts are used more for which topic?",
        finding=finding,
        blocks=tuple(blocks),
        how=f"{result.caption} {_signs(table)}",
        limits="Experts of one layer share the selections: a rise of one is a fall of others. Claims about experts of one layer "
        "are not independent findings.",
    )


def _finding(claimed: pd.DataFrame, n_pairs: int) -> str:
    """Count the pairs that are significant, and name the strongest."""
    finding = (
        f"{len(claimed):,} of {n_pairs:,} pairs of expert and topic are used together more than chance allows; "
        f"{int(claimed['replicated'].sum()):,} of them are replicated on held-out documents."
    )
    if len(claimed):
        top = claimed.loc[claimed["log2_lift"].idxmax()]
        finding += (
            f" Strongest: layer {int(top['layer'])}, expert {int(top['expert'])} for {top['topic']}, lift "
            f"{lift_text(top)}, q {probability(top['q_value'])}."
        )
    return finding


def _signs(table: pd.DataFrame) -> str:
    """Say what colours and signs of the figures do not mean."""
    return "Figures: the colour of a pale pair may be noise." if tested(table) else ""


def _by_topic(table: pd.DataFrame, scale: ColourScale, finding: str) -> Picture:
    topics = plots_maps.shown_topics(table)
    small = len(table[table["topic"].isin(topics)]) <= svg.MOST_MARKS
    n_topics = table["topic"].nunique()
    which = f"the {len(topics)} topics whose experts stand out most" if n_topics > len(topics) else "every topic"
    ends = f"{2**scale.low:.2f}× or less", f"{2**scale.high:.2f}× or more"
    pale = "; pale: not significant" if tested(table) else ""
    signs = (
        "; dot: significant and above average; star: also replicated" if small or plots_maps.panel_size(table).sign else ""
    )
    inline = ""
    if small:
        panels = lift_panels(table, panel="topic", row="layer", shown=topics)
        bar = svg.colour_bar(scale, ends, f"lift; middle: an average topic{pale}")
        inline = svg.side_by_side([svg.heat(panel, scale, _lift_tip) for panel in panels], bar)
    return Picture(
        "topic_panels",
        plots_maps.topic_panels(table, topics=topics),
        finding,
        f"Lift of every expert (columns) in every layer (rows), one map for {which}. Orange: above an average topic; blue: "
        f"below; colours end at {2**scale.low:.2f}× and {2**scale.high:.2f}×{pale}{signs}."
        + (" Point at a cell for its numbers." if small else ""),
        inline=inline,
    )


def _lift_tip(cell: Mapping[Any, Any]) -> str:
    return (
        f"{cell['topic']}: layer {int(cell['layer'])}, expert {int(cell['expert'])}. Lift {lift_text(cell)}, q "
        f"{probability(cell['q_value'])}, {cell['share']:.1%} of the topic's selections"
    )


def _one_layer(table: pd.DataFrame, scale: ColourScale) -> Picture:
    """Draw the layer where lifts differ most, topics by experts."""
    layer = plots.topical_layer(table)
    part = table[table["layer"] == layer]
    claimed = part[part["significant"] & part["replicated"] & (part["log2_lift"] > 0)]
    shared = claimed.groupby("expert")["topic"].nunique()
    finding = (
        f"In layer {layer}, where lifts differ most, {int((shared == 1).sum())} experts stand out for one topic and "
        f"{int((shared > 1).sum())} for several."
    )
    if table["q_value"].isna().all():
        finding = f"Lifts differ most in layer {layer}; none of them can be tested."
    inline = ""
    if part["expert"].nunique() <= 64 and len(part) <= svg.MOST_MARKS / 2:
        (panel,) = lift_panels(part, panel="layer", row="topic", shown=[layer])
        inline = svg.side_by_side([svg.heat(panel, scale, _lift_tip, size=24 if panel.width <= 32 else 16)])
    return Picture(
        "expert_topics",
        plots.topic_heatmap(table, layers=[layer]),
        finding,
        f"{finding} One row per topic, one column per expert; signs and colours as above. A column with several stars is an "
        "expert that topics share.",
        inline=inline,
    )
