"""Sections on combinations of experts, and on the metrics of published work."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from moe_probe.core.text import figure
from moe_probe.experts.published.summary import sample_sentence
from moe_probe.report.cells import lift_text, number, probability, spelled, table_of
from moe_probe.report.content import Section

if TYPE_CHECKING:
    from moe_probe.core.results import Result


def combinations_section(results: Mapping[str, Result]) -> Section:
    """Show the sets of experts that are selected together for a token."""
    result = results["combinations"]
    table = result.table
    claimed = table[table["significant"] & table["replicated"] & (table["log2_lift"] >= 1) & (table["ci_low"] > 0.5)]
    top = claimed.sort_values("ci_low", ascending=False, kind="stable").drop_duplicates("topic").head(12)
    shown = table_of(
        top,
        {
            "topic": "topic",
            "layer": "layer",
            "experts": ("experts", spelled),
            "tokens": ("tokens", ","),
            "lift [95 %]": lift_text,
            "q": ("q_value", probability),
            "times expected": ("times_expected", 1),
        },
        heading="The strongest combination of each topic",
        note="Times expected: compared with experts drawn independently.",
    )
    return Section(
        title="Do combinations of experts say more than experts?",
        finding=f"{len(claimed)} of the {len(table)} most frequent combinations are used at least twice as much for some topic, "
        "replicated on held-out documents.",
        blocks=(shown,) if len(top) else (),
        how=result.caption,
        limits="A combination takes a small part of a topic's tokens: a high lift here is not an expert of the topic. "
        "Vocabulary is not ruled out for combinations.",
    )


def published_section(results: Mapping[str, Result]) -> Section:
    """Show the metrics of published work, averaged over layers."""
    result = results["published"]
    by_metric = result.table.groupby("metric", sort=False)
    frame = (
        by_metric["value"]
        .agg(["mean", "min", "max"])
        .assign(source=by_metric["source"].first(), baseline=by_metric["baseline"].mean())
    )
    repeats = result.table[result.table["metric"] == "consecutive repetition, first choice"]
    return Section(
        title="How does this model compare by the metrics of published work?",
        finding=f"Successive tokens go to the same first expert {figure(repeats['value'].mean(), '.0%', 'an unknown share')} of "
        f"the time ({figure(repeats['baseline'].mean(), '.0%', 'unknown')} for a router without preferences).",
        blocks=(
            table_of(
                frame.reset_index(),
                {
                    "metric": "metric",
                    "source": "source",
                    "mean over layers": ("mean", 2),
                    "range": lambda row: f"{number(row['min'])} to {number(row['max'])}",
                    "without preferences": ("baseline", 2),
                },
                heading="Published metrics",
                note="Layer by layer in results/published.parquet. " + sample_sentence(result.params),
            ),
        ),
        how=result.caption,
        limits="These metrics come without error rates; rely on the sections above.",
    )
