"""Sections on what speaks against topics: words, position, kinds of token, labels other than the topic."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from moe_probe.report.content import Block, Picture, Section, Table, lift_text, listed, number, probability
from moe_probe.report.plots import routing as plots

if TYPE_CHECKING:
    import pandas as pd

    from moe_probe.core.results import Result

_ROWS = 20


def explained_section(results: Mapping[str, Result]) -> Section:
    """Show what token, previous token, position and topic tell of routing, in both orders."""
    result = results["explained"]
    table = result.table
    alone = table[table["order"] == "alone"].pivot(index="layer", columns="factor", values="bits")
    left = table[table["order"] == "beyond token"].pivot(index="layer", columns="factor", values="bits")
    best = left["topic"].idxmax()
    finding = (
        f"The token itself tells {number(float(alone['token'].min()))} to {number(float(alone['token'].max()))} bits "
        f"of each choice; the topic tells at most {number(float(alone['topic'].max()), 3)}, of which "
        f"{number(float(left['topic'].max()), 3)} are left once the token is known (layer {int(best)})."
    )
    base = table.groupby("layer")["base_bits"].first()
    rows = tuple(
        (
            str(int(layer)),
            number(float(base[layer])),
            *(number(float(alone.loc[layer, f]), 3) for f in ("token", "previous token", "position", "topic")),
            _with_interval(table, int(layer), "topic"),
            number(float(left.loc[layer, "word sense"]), 3),
        )
        for layer in alone.index
    )
    blocks: list[Block] = [
        Picture(
            "explained",
            plots.explained_bars(table),
            finding,
            "Each bar is a layer. Its parts are what each factor saves after those below it; left: the token enters "
            "first, right: the topic does. The truth about a part lies between its two sizes.",
        ),
        Table(
            (
                "layer",
                "bits to explain",
                "token",
                "previous token",
                "position",
                "topic",
                "topic, token known [95 %]",
                "sense of words",
            ),
            rows,
            heading="Bits by layer",
            note="Bits per selection on documents that the explanation has not seen.",
        ),
    ]
    if "experts" in results and "explained_by" in results["experts"].table:
        counts = results["experts"].table["explained_by"].value_counts()
        said = listed([f"{kind} {n}" for kind, n in counts.items()])
        blocks.append(
            f"What alone tells most of an expert: {said} (of {int(counts.sum())} experts). An expert counts as "
            "explained by the topic only if the topic still tells something once the token is known."
        )
    if "vocabulary_baseline" in results:
        blocks.append(_baseline(results["vocabulary_baseline"].table))
    return Section(
        title="If experts are not about topics, what are they about?",
        finding=finding,
        blocks=tuple(blocks),
        how=result.caption,
        limits="A topic's words are part of the topic. Giving all that token and topic share to the token is the "
        "cautious reading, not the only one; the right-hand picture gives it to the topic.",
    )


def _with_interval(table: pd.DataFrame, layer: int, factor: str) -> str:
    row = table[(table["order"] == "beyond token") & (table["layer"] == layer) & (table["factor"] == factor)].iloc[0]
    return f"{number(float(row['bits']), 3)} [{number(float(row['ci_low']), 3)}, {number(float(row['ci_high']), 3)}]"


def _baseline(table: pd.DataFrame) -> str:
    bits = table[table["measure"] == "mi_topic_bits"]
    ratio = (bits["observed"] / bits["random_mean"]).to_numpy()
    above = int((bits["observed"] > bits["random_high"]).sum())
    return (
        f"A router that deals words to experts at random, to the same loads, also goes with topics. {above} of "
        f"{len(bits)} layers go with topics more than 97.5 % of such routers; by {number(float(ratio.min()), 1)} to "
        f"{number(float(ratio.max()), 1)} times in bits."
    )


def classes_section(results: Mapping[str, Result]) -> Section:
    """Show which experts take digits, punctuation, beginnings and ends of words."""
    result = results["expert_token_classes"]
    table = result.table
    strong = table[table["significant"] & (table["ci_low"] > 1)].sort_values("ci_low", ascending=False, kind="stable")
    n_experts = len(table[["layer", "expert"]].drop_duplicates())
    n_specialists = len(strong[["layer", "expert"]].drop_duplicates())
    finding = (
        f"{n_specialists} of {n_experts} experts take some kind of token at least twice as often as the other tokens "
        "of the same documents."
    )
    shown = strong.groupby("token_class", sort=False).head(3).head(_ROWS)
    rows = tuple(
        (
            r["token_class"],
            str(int(r["layer"])),
            str(int(r["expert"])),
            f"{r['share']:.0%}",
            lift_text(r, digits=1),
            probability(r["q_value"]),
        )
        for _, r in shown.iterrows()
    )
    blocks: list[Block] = [
        Picture(
            "token_classes",
            plots.token_class_heatmap(table),
            finding,
            "For each kind of token and layer: log2 lift of the expert that takes it most. 1 is twice as often as other tokens "
            "of the same documents; empty: none above chance.",
        )
    ]
    if rows:
        blocks.append(
            Table(
                ("kind of token", "layer", "expert", "takes", "lift [95 %]", "q"),
                rows,
                heading="The strongest experts of every kind",
                note="The three strongest experts of every kind; all are in results/expert_token_classes.parquet.",
            )
        )
    return Section(
        title="Which experts serve a kind of token?",
        finding=finding,
        blocks=tuple(blocks),
        how=result.caption,
        limits="Kinds are read off the spelling of a token; what a token means in its sentence is not seen.",
    )


def labels_section(results: Mapping[str, Result]) -> Section | None:
    """Show labels other than the topic; None where the corpus has none."""
    result = results["expert_labels"]
    table = result.table
    if table.empty:
        return None
    rows, found = [], []
    for label, part in table.groupby("label"):
        claimed = part[part["significant"] & part["replicated"] & (part["log2_lift"] > 0)]
        top = claimed.sort_values("ci_low", ascending=False, kind="stable").head(3)
        rows.append(
            (
                str(label),
                str(part["value"].nunique()),
                number(int(part["significant"].sum())),
                number(len(claimed)),
                listed(
                    [
                        f"{r['value']}: layer {int(r['layer'])} expert {int(r['expert'])} "
                        f"({number(float(2 ** r['log2_lift']), 1)}×)"
                        for _, r in top.iterrows()
                    ]
                )
                or "–",
            )
        )
        found.append(f"{label} ({len(claimed)})")
    finding = f"Pairs of expert and value above chance and found again on held-out documents: {listed(found)}."
    return Section(
        title="Do experts go with labels other than the topic?",
        finding=finding,
        blocks=(
            Table(
                ("label", "values", "significant pairs", "found again, above average", "strongest"),
                tuple(rows),
                note="All are in results/expert_labels.parquet.",
            ),
        ),
        how=result.caption,
        limits="Labels overlap: a subtopic lies inside its topic, and a source may serve one topic only.",
    )
