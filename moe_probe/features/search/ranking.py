"""Features and experts ranked by how much they belong to the tokens of a query."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from moe_probe.core.routing import dropped_id
from moe_probe.core.text import table_lines

if TYPE_CHECKING:
    import pandas as pd

    from moe_probe.recording.trace import Trace

_LABEL_COLUMNS = ["sae", "feature", "label", "label_score", "topic"]


@dataclass(frozen=True)
class SearchResult:
    """Features and experts that a query's tokens activate.

    Attributes
    ----------
    source : str
        Where the query's tokens come from, in a sentence.
    n_tokens : int
        The query's tokens.
    features : pandas.DataFrame
        ``sae, feature, label, label_score, topic, rate`` (share of the query's tokens on which it fires), ``base`` (share of
        other tokens), ``lift``, and ``f1`` or ``z``; sorted.
    experts : pandas.DataFrame
        ``layer, expert, rate`` (share of the query's selections that go to it), ``base, lift``; sorted.
    """

    source: str
    n_tokens: int
    features: pd.DataFrame
    experts: pd.DataFrame

    def lines(self) -> list[str]:
        """Lines of both tables, for a terminal."""
        out = [self.source]
        for title, table in (("Features", self.features), ("Experts", self.experts)):
            out += ["", title, *(table_lines(table.round(3), most=60) if len(table) else ["none"])]
        return out


def rank_features(features: pd.DataFrame, counts: np.ndarray, n_tokens: int, *, corpus_tokens: int) -> pd.DataFrame:
    """Measure how well the firing of each feature of an SAE picks out the query's tokens.

    Parameters
    ----------
    features : pandas.DataFrame
        Rows of ``features`` of this SAE, in the order of its latents.
    counts : ndarray of int, shape (n_features,)
        The query's tokens on which each fires.
    n_tokens : int
        The query's tokens.
    corpus_tokens : int
        Tokens that densities refer to.

    Returns
    -------
    pandas.DataFrame
        ``sae, feature, label, label_score, topic, rate, base, lift, f1`` of the features that fire.
    """
    base = features["density"].to_numpy()
    rate = counts / max(n_tokens, 1)
    f1 = 2 * counts / np.maximum(n_tokens + np.maximum(base * corpus_tokens, counts), 1)
    half = 0.5 / max(n_tokens, 1)
    lift = rate / np.maximum(base, half)
    return features[_LABEL_COLUMNS].assign(rate=rate, base=base, lift=lift, f1=f1).query("rate > 0")


def contrast_features(features: pd.DataFrame, counts: list[np.ndarray], sizes: list[int]) -> pd.DataFrame:
    """Compare the firing of each feature of an SAE between two texts.

    Parameters
    ----------
    features : pandas.DataFrame
        Rows of ``features`` of this SAE, in the order of its latents.
    counts : list of ndarray of int, shape (n_features,) each
        Tokens of either text on which each fires.
    sizes : list of int
        Tokens of either text.

    Returns
    -------
    pandas.DataFrame
        ``sae, feature, label, label_score, topic, rate, base, lift, z``: the standardised difference of log odds, so that a
        rate seen on few tokens does not lead.
    """
    rate, base = ((c + 0.5) / (n + 1) for c, n in zip(counts, sizes, strict=True))
    odds = np.log(rate / (1 - rate)) - np.log(base / (1 - base))
    spread = np.sqrt(sum(1 / (c + 0.5) + 1 / (n - c + 0.5) for c, n in zip(counts, sizes, strict=True)))
    return features[_LABEL_COLUMNS].assign(
        rate=counts[0] / sizes[0], base=counts[1] / sizes[1], lift=rate / base, z=odds / spread
    )


def expert_shares(trace: Trace, rows: np.ndarray) -> list[np.ndarray]:
    """Count the selections that go to each expert over some tokens, as shares of the layer's.

    Parameters
    ----------
    trace : Trace
    rows : ndarray of int, shape (n_tokens,)
        Rows of the trace.

    Returns
    -------
    list of ndarray, shape (n_experts,) each
        By layer; each adds up to 1.
    """
    totals = [np.zeros(item.num_experts) for item in trace.layers]
    first = 0
    for chunk in trace.iter_routing():
        in_chunk = rows[(rows >= first) & (rows < first + len(chunk.experts))] - first
        first += len(chunk.experts)
        for layer_index, total in enumerate(totals):
            ids = chunk.experts[in_chunk, layer_index]
            ids = ids[ids != dropped_id(ids.dtype)]
            total += np.bincount(ids.astype(np.int64), minlength=len(total))
    return [t / max(t.sum(), 1) for t in totals]


def rank_experts(trace: Trace, shares: list[np.ndarray], base: list[np.ndarray], n_tokens: int) -> pd.DataFrame:
    """Rank experts by how much more of the query's selections they take than of others.

    Parameters
    ----------
    trace : Trace
    shares, base : list of ndarray, shape (n_experts,) each
        From `expert_shares`, of the query's tokens and of others.
    n_tokens : int
        The query's tokens.

    Returns
    -------
    pandas.DataFrame
        ``layer, expert, rate, base, lift``, by falling lift.
    """
    import pandas as pd

    half = 0.5 / max(n_tokens, 1)
    parts = [
        pd.DataFrame(
            {
                "layer": item.layer,
                "expert": np.arange(item.num_experts),
                "rate": s,
                "base": b,
                "lift": (s + half) / (b + half),
            }
        )
        for item, s, b in zip(trace.layers, shares, base, strict=True)
    ]
    return pd.concat(parts, ignore_index=True).sort_values("lift", ascending=False, kind="stable")
