"""Sections on what goes together: clusters and maps, likeness of experts, and the metrics of published work."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from moe_probe import plots
from moe_probe.report.content import Picture, Section, Table, listed, number, probability

if TYPE_CHECKING:
    import pandas as pd

    from moe_probe.results import Result


def clusters_section(results: Mapping[str, Result]) -> Section:
    """Show clusters of experts, documents and tokens, their stability and agreement with labels."""
    summary, agreed = results["cluster_summary"].table, results["cluster_agreement"].table
    best = agreed.sort_values("ami", ascending=False, kind="stable").groupby("unit", sort=False).first()
    finding = "Clusters agree most with: " + listed(
        [f"{row['label']} for {unit}s (AMI {number(float(row['ami']))}, shuffled {number(float(row['ami_null']))})"
         for unit, row in best.iterrows()]) + "."
    blocks: list[Table | Picture | str] = [
        Table(("unit", "number", "clusters", "silhouette", "without structure", "stability (AMI)"),
              tuple((r["unit"], number(int(r["n"])), str(int(r["k"])), number(float(r["silhouette"])),
                     number(float(r["silhouette_null_95"])), number(float(r["stability_ami"])))
                    for _, r in summary.iterrows()),
              note="One cluster: no number of clusters did better than data without structure."),
        Table(("unit", "label", "AMI", "shuffled", "p", "ARI", "V-measure"),
              tuple((r["unit"], r["label"], number(float(r["ami"])), number(float(r["ami_null"])), probability(r["ami_p"]),
                     number(float(r["ari"])), number(float(r["v_measure"]))) for _, r in agreed.iterrows()),
              note="1 would be the same division, 0 is chance. An expert's label is the topic of its highest lift.")]
    if "maps" in results and len(results["maps"].table):
        blocks.insert(0, Picture(
            "maps", plots.maps(results["maps"].table), "Maps of experts, documents and tokens by routing",
            "UMAP: near means alike in routing. For looking, never for a claim; distances between clouds mean nothing."))
    if "similarity_agreement" in results and len(results["similarity_agreement"].table):
        blocks.append(_likeness(results["similarity_agreement"].table))
    return Section(title="What goes together, and would a human group it so?", finding=finding, blocks=tuple(blocks),
                   how=f"{results['clusters'].caption} {results['cluster_summary'].caption} "
                   f"{results['cluster_agreement'].caption}",
                   limits="k-means finds round clusters of like size; other methods would cut elsewhere. Experts are "
                   "clustered by the very topics that they are then compared with, so their agreement is no surprise.")


def _likeness(table: pd.DataFrame) -> Table:
    means = table.groupby(["kind_a", "kind_b"], sort=False).agg(
        spearman=("spearman", "mean"), low=("spearman", "min"), high=("spearman", "max"),
        passing=("p_value", lambda p: int((p <= 0.05).sum())), layers=("p_value", "size")).reset_index()
    return Table(("experts alike by", "and by", "correlation, mean over layers [range]", "layers with p ≤ 0.05"),
                 tuple((r["kind_a"], r["kind_b"], f"{number(float(r['spearman']))} [{number(float(r['low']))}, "
                        f"{number(float(r['high']))}]", f"{int(r['passing'])} of {int(r['layers'])}")
                       for _, r in means.iterrows()),
                 note="Do senses of likeness agree over pairs of experts of a layer? Router and weights need no data "
                 "(cosine); the others come from routing.")


def combinations_section(results: Mapping[str, Result]) -> Section:
    """Show the sets of experts that tokens choose together."""
    result = results["combinations"]
    table = result.table
    claimed = table[table["significant"] & table["replicated"] & (table["log2_lift"] >= 1) & (table["ci_low"] > 0.5)]
    top = claimed.sort_values("ci_low", ascending=False, kind="stable").drop_duplicates("topic").head(12)
    finding = (f"{len(claimed)} of the {len(table)} commonest combinations are used twice as much for some topic, or more, "
               "and were found again on held-out documents.")
    blocks: list[Table | Picture | str] = []
    if len(top):
        blocks.append(Table(
            ("topic", "layer", "experts", "tokens", "lift [95 %]", "q", "times expected"),
            tuple((r["topic"], str(int(r["layer"])), str(r["experts"]).replace("+", ", "), number(int(r["tokens"])),
                   f"{number(float(r['lift']))}× [{number(float(2 ** r['ci_low']))}, {number(float(2 ** r['ci_high']))}]",
                   probability(r["q_value"]), number(float(r["times_expected"]), 1)) for _, r in top.iterrows()),
            note="The strongest combination of each topic. Times expected: against experts drawn independently."))
    return Section(title="Do combinations of experts say more than experts?", finding=finding, blocks=tuple(blocks),
                   how=result.caption,
                   limits="A combination takes a small part of a topic's tokens: a high lift here is not "
                   "an expert of the topic. Vocabulary is not ruled out for combinations.")


def published_section(results: Mapping[str, Result]) -> Section:
    """Show the metrics of published work, averaged over layers."""
    result = results["published"]
    rows = []
    for metric, part in result.table.groupby("metric", sort=False):
        rows.append((str(metric), str(part["source"].iloc[0]), number(float(part["value"].mean())),
                     f"{number(float(part['value'].min()))} to {number(float(part['value'].max()))}",
                     number(float(part["baseline"].mean()))))
    repeats = result.table[result.table["metric"] == "consecutive repetition, first choice"]
    finding = (f"Successive tokens go to the same first expert {float(repeats['value'].mean()):.0%} of the time "
               f"({float(repeats['baseline'].mean()):.0%} for a router without preferences).")
    return Section(title="How does this model compare by the metrics of published work?", finding=finding,
                   blocks=(Table(("metric", "source", "mean over layers", "range", "without preferences"), tuple(rows),
                                 note="Layer by layer in results/published.parquet."),),
                   how=result.caption,
                   limits="These metrics come without error rates; the sections above are what to rely on.")
