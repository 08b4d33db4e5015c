"""Dictionaries of random directions, and how much better than these an SAE matches experts."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np

from moe_probe.features.firing import SplitFirings
from moe_probe.features.matching.counts import Scores
from moe_probe.features.matching.signals import ordered_firings

if TYPE_CHECKING:
    from moe_probe.features.run_saes import OpenSae
    from moe_probe.sae import Sae


def random_dictionary(sae: Sae, *, l0: float, seed: int = 0) -> Sae:
    """Make an SAE of the same width and about the same sparsity whose dictionary is random directions.

    What it matches, any set of directions would match: activations are correlated with whatever is read from them.

    Parameters
    ----------
    sae : Sae
    l0 : float
        Active latents per token of the SAE that it is compared with.
    seed : int

    Returns
    -------
    Sae
    """
    import torch

    from moe_probe.sae import make_sae

    k = min(max(1, round(l0)), sae.config.d_sae)
    null = make_sae(sae.config.model_copy(update={"architecture": "topk", "k": k, "seed": 1_000_003 + seed}))
    with torch.no_grad():
        null.b_dec.copy_(sae.b_dec)
        null.scale.copy_(sae.scale)
    return null.eval()


def iter_random_firings(item: OpenSae, *, l0: float, n: int, seed: int) -> Iterator[SplitFirings]:
    """Encode the tokens of an SAE with random dictionaries as wide and as sparse as it is, one after the other.

    Parameters
    ----------
    item : OpenSae
    l0 : float
        Its active latents per token.
    n : int
        Dictionaries.
    seed : int

    Yields
    ------
    SplitFirings
        Drop them before the next ones are asked for: they are all that is in memory of a dictionary's firings.
    """
    for i in range(n):
        null = random_dictionary(item.sae, l0=l0, seed=seed + 7919 * i)
        yield SplitFirings(ordered_firings(null, item.train), ordered_firings(null, item.held_out))


def mean_scores(nulls: Sequence[Scores]) -> Scores:
    """Average the scores of several dictionaries; NaN where none goes with an expert in any."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Mean of empty slice")
        return Scores(*(np.nanmean(values, axis=0) for values in zip(*nulls, strict=True)))


def compare_with_random(bits: np.ndarray, expert: np.ndarray, nulls: np.ndarray, *, n_tokens: int) -> tuple[np.ndarray, ...]:
    """Compare the information of pairs with that of the best direction of several random dictionaries.

    The router is a linear map of what SAEs read. Any set of directions therefore has some that predict its experts, and of two
    random dictionaries one always does better. The test asks whether an SAE does better than dictionaries differ among
    themselves. Bits are compared as logarithms, in which that difference is much the same for all experts (on the shipped
    model a deviation of 0.2 to 0.35 at the quartiles). Each expert's variance is shrunk towards the others' as far as they
    are alike (Smyth 2004, moderated t, DOI 10.2202/1544-6115.1027).

    Parameters
    ----------
    bits : ndarray, shape (n_pairs,)
        Held-out mutual information.
    expert : ndarray of int, shape (n_pairs,)
    nulls : ndarray, shape (n_dictionaries, n_experts)
        Held-out bits of each expert's best random direction; NaN where none goes with it.
    n_tokens : int
        Held-out tokens: less than one bit in total counts as one bit.

    Returns
    -------
    log2_ratio, low, high, p_value : ndarray, shape (n_pairs,)
        Over the geometric mean of the dictionaries, with the 95 % interval; one-sided p.
    """
    from scipy.stats import t as student

    held = np.log2(np.maximum(np.nan_to_num(nulls), 1 / n_tokens))
    ratio = np.log2(np.maximum(np.nan_to_num(bits), 1 / n_tokens)) - held.mean(0)[expert]
    variance, freedom = _moderated(held, np.isfinite(nulls).any(0))
    error = np.sqrt(np.maximum(variance, 1e-12) * (1 + 1 / len(nulls)))[expert]
    margin = student.ppf(0.975, freedom) * error
    return ratio, ratio - margin, ratio + margin, student.sf(ratio / error, freedom)


def _moderated(values: np.ndarray, known: np.ndarray) -> tuple[np.ndarray, float]:
    """Variance over dictionaries of every expert, shrunk towards that of all `known` ones, and its degrees of freedom."""
    from scipy.optimize import brentq
    from scipy.special import digamma, polygamma

    own, d = values.var(0, ddof=1), len(values) - 1
    varied = own[known & (own > 0)]
    if len(varied) < 3:
        common = float(own[known].mean()) if known.any() else 0.0
        return np.full(len(own), common), float(max(int(known.sum()), 1) * d)
    logs = np.log(varied) - digamma(d / 2) + np.log(d / 2)
    beyond_chance = float(logs.var(ddof=1) - polygamma(1, d / 2))
    if beyond_chance <= 1e-3:  # no more different than equal variances would look
        return np.full(len(own), float(varied.mean())), float(len(varied) * d)
    prior = 2 * float(brentq(lambda x: float(polygamma(1, x)) - beyond_chance, 1e-3, 1e6))
    common = float(np.exp(logs.mean() + digamma(prior / 2) - np.log(prior / 2)))
    return (prior * common + d * own) / (prior + d), float(min(prior + d, len(varied) * d))
