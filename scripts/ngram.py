"""Unigram and bigram models over token ids: the yardsticks for a language model's held-out loss."""

from __future__ import annotations

import numpy as np


def ngram_losses(train: np.ndarray, held_out: np.ndarray, *, vocab_size: int) -> dict[str, float]:
    """Cross-entropy, in nats per token, of n-gram models fitted on one stream and scored on another.

    The unigram model is add-one smoothed. The bigram model is absolute discounting with discount 0.75
    backing off to the unigram (Ney, Essen and Kneser 1994, doi:10.1006/csla.1994.1001), the
    customary strong simple smoother.

    Parameters
    ----------
    train, held_out : ndarray of int, shape (n_tokens,)
    vocab_size : int

    Returns
    -------
    dict with keys ``unigram`` and ``bigram``
    """
    counts = np.bincount(train, minlength=vocab_size) + 1.0
    unigram = counts / counts.sum()
    key = train[:-1].astype(np.int64) * vocab_size + train[1:]
    pairs, pair_counts = np.unique(key, return_counts=True)
    first = pairs // vocab_size
    context = np.bincount(first, weights=pair_counts, minlength=vocab_size)
    kinds = np.bincount(first, minlength=vocab_size)  # distinct followers of each token
    discount = 0.75
    asked = held_out[:-1].astype(np.int64) * vocab_size + held_out[1:]
    place = np.minimum(np.searchsorted(pairs, asked), len(pairs) - 1)
    seen = np.where(pairs[place] == asked, pair_counts[place], 0)
    before, after = held_out[:-1], held_out[1:]
    total = context[before]
    with np.errstate(divide="ignore", invalid="ignore"):
        direct = np.maximum(seen - discount, 0) / total
        backoff = discount * kinds[before] / total * unigram[after]
    probability = np.where(total > 0, direct + backoff, unigram[after])
    return {"unigram": float(-np.log(unigram[after]).mean()), "bigram": float(-np.log(probability).mean())}
