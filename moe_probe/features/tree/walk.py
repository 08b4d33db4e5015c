"""From a word to its finest features, level by level."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from moe_probe.core.errors import MoeProbeError
from moe_probe.core.results import Result
from moe_probe.core.text import clipped, figure
from moe_probe.features.tree.build import facts_of

if TYPE_CHECKING:
    from moe_probe.features.firing import Firings
    from moe_probe.recording.trace import Trace

#: Documents with the word that are encoded: of a common word a part is enough.
_MOST_DOCUMENTS = 200
#: A feature belongs to a word when it fires on this share of its tokens, and so many times as often as elsewhere.
_MIN_RATE, _MIN_LIFT = 0.1, 1.5


def walk_word(run: Path, trace: Trace, word: str, *, regex: bool = False) -> list[dict[str, Any]]:
    """Follow a word down the tree of every layer.

    At the narrowest SAE the feature of largest ``rate x log(lift)`` on the word's tokens is taken, below it the child of
    which the same is true, as long as one fires on a tenth of them and 1.5 times as often as on other tokens.

    Returns
    -------
    list of dict
        A step each: ``layer, depth, sae, feature, label, topic, rate`` (share of the word's tokens), ``lift`` (over all tokens
        of the documents that hold the word), ``share`` and ``inside`` (of the edge that led there; NaN at the top).

    Raises
    ------
    MoeProbeError
        When the run has no tree, or the word is not in the corpus.
    """
    from moe_probe.features.search.occurrences import occurrences

    edges = Result.load(run / "results", "tree").table
    rows = occurrences(trace, word, regex=regex)
    if not len(rows):
        raise MoeProbeError(
            f"'{word}' does not occur in the corpus of {run} as whole words",
            "the walk looks at its tokens there",
            "another word, or --walk FOLDER:FEATURE",
        )
    facts = facts_of(run)
    documents = np.unique(trace.tokens(["document"])["document"].to_numpy()[rows])[:_MOST_DOCUMENTS]
    steps: list[dict[str, Any]] = []
    for layer, mine in edges.groupby("layer"):
        widths = mine.drop_duplicates("parent_sae").sort_values("parent_width")
        sae = str(widths["parent_sae"].iloc[0])
        level = _On(run, trace, sae, rows, documents)
        top = np.arange(int(widths["parent_width"].iloc[0]))  # of a Matryoshka SAE its narrowest part
        feature, depth, edge = level.best(top), 0, {"share": np.nan, "inside": np.nan}
        while feature is not None:
            topic, label = facts.get((sae, feature), ("", ""))
            steps.append(
                {
                    "layer": int(layer),
                    "depth": depth,
                    "sae": sae,
                    "feature": feature,
                    "label": label,
                    "topic": topic,
                    "rate": float(level.rate[feature]),
                    "lift": float(level.lift[feature]),
                    **edge,
                }
            )
            below = mine[(mine["parent_sae"] == sae) & (mine["parent"] == feature)]
            if below.empty:
                break
            sae, depth = str(below["child_sae"].iloc[0]), depth + 1
            level = _On(run, trace, sae, rows, documents)
            feature = level.best(below["child"].to_numpy())
            if feature is not None:
                row = below[below["child"] == feature].iloc[0]
                edge = {"share": float(row["share"]), "inside": float(row["inside"])}
    if not steps:
        raise MoeProbeError(
            f"no feature of the narrowest SAEs answers to '{word}'",
            f"none fires on a tenth of its {len(rows):,} tokens more than elsewhere",
            f"moe-probe find {run}",
        )
    return steps


class _On:
    """How often the features of one SAE fire on a word's tokens, and on all tokens of the documents that hold it."""

    def __init__(self, run: Path, trace: Trace, sae_name: str, rows: np.ndarray, documents: np.ndarray) -> None:
        firings = _firings(run, trace, sae_name, documents)
        token = np.isin(firings.rows, rows)
        hits = np.bincount(firings.matrix[np.flatnonzero(token)].indices, minlength=firings.matrix.shape[1])
        self.rate = hits / max(int(token.sum()), 1)
        self.lift = self.rate / np.maximum(firings.counts / max(len(firings.rows), 1), 1e-12)

    def best(self, candidates: np.ndarray) -> int | None:
        """The feature of some that answers most; None where none answers."""
        score = self.rate[candidates] * np.log(np.maximum(self.lift[candidates], 1e-12))
        use = (self.rate[candidates] >= _MIN_RATE) & (self.lift[candidates] >= _MIN_LIFT)
        return int(candidates[np.where(use, score, -np.inf).argmax()]) if use.any() else None


def _firings(run: Path, trace: Trace, sae_name: str, documents: np.ndarray) -> Firings:
    from moe_probe.features.matching.signals import fired
    from moe_probe.sae import ActivationReader, load_sae

    sae = load_sae(run / "sae" / sae_name)
    mask = np.zeros(len(trace.documents), dtype=bool)
    mask[documents] = True
    reader = ActivationReader(trace, layer=sae.config.layer, hook=sae.config.hook, documents=mask)
    return fired(sae, reader)


def walk_lines(word: str, steps: list[dict[str, Any]]) -> list[str]:
    """The walk for a terminal."""
    lines = []
    for step in steps:
        if step["depth"] == 0:
            lines.append(f"layer {step['layer']}: “{word}”")
        label = clipped(step["label"], 70)
        edge = "" if np.isnan(step["share"]) else f", takes {step['share']:.0%} of its parent's tokens"
        lines.append(
            f"{'  ' * (step['depth'] + 1)}{step['sae']}:{step['feature']} {label or 'no label'}"
            f"{' [' + step['topic'] + ']' if step['topic'] else ''}  (fires on "
            f"{figure(step['rate'], '.0%', 'unknown share')} of the word's "
            f"tokens, {figure(step['lift'], '.1f', 'unknown')} times as often as around it{edge})"
        )
    return lines
