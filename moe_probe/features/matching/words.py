"""Words as rivals of features: single tokens and sets of tokens, and how often a feature fires given its tokens."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from scipy import sparse

    from moe_probe.features.matching.signals import Tokens

#: Training tokens that an id needs to be a candidate, and to say how often a feature fires on it.
AT_LEAST = 5
#: Ids that are candidates, the commonest first: rates are held for every group of documents.
MOST = 16_384


def frequent_tokens(tokens: Tokens, rows: np.ndarray) -> np.ndarray:
    """Codes of the ids that occur at least `AT_LEAST` times on `rows`, the `MOST` commonest of them, in order."""
    counts = np.bincount(tokens.token[rows], minlength=int(tokens.token.max()) + 1)
    order = np.argsort(-counts, kind="stable")[:MOST]
    return np.sort(order[counts[order] >= AT_LEAST])


def token_signals(tokens: Tokens, rows: np.ndarray, codes: np.ndarray) -> sparse.csr_array:
    """One column per id, 1 where the token has it, shape (n_rows, n_codes)."""
    from moe_probe.features.matching.signals import one_hot

    column = np.full(int(tokens.token.max()) + 1, -1)
    column[codes] = np.arange(len(codes))
    return one_hot(column[tokens.token[rows]], len(codes))


def log2_beyond_own_words(
    tokens: Tokens,
    train: tuple[np.ndarray, np.ndarray],
    held_out: tuple[np.ndarray, np.ndarray],
    draws: np.ndarray,
    *,
    topic: int,
) -> np.ndarray:
    """log2 of how much more often a unit fires in a topic's documents than their tokens predict, in every resample.

    The prediction is P(fires | token id) of the training documents, as it is: a unit that goes by the token alone differs
    from it by noise only. Ids of fewer than `AT_LEAST` training tokens are left out of observation and prediction alike.

    Parameters
    ----------
    train, held_out : tuple of ndarray, shape (n_tokens,) each
        Rows of the trace, and whether the unit fires on them.
    draws : ndarray, shape (1 + n_resamples, n_groups)
        How often each group of labelled held-out tokens is drawn; groups in increasing order.
    topic : int

    Returns
    -------
    ndarray, shape (1 + n_resamples,)
        NaN where nothing is expected of the topic's documents.
    """
    rows, fires = train
    size = int(tokens.token.max()) + 1
    seen = np.bincount(tokens.token[rows], minlength=size)
    chance = np.bincount(tokens.token[rows], weights=fires, minlength=size) / np.maximum(seen, 1)
    rows, fires = held_out
    token = np.flatnonzero(tokens.topic[rows] >= 0)
    _, number = np.unique(tokens.group[rows[token]], return_inverse=True)
    known = seen[tokens.token[rows[token]]] >= AT_LEAST
    mine = known & (tokens.topic[rows[token]] == topic)
    n = draws.shape[1]
    total = np.bincount(number[mine], minlength=n)
    both = [
        np.bincount(number[mine], weights=values[mine], minlength=n) / np.maximum(total, 1)
        for values in (fires[token].astype(float), chance[tokens.token[rows[token]]])
    ]
    observed, expected = (draws @ rate for rate in both)
    half = 0.5 / max(int(total.sum()), 1) * (draws @ (total > 0))  # half a firing, so that no logarithm is of 0
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.asarray(np.where(expected > 0, np.log2((observed + half) / (expected + half)), np.nan))
