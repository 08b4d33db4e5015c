"""Features and experts ranked by how much they belong to the tokens of a query."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from moe_probe.core.routing import dropped_id
from moe_probe.core.text import figure, table_lines

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
        the tokens of the SAE's training documents; of a contrast, of the second text), ``lift`` (rate over base; NaN where
        the base is 0), and ``f1`` or ``z``; sorted.
    experts : pandas.DataFrame
        ``layer, expert, rate`` (share of the layer's selections by the query's tokens that go to it), ``base`` (the same for
        other tokens), ``lift`` (rate over base; NaN where the base is 0); sorted by the lift with half a token added to both,
        so that experts seen once do not lead.
    columns : tuple of str
        What the columns of features and those of experts say, in a sentence each.
    """

    source: str
    n_tokens: int
    features: pd.DataFrame
    experts: pd.DataFrame
    columns: tuple[str, str] = ("", "")

    def lines(self) -> list[str]:
        """Lines of both tables, for a terminal."""
        out = [self.source]
        tables = (("Features", self.features), ("Experts", self.experts))
        for (title, table), columns in zip(tables, self.columns, strict=True):
            out += ["", title, *(table_lines(_shown(table), most=60) if len(table) else ["none"])]
            out += [f"  {sentence}." for sentence in columns.rstrip(".").split(". ")] if len(table) and columns else []
        return out


def _shown(table: pd.DataFrame) -> pd.DataFrame:
    """Numbers with three significant digits, so that the lift shown is the quotient of what is shown."""
    numbers = [name for name in ("rate", "base", "lift", "f1", "z") if name in table]
    return table.round(3).assign(**{name: [figure(v, ".3g", "–") for v in table[name]] for name in numbers})


#: What a column says by which features are sorted.
_ORDERS = {
    "f1": "f1: how well firing picks out the query's tokens (1 is perfect)",
    "z": "z: difference of the log odds of firing, in standard errors",
}


def columns_in_words(inside: str, outside: str, *, order: str) -> tuple[str, str]:
    """Explain the columns of both tables.

    Parameters
    ----------
    inside, outside : str
        Which tokens `rate` and `base` are of.
    order : str
        By what features are sorted: a column, or words.

    Returns
    -------
    tuple of str
        Sentences on features, and on experts.
    """
    of_features = outside if order == "z" else "the tokens of the SAE's training documents"
    features = [
        "label_score: balanced accuracy of the label on held-out documents (chance: 0.5)",
        f"rate: share of {inside} on which the feature fires",
        f"base: share of {of_features} on which it fires",
        "lift: rate / base (none where the base is 0)",
        *([_ORDERS[order]] if order in _ORDERS else []),
        f"Sorted by {order}",
    ]
    experts = [
        f"rate: share of the layer's selections by {inside} that go to the expert",
        f"base: the same for {outside}",
        "lift: rate / base (none where the base is 0)",
        "Sorted by lift, after half a token is added to both rates, so that experts chosen once do not lead",
    ]
    return ". ".join(features), ". ".join(experts)


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
    return features[_LABEL_COLUMNS].assign(rate=rate, base=base, lift=lift_of(rate, base), f1=f1).query("rate > 0")


def lift_of(rate: np.ndarray, base: np.ndarray) -> np.ndarray:
    """Divide rates by base rates; NaN where the base rate is 0.

    Parameters
    ----------
    rate, base : ndarray, shape (n_units,)

    Returns
    -------
    ndarray, shape (n_units,)
    """
    lift: np.ndarray = np.divide(rate, base, out=np.full(len(rate), np.nan), where=base > 0)
    return lift


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
    shrunk, other = ((c + 0.5) / (n + 1) for c, n in zip(counts, sizes, strict=True))
    odds = np.log(shrunk / (1 - shrunk)) - np.log(other / (1 - other))
    spread = np.sqrt(sum(1 / (c + 0.5) + 1 / (n - c + 0.5) for c, n in zip(counts, sizes, strict=True)))
    rate, base = (c / n for c, n in zip(counts, sizes, strict=True))
    return features[_LABEL_COLUMNS].assign(rate=rate, base=base, lift=lift_of(rate, base), z=odds / spread)


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
        ``layer, expert, rate, base, lift``, by falling lift; half a token is added to both rates for the order alone.
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
                "lift": lift_of(s, b),
                "order": (s + half) / (b + half),
            }
        )
        for item, s, b in zip(trace.layers, shares, base, strict=True)
    ]
    ranked = pd.concat(parts, ignore_index=True).sort_values("order", ascending=False, kind="stable")
    return ranked.drop(columns="order")
