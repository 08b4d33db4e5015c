"""Experts against the features of one SAE: chosen on its training documents, scored on held-out ones, beside baselines."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from moe_probe.core.stats import benjamini_hochberg
from moe_probe.features.matching.counts import Pairs, Scores, best_pairs, one_to_one, score_pairs
from moe_probe.features.matching.signals import Choices, Tokens, one_hot, pair_codes, shuffled

if TYPE_CHECKING:
    import pandas as pd
    from scipy import sparse

    from moe_probe.features.firing import Firings

#: Rivals of a match, each matched in the same way: the best single token, pair of tokens, topic; features of other
#: tokens; directions drawn at random; the feature whose decoder row points most along the router's row.
BASELINES = ("token", "token pair", "topic", "shuffled", "random")


@dataclass(frozen=True)
class Halves:
    """Tokens that pairs are chosen on, and tokens that they are scored on: rows of the trace, increasing."""

    choices: Choices
    tokens: Tokens
    train: np.ndarray
    held_out: np.ndarray

    def score(self, features: sparse.csr_array, pairs: Pairs) -> Scores:
        """Measure pairs on the held-out tokens; `features` has their rows."""
        return score_pairs(
            self.choices.matrix[self.held_out],
            features,
            pairs.expert,
            pairs.feature,
            self.tokens.group[self.held_out],
            n_groups=self.tokens.n_groups,
        )

    def best(self, features: sparse.csr_array, *, per_expert: int) -> Pairs:
        """Choose pairs on the training tokens; `features` has their rows."""
        return best_pairs(self.choices.matrix[self.train], features, per_expert=per_expert)


class Matched(NamedTuple):
    """Tables of `match_features`."""

    matches: pd.DataFrame
    baselines: pd.DataFrame
    pairs: Pairs


def rival_scores(halves: Halves) -> dict[str, Scores]:
    """Best token, token pair and topic of every expert, by the same procedure as features; rows are all experts."""
    tokens = halves.tokens
    pairs, n_pairs = pair_codes(tokens, halves.train)
    columns = {
        "token": (tokens.token, int(tokens.token.max()) + 1),
        "token pair": (pairs, n_pairs),
        "topic": (tokens.topic, len(tokens.topics)),
    }
    out = {}
    for name, (codes, n) in columns.items():
        features = one_hot(codes, max(n, 1))
        out[name] = best_of_each(halves, features[halves.train], features[halves.held_out])
    return out


def best_of_each(halves: Halves, train: sparse.csr_array, held_out: sparse.csr_array) -> Scores:
    """Held-out scores of the best feature of every expert, shape (total experts,); NaN where none goes with it."""
    return _spread(halves, halves.score(held_out, pairs := halves.best(train, per_expert=1)), pairs.expert)


def _spread(halves: Halves, scores: Scores, expert: np.ndarray) -> Scores:
    """Put scores of one pair an expert where the expert is; no match at all is an AUROC of one half."""
    n = len(halves.choices.layer)
    out = []
    for name, values in zip(Scores._fields, scores, strict=True):
        full = np.full(
            (n, *values.shape[1:]), 0.5 if name in ("auroc", "graded") else 0.0 if name == "influence" else np.nan
        )
        full[expert] = values
        out.append(full)
    return Scores(*out)


def beyond_random(bits: np.ndarray, expert: np.ndarray, nulls: np.ndarray, *, n_tokens: int) -> tuple[np.ndarray, ...]:
    """Hold the information of pairs against that of the best direction of several random dictionaries.

    The router is a linear map of what SAEs read, so that any set of directions has some that tell its experts, and of two
    random dictionaries one always does better. What can be asked is whether an SAE does better than dictionaries differ among
    themselves. Bits are compared as logarithms, in which that difference is much the same for all experts (on the shipped
    model a deviation of 0.2 to 0.35 at the quartiles); each expert's variance is drawn towards the others' as far as they
    are alike (Smyth 2004, moderated t, DOI 10.2202/1544-6115.1027).

    Parameters
    ----------
    bits : ndarray, shape (n_pairs,)
        Held-out mutual information.
    expert : ndarray of int, shape (n_pairs,)
    nulls : ndarray, shape (n_dictionaries, n_experts)
        Held-out bits of each expert's best random direction; NaN where none goes with it.
    n_tokens : int
        Held-out tokens: less than one bit in all counts as one bit.

    Returns
    -------
    log2_ratio, low, high, p_value : ndarray, shape (n_pairs,)
        Over the geometric mean of the dictionaries, with the 95 % interval; one-sided p.
    """
    from scipy.stats import t as student

    held = np.log2(np.maximum(np.nan_to_num(nulls), 1 / n_tokens))
    ratio = np.log2(np.maximum(np.nan_to_num(bits), 1 / n_tokens)) - held.mean(0)[expert]
    variance, freedom = _moderated(held, np.isfinite(nulls).any(0))
    error = np.sqrt(np.maximum(variance, 1e-12) * (1 + 1 / len(nulls)))[expert]
    margin = student.ppf(0.975, freedom) * error
    return ratio, ratio - margin, ratio + margin, student.sf(ratio / error, freedom)


def _moderated(values: np.ndarray, known: np.ndarray) -> tuple[np.ndarray, float]:
    """Variance over dictionaries of every expert, shrunk towards that of all `known` ones, and its degrees of freedom."""
    from scipy.optimize import brentq
    from scipy.special import digamma, polygamma

    own, d = values.var(0, ddof=1), len(values) - 1
    varied = own[known & (own > 0)]
    if len(varied) < 3:
        common = float(own[known].mean()) if known.any() else 0.0
        return np.full(len(own), common), float(max(int(known.sum()), 1) * d)
    logs = np.log(varied) - digamma(d / 2) + np.log(d / 2)
    beyond_chance = float(logs.var(ddof=1) - polygamma(1, d / 2))
    if beyond_chance <= 1e-3:  # no more different than equal variances would look
        return np.full(len(own), float(varied.mean())), float(len(varied) * d)
    prior = 2 * float(brentq(lambda x: float(polygamma(1, x)) - beyond_chance, 1e-3, 1e6))
    common = float(np.exp(logs.mean() + digamma(prior / 2) - np.log(prior / 2)))
    return (prior * common + d * own) / (prior + d), float(min(prior + d, len(varied) * d))


def match_features(
    halves: Halves,
    train: Firings,
    held_out: Firings,
    *,
    rivals: dict[str, Scores],
    nulls: Sequence[Scores],
    cosines: np.ndarray | None = None,
    per_expert: int = 8,
    alpha: float = 0.05,
) -> Matched:
    """Match the features of an SAE with the experts of all layers.

    Parameters
    ----------
    halves : Halves
        Rows as those of the firings.
    train, held_out : Firings
    rivals : mapping
        From `rival_scores`.
    nulls : sequence of Scores
        Two or more, from `best_of_each`: the best direction of every expert in dictionaries of random directions.
    cosines : ndarray, shape (total experts, n_features), optional
        Of router rows and decoder rows; NaN rows where they cannot be compared.
    per_expert : int
        Features kept of every expert.
    alpha : float
        Error rate of `significant`.

    Returns
    -------
    Matched
        ``matches``, a row a pair: ``layer, expert, feature, score`` (AUROC of firing on the tokens it was chosen on),
        ``q_value`` (Benjamini-Hochberg over the pairs of this SAE), ``heldout_score`` (AUROC of firing), ``rank, bits``
        (where chosen), ``heldout_bits, heldout_graded`` (AUROC of the activation), ``heldout_lift, precision, recall,
        beyond_random, beyond_random_low, beyond_random_high`` (log2 of the held-out bits over those of the best random
        direction, see `beyond_random`), ``random_q`` (of that, Benjamini-Hochberg over experts, rank by rank),
        ``significant`` (both q at most alpha), ``one_to_one, router_cosine``.
        ``baselines``, a row an expert: held-out AUROC of the best token, token pair, topic, shuffled and random
        feature, and of the feature along the router's row.
    """
    import pandas as pd

    pairs = halves.best(train.matrix, per_expert=per_expert)
    scores = halves.score(held_out.matrix, pairs)
    group = halves.tokens.group
    all_rivals = rivals | {
        "random": _mean(nulls),
        "shuffled": best_of_each(
            halves, shuffled(train.matrix, group[halves.train]), shuffled(held_out.matrix, group[halves.held_out])
        ),
    }
    ratio, low, high, p_random = beyond_random(
        scores.bits, pairs.expert, np.stack([null.bits for null in nulls]), n_tokens=len(halves.held_out)
    )
    q_value, q_random = benjamini_hochberg(scores.p_value), np.full(len(p_random), np.nan)
    starts = np.flatnonzero(np.diff(pairs.expert, prepend=-1))
    rank = np.arange(len(pairs.expert)) - np.repeat(starts, np.diff(np.append(starts, len(pairs.expert)))) + 1
    for place in np.unique(rank):  # an expert's further features are weaker by construction: no burden for its first
        q_random[rank == place] = benjamini_hochberg(p_random[rank == place])
    choices = halves.choices
    table = pd.DataFrame(
        {
            "layer": choices.layer[pairs.expert],
            "expert": choices.expert[pairs.expert],
            "feature": pairs.feature,
            "score": pairs.auroc,
            "q_value": q_value,
            "heldout_score": scores.auroc,
            "rank": rank,
            "bits": pairs.bits,
            "heldout_bits": scores.bits,
            "heldout_graded": scores.graded,
            "heldout_lift": scores.lift,
            "precision": scores.precision,
            "recall": scores.recall,
            "beyond_random": ratio,
            "beyond_random_low": low,
            "beyond_random_high": high,
            "random_q": q_random,
            "significant": (q_value <= alpha) & (q_random <= alpha),
            "one_to_one": one_to_one(pairs, n_features=train.matrix.shape[1]),
            "router_cosine": np.nan if cosines is None else cosines[pairs.expert, pairs.feature],
        }
    )
    return Matched(table, _baselines(halves, held_out, all_rivals, cosines), pairs)


def _mean(nulls: Sequence[Scores]) -> Scores:
    """Mean scores of several dictionaries; NaN where none goes with an expert in any."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Mean of empty slice")
        return Scores(*(np.nanmean(values, axis=0) for values in zip(*nulls, strict=True)))


def _baselines(halves: Halves, held_out: Firings, rivals: dict[str, Scores], cosines: np.ndarray | None) -> pd.DataFrame:
    import pandas as pd

    choices = halves.choices
    table = pd.DataFrame({"layer": choices.layer, "expert": choices.expert})
    for name in BASELINES:
        table[f"{name.replace(' ', '_')}_score"] = rivals[name].auroc
        table[f"{name.replace(' ', '_')}_bits"] = rivals[name].bits
    table["router_score"] = table["router_feature"] = np.nan
    if cosines is not None:
        known = np.flatnonzero(np.isfinite(cosines).all(1))
        along = cosines[known].argmax(1)
        pairs = Pairs(known, along, np.zeros(len(known)), np.zeros(len(known)))
        table.loc[known, "router_score"] = halves.score(held_out.matrix, pairs).auroc
        table.loc[known, "router_feature"] = along
    return table
