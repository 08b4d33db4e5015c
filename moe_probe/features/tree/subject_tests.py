"""Tests of a run's trees against the topics and subtopics of its corpus."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from moe_probe.core.stats import benjamini_hochberg
from moe_probe.core.text import figure
from moe_probe.core.units import format_members
from moe_probe.features.tree.annotations import Annotations
from moe_probe.features.tree.distance import Ancestors, tree_distance
from moe_probe.features.tree.kinds import KINDS, UNJUDGED, kind_of_node
from moe_probe.features.tree.ladders import JoinedPair
from moe_probe.features.tree.power import POWER, NodePower, node_power
from moe_probe.features.tree.same_label import SameLabel
from moe_probe.features.tree.siblings import Pairs, Purity, Verdict, best_parents, parts_of_subject, purity, sibling_pairs
from moe_probe.features.tree.subjects import SubjectReader, Subjects

if TYPE_CHECKING:
    import pandas as pd

    from moe_probe.features.tree.ladders import SeedJoins
    from moe_probe.features.tree.options import TreeSettings
    from moe_probe.recording.trace import Trace


class TestedPair(NamedTuple):
    """Rows of ``tree_subjects`` and the table ``tree_nodes`` of one pair of widths, with a sentence on it."""

    rows: list[dict[str, Any]]
    nodes: pd.DataFrame
    sentence: str


class _TestedNodes(NamedTuple):
    """Results of the tests of every node: purity, power, topic of most firings, and q of its parts."""

    pairs: Pairs
    purity: Purity
    power: NodePower
    topic: np.ndarray
    q_parts: np.ndarray


class SubjectTester:
    """Tests trees of one trace against the labels of its documents.

    Parameters
    ----------
    trace : Trace
    settings : TreeSettings
    warnings : list of str
        Gets a sentence where the labels do not allow a test.
    """

    def __init__(self, trace: Trace, settings: TreeSettings, warnings: list[str]) -> None:
        self._settings, documents = settings, trace.documents
        self._subjects = SubjectReader(trace, settings, warnings)
        #: Whether documents have two labels or more, so that there is something to test.
        self.possible = settings.by in documents and documents[settings.by].replace("", np.nan).nunique() > 1
        if not self.possible:
            warnings.append(
                f"The tree was not compared with subjects: documents have fewer than two values of {settings.by}."
            )

    def test_pair(self, joined: JoinedPair, other: SeedJoins | None, annotations: Annotations) -> TestedPair:
        """Test the tree of one pair of widths, and beside it those of another seed.

        Parameters
        ----------
        joined : JoinedPair
            The narrower and the wider dictionary of the run.
        other : SeedJoins, optional
            The narrower one from another seed.
        annotations : Annotations
            Topics and labels of the features.

        Returns
        -------
        TestedPair
        """
        row, nodes = self.test_tree(joined, annotations, self._settings)
        rows = [joined.columns | {"tree": "this run"} | row]
        if other is not None:
            quick = replace(self._settings, permutations=max(20, self._settings.permutations // 10))
            for tree, pair, known in (
                ("parents of another seed", other.parents, annotations),
                ("same width, another seed", other.same_width, Annotations()),
            ):
                rows.append(joined.columns | {"tree": tree} | self.test_tree(pair, known, quick)[0])
        sentence = (
            f"{figure(row['purity'], '.0%')} of the time, {figure(row['expected'], '.0%')} expected, "
            f"p {figure(row['p_value'], '.2g')}"
        )
        return TestedPair(rows, nodes, sentence if row["nodes"] else "no node has two parts")

    def test_tree(
        self, joined: JoinedPair, annotations: Annotations, settings: TreeSettings
    ) -> tuple[dict[str, Any], pd.DataFrame]:
        """Test whether siblings share a topic, in the whole tree and at every node.

        Parameters
        ----------
        joined : JoinedPair
        annotations : Annotations
            Topics and labels of the features.
        settings : TreeSettings
            Permutations, alpha and seed.

        Returns
        -------
        row : dict
            Columns of ``tree_subjects`` without those of the pair; NaN where no node has two parts.
        nodes : pandas.DataFrame
            ``tree_nodes``; empty where no node has two parts.
        """
        import pandas as pd

        subjects, alpha, seed = self._subjects.of(joined.child), settings.alpha, settings.seed
        pairs = sibling_pairs(joined.edges, joined.child.level.counts, seed=seed)
        if pairs is None:
            names = ("purity", "expected", "ceiling", "shared", "p_labels", "p_features", "p_value", *KINDS)
            return {"nodes": 0, "judged": 0, "found_beside": 0} | dict.fromkeys(names, np.nan), pd.DataFrame()
        tested = purity(subjects, pairs, permutations=settings.permutations, seed=seed)
        topic, passed = _topic_of_nodes(subjects, pairs), tested.q_value <= alpha
        node_topic = np.where(passed, topic, -1)
        p_parts = parts_of_subject(subjects, pairs, node_topic, permutations=settings.permutations, seed=seed)
        power = node_power(subjects, pairs, tested, alpha=alpha, seed=seed)
        nodes = self._nodes(joined, _TestedNodes(pairs, tested, power, topic, benjamini_hochberg(p_parts)), annotations)
        # of the nodes that the test finds as a rule: what it finds among the others says nothing of those that it does not find
        able = power.power >= POWER
        judged = nodes["kind"][able & (nodes["kind"] != UNJUDGED)]
        row = {
            "nodes": len(pairs.parents),
            "judged": len(judged),
            "found_beside": int((passed & ~able).sum()),
            "purity": tested.tree.observed,
            "expected": tested.tree.expected,
            "ceiling": tested.ceiling,
            "shared": tested.shared,
            **_p_values(tested.tree, subjects),
            **{kind: float((judged == kind).mean()) for kind in KINDS},  # NaN where no node could be judged
        }
        return row, nodes

    def _nodes(self, joined: JoinedPair, tested: _TestedNodes, annotations: Annotations) -> pd.DataFrame:
        import pandas as pd

        (parent, child, edges), (pairs, tested_purity, power, topic, q_parts) = joined, tested
        children_of = {int(p): np.sort(rows["child"].to_numpy()) for p, rows in best_parents(edges).groupby("parent")}
        alpha, rows = self._settings.alpha, []
        for i, (number, q_value) in enumerate(zip(pairs.parents, tested_purity.q_value, strict=True)):
            children, feature = children_of[int(number)] + child.first, int(number) + parent.first
            topics = [annotations[child.name, int(c)].topic for c in children]
            kind = kind_of_node(float(q_value), float(q_parts[i]), topics, alpha=alpha, judged=bool(power.judged[i]))
            rows.append(
                {
                    **joined.columns,
                    "parent": feature,
                    "children": len(children),
                    "purity": tested_purity.observed[i],
                    "expected": tested_purity.expected[i],
                    "p_value": tested_purity.p_value[i],
                    "q_value": q_value,
                    "q_parts": q_parts[i],
                    "power": power.power[i],
                    "pure_low": power.pure_low[i],
                    "kind": kind,
                    "topic": self._subjects.topics[topic[i]] if q_value <= alpha else "",
                    "topical_children": sum(t != "" for t in topics),
                    "topics_of_children": len({t for t in topics if t}),
                    "label": annotations[parent.name, feature].label,
                    "child_features": format_members(children),
                    "parent_sae": parent.name,
                    "child_sae": child.name,
                }
            )
        return pd.DataFrame(rows)

    def distances(self, joins: Sequence[JoinedPair]) -> list[dict[str, Any]]:
        """Correlate distances in the tree of three or more widths with those in the taxonomy; nothing with two widths.

        Parameters
        ----------
        joins : sequence of JoinedPair
            Of one ladder, from narrow to wide.

        Returns
        -------
        list of dict
            Rows of ``tree_distance``.
        """
        rows = []
        for upper, lower in pairwise(joins):
            leaves, subjects = lower.child, self._subjects.of(lower.child)
            parent, above = _best_parent_of(lower), _best_parent_of(upper)
            distances = tree_distance(
                subjects,
                Ancestors(parent, np.where(parent >= 0, above[parent], -1)),
                permutations=self._settings.permutations,
                seed=self._settings.seed,
            )
            if distances is not None:
                rows.append(
                    {
                        "layer": leaves.layer,
                        "width": leaves.width,
                        "siblings": distances.siblings,
                        "cousins": distances.cousins,
                        "strangers": distances.strangers,
                        "correlation": distances.test.observed,
                        "expected": distances.test.expected,
                        **_p_values(distances.test, subjects),
                        "sae": leaves.name,
                    }
                )
        return rows


def _best_parent_of(joined: JoinedPair) -> np.ndarray:
    """Parent of every child, -1 for none, shape (n_children,)."""
    parent, edges = np.full(len(joined.child.directions), -1), best_parents(joined.edges)
    parent[edges["child"]] = edges["parent"]
    return parent


def _p_values(test: Verdict, subjects: Subjects) -> dict[str, float]:
    """p-values of a test; NaN for what needs labels to be exchanged, where none can be."""
    labels, either = (test.p_labels, test.p_value) if subjects.exchangeable else (np.nan, np.nan)
    return {"p_labels": labels, "p_features": test.p_features, "p_value": either}


def _topic_of_nodes(subjects: Subjects, pairs: Pairs) -> np.ndarray:
    """Find the topic that most firings of a node's children are from, topics counting alike, shape (n_nodes,)."""
    by_topic = subjects.topic.one_hot() @ SameLabel(subjects.rates[:, pairs.features], subjects.topic).shares
    total = np.zeros((len(pairs.parents), subjects.topic.n))
    for side in (pairs.first, pairs.second):
        np.add.at(total, pairs.node, by_topic.T[side])
    return np.asarray(total.argmax(1))
