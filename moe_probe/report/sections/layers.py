"""Sections on layers: how evenly experts are used, what routing says about topics, which experts are selected together."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from moe_probe.report import svg
from moe_probe.report.cells import number, probability, table_of
from moe_probe.report.content import Block, Picture, Section
from moe_probe.report.plots import routing as plots
from moe_probe.report.plots.panels import load_panel

if TYPE_CHECKING:
    import pandas as pd

    from moe_probe.core.results import Result

_ROWS = 10
#: Tokens of a pair of experts from which on it is listed.
_SEEN = 50


def layers_section(results: Mapping[str, Result]) -> Section:
    """Show load, evenness and what routing says about topics, layer by layer."""
    result = results["layers"]
    table = result.table
    low, high = table["effective_experts"].min(), table["effective_experts"].max()
    alpha = results["expert_topics"].params.get("alpha", 0.05) if "expert_topics" in results else 0.05
    passing = table[table["mi_topic_p"] <= alpha]
    untested = table["mi_topic_p"].isna().all()
    depends = f"routing depends on the topic in {len(passing)} of {len(table)} layers"
    finding = (
        f"The effective number of experts of a layer lies between {number(float(low), 1)} and {number(float(high), 1)}; "
        f"{'whether routing depends on the topic cannot be tested' if untested else depends}."
    )
    profile = Picture(
        "layers",
        plots.layer_profile(table),
        finding,
        "Evenness of use, topic information, and decoding accuracy, layer by layer. Compare each line with that of shuffled "
        "topics.",
    )
    measures = table_of(
        table,
        {
            "layer": "layer",
            "entropy (bits)": ("entropy_bits", 2),
            "effective experts": ("effective_experts", 2),
            "load CV": ("load_cv", 2),
            "topic information (bits)": ("mi_topic_bits", 4),
            "shuffled (bits)": ("mi_topic_null_bits", 4),
            "p": ("mi_topic_p", probability),
            "topic decoded": ("decode_accuracy", 2),
            "decoded, shuffled": ("decode_baseline", 2),
        },
        heading="Layers",
        note=two_measures(results),
    )
    return Section(
        title="How are experts used, layer by layer?",
        finding=finding,
        blocks=(*([_load(results["experts"].table)] if "experts" in results else []), profile, measures),
        how=f"{result.caption} Effective experts: number of equally loaded experts with the same entropy. Topic information: "
        "what one selection says about the topic, minus the mean under shuffled topics. Topic decoded: share of held-out "
        "documents whose topic is decoded correctly from the document's shares of all experts of the layer.",
        limits="Bits per selection can be small although a document's many selections together reveal its topic; compare both "
        "columns. The load is of this corpus, not of the training data.",
    )


def two_measures(results: Mapping[str, Result]) -> str:
    """Say why the topic's bits differ between two sections; "" where the run has one of them only.

    Parameters
    ----------
    results : mapping of str to Result

    Returns
    -------
    str
    """
    if not {"layers", "explained"} <= set(results):
        return ""
    explained = results["explained"].table
    saved = explained[(explained["order"] == "alone") & (explained["factor"] == "topic")]["bits"].mean()
    information = results["layers"].table["mi_topic_bits"].mean()
    return (
        f"Two measures of the topic, averaged over layers: topic information {number(float(information), 3)} bits, bits saved "
        f"by the topic {number(float(saved), 3)}. Topic information describes all documents. Bits saved are what a prediction "
        "gains on held-out documents."
    )


def _load(experts: pd.DataFrame) -> Picture:
    panel, scale = load_panel(experts)
    top = panel.cells.loc[panel.cells["value"].idxmax()]
    finding = (
        f"Layer {int(top['layer'])}, expert {int(top['expert'])} has the largest load: {number(float(top['value']), 1)} "
        f"times an even share; {int((experts['load'] == 0).sum())} experts are never selected."
    )
    inline = ""
    if len(experts) <= svg.MOST_MARKS:
        drawing = svg.heat(panel, scale, _load_tip, size=max(16, min(34, 900 // panel.width)))
        inline = svg.side_by_side([drawing], svg.colour_bar(scale, ("0", f"{scale.high:.1f}"), "load over an even share"))
    return Picture(
        "load",
        plots.load_heatmap(experts),
        finding,
        "How often each expert (columns) of each layer (rows) is selected, relative to an even share (1). A cross marks an "
        "expert never selected; loads of another corpus may differ.",
        inline=inline,
    )


def _load_tip(cell: Mapping[Any, Any]) -> str:
    by = f"; explained by {cell['explained_by']}" if cell.get("explained_by") else ""
    return (
        f"layer {int(cell['layer'])}, expert {int(cell['expert'])}: {cell['load']:.1%} of selections, {cell['value']:.2f} "
        f"times an even share{by}"
    )


def _chosen(table: pd.DataFrame) -> str:
    shown, n = plots.pair_layers(table), table["layer"].nunique()
    return f" The {len(shown)} of {n} layers where pairs differ most are shown." if len(shown) < n else ""


def coactivation_section(results: Mapping[str, Result]) -> Section:
    """Show pairs of experts that are selected for the same tokens."""
    result = results["coactivation"]
    table = result.table
    pairs = table[(table["expert_a"] < table["expert_b"]) & (table["tokens"] > 0)]
    title = "Which experts work together?"
    if pairs.empty:
        return Section(title=title, finding="Each token goes to one expert: there are no pairs.", how=result.caption)
    if not plots.pair_layers(table):
        return Section(title=title, finding="Too few tokens: no pair can be compared with chance.", how=result.caption)
    often = pairs[pairs["tokens"] >= _SEEN].sort_values("lift", ascending=False, kind="stable").head(_ROWS)
    finding = f"No pair of experts is selected for the same token in {_SEEN} tokens or more."
    if len(often):
        top = often.iloc[0]
        finding = (
            f"Experts {int(top['expert_a'])} and {int(top['expert_b'])} of layer {int(top['layer'])} are selected "
            f"together {number(float(top['lift']), 1)} times as often as independent selections would be."
        )
    blocks: list[Block] = [
        Picture(
            "coactivation",
            plots.coactivation_heatmap(table),
            finding,
            "Tokens for which both experts of a pair are selected, over the number expected from independent selections. "
            f"Log2: 0 is chance; colours end at a factor of 8; grey: an expert with itself.{_chosen(table)}",
        )
    ]
    if len(often):
        blocks.append(
            table_of(
                often,
                {
                    "layer": "layer",
                    "experts": lambda row: f"{row['expert_a']} and {row['expert_b']}",
                    "tokens": ("tokens", ","),
                    "times expected": ("lift", 2),
                },
                heading="Pairs furthest above chance",
                note=f"The {_ROWS} pairs furthest above chance, of those seen in at least {_SEEN} tokens.",
            )
        )
    return Section(
        title=title,
        finding=finding,
        blocks=tuple(blocks),
        how=result.caption,
        limits="A fixed top-k alone makes experts avoid each other a little: values below 0 are expected and are no finding.",
    )
