"""A run's trees against the corpus's own taxonomy: tests, kinds of nodes, examples to read."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from moe_probe.core.errors import MoeProbeError
from moe_probe.core.text import figure
from moe_probe.core.units import format_members
from moe_probe.features.tree.ladders import Dictionary, Place, activations

if TYPE_CHECKING:
    import pandas as pd

    from moe_probe.features.firing import Firings
    from moe_probe.features.tree import NodePower, Purity, Sample, Subjects, Verdict
    from moe_probe.features.tree.build import TreeSettings
    from moe_probe.recording.trace import Trace

#: Topic and label of a feature, by its SAE and number.
Facts = Mapping[tuple[str, int], tuple[str, str]]
#: Groups of documents that rates are held for. More are put together within a subject, so that memory stays at this many times
#: the width of the dictionary however long the corpus is; bundles are exchanged as groups are.
_MOST_GROUPS = 2_000
#: Tokens that concepts are probed on, of training and of held-out documents.
_CONCEPT_TOKENS = 8_000
#: Children of an example that are shown, and excerpts of each.
_CHILDREN, _EXCERPTS = 4, 3


class Tested(NamedTuple):
    """Rows of ``tree_subjects`` and the table ``tree_nodes`` of one pair of widths."""

    rows: list[dict[str, Any]]
    nodes: pd.DataFrame


class _OfNodes(NamedTuple):
    """What is known of every node of a tree: purity, power, topic of most firings, and q of its parts."""

    purity: Purity
    power: NodePower
    topic: np.ndarray
    q_parts: np.ndarray


class SubjectsOf:
    """Holds trees of one trace against its labels.

    Parameters
    ----------
    trace : Trace
    settings : TreeSettings
    warnings : list of str
        Added to where the labels do not allow a test.
    """

    def __init__(self, trace: Trace, settings: TreeSettings, warnings: list[str]) -> None:
        self.trace, self.settings = trace, settings
        self.document = trace.tokens(["document"])["document"].to_numpy()
        self.said = ""
        self.known = (
            trace.documents[settings.by].replace("", np.nan).nunique() > 1 if settings.by in trace.documents else False
        )
        if not self.known:
            warnings.append(
                f"The tree was not compared with subjects: documents have fewer than two values of {settings.by}."
            )
        self._warnings = warnings
        self._made: dict[tuple[str, int], Subjects] = {}
        self._documents: pd.DataFrame | None = None
        self._topics: tuple[str, ...] = ()

    def of(self, level: Dictionary) -> Subjects:
        """Firing rates of a level's features in all groups of documents, with the groups' topics."""
        key = level.name, level.first
        if key not in self._made:
            self._made[key] = self._subjects(level.everywhere())
        return self._made[key]

    def _subjects(self, firings: Firings) -> Subjects:
        from moe_probe.features.topic_enrichment import group_rates
        from moe_probe.features.tree import Labelling, Subjects, bundled

        if self._documents is None:
            self._documents = bundled(
                self.trace.documents,
                by=self.settings.by,
                finer=self.settings.finer,
                most=_MOST_GROUPS,
                strata=self.settings.strata,
                seed=self.settings.seed,
            )
        found = group_rates(self._documents, self.document, firings, label=self.settings.by, strata=self.settings.strata)
        self._topics = found.topics
        topic = Labelling(found.topic, len(found.topics))
        made = Subjects(
            found.rates.astype(np.float32), firings.counts, topic, self._finer(found.groups, topic), found.strata
        )
        if found.strata is not None and not made.exchangeable:
            self._warnings.append(
                f"Nothing can be claimed of {self.settings.by}: every {self.settings.strata} has one only, so "
                "that no labels can be exchanged (--strata none exchanges them among all documents)."
            )
        return made

    def _finer(self, groups: Sequence[str], topic: Any) -> Any:
        """Subtopics of the groups; None, with a warning, where not every group has exactly one."""
        from moe_probe.core.stats import labelled_documents, one_value_per_group
        from moe_probe.features.tree import Labelling

        try:
            keep, labels, names = labelled_documents(self._documents, label=self.settings.finer)
            value = one_value_per_group(labels[keep], names[keep], what=self.settings.finer)
            codes = np.unique([f"{t}/{value[g]}" for t, g in zip(topic.codes, groups, strict=True)], return_inverse=True)[1]
        except (MoeProbeError, KeyError):
            self._warnings.append(
                f"The tree was compared with {self.settings.by} only: not every document has one {self.settings.finer}."
            )
            return None
        return Labelling(codes, int(codes.max()) + 1)

    def test(
        self, parent: Dictionary, child: Dictionary, edges: pd.DataFrame, other: Dictionary | None, facts: Facts
    ) -> Tested:
        """Test the tree of one pair of widths, and beside it those of another seed."""
        import pandas as pd

        from moe_probe.features.tree import join

        where = {"layer": parent.sae.config.layer, "parent_width": parent.width, "child_width": child.width}
        row, nodes = self._one(where | {"tree": "this run"}, edges, child, facts, self.settings.permutations, parent)
        self.said = (
            f"{figure(row['purity'], '.0%')} of the time, {figure(row['expected'], '.0%')} expected, "
            f"p {figure(row['p_value'], '.2g')}"
            if row["nodes"]
            else "no node has two parts"
        )
        rows = [row]
        if other is not None:
            few = max(20, self.settings.permutations // 10)
            again = join(other.level, child.level)
            rows.append(self._one(where | {"tree": "parents of another seed"}, again, child, facts, few, other)[0])
            same = join(parent.level, other.level)
            rows.append(self._one(where | {"tree": "same width, another seed"}, same, other, {}, few, parent)[0])
        return Tested(rows, nodes if nodes is not None else pd.DataFrame())

    def _one(
        self,
        where: dict[str, Any],
        edges: pd.DataFrame,
        child: Dictionary,
        facts: Facts,
        permutations: int,
        parent: Dictionary,
    ) -> tuple[dict[str, Any], pd.DataFrame | None]:
        from moe_probe.features.tree import KINDS, POWER, UNJUDGED, node_power, parts_of_subject, purity, sibling_pairs

        subjects = self.of(child)
        pairs = sibling_pairs(
            edges, np.bincount(child.level.firings.indices, minlength=child.level.firings.shape[1]), seed=self.settings.seed
        )
        if pairs is None:
            names = ("purity", "expected", "ceiling", "shared", "p_labels", "p_features", "p_value", *KINDS)
            return where | {"nodes": 0, "judged": 0, "found_beside": 0} | dict.fromkeys(names, np.nan), None
        found = purity(subjects, pairs, permutations=permutations, seed=self.settings.seed)
        topic = _topic_of_nodes(subjects, pairs)
        one = found.q_value <= self.settings.alpha
        q_parts = _adjusted(
            parts_of_subject(subjects, pairs, np.where(one, topic, -1), permutations=permutations, seed=self.settings.seed)
        )
        power = node_power(subjects, pairs, found, alpha=self.settings.alpha, seed=self.settings.seed)
        nodes = self._nodes(where, edges, pairs, _OfNodes(found, power, topic, q_parts), parent, child, facts)
        # of the nodes that the test finds as a rule: what it finds among the others says nothing of those that it does not find
        able = power.power >= POWER
        known = nodes["kind"][able & (nodes["kind"] != UNJUDGED)]
        shares = {kind: float((known == kind).mean()) for kind in KINDS}  # NaN where no node could be judged
        row = {
            "nodes": len(pairs.parents),
            "judged": len(known),
            "found_beside": int((one & ~able).sum()),
            "purity": found.tree.observed,
            "expected": found.tree.expected,
            "ceiling": found.ceiling,
            "shared": found.shared,
            **_p_values(found.tree, subjects),
        }
        return where | row | shares, nodes

    def _nodes(
        self,
        where: dict[str, Any],
        edges: pd.DataFrame,
        pairs: Any,
        tested: _OfNodes,
        parent: Dictionary,
        child: Dictionary,
        facts: Facts,
    ) -> pd.DataFrame:
        import pandas as pd

        from moe_probe.features.tree import best_parents, kind_of_node

        parts = best_parents(edges)
        children_of = {int(p): np.sort(mine["child"].to_numpy()) for p, mine in parts.groupby("parent")}
        found, power, topic, q_parts = tested
        rows = []
        for i, number in enumerate(pairs.parents):
            children = children_of[int(number)] + child.first
            topics = [facts.get((child.name, int(c)), ("", ""))[0] for c in children]
            kind = kind_of_node(
                float(found.q_value[i]), float(q_parts[i]), topics, alpha=self.settings.alpha, judged=bool(power.judged[i])
            )
            rows.append(
                {
                    **{k: v for k, v in where.items() if k != "tree"},
                    "parent": int(number) + parent.first,
                    "children": len(children),
                    "purity": found.observed[i],
                    "expected": found.expected[i],
                    "p_value": found.p_value[i],
                    "q_value": found.q_value[i],
                    "q_parts": q_parts[i],
                    "power": power.power[i],
                    "pure_low": power.pure_low[i],
                    "kind": kind,
                    "topic": self._topics[topic[i]] if found.q_value[i] <= self.settings.alpha else "",
                    "topical_children": sum(t != "" for t in topics),
                    "topics_of_children": len({t for t in topics if t}),
                    "label": facts.get((parent.name, int(number) + parent.first), ("", ""))[1],
                    "child_features": format_members(children),
                    "parent_sae": parent.name,
                    "child_sae": child.name,
                }
            )
        return pd.DataFrame(rows)

    def distances(self, joins: Sequence[tuple[Dictionary, Dictionary, pd.DataFrame]]) -> list[dict[str, Any]]:
        """Hold distances in the tree of three or more widths against those in the taxonomy; nothing with two widths."""
        from moe_probe.features.tree import best_parents, tree_distance

        rows = []
        for (_, middle, upper), (_, leaves, lower) in pairwise(joins):
            up = np.full(len(leaves.level.directions), -1)
            near = best_parents(lower)
            up[near["child"]] = near["parent"]
            above = np.full(len(middle.level.directions), -1)
            top = best_parents(upper)
            above[top["child"]] = top["parent"]
            found = tree_distance(
                self.of(leaves),
                up,
                np.where(up >= 0, above[up], -1),
                permutations=self.settings.permutations,
                seed=self.settings.seed,
            )
            if found is not None:
                rows.append(
                    {
                        "layer": leaves.sae.config.layer,
                        "width": leaves.width,
                        "siblings": found.siblings,
                        "cousins": found.cousins,
                        "strangers": found.strangers,
                        "correlation": found.test.observed,
                        "expected": found.test.expected,
                        **_p_values(found.test, self.of(leaves)),
                        "sae": leaves.name,
                    }
                )
        return rows

    def concepts(self, level: Dictionary) -> pd.DataFrame:
        """Features that every topic takes, and absorption, in one dictionary."""
        import pandas as pd

        from moe_probe.features.tree import split_of_concept

        labels = self.trace.documents[self.settings.by].fillna("").astype(str).to_numpy()
        rng = np.random.default_rng(self.settings.seed)
        parts = [self._sample(level, side, labels, rng) for side in (0, 1)]
        rows = []
        for topic in sorted({t for t in labels if t}):
            train, held = (sample._replace(y=of == topic) for sample, of in parts)
            if min(train.y.sum(), held.y.sum()) < 20 or train.y.all():
                continue
            found = split_of_concept(train, held, level.level.directions)
            rows.append(
                {
                    "layer": level.sae.config.layer,
                    "width": level.width,
                    "sae": level.name,
                    self.settings.by: topic,
                    "probe_f1": found.probe_f1,
                    "f1_1": found.f1[0],
                    "f1_best": max(found.f1),
                    "splits": found.splits,
                    "absorption": found.absorption,
                    "features": format_members(found.features),
                }
            )
        return pd.DataFrame(rows)

    def _sample(
        self, level: Dictionary, side: int, labels: np.ndarray, rng: np.random.Generator
    ) -> tuple[Sample, np.ndarray]:
        from moe_probe.features.tree import Sample

        firings = (level.train, level.held_out)[side]
        known = np.flatnonzero(labels[self.document[firings.rows]] != "")  # without a label it may be of any topic
        chosen = np.sort(rng.choice(known, min(len(known), _CONCEPT_TOKENS), replace=False))
        rows = firings.rows[chosen]
        scale = float(level.sae.scale)
        x = activations(level.readers[side], level.sae, rows) / scale - level.sae.b_dec.detach().numpy()
        of = labels[self.document[rows]]
        return Sample(x, firings.matrix[chosen], np.zeros(len(rows), dtype=bool)), of


def _p_values(test: Verdict, subjects: Subjects) -> dict[str, float]:
    """p-values of a test; NaN for what needs labels to be exchanged, where none can be."""
    if subjects.exchangeable:
        return {"p_labels": test.p_labels, "p_features": test.p_features, "p_value": test.p_value}
    return {"p_labels": np.nan, "p_features": test.p_features, "p_value": np.nan}


def _topic_of_nodes(subjects: Subjects, pairs: Any) -> np.ndarray:
    """The topic that the firings of a node's children are mostly from, topics counting alike."""
    from moe_probe.features.tree import SameLabel

    by_topic = subjects.topic.one_hot() @ SameLabel(subjects.rates[:, pairs.features], subjects.topic).shares
    total = np.zeros((len(pairs.parents), subjects.topic.n))
    for side in (pairs.first, pairs.second):
        np.add.at(total, pairs.node, by_topic.T[side])
    return np.asarray(total.argmax(1))


