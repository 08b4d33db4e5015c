"""Labels of features by rules: the rule that predicts best where a feature fires, scored on other text."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from moe_probe.core.errors import MoeProbeError
from moe_probe.core.pieces import standing
from moe_probe.core.progress import track
from moe_probe.features.firing import Firings, binary
from moe_probe.features.labels.rules import NEAR, Detection, RuleSet, detect, make_near_rules, make_rules
from moe_probe.recording.corpus.splits import DISCOVERY, assign_halves

if TYPE_CHECKING:
    from scipy import sparse

    from moe_probe.features.labels.context import TokenContext

#: Firing tokens below which a feature gets no label.
MIN_FIRINGS = 20
#: Strongest share of a feature's firings, around which words are collected, and at most so many.
_STRONGEST_SHARE, _STRONGEST_MOST = 0.5, 200
#: F1 by which words may fall short of pieces of words: people read words.
_WORD_BONUS = 0.02


@dataclass(frozen=True)
class Labels:
    """The best rule of every feature; arrays are (n_features,).

    Attributes
    ----------
    text : list of str
        "" where a feature fires too rarely to be labelled.
    rule : ndarray of str
        Factor that the label refers to.
    detection : Detection
        On held-out tokens.
    top_words : list of str
        The words that a feature fires on most, by F1, separated by two spaces.
    """

    text: list[str]
    rule: np.ndarray
    detection: Detection
    top_words: list[str]


def label_by_rules(context: TokenContext, train: Firings, held_out: Firings, *, decoder: np.ndarray) -> Labels:
    """Label all features of one SAE.

    Every factor proposes a rule, made on one half of the training documents and tested on the other, both ways. Groups of
    documents stay whole, and each topic's groups are divided equally. The factor of highest F1 on unseen text is chosen. Its
    rule is then made from all training documents and scored on held-out ones.

    Parameters
    ----------
    context : TokenContext
    train, held_out : Firings
    decoder : ndarray, shape (n_features, d_in)
        Rows give each feature its nearest neighbour, whose firings are the hard negatives.

    Returns
    -------
    Labels

    Raises
    ------
    MoeProbeError
        When either part has no tokens.
    """
    if not len(train.rows) or not len(held_out.rows):
        raise MoeProbeError(
            "features cannot be labelled", "there are no tokens to learn from or none held out", "a corpus of more documents"
        )
    fired, tests = binary(train.matrix, np.float32), Firings(binary(held_out.matrix, np.float32), held_out.rows)
    half = _first_half(context, train.rows)
    names = (*(f.name for f in context.factors), NEAR)
    f1 = np.stack([_cross_f1(context, name, train, half) for name in track(names, "try rules", unit="kinds", name=str)])
    f1[names.index("word")] += _WORD_BONUS
    choice = f1.argmax(0)
    neighbour = nearest(decoder, alive=train.counts > 0)
    n = fired.shape[1]
    parts = {field: np.full(n, np.nan) for field in ("recall", "false_alarms", "hard_alarms", "precision")}
    labels = [""] * n
    enough = train.counts >= MIN_FIRINGS
    for i, name in enumerate(track(names, "score rules", unit="kinds", name=str)):
        features = np.flatnonzero((choice == i) & enough)
        if not len(features):
            continue
        rules = _make(context, name, fired[:, features], train.matrix[:, features], train.rows)
        detection = _detect_some(rules, context, tests, features, neighbour)
        for field, values in parts.items():
            values[features] = getattr(detection, field)
        for feature, label in zip(features, describe(rules, context), strict=True):
            labels[feature] = label
    words = describe(make_rules(context.factor("word"), fired, train.rows), context, bare=True)
    rule = np.where(enough, np.array(names, dtype=object)[choice], "")
    return Labels(labels, rule, Detection(**parts), words)


def _make(context: TokenContext, name: str, fired: sparse.csr_array, values: sparse.csr_array, rows: np.ndarray) -> RuleSet:
    if name == NEAR:
        return make_near_rules(context, fired, strongest(values), rows)
    return make_rules(context.factor(name), fired, rows)


def _first_half(context: TokenContext, rows: np.ndarray) -> np.ndarray:
    """Mark the tokens of the first half of the training documents: whole groups, so that no source is on both sides."""
    documents = np.unique(context.document[rows])
    groups = context.group[documents]
    # one group, or topics of one group each, cannot be divided by topic: then without regard to it, then by document
    for topics, units in (
        (context.topic[documents], groups),
        (np.full(len(documents), ""), groups),
        (np.full(len(documents), ""), documents.astype(str)),
    ):
        first = documents[assign_halves(list(topics), list(units), seed=0) == DISCOVERY]
        half = np.isin(context.document[rows], first)
        if half.any() and not half.all():
            break
    return np.asarray(half)


def _cross_f1(context: TokenContext, name: str, train: Firings, half: np.ndarray) -> np.ndarray:
    """Compute the F1 of a factor's rules on the half of documents that they were not made from, mean of both ways."""
    scores = []
    for made_on in (half, ~half):
        first, second = train.select(made_on), train.select(~made_on)
        rules = _make(context, name, binary(first.matrix, np.float32), first.matrix, first.rows)
        scores.append(np.nan_to_num(detect(rules, context, binary(second.matrix, np.float32), second.rows).f1))
    return np.asarray(np.mean(scores, axis=0))


