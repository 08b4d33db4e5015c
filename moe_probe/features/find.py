"""Which features and experts belong to a word, a phrase, or the difference between two texts?"""

from __future__ import annotations

import itertools
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from moe_probe.errors import UsageError
from moe_probe.features.factors import with_spaces
from moe_probe.routing import dropped_id

if TYPE_CHECKING:
    import pandas as pd

    from moe_probe.trace import Trace


@dataclass(frozen=True)
class Found:
    """What fires on a query.

    Attributes
    ----------
    source : str
        Where the query was looked at, in a sentence.
    n_tokens : int
        Its tokens.
    features : pandas.DataFrame
        ``sae, feature, label, label_score, rate`` (share of the query's tokens on which it fires), ``base`` (share of
        other tokens), ``lift, f1``; sorted.
    experts : pandas.DataFrame
        ``layer, expert, rate`` (share of the query's selections that go to it), ``base, lift``; sorted.
    """

    source: str
    n_tokens: int
    features: pd.DataFrame
    experts: pd.DataFrame

    def text(self) -> str:
        """Both tables for a terminal."""
        parts = [self.source]
        for title, table in (("Features", self.features), ("Experts", self.experts)):
            shown = table.round(3).to_string(index=False, max_colwidth=60) if len(table) else "none"
            parts.append(f"\n{title}\n{shown}")
        return "\n".join(parts)


def occurrences(trace: Trace, query: str, *, regex: bool = False) -> np.ndarray:
    """Tokens of a trace that a word, phrase or regular expression covers.

    Tokens' texts are put together again document by document, so a word is found however it was cut. Words and
    phrases are looked for as whole words, upper and lower case alike.

    Parameters
    ----------
    query : str
    regex : bool
        The query is a regular expression.

    Returns
    -------
    ndarray of int64
        Rows of the trace, increasing.

    Raises
    ------
    UsageError
        When the regular expression cannot be read.
    """
    try:
        pattern = re.compile(query if regex else rf"(?<!\w){re.escape(query.strip())}(?!\w)", re.IGNORECASE)
    except re.error as error:
        raise UsageError(f"'{query}' is no regular expression", str(error), "the word itself, without --regex") from error
    table = trace.tokens(["document", "token", "special"])
    special = table["special"].to_numpy()
    tokens = np.full(len(table), "", dtype=object)
    tokens[~special] = with_spaces(table["token"].to_numpy(dtype=object)[~special])
    starts = np.append(np.flatnonzero(np.diff(table["document"].to_numpy(), prepend=-1)), len(tokens))
    rows: list[np.ndarray] = []
    for first, last in itertools.pairwise(starts):
        pieces = tokens[first:last]
        ends = np.cumsum([len(p) for p in pieces])
        for hit in pattern.finditer("".join(pieces)):
            if hit.end() > hit.start():
                low = int(np.searchsorted(ends, hit.start(), side="right"))
                high = int(np.searchsorted(ends, hit.end(), side="left"))
                rows.append(np.arange(first + low, first + high + 1))
    return np.setdiff1d(np.concatenate(rows), np.flatnonzero(special)) if rows else np.zeros(0, dtype=np.int64)


def rank_features(features: pd.DataFrame, counts: np.ndarray, n_tokens: int, *, corpus_tokens: int) -> pd.DataFrame:
    """Rank the features of one SAE by how well their firing picks out the query's tokens.

    Parameters
    ----------
    features : pandas.DataFrame
        Rows of ``features`` of this SAE, in the order of its latents.
    counts : ndarray of int, shape (n_features,)
        The query's tokens on which each fires.
    n_tokens : int
        The query's tokens.
    corpus_tokens : int
        Tokens that densities speak of.
    """
    base = features["density"].to_numpy()
    rate = counts / max(n_tokens, 1)
    f1 = 2 * counts / np.maximum(n_tokens + np.maximum(base * corpus_tokens, counts), 1)
    half = 0.5 / max(n_tokens, 1)
    return features[["sae", "feature", "label", "label_score", "topic"]].assign(
        rate=rate, base=base, lift=rate / np.maximum(base, half), f1=f1).query("rate > 0")


def expert_shares(trace: Trace, rows: np.ndarray) -> list[np.ndarray]:
    """Share of selections that go to each expert, over some tokens; one array per layer."""
    totals = [np.zeros(item.num_experts) for item in trace.layers]
    first = 0
    for chunk in trace.iter_routing():
        mine = rows[(rows >= first) & (rows < first + len(chunk.experts))] - first
        first += len(chunk.experts)
        for place, total in enumerate(totals):
            ids = chunk.experts[mine, place]
            ids = ids[ids != dropped_id(ids.dtype)]
            total += np.bincount(ids.astype(np.int64), minlength=len(total))
    return [t / max(t.sum(), 1) for t in totals]


def rank_experts(trace: Trace, shares: list[np.ndarray], base: list[np.ndarray], n_tokens: int) -> pd.DataFrame:
    """Rank experts by how much more of the query's selections they take than of others."""
    import pandas as pd

    half = 0.5 / max(n_tokens, 1)
    parts = [pd.DataFrame({"layer": item.layer, "expert": np.arange(item.num_experts), "rate": s, "base": b,
                           "lift": (s + half) / (b + half)})
             for item, s, b in zip(trace.layers, shares, base, strict=True)]
    return pd.concat(parts, ignore_index=True).sort_values("lift", ascending=False, kind="stable")
