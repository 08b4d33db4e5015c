"""Sections on combinations of experts, and on the metrics of published work."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from moe_probe.core.text import figure
from moe_probe.experts.published.summary import sample_sentence
from moe_probe.report.content import Block, Section, Table, lift_text, number, probability

if TYPE_CHECKING:
    from moe_probe.core.results import Result


def combinations_section(results: Mapping[str, Result]) -> Section:
    """Show the sets of experts that tokens choose together."""
    result = results["combinations"]
    table = result.table
    claimed = table[table["significant"] & table["replicated"] & (table["log2_lift"] >= 1) & (table["ci_low"] > 0.5)]
    top = claimed.sort_values("ci_low", ascending=False, kind="stable").drop_duplicates("topic").head(12)
    finding = (
        f"{len(claimed)} of the {len(table)} commonest combinations are used twice as much for some topic, or more, "
        "and were found again on held-out documents."
    )
    blocks: list[Block] = []
    if len(top):
        blocks.append(
            Table(
                ("topic", "layer", "experts", "tokens", "lift [95 %]", "q", "times expected"),
                tuple(
                    (
                        r["topic"],
                        str(int(r["layer"])),
                        str(r["experts"]).replace("+", ", "),
                        number(int(r["tokens"])),
                        lift_text(r),
                        probability(r["q_value"]),
                        number(float(r["times_expected"]), 1),
                    )
                    for _, r in top.iterrows()
                ),
                heading="The strongest combination of each topic",
                note="The strongest combination of each topic. Times expected: against experts drawn independently.",
            )
        )
    return Section(
        title="Do combinations of experts say more than experts?",
        finding=finding,
        blocks=tuple(blocks),
        how=result.caption,
        limits="A combination takes a small part of a topic's tokens: a high lift here is not "
        "an expert of the topic. Vocabulary is not ruled out for combinations.",
    )


def published_section(results: Mapping[str, Result]) -> Section:
    """Show the metrics of published work, averaged over layers."""
    result = results["published"]
    rows = []
    for metric, part in result.table.groupby("metric", sort=False):
        rows.append(
            (
                str(metric),
                str(part["source"].iloc[0]),
                number(float(part["value"].mean())),
                f"{number(float(part['value'].min()))} to {number(float(part['value'].max()))}",
                number(float(part["baseline"].mean())),
            )
        )
    repeats = result.table[result.table["metric"] == "consecutive repetition, first choice"]
    finding = (
        f"Successive tokens go to the same first expert {figure(repeats['value'].mean(), '.0%', 'an unknown share')} of "
        f"the time ({figure(repeats['baseline'].mean(), '.0%', 'unknown')} for a router without preferences)."
    )
    return Section(
        title="How does this model compare by the metrics of published work?",
        finding=finding,
        blocks=(
            Table(
                ("metric", "source", "mean over layers", "range", "without preferences"),
                tuple(rows),
                heading="Published metrics",
                note="Layer by layer in results/published.parquet. " + sample_sentence(result.params),
            ),
        ),
        how=result.caption,
        limits="These metrics come without error rates; the sections above are what to rely on.",
    )
