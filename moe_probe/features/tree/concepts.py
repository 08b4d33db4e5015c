"""How many features a known concept takes, and which firings of its feature others absorb."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from moe_probe.core.progress import track
from moe_probe.core.units import format_members
from moe_probe.features.tree.ladders import read_activations

if TYPE_CHECKING:
    import pandas as pd
    from scipy import sparse

    from moe_probe.features.tree.dictionary import Dictionary
    from moe_probe.features.tree.options import TreeSettings
    from moe_probe.recording.trace import Trace

#: A further feature counts as a part of the concept when it raises the probe's F1 by this much (Chanin et al. 2024).
_STEP = 0.03
#: Absorption as SAEBench's code has it: an absorber points along the probe at least this much, at most so many count, and
#: together they hold this share of the probe's projection.
_COSINE, _ABSORBERS, _SHARE = 0.1, 3, 0.4
#: Tokens that concepts are probed on, of training and of held-out documents, and those of the concept that are needed.
_TOKENS, _FEWEST = 8_000, 20


class ConceptSplit(NamedTuple):
    """A concept in one dictionary.

    Attributes
    ----------
    probe_f1 : float
        Of a linear probe on the activations themselves, held-out tokens.
    f1 : tuple of float
        Of probes on the 1, 2, 3, ... features that predict the concept best.
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
        Decoder rows.
    most : int
        Largest k.

    Returns
    -------
    ConceptSplit
    """
    probe, offset = _fit(train.x, train.y)
    score = _f1(held_out.x @ probe + offset > 0, held_out.y)
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


def concept_table(trace: Trace, dictionary: Dictionary, settings: TreeSettings) -> pd.DataFrame:
    """Count the features that every topic takes in one dictionary, and measure absorption.

    Parameters
    ----------
    trace : Trace
    dictionary : Dictionary
    settings : TreeSettings
        Label column and seed.

    Returns
    -------
    pandas.DataFrame
        One row per topic with enough tokens: ``layer, width, sae``, the label column, ``probe_f1, f1_1, f1_best, splits,
        absorption, features``.
    """
    import pandas as pd

    labels = trace.documents[settings.by].fillna("").astype(str).to_numpy()
    label_of_token = labels[trace.tokens(["document"])["document"].to_numpy()]
    rng = np.random.default_rng(settings.seed)
    samples = [_sample(dictionary, part, label_of_token, rng) for part in (0, 1)]
    rows = []
    for topic in track(sorted({t for t in labels if t}), f"concepts, {dictionary.name}", unit=settings.by + "s"):
        train, held_out = (sample._replace(y=topics == topic) for sample, topics in samples)
        if min(train.y.sum(), held_out.y.sum()) < _FEWEST or train.y.all():
            continue
        concept = split_of_concept(train, held_out, dictionary.directions)
        rows.append(
            {
                "layer": dictionary.layer,
                "width": dictionary.width,
                "sae": dictionary.name,
                settings.by: topic,
                "probe_f1": concept.probe_f1,
                "f1_1": concept.f1[0],
                "f1_best": max(concept.f1),
                "splits": concept.splits,
                "absorption": concept.absorption,
                "features": format_members(concept.features),
            }
        )
    return pd.DataFrame(rows)


def _sample(
    dictionary: Dictionary, part: int, label_of_token: np.ndarray, rng: np.random.Generator
) -> tuple[Sample, np.ndarray]:
    """Draw labelled tokens of the training (0) or held-out part (1), and say their labels."""
    firings = (dictionary.train, dictionary.held_out)[part]
    known = np.flatnonzero(label_of_token[firings.rows] != "")  # without a label it may be of any topic
    chosen = np.sort(rng.choice(known, min(len(known), _TOKENS), replace=False))
    rows, sae = firings.rows[chosen], dictionary.sae
    x = read_activations(dictionary.readers[part], sae, rows) / float(sae.scale) - sae.b_dec.detach().numpy()
    return Sample(x, firings.matrix[chosen], np.zeros(len(rows), dtype=bool)), label_of_token[rows]


def _fit(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, float]:
    from sklearn.linear_model import LogisticRegression

    # second order: a few hundred columns and thousands of rows are done in a handful of steps
    model = LogisticRegression(solver="newton-cholesky", class_weight="balanced", tol=1e-3).fit(x, y)
    return model.coef_[0], float(model.intercept_[0])


def _f1(predicted: np.ndarray, y: np.ndarray) -> float:
    both = int((predicted & y).sum())
    return 2 * both / max(int(predicted.sum()) + int(y.sum()), 1)


def _ranked(train: Sample) -> np.ndarray:
    """Order features by difference of mean activation, the concept's tokens against the rest."""
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
    """Average A / (A + P), with P the projection of the concept's own features and A that of absorbers."""
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
    own_part = is_own[feature]
    main = np.maximum(np.bincount(row[own_part], weights=part[own_part], minlength=len(right)), 0.0)
    other = ~own_part & (cosine[feature] >= _COSINE)
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
