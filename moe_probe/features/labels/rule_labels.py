"""Labels of features, without a language model: the rule that tells best where a feature fires, scored on other text."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from moe_probe.core.errors import MoeProbeError
from moe_probe.core.pieces import standing
from moe_probe.features.labels.rules import NEAR, Detection, RuleSet, detect, make_near_rules, make_rules
from moe_probe.recording.corpus.splits import DISCOVERY, assign_halves

if TYPE_CHECKING:
    from scipy import sparse

    from moe_probe.features.firing import Firings
    from moe_probe.features.labels.context import TokenContext

#: Firing tokens below which nothing is said of a feature.
MIN_FIRINGS = 20
#: Strongest share of a feature's firings, whose surroundings words are taken from, and at most so many.
_STRONGEST_SHARE, _STRONGEST_MOST = 0.5, 200
#: F1 that words may lack of pieces of words: people read words.
_WORD_BONUS = 0.02


@dataclass(frozen=True)
class Labels:
    """The best rule of every feature; arrays are (n_features,).

    Attributes
    ----------
    text : list of str
        "" where a feature fires too rarely to say anything.
    rule : ndarray of str
        Factor that the label speaks of.
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

    Every factor proposes a rule, made on one half of the training documents and tried on the other, both ways; groups of
    documents stay together, each topic's groups in equal parts. The factor of highest F1 on text its rule had not seen is
    chosen. Its rule is then made from all training documents, and scored on held-out ones.

    Parameters
    ----------
    context : TokenContext
    train, held_out : Firings
    decoder : ndarray, shape (n_features, d_in)
        Rows give each feature its nearest neighbour, whose firings are the hard negatives.

    Raises
    ------
    MoeProbeError
        When either part has no tokens.
    """
    if not len(train.rows) or not len(held_out.rows):
        raise MoeProbeError(
            "features cannot be labelled", "there are no tokens to learn from or none held out", "a corpus of more documents"
        )
    fired, tested = _binary(train.matrix), _binary(held_out.matrix)
    half = _first_half(context, train.rows)
    f1 = np.stack([_cross_f1(context, name, train, half) for name in _names(context)])
    names = _names(context)
    f1[names.index("word")] += _WORD_BONUS
    choice = f1.argmax(0)
    neighbour = nearest(decoder, alive=train.counts > 0)
    n = fired.shape[1]
    parts = {field: np.full(n, np.nan) for field in ("recall", "false_alarms", "hard_alarms", "precision")}
    labels = [""] * n
    enough = train.counts >= MIN_FIRINGS
    for place, name in enumerate(names):
        mine = np.flatnonzero((choice == place) & enough)
        if not len(mine):
            continue
        rules = _make(context, name, fired[:, mine], train.matrix[:, mine], train.rows)
        found = _detect_some(rules, context, tested, held_out.rows, mine=mine, neighbour=neighbour)
        for field, values in parts.items():
            values[mine] = getattr(found, field)
        for feature, label in zip(mine, describe(rules, context), strict=True):
            labels[feature] = label
    words = describe(make_rules(context.factor("word"), fired, train.rows), context, bare=True)
    rule = np.where(enough, np.array(names, dtype=object)[choice], "")
    return Labels(labels, rule, Detection(**parts), words)


def _names(context: TokenContext) -> tuple[str, ...]:
    return (*(f.name for f in context.factors), NEAR)


def _binary(matrix: sparse.csr_array) -> sparse.csr_array:
    out = matrix.copy()
    out.data = np.ones_like(out.data)
    return out


def _make(context: TokenContext, name: str, fired: sparse.csr_array, values: sparse.csr_array, rows: np.ndarray) -> RuleSet:
    if name == NEAR:
        return make_near_rules(context, fired, strongest(values), rows)
    return make_rules(context.factor(name), fired, rows)


def _first_half(context: TokenContext, rows: np.ndarray) -> np.ndarray:
    """Which tokens are of the first half of the training documents: whole groups, so that no source is on both sides."""
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
    """F1 of a factor's rules on the half of documents that they were not made from, mean of both ways."""
    scores = []
    for made_on in (half, ~half):
        first, second = train.select(made_on), train.select(~made_on)
        rules = _make(context, name, _binary(first.matrix), first.matrix, first.rows)
        scores.append(np.nan_to_num(detect(rules, context, _binary(second.matrix), second.rows).f1))
    return np.asarray(np.mean(scores, axis=0))


def _detect_some(
    rules: RuleSet,
    context: TokenContext,
    tested: sparse.csr_array,
    rows: np.ndarray,
    *,
    mine: np.ndarray,
    neighbour: np.ndarray,
) -> Detection:
    """Detection for some features, whose neighbours may be any."""
    both = np.concatenate([mine, neighbour[mine]])
    n = len(mine)
    from scipy import sparse

    # neighbours stand behind the features, with empty rules
    padded = rules._replace(
        members=sparse.csc_array(
            sparse.hstack([rules.members, sparse.csc_array((rules.members.shape[0], n), dtype=np.float32)])
        )
    )
    found = detect(
        padded, context, tested[:, both], rows, neighbour=np.concatenate([np.arange(n, 2 * n), np.arange(n, 2 * n)])
    )
    return Detection(*(getattr(found, field)[:n] for field in ("recall", "false_alarms", "hard_alarms", "precision")))


def strongest(values: sparse.csr_array) -> sparse.csr_array:
    """The strongest firings of every feature, as 0/1."""
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
    """Living feature of nearest decoder direction (cosine) to every feature, shape (n_features,)."""
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
    """Put rules into words, one label a feature; with `bare`, the values alone, two spaces apart."""
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
