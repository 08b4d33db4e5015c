"""Experts matched with the features of one SAE: chosen on training documents, scored on held-out ones, beside baselines."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from moe_probe.core.stats import benjamini_hochberg
from moe_probe.features.matching.counts import Pairs, Scores, one_to_one
from moe_probe.features.matching.random_directions import compare_with_random, mean_scores
from moe_probe.features.matching.signals import shuffled

if TYPE_CHECKING:
    import pandas as pd
    from scipy import sparse

    from moe_probe.features.firing import Firings, SplitFirings
    from moe_probe.features.matching.routing_split import RoutingSplit
    from moe_probe.features.matching.signals import Selections
    from moe_probe.models import LoadedModel
    from moe_probe.sae import Sae

#: Baselines of a match, each matched in the same way: the best single token, pair of tokens, topic; features of other
#: tokens; directions drawn at random; the feature whose decoder row points most along the router's row.
BASELINES = ("token", "token pair", "topic", "shuffled", "random")


@dataclass(frozen=True)
class MatchSettings:
    """How experts and features are matched.

    Attributes
    ----------
    by : str
        Label column whose predictors are compared.
    per_expert : int
        Features kept of every expert and SAE.
    alpha : float
        Error rate of ``significant``.
    n_random : int
        Dictionaries of random directions that each SAE is compared with; two or more.
    seed : int
    """

    by: str = "topic"
    per_expert: int = 8
    alpha: float = 0.05
    n_random: int = 3
    seed: int = 0


class Rivals(NamedTuple):
    """What else may predict experts.

    Attributes
    ----------
    baselines : mapping of str to Scores
        From `RoutingSplit.baseline_scores`.
    random : sequence of Scores
        Two or more: the best direction of every expert in dictionaries of random directions.
    cosines : ndarray, shape (total experts, n_features), optional
        Of router rows and decoder rows, from `router_cosines`; NaN rows where they cannot be compared.
    """

    baselines: Mapping[str, Scores]
    random: Sequence[Scores]
    cosines: np.ndarray | None = None


class MatchedFeatures(NamedTuple):
    """Tables of `match_features`, and the pairs in them."""

    matches: pd.DataFrame
    baselines: pd.DataFrame
    pairs: Pairs


def match_features(
    split: RoutingSplit, firings: SplitFirings, rivals: Rivals, settings: MatchSettings | None = None
) -> MatchedFeatures:
    """Match the features of an SAE with the experts of all layers.

    Parameters
    ----------
    split : RoutingSplit
        Of the tokens of the firings.
    firings : SplitFirings
    rivals : Rivals
    settings : MatchSettings, optional

    Returns
    -------
    MatchedFeatures
        ``matches``, one row per pair: ``layer, expert, feature, score`` (AUROC of firing on the tokens it was chosen on),
        ``q_value`` (Benjamini-Hochberg over the pairs of this SAE), ``heldout_score`` (AUROC of firing), ``rank, bits``
        (where chosen), ``heldout_bits, heldout_graded`` (AUROC of the activation), ``heldout_lift, precision, recall,
        beyond_random, beyond_random_low, beyond_random_high`` (log2 of the held-out bits over those of the best random
        direction, see `compare_with_random`), ``random_q`` (of that, Benjamini-Hochberg over experts, rank by rank),
        ``significant`` (both q at most alpha), ``one_to_one, router_cosine``.
        ``baselines``, one row per expert: held-out AUROC of the best token, token pair, topic, shuffled and random
        feature, and of the feature along the router's row.
    """
    import pandas as pd

    settings = settings or MatchSettings()
    train, held_out = firings
    pairs = split.best(train.matrix, per_expert=settings.per_expert)
    scores = split.score(held_out.matrix, pairs)
    ratio, low, high, p_random = compare_with_random(
        scores.bits, pairs.expert, np.stack([null.bits for null in rivals.random]), n_tokens=len(split.held_out)
    )
    q_value, q_random = benjamini_hochberg(scores.p_value), np.full(len(p_random), np.nan)
    starts = np.flatnonzero(np.diff(pairs.expert, prepend=-1))
    rank = np.arange(len(pairs.expert)) - np.repeat(starts, np.diff(np.append(starts, len(pairs.expert)))) + 1
    for r in np.unique(rank):  # an expert's further features are weaker by construction: no burden for its first
        q_random[rank == r] = benjamini_hochberg(p_random[rank == r])
    table = pd.DataFrame(
        {
            "layer": split.selections.layer[pairs.expert],
            "expert": split.selections.expert[pairs.expert],
            "feature": pairs.feature,
            "score": pairs.auroc,
            "q_value": q_value,
            "heldout_score": scores.auroc,
            "rank": rank,
            "bits": pairs.bits,
            "heldout_bits": scores.bits,
            "heldout_graded": scores.activation_auroc,
            "heldout_lift": scores.lift,
            "precision": scores.precision,
            "recall": scores.recall,
            "beyond_random": ratio,
            "beyond_random_low": low,
            "beyond_random_high": high,
            "random_q": q_random,
            "significant": (q_value <= settings.alpha) & (q_random <= settings.alpha),
            "one_to_one": one_to_one(pairs, n_features=train.matrix.shape[1]),
            "router_cosine": np.nan if rivals.cosines is None else rivals.cosines[pairs.expert, pairs.feature],
        }
    )
    return MatchedFeatures(table, _baselines(split, firings, rivals), pairs)


def _baselines(split: RoutingSplit, firings: SplitFirings, rivals: Rivals) -> pd.DataFrame:
    import pandas as pd

    def moved(part: Firings, rows: np.ndarray) -> sparse.csr_array:
        return shuffled(part.matrix, split.tokens.group[rows])

    of_others = split.best_scores(moved(firings.train, split.train), moved(firings.held_out, split.held_out))
    scores = {**rivals.baselines, "random": mean_scores(rivals.random), "shuffled": of_others}
    table = pd.DataFrame({"layer": split.selections.layer, "expert": split.selections.expert})
    for name in BASELINES:
        table[f"{name.replace(' ', '_')}_score"] = scores[name].auroc
        table[f"{name.replace(' ', '_')}_bits"] = scores[name].bits
    table["router_score"] = table["router_feature"] = np.nan
    if rivals.cosines is not None:
        known = np.flatnonzero(np.isfinite(rivals.cosines).all(1))
        along = rivals.cosines[known].argmax(1)
        pairs = Pairs(known, along, np.zeros(len(known)), np.zeros(len(known)))
        table.loc[known, "router_score"] = split.score(firings.held_out.matrix, pairs).auroc
        table.loc[known, "router_feature"] = along
    return table


def router_cosines(sae: Sae, loaded: LoadedModel | None, selections: Selections) -> np.ndarray | None:
    """Compare router rows with decoder rows, for experts of the SAE's own layer where it reads the router's input.

    Parameters
    ----------
    sae : Sae
    loaded : LoadedModel, optional
        The trace's model.
    selections : Selections

    Returns
    -------
    ndarray of float32, shape (total experts, n_features), or None
        Cosines, NaN in other layers; None where the router has no such rows.
    """
    import torch
    from torch.nn.functional import normalize

    config = sae.config
    if loaded is None or config.hook != "router_input":
        return None
    for site in loaded.sites:
        if site.info.layer != config.layer or site.router is None:
            continue
        for rows in site.router.parameters():
            if rows.shape == (site.info.num_experts, config.d_in):
                cosines = np.full((len(selections.layer), config.d_sae), np.nan, dtype=np.float32)
                with torch.no_grad():
                    unit = normalize(rows.float().cpu(), dim=1) @ normalize(sae.W_dec, dim=1).T
                cosines[selections.layer == config.layer] = unit.numpy()
                return cosines
    return None
