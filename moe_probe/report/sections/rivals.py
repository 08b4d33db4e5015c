"""Sections on what speaks against topics: words, position, kinds of token, labels other than the topic."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from moe_probe.core.text import listed
from moe_probe.report.cells import lift_cell, number, probability, ranged, table_of
from moe_probe.report.content import Block, Picture, Section, Table
from moe_probe.report.plots import routing as plots
from moe_probe.report.sections.layers import two_measures

if TYPE_CHECKING:
    import pandas as pd

    from moe_probe.core.results import Result

_ROWS = 20


def explained_section(results: Mapping[str, Result]) -> Section:
    """Show how much of the routing the token, the previous token, the position and the topic explain, in both orders."""
    result = results["explained"]
    table = result.table
    alone = table[table["order"] == "alone"].pivot(index="layer", columns="factor", values="bits")
    left = table[table["order"] == "beyond token"].pivot(index="layer", columns="factor", values="bits")
    finding = (
        f"The token alone accounts for {number(float(alone['token'].min()))} to {number(float(alone['token'].max()))} bits "
        f"of each routing decision. The topic accounts for at most {number(float(alone['topic'].max()), 3)} bits; "
        f"{number(float(left['topic'].max()), 3)} are left once the token is known (layer {int(left['topic'].idxmax())})."
    )
    blocks: list[Block] = [
        Picture(
            "explained",
            plots.explained_bars(table),
            finding,
            "Bits of each routing decision that each factor saves after those below it, one bar per layer. The token enters "
            "first on the left, the topic on the right; the truth about a part lies between its two sizes.",
        ),
        _bits(table, alone, left, two_measures(results)),
    ]
    if "experts" in results and "explained_by" in results["experts"].table:
        counts = results["experts"].table["explained_by"].value_counts()
        kinds = listed([f"{kind} {n}" for kind, n in counts.items()])
        blocks.append(
            f"Experts by the factor that explains most alone: {kinds} (of {int(counts.sum())} experts). An expert counts as "
            "explained by the topic only if the topic still adds bits once the token is known."
        )
    if "vocabulary_baseline" in results:
        blocks.append(_baseline(results["vocabulary_baseline"].table))
    return Section(
        title="What are experts mostly about?",
        finding=finding,
        blocks=tuple(blocks),
        how=result.caption,
        limits="A topic's words are part of the topic. The cautious reading gives the token all that token and topic share. "
        "The right-hand figure gives what they share to the topic.",
    )


def _bits(table: pd.DataFrame, alone: pd.DataFrame, left: pd.DataFrame, why: str) -> Table:
    topic = table[(table["order"] == "beyond token") & (table["factor"] == "topic")].set_index("layer")
    frame = alone.assign(
        base=table.groupby("layer")["base_bits"].first(),
        left=topic["bits"],
        left_low=topic["ci_low"],
        left_high=topic["ci_high"],
        sense=left["word sense"],
    )
    return table_of(
        frame.reset_index(),
        {
            "layer": "layer",
            "bits to explain": ("base", 2),
            **{factor: (factor, 3) for factor in ("token", "previous token", "position", "topic")},
            "topic, token known [95 %]": ranged("left", "left", 3),
            "word sense": ("sense", 3),
        },
        heading="Bits by layer",
        note=f"Bits saved per selection, on held-out documents. {why}".strip(),
    )


def _baseline(table: pd.DataFrame) -> str:
    bits = table[table["measure"] == "mi_topic_bits"]
    ratio = (bits["observed"] / bits["random_mean"]).to_numpy()
    above = int((bits["observed"] > bits["random_high"]).sum())
    return (
        "Null: a router that assigns words to experts at random, with the same loads, also follows topics to some extent. "
        f"{above} of {len(bits)} layers follow topics more than 97.5 % of such routers, with "
        f"{number(float(ratio.min()), 1)} to {number(float(ratio.max()), 1)} times their bits."
    )


def classes_section(results: Mapping[str, Result]) -> Section:
    """Show which experts are selected for digits, punctuation, beginnings and ends of words."""
    result = results["expert_token_classes"]
    table = result.table
    strong = table[table["significant"] & (table["ci_low"] > 1)].sort_values("ci_low", ascending=False, kind="stable")
    n_experts = len(table[["layer", "expert"]].drop_duplicates())
    n_specialists = len(strong[["layer", "expert"]].drop_duplicates())
    finding = (
        f"{n_specialists} of {n_experts} experts are selected for some kind of token at least twice as often as for the other "
        "tokens of the same documents."
    )
    blocks: list[Block] = [
        Picture(
            "token_classes",
            plots.token_class_heatmap(table),
            finding,
            "Log2 lift of the expert with the highest lift, whose number is in the cell, for each kind of token (rows) and layer "
            "(columns). 1: twice as often as other tokens of the same documents; pale: not significant.",
        )
    ]
    if len(strong):
        blocks.append(
            table_of(
                strong.groupby("token_class", sort=False).head(3).head(_ROWS),
                {
                    "kind of token": "token_class",
                    "layer": "layer",
                    "expert": "expert",
                    "share of the kind": ("share", ".0%"),
                    "lift [95 %]": lift_cell(digits=1),
                    "q": ("q_value", probability),
                },
                heading="Strongest experts of every kind",
                note="The three strongest experts of every kind; all are in results/expert_token_classes.parquet.",
            )
        )
    return Section(
        title="Which experts serve a kind of token?",
        finding=finding,
        blocks=tuple(blocks),
        how=result.caption,
        limits="The kind is read from the spelling of a token; its meaning in the sentence is not considered.",
    )


def labels_section(results: Mapping[str, Result]) -> Section | None:
    """Show labels other than the topic; None where the corpus has none."""
    result = results["expert_labels"]
    table = result.table
    if table.empty:
        return None
    rows, counts = [], []
    for label, part in table.groupby("label"):
        claimed = part[part["significant"] & part["replicated"] & (part["log2_lift"] > 0)]
        top = claimed.sort_values("ci_low", ascending=False, kind="stable").head(3)
        strongest = [
            f"{r.value}: layer {r.layer} expert {r.expert} ({number(float(2**r.log2_lift), 1)}×)" for r in top.itertuples()
        ]
        untested = bool(part["q_value"].isna().all())
        rows.append(
            (
                str(label),
                str(part["value"].nunique()),
                "not testable" if untested else number(int(part["significant"].sum())),
                "not testable" if untested else number(len(claimed)),
                listed(strongest) if strongest else "–",
            )
        )
        counts.append(f"{label} ({'not testable' if untested else len(claimed)})")
    return Section(
        title="Do experts go with labels other than the topic?",
        finding=f"Pairs of expert and value above chance and replicated on held-out documents: {listed(counts)}.",
        blocks=(
            Table(
                ("label", "values", "significant pairs", "replicated, above average", "strongest"),
                tuple(rows),
                heading="Labels",
                note="All pairs are in results/expert_labels.parquet.",
            ),
        ),
        how=result.caption,
        limits="Labels overlap: a subtopic lies inside its topic, and a source may serve one topic only.",
    )
