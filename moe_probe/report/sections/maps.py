"""The section on maps and clusters: units laid out in the plane, described where they are pointed at."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from moe_probe.core.pieces import decode, whole_characters
from moe_probe.core.text import clipped, listed
from moe_probe.report import svg
from moe_probe.report.cells import number, probability, ranged, table_of
from moe_probe.report.content import Block, Picture, Section, Table
from moe_probe.report.plots import maps as plots_maps
from moe_probe.report.plots.panels import map_panels

if TYPE_CHECKING:
    import pandas as pd

    from moe_probe.core.results import Result
    from moe_probe.recording.trace import Trace

#: Points of one kind that are drawn inside the page, so that it stays small; of more, an even choice.
_POINTS = 1000
#: Tokens shown on either side of a token that is pointed at.
_AROUND = 6


def clusters_section(trace: Trace, results: Mapping[str, Result]) -> Section:
    """Show maps, clusters of experts, documents and tokens, their stability and agreement with labels.

    Parameters
    ----------
    trace : Trace
        Of the run, for the texts of units.
    results : mapping of str to Result

    Returns
    -------
    Section
    """
    summary, agreement = results["cluster_summary"], results["cluster_agreement"]
    # labels that go with the groups of documents agree with anything that does: what counts is the excess over shuffled ones
    excess = agreement.table["ami"] - agreement.table["ami_null"]
    ranked = agreement.table.assign(excess=excess).sort_values("excess", ascending=False, kind="stable")
    best = ranked.groupby("unit", sort=False).first()
    finding = f"Clusters agree most with {listed([_agreement(str(unit), row) for unit, row in best.iterrows()])}."
    blocks: list[Block] = []
    if "maps" in results and len(results["maps"].table):
        blocks.append(_map(trace, results, finding))
    blocks += [_clusters(summary.table), _agreements(agreement.table)]
    if "similarity_agreement" in results and len(results["similarity_agreement"].table):
        blocks.append(_likeness(results["similarity_agreement"].table))
    return Section(
        title="What goes together, and would a human group it so?",
        finding=finding,
        blocks=tuple(blocks),
        how=f"{results['clusters'].caption} {summary.caption} {agreement.caption} Label of an expert: the topic of its highest "
        "lift.",
        limits="A map is for looking, never for a claim: distances between clouds, their sizes and their shapes mean nothing, "
        "and another seed gives another map. Clustering by k-means finds round clusters of similar size. "
        "Experts are clustered by the topics that they are then compared with: their agreement is no surprise.",
    )


def _agreement(unit: str, row: Any) -> str:
    return f"{row['label']} for {unit}s (AMI {number(float(row['ami']))}, p {probability(row['ami_p'])})"


def _clusters(summary: pd.DataFrame) -> Table:
    return table_of(
        summary,
        {
            "unit": "unit",
            "number": ("n", ","),
            "clusters": "k",
            "silhouette": ("silhouette", 2),
            "without structure": ("silhouette_null_95", 2),
            "stability (AMI)": ("stability_ami", 2),
        },
        heading="Clusters",
        note="One cluster: no number of clusters did better than data without structure.",
    )


def _agreements(agreement: pd.DataFrame) -> Table:
    return table_of(
        agreement,
        {
            "unit": "unit",
            "label": "label",
            "AMI": ("ami", 2),
            "shuffled": ("ami_null", 2),
            "p": ("ami_p", probability),
            "ARI": ("ari", 2),
            "V-measure": ("v_measure", 2),
        },
        heading="Agreement with labels",
        note="1: the same division; 0: chance.",
    )


def _likeness(table: pd.DataFrame) -> Table:
    passing = table.assign(passing=table["p_value"] <= 0.05)
    means = passing.groupby(["kind_a", "kind_b"], sort=False).agg(
        mean=("spearman", "mean"),
        range_low=("spearman", "min"),
        range_high=("spearman", "max"),
        passing=("passing", "sum"),
        layers=("passing", "size"),
    )
    return table_of(
        means.reset_index(),
        {
            "experts alike by": "kind_a",
            "and by": "kind_b",
            "correlation, mean over layers [range]": ranged("mean", "range"),
            "layers with p ≤ 0.05": lambda row: f"{row['passing']} of {row['layers']}",
        },
        heading="Do measures of similarity agree?",
        note="Rank correlation over pairs of experts of a layer. Router and weights need no data (cosine); the other measures "
        "are computed from routing.",
    )


def _map(trace: Trace, results: Mapping[str, Result], finding: str) -> Picture:
    table = results["maps"].table
    panels = map_panels(table, most=_POINTS)
    drawings = [svg.points(panel, _tips(trace, results, panel.points)) for panel in panels]
    label = results["maps"].params.get("label", "topic")
    thinned = (
        f" Of more than {_POINTS:,} units, an even choice is shown." if table["unit"].value_counts().max() > _POINTS else ""
    )
    return Picture(
        "maps",
        plots_maps.maps(table),
        finding,
        f"UMAP of routing: near means similar routing. Colour and shape: the {label} (of an expert, that of its highest "
        f"lift).{thinned} Point at a mark to see what it is; press a {label} to see it alone.",
        inline=svg.side_by_side(drawings, svg.legend(panels[0].labels)),
    )


def _tips(trace: Trace, results: Mapping[str, Result], points: pd.DataFrame) -> list[str]:
    """Describe the points of one kind of unit."""
    unit = points["unit"].iloc[0]
    if unit == "expert":
        return _experts(results["expert_topics"].table if "expert_topics" in results else None, points)
    if unit == "document":
        return _documents(trace, points)
    if unit == "token":
        return _tokens(trace, points)
    return [f"{r.unit} {r.id}: {r.label}" for r in points.itertuples()]


def _experts(expert_topics: pd.DataFrame | None, points: pd.DataFrame) -> list[str]:
    lifts: dict[Any, Any] = {}
    if expert_topics is not None:
        lifts = expert_topics.set_index(["layer", "expert", "topic"])["lift"].to_dict()
    tips = []
    for r in points.itertuples():
        lift = lifts.get((int(r.layer), int(r.id), r.label))
        tips.append(
            f"layer {int(r.layer)}, expert {int(r.id)}: highest lift for {r.label}"
            + (f" ({lift:.2f}×)" if lift is not None else "")
        )
    return tips


def _documents(trace: Trace, points: pd.DataFrame) -> list[str]:
    rows = trace.documents.iloc[[int(i) for i in points["id"]]]
    return [
        f"{clipped(str(name), 80)} ({label}, {n:,} tokens)"
        for name, label, n in zip(rows["document"], points["label"], rows["n_tokens"], strict=True)
    ]


def _tokens(trace: Trace, points: pd.DataFrame) -> list[str]:
    """Show each token between its neighbours; tokens are read shard by shard, for they may be many."""
    wanted = sorted(int(i) for i in points["id"])
    texts: dict[int, str] = {}
    for _, chunk in trace.iter_tokens(["document", "token"]):
        documents, strings = chunk.columns["document"], trace.spaced(chunk.columns["token"])
        start, stop = np.searchsorted(wanted, [chunk.first, chunk.first + len(strings)])
        for token in wanted[start:stop]:
            i = token - chunk.first
            ends = tuple(int(np.searchsorted(documents, documents[i], side=side)) for side in ("left", "right"))
            low, high = whole_characters(
                strings, max(ends[0], i - _AROUND), min(ends[1], i + _AROUND + 1), within=(ends[0], ends[1])
            )
            text = decode(strings[low:high])
            left, right = int(text.starts[i - low]), int(text.ends[i - low])
            word = text.text[left:right].lstrip(" ")
            left = right - len(word) if word else left  # the space in front of a word is not marked
            texts[token] = f"{text.text[:left]}»{text.text[left:right]}«{text.text[right:]}"
    return [f"…{clipped(texts[int(r.id)].replace(chr(10), ' '), 140)}… ({r.label})" for r in points.itertuples()]
