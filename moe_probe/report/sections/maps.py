"""The section on maps and clusters: units laid out in the plane that say what they are."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from moe_probe.core.pieces import decode, whole_characters
from moe_probe.report import svg
from moe_probe.report.content import Block, Picture, Section, Table, cut, listed, number, probability
from moe_probe.report.plots import maps as plots_maps

if TYPE_CHECKING:
    import pandas as pd

    from moe_probe.core.results import Result
    from moe_probe.recording.trace import Trace

#: Points of one kind that are drawn inside the page, so that it stays small; of more, an even choice.
_POINTS = 1000
#: Tokens shown on either side of a token that is pointed at.
_AROUND = 6


def clusters_section(trace: Trace, results: Mapping[str, Result]) -> Section:
    """Show maps, clusters of experts, documents and tokens, their stability and agreement with labels."""
    summary, agreed = results["cluster_summary"].table, results["cluster_agreement"].table
    best = agreed.sort_values("ami", ascending=False, kind="stable").groupby("unit", sort=False).first()
    finding = (
        "Clusters agree most with: "
        + listed(
            [
                f"{row['label']} for {unit}s (AMI {number(float(row['ami']))}, shuffled{_within(row)} "
                f"{number(float(row['ami_null']))}, p {probability(row['ami_p'])})"
                for unit, row in best.iterrows()
            ]
        )
        + "."
    )
    blocks: list[Block] = []
    if "maps" in results and len(results["maps"].table):
        blocks.append(_map(trace, results, finding))
    blocks += [
        Table(
            ("unit", "number", "clusters", "silhouette", "without structure", "stability (AMI)"),
            tuple(
                (
                    r["unit"],
                    number(int(r["n"])),
                    str(int(r["k"])),
                    number(float(r["silhouette"])),
                    number(float(r["silhouette_null_95"])),
                    number(float(r["stability_ami"])),
                )
                for _, r in summary.iterrows()
            ),
            heading="Clusters",
            note="One cluster: no number of clusters did better than data without structure.",
        ),
        Table(
            ("unit", "label", "AMI", "shuffled", "p", "ARI", "V-measure"),
            tuple(
                (
                    r["unit"],
                    r["label"],
                    number(float(r["ami"])),
                    number(float(r["ami_null"])),
                    probability(r["ami_p"]),
                    number(float(r["ari"])),
                    number(float(r["v_measure"])),
                )
                for _, r in agreed.iterrows()
            ),
            heading="Agreement with labels",
            note="1 would be the same division, 0 is chance. An expert's label is the topic of its highest lift.",
        ),
    ]
    if "similarity_agreement" in results and len(results["similarity_agreement"].table):
        blocks.append(_likeness(results["similarity_agreement"].table))
    return Section(
        title="What goes together, and would a human group it so?",
        finding=finding,
        blocks=tuple(blocks),
        how=f"{results['clusters'].caption} {results['cluster_summary'].caption} {results['cluster_agreement'].caption}",
        limits="k-means finds round clusters of like size; other methods would cut elsewhere. Experts are "
        "clustered by the very topics that they are then compared with, so their agreement is no surprise.",
    )


def _within(row: Any) -> str:
    """The label within which labels were permuted, in words."""
    strata = row.get("permuted_within", "")
    return f" within each {strata}" if strata else ""


def _map(trace: Trace, results: Mapping[str, Result], finding: str) -> Picture:
    table = results["maps"].table
    units = list(dict.fromkeys(table["unit"]))
    names = sorted(table["label"].astype(str).unique())
    drawings, further = [], False
    for unit in units:
        part = table[table["unit"] == unit]
        if len(part) > _POINTS:
            further, part = True, part.iloc[np.linspace(0, len(part) - 1, _POINTS).astype(int)]
        tips = _TIPS.get(unit, _plain)(trace, results, part)
        drawings.append(
            svg.points(
                part["x"].to_numpy(),
                part["y"].to_numpy(),
                [str(x) for x in part["label"]],
                tips,
                title=f"{len(part):,} {unit}s",
                names=names,
            )
        )
    by = results["maps"].params.get("label", "topic")
    few = f" Of more than {_POINTS:,} units, an even choice is shown here." if further else ""
    return Picture(
        "maps",
        plots_maps.maps(table),
        finding,
        "UMAP of routing: near means alike in routing. For looking, never for a claim: distances between clouds, their sizes "
        "and their shapes mean nothing, and another seed gives another picture. Colour and shape: the "
        f"{by} (of an expert, that of its highest lift).{few} Point at a mark to see what it is; press a {by} to see it alone.",
        inline=svg.panels(drawings, further=svg.legend(names)),
    )


def _plain(trace: Trace, results: Mapping[str, Result], part: pd.DataFrame) -> list[str]:
    return [f"{r.unit} {r.id}: {r.label}" for r in part.itertuples()]


def _experts(trace: Trace, results: Mapping[str, Result], part: pd.DataFrame) -> list[str]:
    lifts: dict[Any, Any] = {}
    if "expert_topics" in results:
        table = results["expert_topics"].table
        lifts = table.set_index(["layer", "expert", "topic"])["lift"].to_dict()
    tips = []
    for r in part.itertuples():
        lift = lifts.get((int(r.layer), int(r.id), r.label))
        most = f"highest lift for {r.label}" + (f" ({lift:.2f}×)" if lift is not None else "")
        tips.append(f"layer {int(r.layer)}, expert {int(r.id)}: {most}")
    return tips


def _documents(trace: Trace, results: Mapping[str, Result], part: pd.DataFrame) -> list[str]:
    known = trace.documents.iloc[[int(i) for i in part["id"]]]
    return [
        f"{cut(str(name), 80)} ({label}, {n:,} tokens)"
        for name, label, n in zip(known["document"], part["label"], known["n_tokens"], strict=True)
    ]


def _tokens(trace: Trace, results: Mapping[str, Result], part: pd.DataFrame) -> list[str]:
    """Each token between its neighbours; the table is read shard by shard, for it may be large."""
    wanted = sorted(int(i) for i in part["id"])
    found: dict[int, str] = {}
    place = 0
    for _, chunk in trace.iter_tokens(["document", "token"]):
        documents, strings = chunk.columns["document"], trace.spaced(chunk.columns["token"])
        end = chunk.first + len(strings)
        while place < len(wanted) and wanted[place] < end:
            i = wanted[place] - chunk.first
            ends = tuple(int(np.searchsorted(documents, documents[i], side=side)) for side in ("left", "right"))
            low, high = whole_characters(
                strings, max(ends[0], i - _AROUND), min(ends[1], i + _AROUND + 1), within=(ends[0], ends[1])
            )
            text = decode(strings[low:high])
            left, right = int(text.starts[i - low]), int(text.ends[i - low])
            word = text.text[left:right].lstrip(" ")
            left = right - len(word) if word else left  # the space in front of a word is not marked
            found[wanted[place]] = f"{text.text[:left]}»{text.text[left:right]}«{text.text[right:]}"
            place += 1
    return [f"…{cut(found[int(r.id)].replace(chr(10), ' '), 140)}… ({r.label})" for r in part.itertuples()]


_TIPS = {"expert": _experts, "document": _documents, "token": _tokens}


def _likeness(table: pd.DataFrame) -> Table:
    means = (
        table.groupby(["kind_a", "kind_b"], sort=False)
        .agg(
            spearman=("spearman", "mean"),
            low=("spearman", "min"),
            high=("spearman", "max"),
            passing=("p_value", lambda p: int((p <= 0.05).sum())),
            layers=("p_value", "size"),
        )
        .reset_index()
    )
    rows = tuple(
        (
            r["kind_a"],
            r["kind_b"],
            f"{number(float(r['spearman']))} [{number(float(r['low']))}, {number(float(r['high']))}]",
            f"{int(r['passing'])} of {int(r['layers'])}",
        )
        for _, r in means.iterrows()
    )
    return Table(
        ("experts alike by", "and by", "correlation, mean over layers [range]", "layers with p ≤ 0.05"),
        rows,
        heading="Do senses of likeness agree?",
        note="Do senses of likeness agree over pairs of experts of a layer? Router and weights need no data "
        "(cosine); the others come from routing.",
    )