def _adjusted(p_value: np.ndarray) -> np.ndarray:
    from moe_probe.core.stats import benjamini_hochberg

    out = np.full(len(p_value), np.nan)
    known = ~np.isnan(p_value)
    if known.any():
        out[known] = benjamini_hochberg(p_value[known])
    return out


def show_examples(
    trace: Trace, found: Sequence[tuple[Place, list[Dictionary]]], nodes: pd.DataFrame, edges: pd.DataFrame, facts: Facts
) -> pd.DataFrame:
    """Excerpts of the clearest node of every kind in every layer: the parent's, and those of its largest children.

    Returns
    -------
    pandas.DataFrame
        An excerpt a row: ``layer, kind, node`` (number of the example), ``role`` (parent | child), ``sae, feature, label, topic,
        share, inside, cosine, words, part, document, tokens, activations``.
    """
    import pandas as pd

    from moe_probe.features.labels.context import token_context
    from moe_probe.features.labels.excerpts import Excerpts
    from moe_probe.features.tree import choose_examples, telling_words

    chosen = [(kind, nodes.loc[i]) for _, mine in nodes.groupby("layer") for kind, i in choose_examples(mine, edges)]
    needed = {node[side] for _, node in chosen for side in ("parent_sae", "child_sae")}
    fired = _held_out_firings(found, needed)
    draw = {name: Excerpts(trace, firings) for name, firings in fired.items()}
    word = token_context(trace, labels=()).factor("word")
    background = np.bincount(word.codes[word.codes >= 0], minlength=len(word.values))
    names = trace.documents["document"].to_numpy()
    rows: list[dict[str, Any]] = []
    for number, (kind, node) in enumerate(chosen):
        mine = edges[
            (edges["parent_sae"] == node["parent_sae"])
            & (edges["child_sae"] == node["child_sae"])
            & (edges["parent"] == node["parent"])
            & (edges["relation"] == "part")
        ]
        mine = mine.sort_values("share", ascending=False).head(_CHILDREN)
        codes = [word.codes[_rows_of(fired[node["child_sae"]], int(c))] for c in mine["child"]]
        told = telling_words(codes, len(word.values), background)
        units: list[tuple[str, str, int, dict[str, float], str]] = [
            ("parent", str(node["parent_sae"]), int(node["parent"]), {}, "")
        ]
        units += [
            (
                "child",
                str(node["child_sae"]),
                int(e.child),
                {"share": e.share, "inside": e.inside, "cosine": e.cosine},
                ", ".join(word.values[w] for w in words),
            )
            for e, words in zip(mine.itertuples(), told, strict=True)
        ]
        for role, sae, feature, joined, words in units:
            topic, label = facts.get((sae, feature), ("", ""))
            shown = draw[sae].draw(feature, top=_EXCERPTS, per_fifth=0, silent=0)
            rows += [
                {
                    "layer": int(node["layer"]),
                    "kind": kind,
                    "node": number,
                    "role": role,
                    "sae": sae,
                    "feature": feature,
                    "label": label,
                    "topic": topic,
                    "share": np.nan,
                    "inside": np.nan,
                    "cosine": np.nan,
                    **joined,
                    "words": words,
                    "part": e.part,
                    "document": str(names[e.document]),
                    "tokens": list(e.tokens),
                    "activations": list(e.activations),
                }
                for e in shown
            ]
    return pd.DataFrame(rows)


def _held_out_firings(found: Sequence[tuple[Place, list[Dictionary]]], names: Collection[str]) -> dict[str, Firings]:
    """Firings of whole SAEs by name; the nested parts of a Matryoshka SAE are put together again."""
    from scipy import sparse

    from moe_probe.features.firing import Firings

    parts: dict[str, list[Dictionary]] = {}
    for _, levels in found:
        for level in levels:
            if level.name in names:
                parts.setdefault(level.name, []).append(level)
    return {
        name: Firings(sparse.hstack([level.held_out.matrix for level in mine], format="csr"), mine[0].held_out.rows)
        if len(mine) > 1
        else mine[0].held_out
        for name, mine in parts.items()
    }


def _rows_of(firings: Firings, feature: int) -> np.ndarray:
    columns = firings.matrix[:, [feature]].tocoo()
    return np.asarray(firings.rows[columns.coords[0]])
