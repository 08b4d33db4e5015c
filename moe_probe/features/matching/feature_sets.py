"""Small sets of features that predict an expert together, by sparse logistic regression."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from moe_probe.core.progress import track
from moe_probe.core.stats import Resamples, auroc_difference, auroc_interval
from moe_probe.core.stats.auroc import weighted_auroc
from moe_probe.core.stats.bootstrap import correlation_of
from moe_probe.features.matching.counts import Pairs

if TYPE_CHECKING:
    import pandas as pd
    from scipy import sparse

    from moe_probe.features.firing import SplitFirings
    from moe_probe.features.matching.routing_split import RoutingSplit

MAX_MEMBERS = 4
#: Tokens that regressions are fitted on, and the inverse strength of their penalty.
_FIT_TOKENS, _C = 20_000, 0.05
_BINS = 64
_RESAMPLES = 200
_COLUMNS = (
    "layer",
    "expert",
    "features",
    "single_auroc",
    "set_auroc",
    "set_low",
    "set_high",
    "beyond_single",
    "beyond_single_low",
    "beyond_single_high",
)


def feature_sets(split: RoutingSplit, firings: SplitFirings, pairs: Pairs, *, layer: int, seed: int = 0) -> pd.DataFrame:
    """Find, for every expert of a layer, up to four of its candidate features that predict it together.

    An L1-penalised logistic regression (Tibshirani 1996, DOI 10.1111/j.2517-6161.1996.tb02080.x) on all candidates of the
    expert ranks them by coefficient times standard deviation; the first are fitted again without the others. They are chosen
    and fitted on training tokens, and measured on held-out ones.

    Parameters
    ----------
    split : RoutingSplit
    firings : SplitFirings
        On the tokens of the split.
    pairs : Pairs
        Candidates, from `moe_probe.features.matching.counts.best_pairs`.
    layer : int
        The SAE's own layer.
    seed : int

    Returns
    -------
    pandas.DataFrame
        ``layer, expert, features`` (as text), ``set_auroc, set_low, set_high`` (held-out, of the regression's score; 95 %
        over groups of documents), ``single_auroc`` (of the best candidate's activation), ``beyond_single,
        beyond_single_low, beyond_single_high``.
    """
    import pandas as pd

    train, held_out = firings
    selections, group = split.selections, split.tokens.group
    rng = np.random.default_rng(seed)
    rows = np.sort(rng.choice(len(train.rows), min(_FIT_TOKENS, len(train.rows)), replace=False))
    x, held = train.matrix[rows].tocsc(), held_out.matrix.tocsc()
    y, truth = (selections.of_layer(layer, part).tocsc() for part in (split.train[rows], split.held_out))
    _, number = np.unique(group[split.held_out], return_inverse=True)
    n_groups = int(number.max()) + 1
    weights = Resamples.pooled(n_groups, n=_RESAMPLES, seed=seed).weights
    out: list[dict[str, Any]] = []
    for unit in track(np.flatnonzero(selections.layer == layer), "sets of features", unit="experts"):
        candidates = pairs.feature[pairs.expert == unit]
        target = _column(y, selections.expert[unit]) > 0
        if len(candidates) < 2 or target.sum() < 8 or (~target).sum() < 8:
            continue
        members, coefficients = _fit(x[:, candidates].toarray(), target, candidates)
        chosen = _column(truth, selections.expert[unit]) > 0
        together = _auroc_draws(np.asarray(held[:, members] @ coefficients).ravel(), chosen, number, weights)
        alone = _auroc_draws(_column(held, candidates[0]), chosen, number, weights)
        row: dict[str, Any] = {
            "layer": layer,
            "expert": int(selections.expert[unit]),
            "features": "+".join(map(str, members)),
            "single_auroc": float(alone[0]),
        }
        of_set, of_single = (auroc_interval(float(v[0]), n_groups, n_groups, draws=v) for v in (together, alone))
        difference = auroc_difference(of_set, of_single, correlation_of(together, alone))
        out.append(row | of_set.row("set_auroc", "set") | difference.row("beyond_single", "beyond_single"))
    return pd.DataFrame(out, columns=list(_COLUMNS))


def _column(matrix: sparse.csc_array, column: np.integer) -> np.ndarray:
    return np.asarray(matrix[:, [column]].toarray()).ravel()


def _fit(x: np.ndarray, target: np.ndarray, candidates: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Members of the set, strongest first, and their coefficients."""
    import inspect

    from sklearn.linear_model import LogisticRegression

    # the way to ask for L1 changed in scikit-learn 1.8; the old one warns there, the new one means L2 before
    old = inspect.signature(LogisticRegression).parameters["penalty"].default == "l2"
    sparse_penalty = {"penalty": "l1"} if old else {"l1_ratio": 1.0}
    model = LogisticRegression(solver="liblinear", C=_C, random_state=0, **sparse_penalty).fit(x, target)
    weight = np.abs(model.coef_[0]) * x.std(0)
    order = np.argsort(-weight, kind="stable")[:MAX_MEMBERS]
    order = order[weight[order] > 0] if (weight > 0).any() else order[:1]
    again = LogisticRegression(solver="liblinear", C=10.0, random_state=0).fit(x[:, order], target)
    return candidates[order], again.coef_[0]


def _auroc_draws(score: np.ndarray, chosen: np.ndarray, number: np.ndarray, draws: np.ndarray) -> np.ndarray:
    """AUROC in every resample of groups, from histograms of the score."""
    values = np.unique(score)
    edges = values if len(values) <= _BINS else np.unique(np.quantile(score[score != 0], np.linspace(0, 1, _BINS)))
    bin_index = np.searchsorted(edges, score)
    width, n = len(edges) + 1, draws.shape[1]
    hits, misses = (
        np.bincount(number[mask] * width + bin_index[mask], minlength=n * width).reshape(n, width)
        for mask in (chosen, ~chosen)
    )
    return weighted_auroc(draws @ hits, draws @ misses)
