"""Trees of features to walk down: examples of every kind of node, and the tree from the narrowest dictionaries."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from moe_probe.core.text import is_missing
from moe_probe.features.tree import KINDS, UNJUDGED
from moe_probe.report.content import Node, Passage, Tree
from moe_probe.report.passages import shaded
from moe_probe.report.sections.features import shortened

if TYPE_CHECKING:
    import pandas as pd

#: Parents shown in the foldable tree, and children of each.
_PARENTS, _CHILDREN = 24, 8


def example_tree(table: pd.DataFrame) -> Tree:
    """Show the clearest node of every kind with its children, from a table ``tree_examples``."""
    nodes = []
    for _, rows in table.groupby("node", sort=True):
        parent, children = rows[rows["role"] == "parent"], rows[rows["role"] == "child"]
        top = parent.iloc[0]
        below = tuple(_example(part, words=True) for _, part in children.groupby("feature", sort=False))
        shown = _example(parent, words=False)
        nodes.append(
            Node(f"{top['kind']}: {shown.title}", (f"layer {int(top['layer'])}", *shown.facts), shown.passages, below)
        )
    return Tree("Examples to read: the clearest node of every kind, parent and children", tuple(nodes))


def _example(part: pd.DataFrame, *, words: bool) -> Node:
    row = part.iloc[0]
    facts = [f"topic: {row['topic']}" if row["topic"] else "no topic passes"]
    if not is_missing(row["share"]):
        facts.append(f"takes {row['share']:.0%} of its parent's tokens, {row['inside']:.0%} of its own are inside")
    if words and row["words"]:
        facts.append(f"words that separate it from its siblings: {row['words']}")
    largest = max((max(a, default=0.0) for a in part["activations"]), default=1.0) or 1.0
    passages = tuple(Passage(str(r.part), shaded(r.tokens, r.activations, largest=largest)) for r in part.itertuples())
    label = shortened(str(row["label"])) or "no label"
    return Node(f"{row['sae']}, feature {int(row['feature'])}: {label}", tuple(facts), passages)


def feature_tree(edges: pd.DataFrame, nodes: pd.DataFrame | None) -> Tree:
    """Show parents of the narrowest SAEs, those along subjects first, walkable to the finest.

    Parameters
    ----------
    edges : pandas.DataFrame
        Result ``tree``.
    nodes : pandas.DataFrame, optional
        Result ``tree_nodes``: the kind of each node.

    Returns
    -------
    Tree
    """
    parts = edges[edges["relation"] == "part"]
    # nothing leads to the top of a tree: the narrowest dictionary of a layer and hook, or of a Matryoshka SAE
    below = set(zip(edges["child_sae"], edges["child_width"], strict=True))
    top = [key not in below for key in zip(parts["parent_sae"], parts["parent_width"], strict=True)]
    size = parts[np.array(top, dtype=bool)].groupby(["parent_sae", "parent"]).size()
    chosen = list(size[size >= 2].sort_values(ascending=False, kind="stable").index)
    kinds = {}
    if nodes is not None:
        order = (*KINDS, UNJUDGED)
        rank = {(r.parent_sae, r.parent): (order.index(r.kind), -(r.purity - r.expected)) for r in nodes.itertuples()}
        chosen.sort(key=lambda key: rank.get(key, (len(KINDS) + 1, 0.0)))
        kinds = {(r.parent_sae, r.parent): r.kind for r in nodes.itertuples()}
    by_parent = dict(iter(parts.groupby(["parent_sae", "parent"])))
    made = tuple(_below(sae, int(parent), by_parent, kinds) for sae, parent in chosen[:_PARENTS])
    return Tree(
        f"The tree from {min(len(chosen), _PARENTS)} of {len(chosen):,} features of the narrowest dictionaries, "
        "those along subjects first",
        made,
    )


def _below(sae: str, feature: int, by_parent: Mapping[Any, pd.DataFrame], kinds: Mapping[Any, str]) -> Node:
    edges = by_parent[(sae, feature)].sort_values("share", ascending=False)
    first = edges.iloc[0]
    children = []
    for row in edges.head(_CHILDREN).itertuples():
        edge = f"takes {row.share:.0%}, {row.inside:.0%} inside, cosine {row.cosine:.2f}"
        if (row.child_sae, row.child) in by_parent:
            below = _below(row.child_sae, int(row.child), by_parent, kinds)
            children.append(Node(below.title, (edge, *below.facts), (), below.children))
        else:
            children.append(Node(_title(row.child_sae, row.child, row.child_label, row.child_topic), (edge,)))
    left = len(edges) - len(children)
    facts = tuple(x for x in (kinds.get((sae, feature), ""), f"{left} smaller parts not shown" if left else "") if x)
    return Node(_title(sae, feature, first["parent_label"], first["parent_topic"]), facts, (), tuple(children))


def _title(sae: str, feature: int, label: str, topic: str) -> str:
    return f"{sae}:{feature} {shortened(str(label)) or 'no label'}{f' [{topic}]' if topic else ''}"
