"""How often are firings of two features about the same subject? Asked across documents, so that sharing one is no answer."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from moe_probe.core.stats import labelled_documents

if TYPE_CHECKING:
    import pandas as pd

_PAIR_BLOCK = 4096


class Labelling(NamedTuple):
    """Labels of groups of documents.

    Attributes
    ----------
    codes : ndarray of int, shape (n_groups,)
        Label of every group, 0 to n - 1.
    n : int
        Labels there are.
    """

    codes: np.ndarray
    n: int

    def weights(self) -> np.ndarray:
        """Weight of every group, so that all labels count alike whatever their number of groups, shape (n_groups,)."""
        return 1.0 / np.bincount(self.codes, minlength=self.n)[self.codes]

    def one_hot(self) -> np.ndarray:
        """A row a label, shape (n, n_groups)."""
        return np.asarray(np.arange(self.n)[:, None] == self.codes, dtype=np.float32)

    def permuted(self, order: np.ndarray) -> Labelling:
        """The labels handed to other groups."""
        return Labelling(self.codes[order], self.n)


class SameLabel:
    """Chance that a firing of one feature and a firing of another, from different groups, carry the same label.

    A firing is drawn by drawing a label (all alike), a group of that label, and a token of the group; for features i and j with
    firing rates r[g, i], weights w[g] = 1 / (groups of g's label) and p[g, i] = w[g] r[g, i] / sum over g of the same,

        S[i, j] = (sum over labels of P[l, i] P[l, j] - D[i, j]) / (1 - D[i, j]),   D[i, j] = sum over groups of p[g, i] p[g, j]

    where P[l, i] sums p over the groups of label l. Firings of one group are left out: two features that share a document
    share its label whatever they are about. Without any relation to the label S is about 1 / labels. With i = j it says how
    much a feature keeps to a label. This is Simpson's index of concentration (Simpson 1949, DOI 10.1038/163688a0), between
    two features and over distinct groups. Where two features fire in one and the same group only, S is 1 / labels: nothing
    is known.

    Parameters
    ----------
    rates : ndarray of float, shape (n_groups, n_features)
        Share of the group's tokens on which the feature fires.
    labelling : Labelling
    """

    def __init__(self, rates: np.ndarray, labelling: Labelling) -> None:
        self._rates, self.labelling = rates.astype(np.float32), labelling
        self._even = bool(np.ptp(labelling.weights()) < 1e-12)
        self._share = _shares(self._rates, labelling)
        self._rows = np.ascontiguousarray(self._share.T)
        self._group: tuple[np.ndarray, np.ndarray, np.ndarray] | None = None

    @property
    def shares(self) -> np.ndarray:
        """Share of every feature's firings in every group, labels counting alike, shape (n_groups, n_features)."""
        return self._share

    def of(self, first: np.ndarray, second: np.ndarray, labelling: Labelling | None = None) -> np.ndarray:
        """S of pairs of features, shape (n_pairs,), under these labels or others (of the same numbers of groups)."""
        labelling = labelling or self.labelling
        share, rows = self._share, self._rows
        if not self._even and labelling is not self.labelling:
            share = _shares(self._rates, labelling)
            rows = np.ascontiguousarray(share.T)
            group = _products(rows, first, second)
        elif self._group is not None and self._group[0] is first and self._group[1] is second:
            group = self._group[2]  # the same pairs under other labels: what shares a group does not change
        else:
            group = _products(rows, first, second)
            self._group = first, second, group
        by_label = np.ascontiguousarray((labelling.one_hot() @ share).T)
        return _ratio(_products(by_label, first, second), group, 1 / labelling.n)

    def matrix(self) -> np.ndarray:
        """S of all pairs, shape (n_features, n_features)."""
        by_label = self.labelling.one_hot() @ self._share
        return _ratio(by_label.T @ by_label, self._rows @ self._share, 1 / self.labelling.n).astype(np.float32)


def _shares(rates: np.ndarray, labelling: Labelling) -> np.ndarray:
    share = rates * labelling.weights()[:, None].astype(np.float32)
    return np.asarray(share / np.maximum(share.sum(0), 1e-30))


def _products(rows: np.ndarray, first: np.ndarray, second: np.ndarray) -> np.ndarray:
    out = np.empty(len(first), dtype=np.float32)
    for start in range(0, len(first), _PAIR_BLOCK):
        piece = slice(start, start + _PAIR_BLOCK)
        out[piece] = np.einsum("pl,pl->p", rows[first[piece]], rows[second[piece]])
    return out


def _ratio(label: np.ndarray, group: np.ndarray, unknown: float) -> np.ndarray:
    known = (group < 1 - 1e-5) & (label > 0)
    return np.asarray(np.where(known, (label - group) / np.where(known, 1 - group, 1.0), unknown))


def shuffled_within(strata: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A permutation that moves every item within its stratum only, shape (n,)."""
    out = np.arange(len(strata))
    for stratum in np.unique(strata):
        mine = np.flatnonzero(strata == stratum)
        out[mine] = rng.permutation(mine)
    return out


def exchanged(n: int, strata: np.ndarray | None, rng: np.random.Generator) -> np.ndarray:
    """A permutation of n groups of documents, within strata where there are any, shape (n,)."""
    return rng.permutation(n) if strata is None else shuffled_within(strata, rng)


def rate_strata(counts: np.ndarray, *, size: int = 40) -> np.ndarray:
    """Strata of features that fire about as often: neighbours in the order of their counts, about `size` together."""
    n = max(1, len(counts) // size)
    rank = np.empty(len(counts), dtype=int)
    rank[np.argsort(counts, kind="stable")] = np.arange(len(counts))
    return np.asarray(rank * n // max(len(counts), 1))


def bundled(
    documents: pd.DataFrame,
    *,
    by: str,
    finer: str,
    most: int,
    strata: str | None = None,
    seed: int = 0,
) -> pd.DataFrame:
    """Put groups of documents of one subject together at random, so that there are about `most`; unchanged where there are fewer.

    Parameters
    ----------
    documents : pandas.DataFrame
        Of the trace.
    by, finer : str
        Labels that no bundle mixes; of `finer` where every group has one value of it.
    strata : str, optional
        Label within which groups are exchanged: no bundle mixes it either.

    Returns
    -------
    pandas.DataFrame
        The documents with another column ``group``; every subject keeps two groups or more, if it had them.
    """
    keep, labels, names = labelled_documents(documents, label=by)
    groups, first, group_of = np.unique(names, return_index=True, return_inverse=True)
    labelled = len(np.unique(group_of[keep]))
    if labelled <= most:
        return documents
    part = documents[finer].fillna("").astype(str).to_numpy() if finer in documents else np.full(len(documents), "")
    if (part != part[first][group_of]).any():
        part = np.full(len(documents), "")
    within = documents[strata].fillna("").astype(str).to_numpy() if strata is not None else np.full(len(documents), "")
    subject = np.unique(
        np.stack([np.where(keep, labels, "").astype(str), part.astype(str), within.astype(str)])[:, first],
        axis=1,
        return_inverse=True,
    )[1].ravel()
    rng = np.random.default_rng(seed)
    bundle = np.empty(len(groups), dtype=object)
    for number in range(int(subject.max()) + 1):
        mine = rng.permutation(np.flatnonzero(subject == number))
        n = max(2, int(most * len(mine) / labelled))
        bundle[mine] = [f"bundle {number}.{i % n}" for i in range(len(mine))]
    return documents.assign(group=bundle[group_of])
