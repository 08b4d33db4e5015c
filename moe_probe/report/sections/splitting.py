"""Section on feature splitting: the tree, whether it follows human subjects, examples to read, and depth-first."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from moe_probe.features.tree import KINDS
from moe_probe.report.cells import Row, probability, table_of
from moe_probe.report.content import Block, Picture, Section, Table
from moe_probe.report.plots import tree as plots_tree
from moe_probe.report.sections.costs import amount
from moe_probe.report.sections.subjects import human_lines
from moe_probe.report.sections.walkable import example_tree, feature_tree

if TYPE_CHECKING:
    import pandas as pd

    from moe_probe.core.results import Result


def splitting_section(results: Mapping[str, Result]) -> Section:
    """Show what splits, compare it with another seed and with subjects, and let the reader walk down the tree."""
    sums = results["splitting"]
    blocks: list[Block] = [_splitting_table(sums.table)]
    how = [results["tree"].caption, sums.caption]
    if "tree_nodes" in results:
        how.append(results["tree_nodes"].caption)
    if "tree_subjects" in results:
        subjects = results["tree_subjects"]
        how.append(subjects.caption)
        blocks += [_subjects_figure(subjects.table, human_lines(results)), _subjects_table(subjects.table)]
    for name, block in (
        ("tree_distance", _distance_table),
        ("tree_examples", example_tree),
    ):
        if name in results and len(results[name].table):
            blocks.append(block(results[name].table))
    blocks.append(feature_tree(results["tree"].table, results["tree_nodes"].table if "tree_nodes" in results else None))
    if "concepts" in results and len(results["concepts"].table):
        blocks.append(_concepts(results["concepts"].table))
    if "depth_first" in results:
        blocks += _depth_first(results["depth_first"], results["depth_features"].table)
    how += [results[name].caption for name in ("tree_distance", "concepts", "depth_first") if name in results]
    return Section(
        title="Do features split along human lines as dictionaries widen?",
        finding=finding(results),
        blocks=tuple(blocks),
        how=" ".join(how),
        limits="A narrow dictionary has to bundle features: it always seems to split when it widens. What another seed "
        "does as well is a property of the method, not of the model. Labels here are rules; a subject that no topic of the "
        "corpus names counts as none.",
    )


def finding(results: Mapping[str, Result]) -> str:
    """Say how much splits, and whether along human lines."""
    table = results["splitting"].table
    text = (
        f"{table['split'].min():.0%} to {table['split'].max():.0%} of features split when the dictionary widens"
        if table["split"].notna().any()
        else "No feature of a narrower dictionary fires, so none can split"
    )
    if table["split_same_width"].notna().any():
        text += f" ({table['split_same_width'].max():.0%} at most when only the seed changes)"
    return f"{text}. {human_lines(results)}".strip()


def _widths(row: Row) -> str:
    return f"{int(row['parent_width']):,} to {int(row['child_width']):,}"


def _splitting_table(table: pd.DataFrame) -> Table:
    return table_of(
        table,
        {
            "layer": "layer",
            "widths": _widths,
            "split": ("split", ".0%"),
            "split, same width and other seed": ("split_same_width", ".0%"),
            "stay": ("kept", ".0%"),
            "novel directions": ("novel", ".0%"),
            "novel, same width and other seed": ("novel_same_width", ".0%"),
            "novel when stitched in": ("stitched_novel", ".0%"),
            "without a parent": ("orphans", ".0%"),
            "parts per split": ("children", 1),
            "other seed groups alike (AMI)": ("seed_agreement", 2),
            "other seed has the feature": ("seed_same", ".0%"),
        },
        heading="How features split",
        note="Every share is of living features on held-out documents. What another seed does not repeat is no "
        "property of the model.",
    )


def _subjects_figure(table: pd.DataFrame, text: str) -> Picture:
    return Picture(
        "tree_subjects",
        plots_tree.purity_bars(table),
        text,
        "How often firings of two siblings, from different documents, are about one topic. Bars run from features placed at "
        "random in the tree to a feature with itself; compare this run with the other two trees.",
    )


def _subjects_table(table: pd.DataFrame) -> Table:
    return table_of(
        table[table["nodes"] > 0],
        {
            "layer": "layer",
            "widths": _widths,
            "tree": "tree",
            "nodes": ("nodes", ","),
            "siblings of one topic": ("purity", ".1%"),
            "at random": ("expected", ".1%"),
            "a feature with itself": ("ceiling", ".1%"),
            "shared": ("shared", ".0%"),
            "p": ("p_value", probability),
            "nodes judged": ("judged", ","),
            **{kind: (kind, ".0%") for kind in KINDS},
        },
        heading="Siblings and subjects",
        note="Shared: (siblings − at random) / (a feature with itself − at random). Shares of kinds are of the nodes that could "
        "be judged. p of the other two trees is from few permutations.",
    )


def _distance_table(table: pd.DataFrame) -> Table:
    return table_of(
        table,
        {
            "layer": "layer",
            "width of the leaves": ("width", ","),
            **{name: (name, 3) for name in ("siblings", "cousins", "strangers", "correlation")},
            "p": ("p_value", probability),
        },
        heading="Distance in the tree and in the taxonomy",
        note="Taxonomy distance between firings of two features: 0 same subtopic, 1 same topic, 2 different topics. Siblings "
        "share a parent, cousins a grandparent; correlation: tree distance with taxonomy distance.",
    )


def _concepts(table: pd.DataFrame) -> Table:
    means = table.groupby(["layer", "width"])[["probe_f1", "f1_1", "f1_best", "splits", "absorption"]].mean()
    return table_of(
        means.reset_index(),
        {
            "layer": "layer",
            "width": ("width", ","),
            "F1 of a linear probe": ("probe_f1", 2),
            "of the best feature": ("f1_1", 2),
            "of the best few": ("f1_best", 2),
            "features per topic": ("splits", 2),
            "absorbed by other features": ("absorption", 2),
        },
        heading="Topics as concepts: splitting and absorption, mean over topics",
        note="F1 is low by nature, as much of a topic's text is not about the topic: compare columns, not with 1.",
    )


def _depth_first(result: Result, features: pd.DataFrame) -> list[Block]:
    good = features[features["mine"] & features["good"]].sort_values("label_score", ascending=False).head(8)
    labels = "; ".join(f"{r.label} ({r.path}:{r.feature})" for r in good.itertuples())
    subject = result.params["subject"]
    return [
        table_of(
            result.table,
            {
                "way": "way",
                "latents": ("width", ","),
                "operations": ("operations", amount),
                "living features": ("features", ","),
                "of the subject": ("subject", ","),
                "with a good, precise label": ("good", ","),
                "distinct": ("distinct", ","),
                "distinct per 10^9 operations": ("per_operation", 3),
            },
            heading=f"Depth-first and breadth-first: {subject}",
            note="Yield of each way for one subject: features with a good label, and their number per operation of training.",
        ),
        f"Features trained depth-first, from {result.params['root']}: {labels}."
        if labels
        else f"Depth-first training gave no feature of {subject} with a good and precise label.",
    ]
