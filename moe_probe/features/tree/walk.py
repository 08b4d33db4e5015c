"""Walks down the tree: below a feature, and from a word to its finest features."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from moe_probe.core.errors import MoeProbeError, UsageError
from moe_probe.core.text import clipped, figure, quoted
from moe_probe.features.tree.annotations import Annotations, feature_annotations

if TYPE_CHECKING:
    import pandas as pd

    from moe_probe.recording.rundir import RunDirectory

#: Documents with the word that are encoded: of a common word a part is enough.
_MOST_DOCUMENTS = 200
#: A feature responds to a word when it fires on this share of its tokens, and so many times as often as elsewhere.
_MIN_RATE, _MIN_LIFT = 0.1, 1.5
#: Characters of a label that are shown.
_LABEL = 70


def walk_feature(run: RunDirectory, sae: str, feature: int, *, depth: int = 4) -> list[str]:
    """List the tree below a feature, one indented line per feature.

    Parameters
    ----------
    run : RunDirectory
        With a tree.
    sae : str
        Folder of the feature's SAE below RUN/sae.
    feature : int
        Number of the feature.
    depth : int
        Levels below it.

    Returns
    -------
    list of str

    Raises
    ------
    MoeProbeError
        When the run has no tree.
    UsageError
        When the feature is not in it.
    """
    edges, annotations = run.results["tree"].table, feature_annotations(run)
    if not ((edges["parent_sae"] == sae) & (edges["parent"] == feature)).any():
        raise UsageError(
            f"feature {feature} of {sae} has no children in the tree",
            "it may be among the finest, or dead",
            "choose another, as layer_05/width_00256:12",
        )

    def below(name: str, number: int, level: int, edge: str) -> Iterator[str]:
        topic, label = annotations[name, number]
        yield f"{'  ' * level}{name}:{number} {clipped(label, _LABEL)}{f' [{topic}]' if topic else ''}{edge}"
        if level < depth:
            children = edges[(edges["parent_sae"] == name) & (edges["parent"] == number)]
            for row in children.sort_values("share", ascending=False).itertuples():
                taken = f"takes {row.share:.0%}, {row.inside:.0%} inside, cosine {row.cosine:.2f}"
                yield from below(row.child_sae, int(row.child), level + 1, f"  ({row.relation}, {taken})")

    return list(below(sae, feature, 0, ""))


def walk_word(run: RunDirectory, word: str, *, regex: bool = False) -> list[dict[str, Any]]:
    """Follow a word down the tree of every layer.

    At the narrowest SAE the feature of largest ``rate x log(lift)`` on the word's tokens is taken, below it the child of
    which the same is true, as long as one fires on a tenth of them and 1.5 times as often as on other tokens.

    Parameters
    ----------
    run : RunDirectory
        With a tree.
    word : str
        Whole word of the corpus.
    regex : bool
        Whether `word` is a regular expression.

    Returns
    -------
    list of dict
        One per step: ``layer, depth, sae, feature, label, topic, rate`` (share of the word's tokens), ``lift`` (over all tokens
        of the documents that hold the word), ``share`` and ``inside`` (of the edge that led there; NaN at the top).

    Raises
    ------
    MoeProbeError
        When the run has no tree, or the word is not in the corpus.
    """
    from moe_probe.features.search.occurrences import occurrences

    edges = run.results["tree"].table
    rows = occurrences(run, word, regex=regex)
    if not len(rows):
        raise MoeProbeError(
            f"'{word}' does not occur in the corpus of {run.path} as whole words",
            "the walk looks at its tokens there",
            "try another word, or --walk FOLDER:FEATURE",
        )
    documents = np.unique(run.tokens(["document"])["document"].to_numpy()[rows])[:_MOST_DOCUMENTS]
    walker = _WordWalker(run, rows, documents, feature_annotations(run))
    steps = [step for _, of_layer in edges.groupby("layer") for step in walker.steps(of_layer)]
    if not steps:
        raise MoeProbeError(
            f"no feature of the narrowest SAEs responds to '{word}'",
            f"none fires on a tenth of its {len(rows):,} tokens and {_MIN_LIFT} times as often as elsewhere",
            f"moe-probe find {quoted(run.path)}",
        )
    return steps


@dataclass(frozen=True)
class WordResponse:
    """How the features of one SAE respond to a word; arrays are (n_features,).

    Attributes
    ----------
    rate : ndarray of float
        Share of the word's tokens on which each feature fires.
    lift : ndarray of float
        That share over the feature's share of all tokens of the documents that hold the word.
    """

    rate: np.ndarray
    lift: np.ndarray

    def best(self, candidates: np.ndarray) -> int | None:
        """Choose the feature of some that responds most; None where none responds."""
        rate, lift = self.rate[candidates], self.lift[candidates]
        score = rate * np.log(np.maximum(lift, 1e-12))
        responds = (rate >= _MIN_RATE) & (lift >= _MIN_LIFT)
        return int(candidates[np.where(responds, score, -np.inf).argmax()]) if responds.any() else None


@dataclass(frozen=True)
class _WordWalker:
    """Follows one word: its tokens (rows of the trace), and the documents (rows) that are encoded."""

    run: RunDirectory
    rows: np.ndarray
    documents: np.ndarray
    annotations: Annotations

    def steps(self, edges: pd.DataFrame) -> Iterator[dict[str, Any]]:
        """Yield the steps down the tree of one layer."""
        top = edges.sort_values("parent_width", kind="stable").iloc[0]
        sae, depth, edge = str(top["parent_sae"]), 0, {"share": np.nan, "inside": np.nan}
        response = self._response(sae)
        feature = response.best(np.arange(int(top["parent_width"])))  # of a Matryoshka SAE its narrowest part
        while feature is not None:
            topic, label = self.annotations[sae, feature]
            yield {
                "layer": int(top["layer"]),
                "depth": depth,
                "sae": sae,
                "feature": feature,
                "label": label,
                "topic": topic,
                "rate": float(response.rate[feature]),
                "lift": float(response.lift[feature]),
                **edge,
            }
            below = edges[(edges["parent_sae"] == sae) & (edges["parent"] == feature)]
            if below.empty:
                return
            sae, depth = str(below["child_sae"].iloc[0]), depth + 1
            response = self._response(sae)
            feature = response.best(below["child"].to_numpy())
            if feature is not None:
                row = below[below["child"] == feature].iloc[0]
                edge = {"share": float(row["share"]), "inside": float(row["inside"])}

    def _response(self, sae_name: str) -> WordResponse:
        """Encode the documents with one SAE, and compare the word's tokens with all."""
        from moe_probe.features.matching.signals import ordered_firings
        from moe_probe.sae import ActivationReader, load_sae

        sae = load_sae(self.run.sae_folder / sae_name)
        mask = np.zeros(len(self.run.documents), dtype=bool)
        mask[self.documents] = True
        firings = ordered_firings(
            sae, ActivationReader(self.run, layer=sae.config.layer, hook=sae.config.hook, documents=mask)
        )
        of_word = np.isin(firings.rows, self.rows)
        hits = np.bincount(firings.matrix[np.flatnonzero(of_word)].indices, minlength=firings.matrix.shape[1])
        rate = hits / max(int(of_word.sum()), 1)
        return WordResponse(rate, rate / np.maximum(firings.counts / max(len(firings.rows), 1), 1e-12))


def word_walk_lines(word: str, steps: Sequence[dict[str, Any]]) -> list[str]:
    """Format a walk for a terminal.

    Parameters
    ----------
    word : str
    steps : sequence of dict
        From `walk_word`.

    Returns
    -------
    list of str
    """
    lines = []
    for step in steps:
        if step["depth"] == 0:
            lines.append(f"layer {step['layer']}: “{word}”")
        label = clipped(step["label"], _LABEL) or "no label"
        topic = f" [{step['topic']}]" if step["topic"] else ""
        edge = "" if np.isnan(step["share"]) else f", takes {step['share']:.0%} of its parent's tokens"
        rate, lift = figure(step["rate"], ".0%", "unknown share"), figure(step["lift"], ".1f", "unknown")
        lines.append(
            f"{'  ' * (step['depth'] + 1)}{step['sae']}:{step['feature']} {label}{topic}  (fires on {rate} of the word's "
            f"tokens, {lift} times as often as around it{edge})"
        )
    return lines
