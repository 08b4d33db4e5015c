"""Tokens compared with features: single tokens and sets of tokens, and how often a feature fires given its tokens."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from moe_probe.features.matching.signals import one_hot

if TYPE_CHECKING:
    from scipy import sparse

    from moe_probe.features.matching.signals import TokenTable

#: Training tokens that an id needs to be a candidate, and to estimate how often a feature fires on it.
AT_LEAST = 5
#: Ids that are candidates, the commonest first: rates are held for every group of documents.
MOST = 16_384


def frequent_tokens(tokens: TokenTable, rows: np.ndarray) -> np.ndarray:
    """Choose the `MOST` commonest token ids that occur at least `AT_LEAST` times.

    Parameters
    ----------
    tokens : TokenTable
    rows : ndarray of int, shape (n_rows,)
        Tokens that are counted.

    Returns
    -------
    ndarray of int
        Codes, increasing.
    """
    counts = np.bincount(tokens.token[rows], minlength=int(tokens.token.max()) + 1)
    order = np.argsort(-counts, kind="stable")[:MOST]
    return np.sort(order[counts[order] >= AT_LEAST])


def token_signals(tokens: TokenTable, rows: np.ndarray, codes: np.ndarray) -> sparse.csr_array:
    """Make one column per token id.

    Parameters
    ----------
    tokens : TokenTable
    rows : ndarray of int, shape (n_rows,)
    codes : ndarray of int, shape (n_codes,)

    Returns
    -------
    csr_array of float32, shape (n_rows, n_codes)
        1 where the token has the id.
    """
    column = np.full(int(tokens.token.max()) + 1, -1)
    column[codes] = np.arange(len(codes))
    return one_hot(column[tokens.token[rows]], len(codes))


def log2_beyond_own_words(
    tokens: TokenTable,
    train: tuple[np.ndarray, np.ndarray],
    held_out: tuple[np.ndarray, np.ndarray],
    draws: np.ndarray,
    *,
    topic: int,
) -> np.ndarray:
    """Compare how often a unit fires in a topic's documents with what their tokens predict, in every resample.

    The prediction is P(fires | token id) of the training documents: a unit that depends on the token alone differs from it by
    noise only. Ids of fewer than `AT_LEAST` training tokens are left out of observation and prediction alike.

    Parameters
    ----------
    tokens : TokenTable
    train, held_out : tuple of ndarray, shape (n_tokens,) each
        Rows of the trace, and whether the unit fires on them.
    draws : ndarray, shape (1 + n_resamples, n_groups)
        How often each group of labelled held-out tokens is drawn; groups in increasing order.
    topic : int

    Returns
    -------
    ndarray, shape (1 + n_resamples,)
        log2 of the ratio; NaN where nothing is expected of the topic's documents.
    """
    rows, fires = train
    size = int(tokens.token.max()) + 1
    seen = np.bincount(tokens.token[rows], minlength=size)
    chance = np.bincount(tokens.token[rows], weights=fires, minlength=size) / np.maximum(seen, 1)
    rows, fires = held_out
    token = np.flatnonzero(tokens.topic[rows] >= 0)
    _, number = np.unique(tokens.group[rows[token]], return_inverse=True)
    known = seen[tokens.token[rows[token]]] >= AT_LEAST
    of_topic = known & (tokens.topic[rows[token]] == topic)
    n = draws.shape[1]
    total = np.bincount(number[of_topic], minlength=n)
    both = [
        np.bincount(number[of_topic], weights=values[of_topic], minlength=n) / np.maximum(total, 1)
        for values in (fires[token].astype(float), chance[tokens.token[rows[token]]])
    ]
    observed, expected = (draws @ rate for rate in both)
    half = 0.5 / max(int(total.sum()), 1) * (draws @ (total > 0))  # half a firing, so that no logarithm is of 0
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.asarray(np.where(expected > 0, np.log2((observed + half) / (expected + half)), np.nan))
