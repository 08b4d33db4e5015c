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


class RouterCosines(NamedTuple):
    """Cosines of router rows and decoder rows, (n_units, n_features), and the units, numbered over all layers, (n_units,)."""

    unit: np.ndarray
    cosine: np.ndarray

    def of(self, unit: np.ndarray, feature: np.ndarray) -> np.ndarray:
        """Return the cosines of pairs.

        Parameters
        ----------
        unit, feature : ndarray of int, shape (n_pairs,)

        Returns
        -------
        ndarray of float32, shape (n_pairs,)
            NaN for units that cannot be compared.
        """
        row = np.minimum(np.searchsorted(self.unit, unit), len(self.unit) - 1)
        return np.where(self.unit[row] == unit, self.cosine[row, feature], np.float32(np.nan))


class MeasuredFeatures(NamedTuple):
    """All that a match needs of an SAE's firings.

    Attributes
    ----------
    pairs : Pairs
        Chosen on training tokens.
    scores : Scores
        Of the pairs, on held-out tokens.
    shuffled : Scores
        Of every expert's best feature where firings are those of other documents.
    n_features : int
    cosines : RouterCosines, optional
    along : Scores, optional
        Of the features along the router's rows, one per unit of `cosines`.
    """

    pairs: Pairs
    scores: Scores
    shuffled: Scores
    n_features: int
    cosines: RouterCosines | None = None
    along: Scores | None = None


class Rivals(NamedTuple):
    """What else may predict experts.

    Attributes
    ----------
    baselines : mapping of str to Scores
        From `RoutingSplit.baseline_scores`.
    random : sequence of Scores
        Two or more: the best direction of every expert in dictionaries of random directions.
    """

    baselines: Mapping[str, Scores]
    random: Sequence[Scores]


class MatchedFeatures(NamedTuple):
    """Tables of `match_features`."""

    matches: pd.DataFrame
    baselines: pd.DataFrame


def measure_features(
    split: RoutingSplit,
    firings: SplitFirings,
    *,
    per_expert: int = MatchSettings.per_expert,
    cosines: RouterCosines | None = None,
) -> MeasuredFeatures:
    """Choose pairs of experts and features of an SAE, and score them; the firings are not needed any more afterwards.

    Parameters
    ----------
    split : RoutingSplit
        Of the tokens of the firings.
    firings : SplitFirings
    per_expert : int
        Features kept of every expert.
    cosines : RouterCosines, optional

    Returns
    -------
    MeasuredFeatures
    """
    train, held_out = firings

    def moved(part: Firings, rows: np.ndarray) -> sparse.csr_array:
        return shuffled(part.matrix, split.tokens.group[rows])

    pairs = split.best(train.matrix, per_expert=per_expert)
    scores, along = split.score(held_out.matrix, pairs), None
    of_others = split.best_scores(moved(train, split.train), moved(held_out, split.held_out))
    if cosines is not None:
        none = np.zeros(len(cosines.unit))
        along = split.score(held_out.matrix, Pairs(cosines.unit, cosines.cosine.argmax(1), none, none))
    return MeasuredFeatures(pairs, scores, of_others, train.matrix.shape[1], cosines, along)


def match_features(
    split: RoutingSplit, measured: MeasuredFeatures, rivals: Rivals, settings: MatchSettings | None = None
) -> MatchedFeatures:
    """Match the features of an SAE with the experts of all layers.

    Parameters
    ----------
    split : RoutingSplit
    measured : MeasuredFeatures
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
    pairs, scores, cosines = measured.pairs, measured.scores, measured.cosines
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
            "one_to_one": one_to_one(pairs, n_features=measured.n_features),
            "router_cosine": np.nan if cosines is None else cosines.of(pairs.expert, pairs.feature),
        }
    )
    return MatchedFeatures(table, _baselines(split, measured, rivals))


def _baselines(split: RoutingSplit, measured: MeasuredFeatures, rivals: Rivals) -> pd.DataFrame:
    import pandas as pd

    scores = {**rivals.baselines, "random": mean_scores(rivals.random), "shuffled": measured.shuffled}
    table = pd.DataFrame({"layer": split.selections.layer, "expert": split.selections.expert})
    for name in BASELINES:
        table[f"{name.replace(' ', '_')}_score"] = scores[name].auroc
        table[f"{name.replace(' ', '_')}_bits"] = scores[name].bits
    table["router_score"] = table["router_feature"] = np.nan
    if measured.cosines is not None and measured.along is not None:
        known = measured.cosines.unit
        table.loc[known, "router_score"] = measured.along.auroc
        table.loc[known, "router_feature"] = measured.cosines.cosine.argmax(1)
    return table


def router_cosines(sae: Sae, loaded: LoadedModel | None, selections: Selections) -> RouterCosines | None:
    """Compare router rows with decoder rows, for experts of the SAE's own layer where it reads the router's input.

    Parameters
    ----------
    sae : Sae
    loaded : LoadedModel, optional
        The trace's model.
    selections : Selections

    Returns
    -------
    RouterCosines or None
        None where the router has no such rows.
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
                with torch.no_grad():
                    cosines = normalize(rows.float().cpu(), dim=1) @ normalize(sae.W_dec, dim=1).T
                return RouterCosines(np.flatnonzero(selections.layer == config.layer), cosines.numpy())
    return None
