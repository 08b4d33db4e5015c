"""Chance that firings of two features, from different groups of documents, carry the same label."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

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
        """Weigh every group so that all labels count alike whatever their number of groups, shape (n_groups,)."""
        return np.asarray(1.0 / np.bincount(self.codes, minlength=self.n)[self.codes])

    def one_hot(self) -> np.ndarray:
        """Return a 0/1 matrix with one row per label, shape (n, n_groups)."""
        return np.asarray(np.arange(self.n)[:, None] == self.codes, dtype=np.float32)

    def permuted(self, order: np.ndarray) -> Labelling:
        """Give the labels to other groups: group i gets the label of group ``order[i]``."""
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
        #: Share of every feature's firings in every group, labels counting alike, shape (n_groups, n_features).
        self.shares = _shares(self._rates, labelling)
        self._rows = np.ascontiguousarray(self.shares.T)
        self._group: tuple[np.ndarray, np.ndarray, np.ndarray] | None = None

    def of(self, first: np.ndarray, second: np.ndarray, labelling: Labelling | None = None) -> np.ndarray:
        """Compute S of pairs of features.

        Parameters
        ----------
        first, second : ndarray of int, shape (n_pairs,)
            The features of every pair.
        labelling : Labelling, optional
            Other labels, with the same number of groups for each; the own ones by default.

        Returns
        -------
        ndarray of float, shape (n_pairs,)
        """
        labelling = labelling or self.labelling
        share, rows = self.shares, self._rows
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
        """Compute S of all pairs, shape (n_features, n_features)."""
        by_label = self.labelling.one_hot() @ self.shares
        return _ratio(by_label.T @ by_label, self._rows @ self.shares, 1 / self.labelling.n).astype(np.float32)


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
