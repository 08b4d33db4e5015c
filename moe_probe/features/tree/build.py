"""The tree of a run: SAEs of one layer and hook joined from width to width, and held against human subjects."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from moe_probe.core.errors import MoeProbeError, UsageError
from moe_probe.core.progress import Say, track
from moe_probe.core.results import Result
from moe_probe.core.text import clipped, figure, table_text
from moe_probe.features.tree.ladders import Dictionary, Place, activations, places

if TYPE_CHECKING:
    import pandas as pd

    from moe_probe.recording.trace import Trace

#: Held-out tokens that stitching is measured on: their activations are held in memory.
_STITCHED_TOKENS = 32_768
_SOURCES = (
    "Bricken et al. 2023, feature splitting, https://transformer-circuits.pub/2023/monosemantic-features",
    "Leask et al. 2025, novel latents and stitching, arXiv:2502.04878",
    "Paulo and Belrose 2025, features of other seeds, arXiv:2501.16615",
    "Vinh, Epps and Bailey 2010, adjusted mutual information, https://jmlr.org/papers/v11/vinh10a.html",
)
_SUBJECT_SOURCES = (
    "Simpson 1949, index of concentration, DOI 10.1038/163688a0",
    "Mantel 1967, agreement of distances, https://pubmed.ncbi.nlm.nih.gov/6018555/",
    "Berger and Hsu 1996, intersection-union tests, DOI 10.1214/ss/1032280304",
    "Benjamini and Hochberg 1995, DOI 10.1111/j.2517-6161.1995.tb02031.x",
    "Monroe, Colaresi and Quinn 2008, words that tell sets apart, DOI 10.1093/pan/mpn018",
)
_CONCEPT_SOURCES = (
    "Gurnee et al. 2023, sparse probes, arXiv:2305.01610",
    "Chanin et al. 2024, splitting and absorption, arXiv:2409.14507",
    "Karvonen et al. 2025, SAEBench, arXiv:2503.09532",
)


@dataclass(frozen=True)
class TreeSettings:
    """How a tree is made and tested.

    Attributes
    ----------
    null : bool
        Train every narrower SAE once more from another seed, as a null.
    by, finer : str
        The corpus's own taxonomy.
    strata : str, optional
        Label within which these are permuted over documents.
    permutations : int
    alpha : float
    concepts : bool
        Count the features that each topic takes, and measure absorption.
    seed : int
    """

    null: bool = True
    by: str = "topic"
    finer: str = "subtopic"
    permutations: int = 300
    alpha: float = 0.05
    concepts: bool = True
    seed: int = 0
    strata: str | None = None


@dataclass
class _Tables:
    """Rows of the results while they are gathered."""

    edges: list[pd.DataFrame] = field(default_factory=list)
    splitting: list[dict[str, Any]] = field(default_factory=list)
    subjects: list[dict[str, Any]] = field(default_factory=list)
    nodes: list[pd.DataFrame] = field(default_factory=list)
    distances: list[dict[str, Any]] = field(default_factory=list)
    concepts: list[pd.DataFrame] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)


def build_tree(
    run: Path,
    trace: Trace,
    *,
    settings: TreeSettings | None = None,
    found: Sequence[tuple[Place, list[Dictionary]]] | None = None,
    say: Say = print,
) -> tuple[Result, ...]:
    """Join the SAEs of every layer from narrow to wide, and ask whether the tree follows the corpus's own subjects.

    Joins and reconstructions are measured on held-out documents; subjects on all documents, since no SAE has seen a label.

    Parameters
    ----------
    settings : TreeSettings
    found : sequence of (Place, list of Dictionary), optional
        From `moe_probe.features.tree.ladders.places`, where it was called already.

    Returns
    -------
    tree, splitting, tree_subjects, tree_nodes, tree_distance, tree_examples, concepts : Result
        ``tree``, an edge a row: ``layer, parent_width, parent, child_width, child, weight, parent_topic, child_topic, cosine,
        inside, share, lift, joined_by, relation, parent_label, child_label, parent_sae, child_sae``. ``splitting``, a row per
        pair of widths: ``layer, parent_width, child_width, split, kept, novel, stitched_novel, orphans, children, edges,
        joined_by_both``, and of the nulls (NaN without) ``seed_agreement, seed_same, split_same_width, novel_same_width``.
        The others: see docs/formats.md. Those on subjects are left out where documents have fewer than two topics.

    Raises
    ------
    MoeProbeError
        When no layer has SAEs of two widths.
    """
    import pandas as pd

    settings = settings or TreeSettings()
    facts = facts_of(run)
    tables = _Tables()
    found = list(places(run, trace)) if found is None else found
    for _, levels in found:
        _join_levels(run, trace, levels, facts, settings, tables, say)
    if not tables.splitting:
        raise MoeProbeError(
            f"no layer of {run} has SAEs of two widths",
            "a tree joins a narrower one with a wider one",
            f"moe-probe sae train {run} --width 256 --width 1024",
        )
    edges = pd.concat(tables.edges, ignore_index=True)
    front = ["layer", "parent_width", "parent", "child_width", "child", "weight", "parent_topic", "child_topic"]
    edges = edges[[*front, *(c for c in edges.columns if c not in front)]]
    params = dict(vars(settings))
    told = tuple(dict.fromkeys(tables.warnings))
    results = [
        Result("tree", edges, citations=_SOURCES, caption=_TREE),
        Result(
            "splitting", pd.DataFrame(tables.splitting), citations=_SOURCES, params=params, caption=_SPLITTING, warnings=told
        ),
    ]
    if tables.nodes:
        from moe_probe.features.tree.subject_tests import show_examples

        nodes = pd.concat(tables.nodes, ignore_index=True)
        more: dict[str, Any] = {"params": params, "seed": settings.seed, "citations": _SUBJECT_SOURCES}
        within = f" Labels are permuted within each {settings.strata}." if settings.strata else ""
        results += [
            Result("tree_subjects", pd.DataFrame(tables.subjects), caption=_SUBJECTS + within, **more),
            Result("tree_nodes", nodes, caption=_NODES + within, **more),
            Result("tree_distance", pd.DataFrame(tables.distances), caption=_DISTANCE + within, **more),
            Result("tree_examples", show_examples(trace, found, nodes, edges, facts), caption=_EXAMPLES, **more),
        ]
    if tables.concepts:
        results.append(
            Result(
                "concepts",
                pd.concat(tables.concepts, ignore_index=True),
                caption=_CONCEPTS,
                params=params,
                citations=_CONCEPT_SOURCES,
            )
        )
    return tuple(results)


def _join_levels(
    run: Path,
    trace: Trace,
    levels: Sequence[Dictionary],
    facts: Mapping[tuple[str, int], tuple[str, str]],
    settings: TreeSettings,
    tables: _Tables,
    say: Say,
) -> None:
    from moe_probe.features.tree import join, splitting
    from moe_probe.features.tree.subject_tests import SubjectsOf

    subjects = SubjectsOf(trace, settings, tables.warnings)
    joins = []
    again: dict[str, Dictionary] = {}
    pairs = list(pairwise(levels))
    for parent, child in track(pairs, f"join layer {levels[0].sae.config.layer}", unit="pairs of widths"):
        started = time.monotonic()
        found = join(parent.level, child.level)
        joins.append((parent, child, found))
        layer = parent.sae.config.layer
        row: dict[str, Any] = {
            "layer": layer,
            "parent_width": parent.width,
            "child_width": child.width,
            **splitting(parent.level, child.level, found)._asdict(),
            "stitched_novel": _stitched(parent, child),
            "edges": len(found),
            "joined_by_both": float((found["joined_by"] == "both").mean()) if len(found) else np.nan,
            "seed_agreement": np.nan,
            "seed_same": np.nan,
            "split_same_width": np.nan,
            "novel_same_width": np.nan,
            "parent_sae": parent.name,
            "child_sae": child.name,
        }
        other = parent.again(again) if settings.null and "loaded_from" not in parent.told else None
        if settings.null and other is None:
            tables.warnings.append(
                f"{parent.name} was loaded from elsewhere: how it was trained is unknown, so it is not "
                "compared with another seed."
            )
            say(f"note: {tables.warnings[-1]}")
        if other is not None:
            row |= _against_another_seed(other, parent, child, found)
        tables.splitting.append(row)
        named = _named(found, facts, parent, child)
        tables.edges.append(named.assign(layer=layer, parent_width=parent.width, child_width=child.width))
        if subjects.known:
            tested = subjects.test(parent, child, found, other, facts)
            tables.subjects += tested.rows
            tables.nodes += [tested.nodes] if len(tested.nodes) else []
        say(
            f"{parent.name} -> {child.name}: {figure(row['split'], '.0%', 'unknown share')} of features split, "
            f"{figure(row['kept'], '.0%', 'unknown share')} stay"
            + (f"; siblings share a subject: {subjects.said}" if subjects.said else "")
            + f" ({time.monotonic() - started:.1f} s)"
        )
    if subjects.known:
        tables.distances += subjects.distances(joins)
    if subjects.known and settings.concepts:
        tables.concepts += [subjects.concepts(level) for level in levels if not level.first]


def _stitched(parent: Dictionary, child: Dictionary) -> float:
    """Share of the wider dictionary's living latents that lower the narrower one's error when they are added to it."""
    from moe_probe.features.tree import stitched_change

    if parent.name == child.name:
        return float("nan")  # nested parts were trained to add up: adding one says nothing
    sae, rows = parent.sae, parent.held_out.rows
    if not np.array_equal(rows, child.held_out.rows):
        return float("nan")  # of other documents: nothing to compare
    some = np.sort(np.random.default_rng(0).choice(len(rows), min(len(rows), _STITCHED_TOKENS), replace=False))
    scale = float(sae.scale)
    x = activations(parent.readers[1], sae, rows[some])
    found = (parent.held_out.matrix[some] @ parent.level.directions + sae.b_dec.detach().numpy()) * scale
    wider = child.held_out.matrix[some]
    change = stitched_change(x - found, wider * float(child.sae.scale), child.level.directions)
    alive = np.bincount(wider.indices, minlength=len(change)) > 0
    return float((change[alive] < 0).mean()) if alive.any() else float("nan")


def _against_another_seed(other: Dictionary, parent: Dictionary, child: Dictionary, edges: pd.DataFrame) -> dict[str, float]:
    """The same width from another seed: are the children grouped alike, are features there again, and does it "split" too?"""
    from moe_probe.features.tree import agreement, join, splitting

    same = join(parent.level, other.level)
    found = splitting(parent.level, other.level, same)
    # the other way round: what share of this SAE's own features has a direction that the other seed has too
    back = splitting(other.level, parent.level, join(other.level, parent.level))
    return {
        "seed_agreement": agreement(edges, join(other.level, child.level)),
        "seed_same": 1 - back.novel,
        "split_same_width": found.split,
        "novel_same_width": found.novel,
    }


def facts_of(run: Path) -> Mapping[tuple[str, int], tuple[str, str]]:
    """Topic and label of every feature, where they were made."""
    if not (run / "results" / "features.parquet").exists():
        return {}
    table = Result.load(run / "results", "features").table
    return {(str(r.sae), int(r.feature)): (str(r.topic), str(r.label)) for r in table.itertuples()}


def _named(
    edges: pd.DataFrame,
    facts: Mapping[tuple[str, int], tuple[str, str]],
    narrow: Dictionary,
    wide: Dictionary,
) -> pd.DataFrame:
    out = edges.assign(parent_sae=narrow.name, child_sae=wide.name)
    for side, level in (("parent", narrow), ("child", wide)):
        out[side] += level.first
        known = [facts.get((level.name, int(f)), ("", "")) for f in out[side]]
        out[f"{side}_topic"], out[f"{side}_label"] = [k[0] for k in known], [k[1] for k in known]
    return out


def tree_lines(results: Sequence[Result]) -> list[str]:
    """What a reader wants first: how much splits, and whether along human lines."""
    from moe_probe.features.tree import UNJUDGED

    tables = {r.name: r.table for r in results}
    columns = [
        "layer",
        "parent_width",
        "child_width",
        "split",
        "kept",
        "novel",
        "stitched_novel",
        "seed_agreement",
        "seed_same",
        "split_same_width",
    ]
    lines = [table_text(tables["splitting"][columns].round(3))]
    if "tree_subjects" in tables:
        columns = [
            "layer",
            "parent_width",
            "child_width",
            "tree",
            "nodes",
            "judged",
            "purity",
            "expected",
            "shared",
            "p_value",
        ]
        lines += ["", "Firings of siblings about one topic:", table_text(tables["tree_subjects"][columns].round(3))]
        kinds = tables["tree_nodes"].groupby("kind").size()
        lines.append("Nodes: " + ", ".join(f"{n} {kind}" for kind, n in kinds.items()))
        if UNJUDGED in kinds:
            lines.append(
                f"({UNJUDGED}: the test would have missed a node of one subject with so few children, or children that "
                "fire so rarely)"
            )
    return lines


def walk(run: Path, sae: str, feature: int, *, depth: int = 4) -> list[str]:
    """Lines of the tree below a feature, indented.

    Raises
    ------
    MoeProbeError
        When the run has no tree.
    UsageError
        When the feature is not in it.
    """
    table = Result.load(run / "results", "tree").table
    if not ((table["parent_sae"] == sae) & (table["parent"] == feature)).any():
        raise UsageError(
            f"feature {feature} of {sae} has no children in the tree",
            "it may be the finest, or dead",
            "another, as layer_05/width_00256:12",
        )
    facts = facts_of(run)

    def below(name: str, number: int, level: int, said: str) -> Iterator[str]:
        topic, label = facts.get((name, number), ("", ""))
        text = clipped(label, 70)
        yield f"{'  ' * level}{name}:{number} {text}{f' [{topic}]' if topic else ''}{said}"
        if level == depth:
            return
        mine = table[(table["parent_sae"] == name) & (table["parent"] == number)].sort_values("share", ascending=False)
        for row in mine.itertuples():
            yield from below(
                row.child_sae,
                int(row.child),
                level + 1,
                f"  ({row.relation}, takes {row.share:.0%}, {row.inside:.0%} inside, cosine {row.cosine:.2f})",
            )

    return list(below(sae, feature, 0, ""))


_TREE = (
    "Features of a wider SAE (children) joined to those of a narrower one (parents), on held-out documents: by the cosine of "
    "decoder rows (0.7 or more), or by firing (the parent fires on at least half of the child's tokens, and of such parents "
    "the one that shares most information with it). Inside: share of the child's tokens on which the parent fires; share: of "
    "the parent's tokens that the child takes. Same: the child takes half of the parent's tokens or more; part: less; "
    "overlap: it mostly fires elsewhere."
)
_SPLITTING = (
    "Split: parents with two parts or more; kept: with a child that is the same; novel: children along whose direction no "
    "parent points; stitched novel: children that lower the narrower SAE's error when they are added to it; orphans: children "
    "joined to none. A narrow dictionary must bundle many features in each of its own, so that splitting alone says little. "
    "Nulls from an SAE of the narrower width and another seed: seed agreement is how alike it groups the children (adjusted "
    "mutual information, 0 is chance); seed same, the share of its features that the other seed has too; split same width, "
    'the share of features that "split" when they are joined to the other seed\'s, where no width was added; novel same width, '
    "the share of the other seed's features along whose direction none points."
)
_SUBJECTS = (
    "Purity: chance that firings of two siblings, from different documents, are about the same topic (mean over nodes with two "
    "parts or more). Expected: the same when features change places in the tree with others that fire about as often. p: the "
    "larger of two permutation tests, of topics over documents (tree and firings stay as they are) and of features over the "
    "tree. Trees: of this run; with the parents of another seed; and, as a null of width, a dictionary joined to one of the "
    "same width and another seed (both from a tenth of the permutations, so that their p cannot be small). Judged: nodes that "
    "could be, which the shares of kinds are of; found beside: nodes of one subject among those that the test rarely finds."
)
_NODES = (
    "One subject: siblings share a topic more often than strangers do (q, Benjamini-Hochberg over nodes, of the larger p of "
    "both nulls). By its parts: the children also keep to different subtopics of that topic (subtopics permuted within the "
    "topic). Several subjects: not one, and children are enriched for different topics. No subject: neither. Could not be "
    "judged: not found, but the test finds fewer than 80 % (power) of nodes that are put together from the clearest quarter of "
    "the tree's topical features, with as many children that fire about as often; or the node is as pure as the upper 95 % of "
    "those (pure_low)."
)
_DISTANCE = (
    "Taxonomy distance between firings of two features of the widest SAE, from different documents: 0 same subtopic, 1 same "
    "topic, 2 different topics; for siblings (same parent), cousins (same grandparent) and strangers. Correlation of tree "
    "distance with taxonomy distance (Mantel), against labels permuted over documents and features permuted over leaves."
)
_EXAMPLES = (
    "The clearest node of every kind, chosen by rules that look at no text: most purity beyond what is expected; most children "
    "that each have a topic and least purity; most children (also of nodes that could not be judged). Words: those "
    "that tell a child's firings from its siblings' (log-odds with a Dirichlet prior, z above 1.96)."
)
_CONCEPTS = (
    "For every topic as a concept of tokens: F1 on held-out documents of a linear probe, and of probes on the 1, 2, 3 ... "
    "features that tell it best. Splits: 1, and k where F1 exceeds all before by 0.03. Absorption: share of the concept's part "
    "in the activation that other features hold where its own are weak. The text of a topic is full of words that have "
    "nothing to do with it, so F1 is low by nature; compare columns, not with 1."
)
