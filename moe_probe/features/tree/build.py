"""Build the tree of a run: join the SAEs of each ladder from width to width, and test the tree against topics."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np

from moe_probe.core.errors import MoeProbeError
from moe_probe.core.progress import Say, track
from moe_probe.core.results import Result
from moe_probe.core.text import figure, quoted, table_lines
from moe_probe.features.tree import captions
from moe_probe.features.tree.annotations import feature_annotations
from moe_probe.features.tree.concepts import concept_table
from moe_probe.features.tree.edges import agreement, novel_share, splitting
from moe_probe.features.tree.examples import example_table
from moe_probe.features.tree.kinds import UNJUDGED
from moe_probe.features.tree.ladders import (
    JoinedPair,
    SaeLadder,
    SeedJoins,
    iter_sae_ladders,
    read_activations,
)
from moe_probe.features.tree.options import TreeSettings
from moe_probe.features.tree.stitching import stitched_change
from moe_probe.features.tree.subject_tests import SubjectTester

if TYPE_CHECKING:
    import pandas as pd

    from moe_probe.features.tree.annotations import Annotations
    from moe_probe.features.tree.dictionary import Dictionary
    from moe_probe.recording.rundir import RunDirectory

#: Held-out tokens that stitching is measured on: their activations are held in memory.
_STITCHED_TOKENS = 32_768
_SEED_COLUMNS = ("seed_agreement", "seed_same", "split_same_width", "novel_same_width")
_FIRST_COLUMNS = ("layer", "parent_width", "parent", "child_width", "child", "weight", "parent_topic", "child_topic")


def build_tree(
    run: RunDirectory,
    *,
    settings: TreeSettings | None = None,
    ladders: Sequence[SaeLadder] | None = None,
    say: Say = print,
) -> tuple[Result, ...]:
    """Join the SAEs of every layer from narrow to wide, and test whether the tree follows the corpus's own subjects.

    Joins and reconstructions are measured on held-out documents; subjects on all documents, since no SAE has seen a label.

    Parameters
    ----------
    run : RunDirectory
        With SAEs of two widths.
    settings : TreeSettings, optional
    ladders : sequence of SaeLadder, optional
        From `moe_probe.features.tree.iter_sae_ladders`, where it was called already.
    say : callable
        Gets a line for every pair of widths.

    Returns
    -------
    tree, splitting, tree_subjects, tree_nodes, tree_distance, tree_examples, concepts : Result
        ``tree``, one row per edge: ``layer, parent_width, parent, child_width, child, weight, parent_topic, child_topic, cosine,
        inside, share, lift, joined_by, relation, parent_label, child_label, parent_sae, child_sae``. ``splitting``, one row per
        pair of widths: ``layer, parent_width, child_width, split, kept, novel, stitched_novel, orphans, children, edges,
        joined_by_both``, and of the nulls (NaN without) ``seed_agreement, seed_same, split_same_width, novel_same_width``.
        The others: see docs/formats.md. Those on subjects are left out where documents have fewer than two topics.

    Raises
    ------
    MoeProbeError
        When no layer has SAEs of two widths.
    """
    builder = _Builder(run, settings or TreeSettings(), say)
    ladders = list(iter_sae_ladders(run)) if ladders is None else ladders
    for ladder in ladders:
        builder.add(ladder)
    if not builder.splitting:
        raise MoeProbeError(
            f"no layer of {run.path} has SAEs of two widths",
            "a tree joins a narrower one with a wider one",
            f"moe-probe sae train {quoted(run.path)} --widths 256,1024",
        )
    return tuple(builder.results(ladders))


class _Builder:
    """Rows of the results, gathered ladder by ladder."""

    def __init__(self, run: RunDirectory, settings: TreeSettings, say: Say) -> None:
        self._run, self._settings, self._say = run, settings, say
        self._annotations = feature_annotations(run)
        self._edges: list[pd.DataFrame] = []
        self.splitting: list[dict[str, Any]] = []
        self._subjects: list[dict[str, Any]] = []
        self._nodes: list[pd.DataFrame] = []
        self._distances: list[dict[str, Any]] = []
        self._concepts: list[pd.DataFrame] = []
        self._warnings: list[str] = []

    def add(self, ladder: SaeLadder) -> None:
        """Join the dictionaries of a ladder, and test their tree."""
        tester = SubjectTester(self._run, self._settings, self._warnings)
        joins: list[JoinedPair] = []
        retrained: dict[str, Dictionary] = {}
        pairs = list(pairwise(ladder.dictionaries))
        for parent, child in track(pairs, f"join layer {ladder.layer}", unit="pairs of widths"):
            started = time.monotonic()
            joined = JoinedPair.of(parent, child)
            joins.append(joined)
            again = self._retrain(parent, retrained) if self._settings.null else None
            other = None if again is None else SeedJoins.of(joined, again)
            row = _splitting_row(joined, other)
            self.splitting.append(row)
            self._edges.append(_annotated(joined, self._annotations))
            siblings = ""
            if tester.possible:
                tested = tester.test_pair(joined, other, self._annotations)
                self._subjects += tested.rows
                self._nodes += [tested.nodes] if len(tested.nodes) else []
                siblings = f"; siblings share a subject: {tested.sentence}"
            self._say(
                f"{parent.name} -> {child.name}: {figure(row['split'], '.0%', 'unknown share')} of features split, "
                f"{figure(row['kept'], '.0%', 'unknown share')} stay{siblings} ({time.monotonic() - started:.1f} s)"
            )
        if tester.possible:
            self._distances += tester.distances(joins)
            if self._settings.concepts:
                whole = [dictionary for dictionary in ladder.dictionaries if not dictionary.first]
                self._concepts += [concept_table(self._run, dictionary, self._settings) for dictionary in whole]

    def _retrain(self, dictionary: Dictionary, retrained: dict[str, Dictionary]) -> Dictionary | None:
        """Train a dictionary from another seed; None, with a warning, where it was trained elsewhere."""
        if dictionary.imported:
            self._warnings.append(
                f"{dictionary.name} was loaded from elsewhere: how it was trained is unknown, so it is not "
                "compared with another seed."
            )
            self._say(f"note: {self._warnings[-1]}")
            return None
        self._warnings += [dictionary.assumed] if dictionary.assumed else []
        return dictionary.retrain_with_seed(retrained)

    def results(self, ladders: Sequence[SaeLadder]) -> list[Result]:
        """Make the results of the rows."""
        import pandas as pd

        edges, params = pd.concat(self._edges, ignore_index=True), asdict(self._settings)
        edges = edges[[*_FIRST_COLUMNS, *(c for c in edges.columns if c not in _FIRST_COLUMNS)]]
        sums, warnings = pd.DataFrame(self.splitting), tuple(dict.fromkeys(self._warnings))
        results = [
            Result("tree", edges, citations=captions.SOURCES, caption=captions.TREE),
            Result("splitting", sums, params, None, captions.SPLITTING, warnings, captions.SOURCES),
        ]
        if self._nodes:
            nodes = pd.concat(self._nodes, ignore_index=True)
            strata = self._settings.strata
            within = f" Labels are permuted within each {strata}." if strata else ""
            results += [
                Result(name, table, params, self._settings.seed, caption, citations=captions.SUBJECT_SOURCES)
                for name, table, caption in (
                    ("tree_subjects", pd.DataFrame(self._subjects), captions.SUBJECTS + within),
                    ("tree_nodes", nodes, captions.NODES + within),
                    ("tree_distance", pd.DataFrame(self._distances), captions.DISTANCE + within),
                    (
                        "tree_examples",
                        example_table(self._run, ladders, nodes, edges, self._annotations),
                        captions.EXAMPLES,
                    ),
                )
            ]
        if self._concepts:
            concepts, sources = pd.concat(self._concepts, ignore_index=True), captions.CONCEPT_SOURCES
            results.append(Result("concepts", concepts, params, caption=captions.CONCEPTS, citations=sources))
        return results


def _splitting_row(joined: JoinedPair, other: SeedJoins | None) -> dict[str, Any]:
    """Sum a pair of widths up as a row of ``splitting``."""
    parent, child, edges = joined
    return {
        **joined.columns,
        **splitting(parent.level, child.level, edges)._asdict(),
        "stitched_novel": _stitched(parent, child),
        "edges": len(edges),
        "joined_by_both": float((edges["joined_by"] == "both").mean()) if len(edges) else np.nan,
        **(dict.fromkeys(_SEED_COLUMNS, np.nan) if other is None else _compared_with_seed(other, joined)),
        "parent_sae": parent.name,
        "child_sae": child.name,
    }


def _stitched(parent: Dictionary, child: Dictionary) -> float:
    """Share of the wider dictionary's living latents that lower the narrower one's error when they are added to it."""
    if parent.name == child.name:
        return float("nan")  # nested parts were trained to add up: adding one says nothing
    sae, rows = parent.sae, parent.held_out_rows
    if not np.array_equal(rows, child.held_out_rows):
        return float("nan")  # of other documents: nothing to compare
    some = np.sort(np.random.default_rng(0).choice(len(rows), min(len(rows), _STITCHED_TOKENS), replace=False))
    x = read_activations(parent.readers[1], sae, rows[some])
    reconstructed = parent.held_out.matrix[some] @ parent.directions + sae.b_dec.detach().numpy()
    wider = child.held_out.matrix[some]
    change = stitched_change(x - reconstructed * float(sae.scale), wider * float(child.sae.scale), child.directions)
    alive = np.bincount(wider.indices, minlength=len(change)) > 0
    return float((change[alive] < 0).mean()) if alive.any() else float("nan")


def _compared_with_seed(other: SeedJoins, joined: JoinedPair) -> dict[str, float]:
    """Compare with the same width from another seed: are children grouped alike, do features recur, does it "split" too."""
    retrained, parent = other.same_width.child.level, joined.parent.level
    same_width = splitting(parent, retrained, other.same_width.edges)
    # the other way round: what share of this SAE's own features has a direction that the other seed has too
    recurring = 1 - novel_share(retrained, parent)
    values = (agreement(joined.edges, other.parents.edges), recurring, same_width.split, same_width.novel)
    return dict(zip(_SEED_COLUMNS, values, strict=True))


def _annotated(joined: JoinedPair, annotations: Annotations) -> pd.DataFrame:
    """Name both ends of every edge: SAE, number in the SAE, topic and label."""
    edges = joined.edges.assign(parent_sae=joined.parent.name, child_sae=joined.child.name)
    for side, dictionary in (("parent", joined.parent), ("child", joined.child)):
        edges[side] += dictionary.first
        known = [annotations[dictionary.name, int(feature)] for feature in edges[side]]
        edges[f"{side}_topic"], edges[f"{side}_label"] = [a.topic for a in known], [a.label for a in known]
    return edges.assign(**joined.columns)


def tree_lines(results: Sequence[Result]) -> list[str]:
    """Sum a tree up for a terminal: how much splits, and whether along human lines."""
    tables = {r.name: r.table for r in results}
    pair = ["layer", "parent_width", "child_width"]
    shares = ["split", "kept", "novel", "stitched_novel", *_SEED_COLUMNS[:3]]
    lines = table_lines(tables["splitting"][pair + shares].round(3))
    if "tree_subjects" in tables:
        tested = [*pair, "tree", "nodes", "judged", "purity", "expected", "shared", "p_value"]
        lines += ["", "Firings of siblings about one topic:", *table_lines(tables["tree_subjects"][tested].round(3))]
        kinds = tables["tree_nodes"].groupby("kind").size()
        lines.append("Nodes: " + ", ".join(f"{n} {kind}" for kind, n in kinds.items()))
        if UNJUDGED in kinds:
            lines.append(
                f"({UNJUDGED}: the test would have missed a node of one subject with so few children, or with children that "
                "fire so rarely)"
            )
    return lines
