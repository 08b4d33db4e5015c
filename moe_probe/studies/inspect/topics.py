"""Guesses of a text's topic from its routing and its features, and how often such a guess is right."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple, Self

import numpy as np

from moe_probe.studies.inspect.reference import shares

if TYPE_CHECKING:
    import pandas as pd

    from moe_probe.studies.inspect.record import Call
    from moe_probe.studies.inspect.reference import Reference

_FOLDS = 5
#: Inverse strength of the penalty; 0.01 to 1 give unseen pieces of 16 to 256 tokens the same accuracy within 3 points.
_PENALTY = 0.1
#: Added to firings, seen and expected, before they are divided: a topic of few features is not found by one firing.
_HALF = 0.5


@dataclass(frozen=True)
class Guess:
    """Topics of a text, likeliest first, and how far the guess is to be trusted.

    Attributes
    ----------
    source : str
        "experts", or the folder of an SAE.
    ranking : tuple of (str, float)
        Topics with their probability (experts), or with the firings of their features over what the corpus's densities
        predict (features).
    details : tuple of str
        For each topic of the ranking, what the number was made of.
    accuracy, chance : float or None
        Share of unseen pieces of the run's documents whose topic was guessed right, and what the commonest topic would give;
        None where that could not be measured.
    n_pieces, piece_tokens : int
        Those pieces, and tokens of each.
    """

    source: str
    ranking: tuple[tuple[str, float], ...]
    details: tuple[str, ...]
    accuracy: float | None
    chance: float | None
    n_pieces: int
    piece_tokens: int

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "source": self.source,
            "ranking": [{"topic": t, "value": v} for t, v in self.ranking],
            "accuracy": self.accuracy,
            "chance": self.chance,
            "pieces": self.n_pieces,
            "piece_tokens": self.piece_tokens,
        }


class UsageDecoder:
    """Multinomial logistic regression of topics on square roots of usage shares of all layers.

    Fitted on pieces of the run's documents that are as long as the text, since usage of few tokens is noisier than that of
    whole documents: fitted on these, it would be too sure of itself. Accuracy: 5-fold, the groups of documents together.

    Parameters
    ----------
    reference : Reference
    seed : int
        Of the folds.

    Attributes
    ----------
    topics : tuple of str
        Those of at least two groups; none where fewer than two topics have that many.
    accuracy, chance : float
    """

    def __init__(self, reference: Reference, *, seed: int = 0) -> None:
        from threadpoolctl import threadpool_limits

        pieces = reference.pieces
        groups_of = {t: len(set(pieces.group[pieces.topic == t])) for t in np.unique(pieces.topic)}
        self.topics = tuple(str(t) for t, n in groups_of.items() if n > 1)
        self.accuracy = self.chance = float("nan")
        self.n_pieces = 0
        if len(self.topics) < 2:
            self.topics = ()
            return
        kept = np.isin(pieces.topic, self.topics)
        self.n_pieces = int(kept.sum())
        features, topic = np.sqrt(reference.usage(pieces))[kept], pieces.topic[kept]
        folds = min(_FOLDS, *(groups_of[t] for t in self.topics))
        self.accuracy = _accuracy(features, topic, pieces.group[kept], folds=folds, seed=seed)
        self.chance = _share_of_commonest(topic)
        with threadpool_limits(1):  # products this small are slower on many threads
            self._model = _model().fit(features, topic)

    def guess(self, call: Call, reference: Reference) -> Guess | None:
        """Probabilities of the topics of a call; None where the run has too few topics.

        Parameters
        ----------
        call : Call
        reference : Reference
            The one that the decoder was fitted on.

        Returns
        -------
        Guess or None
        """
        if not self.topics:
            return None
        layers = reference.trace.layers
        counts = np.zeros((1, len(layers), max(item.num_experts for item in layers)))
        for i in range(len(layers)):
            ids = call.experts[call.text, i].ravel()
            counts[0, i] += np.bincount(ids[ids >= 0], minlength=counts.shape[2])
        chances = self._model.predict_proba(np.sqrt(shares(counts)))[0]
        order = np.argsort(-chances, kind="stable")
        ranking = tuple((str(self._model.classes_[i]), float(chances[i])) for i in order)
        return Guess("experts", ranking, ("",) * len(ranking), self.accuracy, self.chance, self.n_pieces, reference.length)


def _model() -> Any:
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    return make_pipeline(StandardScaler(), LogisticRegression(C=_PENALTY, max_iter=300, tol=1e-3))


def _accuracy(features: np.ndarray, topic: np.ndarray, group: np.ndarray, *, folds: int, seed: int) -> float:
    from sklearn.model_selection import StratifiedGroupKFold
    from threadpoolctl import threadpool_limits

    n_correct = 0
    with threadpool_limits(1):  # products this small are slower on many threads
        for seen, unseen in StratifiedGroupKFold(folds, shuffle=True, random_state=seed).split(features, topic, group):
            if len(np.unique(topic[seen])) < 2:
                continue  # nothing can be learnt from one topic: its fold counts as wrong
            model = _model().fit(features[seen], topic[seen])
            n_correct += int((model.predict(features[unseen]) == topic[unseen]).sum())
    return n_correct / len(topic)


def guess_from_features(call: Call, sae: str, features: pd.DataFrame, reference: Reference | None) -> Guess | None:
    """Rank topics by the firings of their features over what the corpus would show in as many tokens.

    ``(firings + 1/2) / (expected + 1/2)``, summed over the features whose topic is significant in the run; expected: the
    number of tokens times the sum of their densities. It is no probability.

    Parameters
    ----------
    call : Call
    sae : str
        Folder of the SAE.
    features : pandas.DataFrame
        Its features, as `RunTables.features` gives them.
    reference : Reference or None
        Beginnings of held-out documents give the accuracy, guessed in the same way; None leaves it unknown.

    Returns
    -------
    Guess or None
        None where no feature of this SAE has a topic.
    """
    known = _TopicFeatures.of(features)
    if known is None:
        return None
    fired = np.bincount(call.latents[sae].feature, minlength=len(features))[known.features]
    seen, expected = np.bincount(known.topic, weights=fired), len(call.text) * known.density
    value = known.ratios(seen, len(call.text))
    order = np.argsort(-value, kind="stable")
    sizes = np.bincount(known.topic)
    details = tuple(f"{seen[i]:.0f} firings of its {sizes[i]} features, {expected[i]:.1f} expected" for i in order)
    ranking = tuple((str(known.topics[i]), float(value[i])) for i in order)
    if reference is None or not len(reference.held_pieces.rows):
        return Guess(sae, ranking, details, None, None, 0, 0)
    pieces = reference.held_pieces
    active = (reference.firings(sae)[:, known.features] > 0).astype(np.float64) @ np.eye(len(known.topics))[known.topic]
    best = known.topics[
        known.ratios(active.reshape(*pieces.rows.shape, len(known.topics)).sum(1), reference.length).argmax(1)
    ]
    accuracy = float((best == pieces.topic).mean())
    return Guess(sae, ranking, details, accuracy, _share_of_commonest(pieces.topic), len(pieces.rows), reference.length)


class _TopicFeatures(NamedTuple):
    """Features of an SAE whose topic is significant in the run.

    Attributes
    ----------
    features : ndarray of int, shape (n_named,)
    topics : ndarray of str, shape (n_topics,)
    topic : ndarray of int, shape (n_named,)
        Index into `topics`.
    density : ndarray, shape (n_topics,)
        Sum of the densities of a topic's features.
    """

    features: np.ndarray
    topics: np.ndarray
    topic: np.ndarray
    density: np.ndarray

    @classmethod
    def of(cls, features: pd.DataFrame) -> Self | None:
        named = features[(features["topic"] != "") & features["density"].notna()]
        if named.empty:
            return None
        topics, topic = np.unique(named["topic"].to_numpy(dtype=str), return_inverse=True)
        return cls(named.index.to_numpy(), topics, topic, np.bincount(topic, weights=named["density"]))

    def ratios(self, firings: np.ndarray, n_tokens: int) -> np.ndarray:
        """Divide firings, shape (..., n_topics), by those expected in so many tokens."""
        return np.asarray((firings + _HALF) / (n_tokens * self.density + _HALF))


def _share_of_commonest(topic: np.ndarray) -> float:
    return float(np.unique(topic, return_counts=True)[1].max() / len(topic))
