"""Section on feature splitting: the tree, whether it follows human subjects, an example to read, and depth first."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from moe_probe.core.stats import holm
from moe_probe.core.text import figure
from moe_probe.features.tree import KINDS, UNJUDGED
from moe_probe.report.content import Block, Node, Passage, Picture, Section, Table, Tree, number, probability
from moe_probe.report.plots import tree as plots_tree

if TYPE_CHECKING:
    import pandas as pd

    from moe_probe.core.results import Result

#: Parents shown in the foldable tree, and children of each.
_PARENTS, _CHILDREN = 24, 8
_ORDER = KINDS


def splitting_section(results: Mapping[str, Result]) -> Section:
    """Show what splits, hold it against another seed and against subjects, and let the reader walk down."""
    sums, edges = results["splitting"], results["tree"].table
    blocks: list[Block] = [_splitting_table(sums.table)]
    if "tree_subjects" in results:
        subjects = results["tree_subjects"]
        said = human_lines(results)
        blocks += [
            Picture("tree_subjects", plots_tree.purity_bars(subjects.table), said, subjects.caption),
            _subjects_table(subjects.table),
        ]
        if "tree_distance" in results and len(results["tree_distance"].table):
            blocks.append(_distance_table(results["tree_distance"]))
    if "tree_examples" in results and len(results["tree_examples"].table):
        blocks.append(_examples(results["tree_examples"].table))
    blocks.append(_tree(edges, results["tree_nodes"].table if "tree_nodes" in results else None))
    if "concepts" in results and len(results["concepts"].table):
        blocks.append(_concepts(results["concepts"]))
    if "depth_first" in results:
        blocks += _depth(results["depth_first"], results["depth_features"].table)
    return Section(
        title="Do features split along human lines as dictionaries widen?",
        finding=finding(results),
        blocks=tuple(blocks),
        how=f"{results['tree'].caption} {sums.caption}"
        + (f" {results['tree_nodes'].caption}" if "tree_nodes" in results else ""),
        limits="A narrow dictionary has to bundle features, so that it always seems to split when it widens: what another seed "
        "does as well is of the method, not of the model. Labels here are rules; a subject that no topic of the corpus names "
        "counts as none.",
    )


def finding(results: Mapping[str, Result]) -> str:
    """How much splits, and whether along human lines."""
    table = results["splitting"].table
    text = (
        f"{table['split'].min():.0%} to {table['split'].max():.0%} of features split when the dictionary widens"
        if table["split"].notna().any()
        else "No feature of a narrower dictionary fires, so none can split"
    )
    if table["split_same_width"].notna().any():
        text += f" ({table['split_same_width'].max():.0%} at most when only the seed changes)"
    return f"{text}. {human_lines(results)}".strip()


def human_lines(results: Mapping[str, Result]) -> str:
    """The plain answer to "human lines or not", with its number and its null; "" where it was not tested."""
    if "tree_subjects" not in results:
        return ""
    table = results["tree_subjects"].table
    own = table[(table["tree"] == "this run") & (table["nodes"] > 0)]
    if own.empty:
        return "No node has two parts, so there was nothing to hold against subjects."
    p_values = holm(own["p_value"].to_numpy())
    rise = own["shared"] if own["shared"].notna().any() else own["purity"] - own["expected"]
    place = int(rise.fillna(-np.inf).to_numpy().argmax())
    best, passes = own.iloc[place], p_values <= 0.05
    judged = int(own["judged"].sum()) if "judged" in own else 0
    human = float((own[list(_ORDER[:2])].sum(axis=1) * own["judged"]).sum() / judged) if judged else float("nan")
    tested = bool(np.isfinite(p_values).any())
    lead = "Partly" if human > 0.5 else "Hardly" if human <= 0.5 else "To some degree"
    lead = lead if passes.any() else "No" if tested else "Not testable"
    shared = (
        ""
        if best["shared"] != best["shared"]
        else (f" of what a feature has of a topic, its siblings share {best['shared']:.0%} where they are most alike.")
    )
    holm_of = f", Holm over {len(own)} pairs of widths" if len(own) > 1 else ""
    return (
        f"{lead}{':' if shared else '.'}{shared} Firings of two "
        f"siblings, from different documents, are about one topic "
        f"{figure(best['purity'], '.1%', 'an unknown share')} of the time "
        f"({figure(best['expected'], '.1%')} for features placed at random in the tree, "
        f"{figure(best['ceiling'], '.1%')} for a feature with itself; layer "
        f"{int(best['layer'])}, width {int(best['parent_width']):,} to "
        f"{int(best['child_width']):,}, p {probability(float(p_values[place]))}{holm_of}).{_other_seed(table, best)} "
        f"{_kinds_line(own, tested=tested)}"
    )


def _kinds_line(own: pd.DataFrame, *, tested: bool) -> str:
    """Shares of the nodes that could be judged, beside how many could not."""
    if "judged" not in own:
        return "Nodes were counted without asking which could be judged: moe-probe tree RUN makes the table anew."
    nodes, judged, beside = (int(own[column].sum()) for column in ("nodes", "judged", "found_beside"))
    why = (
        "the test would have missed a node of one subject with so few children, or children that fire so rarely"
        if tested
        else "every stratum has one topic, so that no labels can be exchanged"
    )
    all_the_same = f"; {beside:,} of them keep to one subject all the same" if beside else ""
    if not judged:
        return f"None of {nodes:,} nodes that split could be judged one by one ({why}){all_the_same}."
    kinds = {kind: float((own[kind].fillna(0.0) * own["judged"]).sum() / judged) for kind in _ORDER}
    left = f" {nodes - judged:,} more could not be judged ({why}){all_the_same}." if nodes > judged else ""
    parts, one, several, none = (kinds[kind] for kind in _ORDER)
    return (
        f"Of {judged:,} nodes that split and could be judged, {parts + one:.0%} keep to one subject ({parts:.1%} dividing it "
        f"by its subtopics), {several:.0%} mix several, {none:.0%} show no subject of the corpus.{left}"
    )


def _other_seed(table: pd.DataFrame, best: pd.Series) -> str:
    """The same where only the seed changes, in a sentence; "" where that null was not made, or has no nodes."""
    same = table[
        (table["tree"] == "same width, another seed")
        & (table["layer"] == best["layer"])
        & (table["nodes"] > 0)
        & (table["parent_width"] == best["parent_width"])
        & (table["child_width"] == best["child_width"])
    ]
    if same.empty or same["shared"].isna().all() or best["shared"] != best["shared"]:
        return ""
    null = same.iloc[0]
    more = best["shared"] > null["shared"]
    return (
        f" Where no width is added and only the seed changes, {int(null['nodes']):,} "
        f"node{'s split' if null['nodes'] > 1 else ' splits'}, and siblings there share "
        f"{figure(null['shared'], '.0%', 'an unknown part')}"
        + ("." if more else ": that siblings are about one subject need not come of widening.")
    )


def _count(value: Any) -> str:
    return "–" if value is None or value != value else f"{int(value):,}"


def _percent(value: Any) -> str:
    return "–" if value != value else f"{value:.0%}"


def _splitting_table(table: pd.DataFrame) -> Table:
    rows = tuple(
        (
            str(int(r["layer"])),
            f"{int(r['parent_width']):,} to {int(r['child_width']):,}",
            _percent(r["split"]),
            _percent(r["split_same_width"]),
            _percent(r["kept"]),
            _percent(r["novel"]),
            _percent(r.get("novel_same_width", float("nan"))),
            _percent(r["stitched_novel"]),
            _percent(r["orphans"]),
            number(float(r["children"]), 1),
            number(float(r["seed_agreement"])),
            _percent(r["seed_same"]),
        )
        for _, r in table.iterrows()
    )
    return Table(
        (
            "layer",
            "widths",
            "split",
            "split, same width and other seed",
            "stay",
            "novel directions",
            "novel, same width and other seed",
            "novel when stitched in",
            "without a parent",
            "parts a split",
            "other seed groups alike (AMI)",
            "other seed has the feature",
        ),
        rows,
        heading="How features split",
        note="Every share is of living features on held-out documents. What another seed does not do again is no "
        "property of the model.",
    )


def _subjects_table(table: pd.DataFrame) -> Table:
    rows = tuple(
        (
            str(int(r["layer"])),
            f"{int(r['parent_width']):,} to {int(r['child_width']):,}",
            str(r["tree"]),
            number(int(r["nodes"])),
            figure(r["purity"], ".1%", "–"),
            figure(r["expected"], ".1%", "–"),
            figure(r["ceiling"], ".1%", "–"),
            _percent(r["shared"]),
            probability(float(r["p_value"])),
            _count(r.get("judged")),
            *(_percent(r[kind]) for kind in _ORDER),
        )
        for _, r in table[table["nodes"] > 0].iterrows()
    )
    return Table(
        (
            "layer",
            "widths",
            "tree",
            "nodes",
            "siblings of one topic",
            "at random",
            "a feature with itself",
            "shared",
            "p",
            "nodes judged",
            *_ORDER,
        ),
        rows,
        heading="Siblings and subjects",
        note="Shares of kinds are of the nodes that could be judged. "
        "Shared: (siblings − at random) / (a feature with itself − at random), how much of what a feature has of a "
        "topic its siblings have too. p of the other two trees is from few permutations.",
    )


def _distance_table(result: Result) -> Table:
    rows = tuple(
        (
            str(int(r["layer"])),
            f"{int(r['width']):,}",
            *(number(float(r[c]), 3) for c in ("siblings", "cousins", "strangers", "correlation")),
            probability(float(r["p_value"])),
        )
        for _, r in result.table.iterrows()
    )
    return Table(
        ("layer", "width of the leaves", "siblings", "cousins", "strangers", "correlation", "p"),
        rows,
        heading="Distance in the tree and in the taxonomy",
        note=result.caption,
    )


def _examples(table: pd.DataFrame) -> Tree:
    nodes = []
    for _, mine in table.groupby("node", sort=True):
        parent, children = mine[mine["role"] == "parent"], mine[mine["role"] == "child"]
        top = parent.iloc[0]
        below = tuple(_example(part, words=True) for _, part in children.groupby("feature", sort=False))
        shown = _example(parent, words=False)
        nodes.append(
            Node(f"{top['kind']}: {shown.title}", (f"layer {int(top['layer'])}", *shown.facts), shown.passages, below)
        )
    return Tree("Examples to read: the clearest node of every kind, parent and children", tuple(nodes))


def _example(part: pd.DataFrame, *, words: bool) -> Node:
    from moe_probe.report.sections.features import pieces, shortened

    row = part.iloc[0]
    facts = [f"topic: {row['topic']}" if row["topic"] else "no topic passes"]
    if row["share"] == row["share"]:
        facts.append(f"takes {row['share']:.0%} of its parent's tokens, {row['inside']:.0%} of its own are inside")
    if words and row["words"]:
        facts.append(f"words that tell it from its siblings: {row['words']}")
    largest = max((max(a, default=0.0) for a in part["activations"]), default=1.0) or 1.0
    passages = tuple(Passage(str(r["part"]), pieces(r["tokens"], r["activations"], largest)) for _, r in part.iterrows())
    label = shortened(str(row["label"])) or "no label"
    return Node(f"{row['sae']}, feature {int(row['feature'])}: {label}", tuple(facts), passages)


def _tree(edges: pd.DataFrame, nodes: pd.DataFrame | None) -> Tree:
    """Parents of the narrowest SAEs with the most telling children, walkable to the finest."""
    parts = edges[edges["relation"] == "part"]
    # nothing leads to the top of a tree: the narrowest dictionary of a layer and hook, or of a Matryoshka SAE
    below = set(zip(edges["child_sae"], edges["child_width"], strict=True))
    top = [key not in below for key in zip(parts["parent_sae"], parts["parent_width"], strict=True)]
    narrow = parts[np.array(top, dtype=bool)]
    size = narrow.groupby(["parent_sae", "parent"]).size()
    chosen = list(size[size >= 2].sort_values(ascending=False, kind="stable").index)
    if nodes is not None:
        order = (*_ORDER, UNJUDGED)
        rank = {(r.parent_sae, r.parent): (order.index(r.kind), -(r.purity - r.expected)) for r in nodes.itertuples()}
        chosen.sort(key=lambda key: rank.get(key, (len(_ORDER) + 1, 0.0)))
    kinds = {} if nodes is None else {(r.parent_sae, r.parent): r.kind for r in nodes.itertuples()}
    by_parent = dict(iter(parts.groupby(["parent_sae", "parent"])))
    made = tuple(_below(sae, int(parent), by_parent, kinds) for sae, parent in chosen[:_PARENTS])
    return Tree(
        f"The tree from {min(len(chosen), _PARENTS)} of {len(chosen):,} features of the narrowest dictionaries, "
        "those along subjects first",
        made,
    )


def _below(sae: str, feature: int, by_parent: Mapping[Any, pd.DataFrame], kinds: Mapping[Any, str]) -> Node:
    mine = by_parent[(sae, feature)].sort_values("share", ascending=False)
    first = mine.iloc[0]
    children = []
    for row in mine.head(_CHILDREN).itertuples():
        edge = f"takes {row.share:.0%}, {row.inside:.0%} inside, cosine {row.cosine:.2f}"
        if (row.child_sae, row.child) in by_parent:
            below = _below(row.child_sae, int(row.child), by_parent, kinds)
            children.append(Node(below.title, (edge, *below.facts), (), below.children))
        else:
            children.append(Node(_title(row.child_sae, row.child, row.child_label, row.child_topic), (edge,)))
    left = len(mine) - len(children)
    facts = tuple(x for x in (kinds.get((sae, feature), ""), f"{left} smaller parts not shown" if left else "") if x)
    return Node(_title(sae, feature, first["parent_label"], first["parent_topic"]), facts, (), tuple(children))


def _title(sae: str, feature: int, label: str, topic: str) -> str:
    from moe_probe.report.sections.features import shortened

    return f"{sae}:{feature} {shortened(str(label)) or 'no label'}{f' [{topic}]' if topic else ''}"


def _concepts(result: Result) -> Table:
    means = result.table.groupby(["layer", "width"])[["probe_f1", "f1_1", "f1_best", "splits", "absorption"]].mean()
    rows = tuple(
        (str(int(layer)), f"{int(width):,}", *(number(float(v)) for v in row))
        for (layer, width), row in zip(means.index, means.to_numpy(), strict=True)
    )
    return Table(
        (
            "layer",
            "width",
            "F1 of a linear probe",
            "of the best feature",
            "of the best few",
            "features a topic takes",
            "absorbed by other features",
        ),
        rows,
        heading="Topics as concepts: splitting and absorption, mean over topics",
        note=result.caption,
    )


def _depth(result: Result, features: pd.DataFrame) -> list[Block]:
    from moe_probe.report.sections.costs import amount

    rows = tuple(
        (
            str(r["way"]),
            number(int(r["width"])),
            amount(r["operations"]),
            number(int(r["features"])),
            number(int(r["subject"])),
            number(int(r["good"])),
            number(int(r["distinct"])),
            number(float(r["per_operation"]), 3),
        )
        for _, r in result.table.iterrows()
    )
    mine = features[features["mine"] & features["good"]].sort_values("label_score", ascending=False).head(8)
    found = "; ".join(f"{r.label} ({r.path}:{r.feature})" for r in mine.itertuples())
    return [
        Table(
            (
                "way",
                "latents",
                "operations",
                "living features",
                "of the subject",
                "with a good, precise label",
                "distinct",
                "distinct per 10^9 operations",
            ),
            rows,
            heading=f"Depth first and breadth first: {result.params['subject']}",
            note=result.caption,
        ),
        f"Found depth first, from {result.params['root']}: {found}."
        if found
        else f"Depth first found no feature of {result.params['subject']} with a good and precise label.",
    ]
