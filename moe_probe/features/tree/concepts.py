"""How many features does a known concept take, and which firings of its feature do others absorb?"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from scipy import sparse

#: A further feature counts as a part of the concept when it raises the probe's F1 by this much (Chanin et al. 2024).
_STEP = 0.03
#: Absorption as SAEBench's code has it: an absorber points along the probe at least this much, at most so many count, and
#: together they hold this share of the probe's projection.
_COSINE, _ABSORBERS, _SHARE = 0.1, 3, 0.4


class ConceptSplit(NamedTuple):
    """A concept in one dictionary.

    Attributes
    ----------
    probe_f1 : float
        Of a linear probe on the activations themselves, held-out tokens.
    f1 : tuple of float
        Of probes on the 1, 2, 3, ... features that tell the concept best.
    splits : int
        Features that the concept takes: the largest k whose F1 exceeds that of every smaller one by 0.03, 1 without any.
    absorption : float
        Share of the concept's part in the activation that other features hold where the concept's own are silent or weak,
        mean over the tokens that the probe is right about; NaN where there are none.
    features : tuple of int
        The `splits` features.
    """

    probe_f1: float
    f1: tuple[float, ...]
    splits: int
    absorption: float
    features: tuple[int, ...]


class Sample(NamedTuple):
    """Tokens with their activations and firings.

    Attributes
    ----------
    x : ndarray of float, shape (n_tokens, d)
        Activations, centred.
    z : csr_array, shape (n_tokens, n_features)
        In units of x over the decoder.
    y : ndarray of bool, shape (n_tokens,)
        Whether the token is of the concept.
    """

    x: np.ndarray
    z: sparse.csr_array
    y: np.ndarray


def split_of_concept(train: Sample, held_out: Sample, decoder: np.ndarray, *, most: int = 6) -> ConceptSplit:
    """Count the features a concept takes by k-sparse probes, and measure absorption.

    k-sparse probes: the k features of largest difference of mean activation, concept against rest, in a logistic regression
    (Gurnee et al. 2023, arXiv:2305.01610); splits after Chanin et al. 2024, arXiv:2409.14507, section 4; absorption after
    SAEBench (Karvonen et al. 2025, arXiv:2503.09532, section 4.2), with its thresholds.

    Parameters
    ----------
    train, held_out : Sample
        Of disjoint documents.
    decoder : ndarray of float, shape (n_features, d)
    most : int
        Largest k.
    """
    probe, offset, score = _probe(train.x, train.y, held_out)
    order = _ranked(train)
    f1: list[float] = []
    splits = 1
    for k in range(1, min(most, len(order)) + 1):
        chosen = order[:k]
        f1.append(_sparse_f1(train, held_out, chosen))
        if k > 1 and f1[-1] > max(f1[:-1]) + _STEP:
            splits = k
    own = order[:splits]
    return ConceptSplit(
        score, tuple(f1), splits, _absorption(held_out, probe, offset, decoder, own), tuple(int(f) for f in own)
    )


def _fit(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, float]:
    from sklearn.linear_model import LogisticRegression

    # second order: a few hundred columns and thousands of rows are done in a handful of steps
    made = LogisticRegression(solver="newton-cholesky", class_weight="balanced", tol=1e-3).fit(x, y)
    return made.coef_[0], float(made.intercept_[0])


def _f1(said: np.ndarray, y: np.ndarray) -> float:
    both = int((said & y).sum())
    return 2 * both / max(int(said.sum()) + int(y.sum()), 1)


def _probe(x: np.ndarray, y: np.ndarray, held_out: Sample) -> tuple[np.ndarray, float, float]:
    weight, offset = _fit(x, y)
    return weight, offset, _f1(held_out.x @ weight + offset > 0, held_out.y)


def _ranked(train: Sample) -> np.ndarray:
    """Features by difference of mean activation, the concept's tokens against the rest."""
    y = train.y.astype(np.float64)
    inside = np.asarray(train.z.T @ y) / max(y.sum(), 1)
    outside = np.asarray(train.z.T @ (1 - y)) / max((1 - y).sum(), 1)
    return np.argsort(-(inside - outside), kind="stable")


def _sparse_f1(train: Sample, held_out: Sample, chosen: np.ndarray) -> float:
    columns = train.z[:, chosen].toarray()
    scale = np.maximum(columns.std(0), 1e-12)
    weight, offset = _fit(columns / scale, train.y)
    return _f1(held_out.z[:, chosen].toarray() / scale @ weight + offset > 0, held_out.y)


def _absorption(held_out: Sample, probe: np.ndarray, offset: float, decoder: np.ndarray, own: np.ndarray) -> float:
    """Mean absorption fraction, A / (A + P) with P the projection of the concept's own features and A that of absorbers."""
    right = np.flatnonzero(held_out.y & (held_out.x @ probe + offset > 0))
    unit = probe / max(float(np.linalg.norm(probe)), 1e-12)
    cosine = decoder @ unit / np.maximum(np.linalg.norm(decoder, axis=1), 1e-12)
    along = decoder @ unit
    is_own = np.zeros(len(decoder), dtype=bool)
    is_own[own] = True
    firing = held_out.z[right].tocoo()
    row, feature = firing.coords
    part = firing.data * along[feature]
    total = held_out.x[right] @ unit
    mine = is_own[feature]
    main = np.maximum(np.bincount(row[mine], weights=part[mine], minlength=len(right)), 0.0)
    other = ~mine & (cosine[feature] >= _COSINE)
    row, part = row[other], part[other]
    order = np.lexsort((-part, row))
    row, part = row[order], part[order]
    rank = np.arange(len(row)) - np.searchsorted(row, row)
    strongest = rank < _ABSORBERS
    held = np.bincount(row[strongest], weights=part[strongest], minlength=len(right))
    use = total > 0
    absorbed = np.where(held >= _SHARE * total, np.clip(np.minimum(held, total - main), 0.0, None), 0.0)[use]
    if not use.any():
        return float("nan")
    return float(np.mean(absorbed / np.maximum(absorbed + main[use], 1e-12)))