def _detect_some(
    rules: RuleSet, context: TokenContext, tests: Firings, features: np.ndarray, neighbour: np.ndarray
) -> Detection:
    """Test the rules of some features, whose neighbours may be any."""
    from scipy import sparse

    n = len(features)
    # neighbours stand behind the features, with empty rules
    empty = sparse.csc_array((rules.members.shape[0], n), dtype=np.float32)
    padded = rules._replace(members=sparse.csc_array(sparse.hstack([rules.members, empty])))
    fired = tests.matrix[:, np.concatenate([features, neighbour[features]])]
    detection = detect(padded, context, fired, tests.rows, neighbour=np.tile(np.arange(n, 2 * n), 2))
    return Detection(*(getattr(detection, field)[:n] for field in ("recall", "false_alarms", "hard_alarms", "precision")))


def strongest(values: sparse.csr_array) -> sparse.csr_array:
    """Mark the strongest firings of every feature, as 0/1."""
    from scipy import sparse

    columns = values.tocsc()
    order = np.lexsort((-columns.data, np.repeat(np.arange(columns.shape[1]), np.diff(columns.indptr))))
    rank = np.arange(len(order)) - np.repeat(columns.indptr[:-1], np.diff(columns.indptr))
    limit = np.minimum(np.ceil(np.diff(columns.indptr) * _STRONGEST_SHARE), _STRONGEST_MOST)
    feature = np.repeat(np.arange(columns.shape[1]), np.diff(columns.indptr))
    keep = rank < limit[feature]
    token = columns.indices[order][keep]
    return sparse.csr_array((np.ones(len(token), dtype=np.float32), (token, feature[keep])), shape=columns.shape)


def nearest(decoder: np.ndarray, *, alive: np.ndarray) -> np.ndarray:
    """Find the living feature of nearest decoder direction to every feature.

    Parameters
    ----------
    decoder : ndarray, shape (n_features, d_in)
    alive : ndarray of bool, shape (n_features,)

    Returns
    -------
    ndarray of int, shape (n_features,)
        The other feature of largest cosine.
    """
    rows = decoder / np.maximum(np.linalg.norm(decoder, axis=1, keepdims=True), 1e-12)
    out = np.zeros(len(rows), dtype=np.int64)
    for start in range(0, len(rows), 1024):
        cosine = rows[start : start + 1024] @ rows.T
        cosine[:, ~alive] = -2
        cosine[np.arange(len(cosine)), start + np.arange(len(cosine))] = -3
        out[start : start + 1024] = cosine.argmax(1)
    return out


_PHRASE = {
    "word": "{}",
    "token": "the piece {}",
    "word before": "after {}",
    "words": "{}",
    "kind": "{}",
    "place": "{}",
    NEAR: "near {}",
}


def describe(rules: RuleSet, context: TokenContext, *, bare: bool = False) -> list[str]:
    """Put rules into words.

    Parameters
    ----------
    rules : RuleSet
    context : TokenContext
    bare : bool
        Write the values alone, two spaces apart.

    Returns
    -------
    list of str
        One label per feature.
    """
    values = context.words if rules.factor == NEAR else context.factor(rules.factor).values
    quoted = rules.factor in ("word", "token", "word before", "words", NEAR)
    lists: list[list[str]] = [[] for _ in range(rules.members.shape[1])]
    for feature, value in zip(*rules.order, strict=True):
        lists[feature].append(values[value])
    if bare:
        return ["  ".join(names) for names in lists]
    phrase = _PHRASE.get(rules.factor, f"{rules.factor}: {{}}")
    joined = [", ".join(f"“{standing(n)}”" if quoted else n for n in names) for names in lists]
    return [phrase.format(j) if j else "" for j in joined]
