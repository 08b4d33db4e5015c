"""Labels as rules: the words, kinds, positions or topics at which a feature fires, and how well they predict other text."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from scipy import sparse

    from moe_probe.features.labels.context import Factor, TokenContext

#: Values that one rule may list: a label is to be read by people.
MAX_VALUES = 24
#: Added to the tokens of a value before its precision is formed, so that two lucky tokens do not lead.
_PRIOR = 2.0
#: Words of the neighbourhood that a rule lists at most.
_MAX_NEAR = 6
#: The rule of words in the neighbourhood.
NEAR = "near"
#: A label or kind covers much; more than so many of them is no description.
_MAX_OF = {"topic": 2, "subtopic": 3, "kind": 2, "place": 2}


class RuleSet(NamedTuple):
    """For every feature, the values of one factor at which it is predicted to fire.

    ``members`` is a sparse 0/1 matrix (n_values, n_features), ``order`` lists (feature, value) from the most
    precise value on, ``f1`` (n_features,) is the F1 on the tokens it was made from.
    """

    factor: str
    members: sparse.csc_array
    order: tuple[np.ndarray, np.ndarray]
    f1: np.ndarray


@dataclass(frozen=True)
class Detection:
    """How well a rule predicts where its feature fires; arrays are (n_features,).

    ``recall`` of firing tokens (all activations count alike), ``false_alarms``: share of silent tokens at which
    the rule fires; ``hard_alarms`` the same over tokens on which only the feature of nearest decoder direction fires;
    ``precision`` at the frequency of real text. NaN where there are no such tokens.
    """

    recall: np.ndarray
    false_alarms: np.ndarray
    hard_alarms: np.ndarray
    precision: np.ndarray

    @property
    def score(self) -> np.ndarray:
        """Balanced accuracy, firing tokens against silent ones."""
        return np.asarray((self.recall + 1 - self.false_alarms) / 2)

    @property
    def hard_score(self) -> np.ndarray:
        """Balanced accuracy, firing tokens against those of the nearest feature."""
        return np.asarray((self.recall + 1 - self.hard_alarms) / 2)

    @property
    def f1(self) -> np.ndarray:
        """F1 at the frequency of real text."""
        with np.errstate(invalid="ignore"):
            value = 2 * self.precision * self.recall / (self.precision + self.recall)
        return np.where(self.recall == 0, 0.0, value)


def make_rules(factor: Factor, fired: sparse.csr_array, rows: np.ndarray) -> RuleSet:
    """Choose, for every feature, the values of a factor that give the best F1.

    The best set of a given size under F1 takes values by falling precision, so one sort finds it.

    Parameters
    ----------
    factor : Factor
    fired : csr_array of 0/1, shape (n_tokens, n_features)
    rows : ndarray of int, shape (n_tokens,)
        Rows of the tokens in the trace.

    Returns
    -------
    RuleSet
    """
    codes = factor.codes[rows]
    hits = _hits(codes, len(factor.values), fired)
    sizes = np.bincount(codes[codes >= 0], minlength=len(factor.values))
    return _choose(factor.name, hits, sizes, np.bincount(fired.indices, minlength=fired.shape[1]))


def _choose(name: str, hits: sparse.coo_array, sizes: np.ndarray, totals: np.ndarray) -> RuleSet:
    from scipy import sparse

    value, feature = hits.coords
    order = np.lexsort((value, -hits.data / (sizes[value] + _PRIOR), feature))
    value, feature, count = value[order], feature[order], hits.data[order]
    start = np.searchsorted(feature, np.arange(len(totals)))
    rank = np.arange(len(feature)) - start[feature]
    top = rank < _MAX_OF.get(name, MAX_VALUES)
    value, feature, count, rank = value[top], feature[top], count[top], rank[top]
    start = np.searchsorted(feature, np.arange(len(totals)))
    tp, predicted = _running(count, feature, start), _running(sizes[value].astype(np.float64), feature, start)
    f1 = 2 * tp / (predicted + totals[feature])
    best = np.zeros(len(totals))
    np.maximum.at(best, feature, f1)
    # all values up to the one at which F1 is largest (the first, if it is so twice)
    last = np.full(len(totals), -1)
    at_best = np.flatnonzero(f1 >= best[feature])[::-1]
    last[feature[at_best]] = rank[at_best]
    keep = rank <= last[feature]
    members = sparse.csc_array(
        (np.ones(keep.sum(), dtype=np.float32), (value[keep], feature[keep])), shape=(len(sizes), len(totals))
    )
    return RuleSet(name, members, (feature[keep], value[keep]), best)


def _running(x: np.ndarray, feature: np.ndarray, start: np.ndarray) -> np.ndarray:
    """Sum cumulatively, anew for every feature."""
    total = np.cumsum(x)
    return np.asarray(total - (total - x)[start[feature]])


def _hits(codes: np.ndarray, n_values: int, fired: sparse.csr_array) -> sparse.coo_array:
    """Count firing tokens per (value, feature), by a sparse product."""
    from scipy import sparse

    token = np.flatnonzero(codes >= 0)
    one_hot = sparse.csr_array((np.ones(len(token), dtype=np.float32), (codes[token], token)), shape=(n_values, len(codes)))
    return (one_hot @ fired).tocoo()


def make_near_rules(
    context: TokenContext, fired: sparse.csr_array, strongest: sparse.csr_array, rows: np.ndarray
) -> RuleSet:
    """Choose words of the neighbourhood by c-TF-IDF over a feature's strongest contexts.

    ``tf * log(1 + A / f)`` with tf the word's count in the contexts of the feature, f in those of all features and A
    the mean size of a feature's contexts: Grootendorst 2022 (BERTopic), arXiv:2203.05794, section 3.3.

    Parameters
    ----------
    context : TokenContext
    fired, strongest : csr_array of 0/1, shape (n_tokens, n_features)
        All firings, and the strongest of every feature.
    rows : ndarray of int, shape (n_tokens,)
        Rows of the tokens in the trace.

    Returns
    -------
    RuleSet
    """
    from scipy import sparse

    near = context.near[rows]
    counts = (near.T @ strongest).tocoo()
    totals = np.bincount(counts.coords[0], weights=counts.data, minlength=near.shape[1])
    average = counts.data.sum() / max(1, len(np.unique(counts.coords[1])))
    weight = counts.data * np.log1p(average / np.maximum(totals, 1)[counts.coords[0]])
    value, feature = counts.coords
    order = np.lexsort((value, -weight, feature))
    value, feature, size = value[order], feature[order], counts.data[order]
    start = np.searchsorted(feature, np.arange(fired.shape[1]))
    top = (np.arange(len(feature)) - start[feature] < _MAX_NEAR) & (size > 1)
    value, feature = value[top], feature[top]
    members = sparse.csc_array(
        (np.ones(len(value), dtype=np.float32), (value, feature)), shape=(near.shape[1], fired.shape[1])
    )
    rules = RuleSet(NEAR, members, (feature, value), np.zeros(fired.shape[1]))
    tp, n_predicted = _overlap(predict_near(context, rules, rows), fired)
    fires = np.bincount(fired.indices, minlength=fired.shape[1])
    return rules._replace(f1=2 * tp / np.maximum(n_predicted + fires, 1))


def predict_near(context: TokenContext, rules: RuleSet, rows: np.ndarray) -> sparse.csr_array:
    """Mark the tokens at which the rules of the neighbourhood predict a firing.

    Parameters
    ----------
    context : TokenContext
    rules : RuleSet
        Of words nearby.
    rows : ndarray of int, shape (n_tokens,)
        Rows of the tokens in the trace.

    Returns
    -------
    csr_array of 0/1, shape (n_tokens, n_features)
    """
    predicted = (context.near[rows] @ rules.members).tocsr()
    predicted.data[:] = 1
    return predicted


def _overlap(predicted: sparse.csr_array, fired: sparse.csr_array) -> tuple[np.ndarray, np.ndarray]:
    """Count the tokens at which rule and feature fire, and at which the rule does, (n_features,) each."""
    both = predicted.multiply(fired).tocsr()
    n = fired.shape[1]
    return np.bincount(both.indices, weights=both.data, minlength=n), np.bincount(predicted.indices, minlength=n)


def detect(
    rules: RuleSet, context: TokenContext, fired: sparse.csr_array, rows: np.ndarray, *, neighbour: np.ndarray | None = None
) -> Detection:
    """Test rules on tokens that they were not made from.

    Parameters
    ----------
    rules : RuleSet
    context : TokenContext
    fired : csr_array of 0/1, shape (n_tokens, n_features)
    rows : ndarray of int, shape (n_tokens,)
    neighbour : ndarray of int, shape (n_features,), optional
        Feature of nearest decoder direction, whose firings are the hard negatives; NaN without it.

    Returns
    -------
    Detection
    """
    n_tokens, n = fired.shape
    fires = np.bincount(fired.indices, minlength=n)
    if rules.factor == NEAR:
        predicted = predict_near(context, rules, rows)
        tp, n_predicted = _overlap(predicted, fired)
    else:
        factor = context.factor(rules.factor)
        codes = factor.codes[rows]
        sizes = np.bincount(codes[codes >= 0], minlength=len(factor.values))
        tp = _tally(rules, codes, fired)
        n_predicted = np.asarray(rules.members.T @ sizes)
    hard = np.full(n, np.nan)
    if neighbour is not None:
        of_neighbour = fired[:, neighbour]
        negatives = (of_neighbour - of_neighbour.multiply(fired)).tocsr()
        negatives.eliminate_zeros()
        size = np.bincount(negatives.indices, minlength=n)
        alarms = _overlap(predicted, negatives)[0] if rules.factor == NEAR else _tally(rules, codes, negatives)
        hard = _ratio(alarms, size)
    return Detection(_ratio(tp, fires), _ratio(n_predicted - tp, n_tokens - fires), hard, _ratio(tp, n_predicted))


def _tally(rules: RuleSet, codes: np.ndarray, fired: sparse.csr_array) -> np.ndarray:
    """Count firing tokens at which the feature's rule fires, (n_features,)."""
    hits = _hits(codes, rules.members.shape[0], fired).tocsc()
    both = hits.multiply(rules.members).tocoo()
    return np.bincount(both.coords[1], weights=both.data, minlength=fired.shape[1])


def _ratio(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return np.asarray(np.where(b > 0, a / np.maximum(b, 1), np.nan))
