"""Expert usage compared with the prediction from contexts alone: the vocabulary test of topic effects."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from moe_probe.core.errors import MoeProbeError
from moe_probe.core.results import Result
from moe_probe.core.stats import benjamini_hochberg, half_selection, log2_ratio, permutation_test, strata_of_groups
from moe_probe.experts.explain.additive import AdditiveContexts
from moe_probe.experts.explain.rivals import CONTEXTS
from moe_probe.experts.explain.selections import map_layers
from moe_probe.experts.explain.stacking import position_bins, shared_pairs
from moe_probe.experts.explain.tokens import TokenSample, sample_tokens
from moe_probe.experts.topic_groups import pair_table

if TYPE_CHECKING:
    import pandas as pd

    from moe_probe.recording.trace import Trace

_CITATIONS = (
    "Robinson 1988, regression on what the rival leaves over, DOI 10.2307/1912705",
    "Chernozhukov et al. 2018, cross-fitting, DOI 10.1111/ectj.12097",
    "Welch 1947, the studentised difference of means, DOI 10.1093/biomet/34.1-2.28",
)


#: Tokens that are looked up at a time.
_AT_ONCE = 1 << 18


class ExpectedUsage(NamedTuple):
    """Observed and expected usage of groups, from tokens whose context occurs in other groups.

    Attributes
    ----------
    observed, expected : ndarray of float, shape (n_groups, n_columns)
        Shares of a layer's selections; a column is one (layer, expert).
    selections : ndarray of int, shape (n_groups, n_layers)
        Selections that the shares are formed from.
    coverage : ndarray of float, shape (n_groups,)
        Share of a group's tokens whose context is known.
    layer, expert : ndarray of int, shape (n_columns,)
    layer_index : ndarray of int, shape (n_columns,)
        Ordinal of the column's layer.
    sample : TokenSample
        Its groups alone.
    min_count : int
        Occurrences in other folds from which on a context is known.
    given : str
        The context.
    """

    observed: np.ndarray
    expected: np.ndarray
    selections: np.ndarray
    coverage: np.ndarray
    layer: np.ndarray
    expert: np.ndarray
    layer_index: np.ndarray
    sample: TokenSample
    min_count: int
    given: str


def expected_usage(  # noqa: PLR0913 (documented analysis: keyword options with defaults)
    trace: Trace,
    *,
    label: str = "topic",
    given: str = "token",
    folds: int = 4,
    min_count: int = 5,
    max_tokens: int | None = 10_000_000,
    seed: int = 0,
) -> ExpectedUsage:
    """Predict every group's usage from its words (and its positions) alone.

    The probability of an expert given a token is its frequency in the groups of other folds, without shrinkage. So it
    is unbiased: an expert that depends on words alone differs from its expectation only by noise, however rare the
    words. Observation and expectation use only tokens whose context occurs at least `min_count` times in other folds.
    Effects of positions are learnt jointly (`moe_probe.experts.explain.additive`), so that topics of short documents do
    not look special.

    Parameters
    ----------
    trace : Trace
        With routing.
    label : str
        Label column.
    given : {"token", "previous token", "token pair"}
        The context. The pair is the token with the one before it: stricter than either, but known for fewer tokens.
    folds : int
        Number of folds; groups are predicted from the groups of the other folds.
    min_count : int
        Occurrences in other folds from which on a context is known.
    max_tokens : int, optional
        Number of tokens to measure on, about (whole documents).
    seed : int
        Seed of folds, sample and positions.

    Returns
    -------
    ExpectedUsage

    Raises
    ------
    MoeProbeError
        As `sample_tokens`, or when there is no such context, or no token's context occurs in other folds.
    """
    if given not in CONTEXTS:
        raise MoeProbeError(f"unknown context '{given}'", f"contexts are {', '.join(CONTEXTS)}", "one of those")
    trace.need_words()
    sample = sample_tokens(trace, label=label, folds=folds, max_tokens=max_tokens, seed=seed)
    key = _contexts(sample, given)
    known = _known(key, sample, min_count)
    if not known.any():
        raise MoeProbeError(
            f"no {given} occurs {min_count} times in other documents",
            "what words predict must be learnt on documents other than those it is compared with",
            "a larger corpus",
        )
    code = _codes(key, known)
    bins = np.where(code >= 0, position_bins(sample.position), -1)
    # what is held while layers are read grows with the sample: no more than the model needs
    sample = sample.rows_alone()
    del key
    predictor = AdditiveContexts(code, bins, sample, measured=known, seed=seed)
    observed, expected, totals = zip(*map_layers(trace, sample, predictor.measure), strict=True)
    layers = trace.layers
    numbers = [layer.num_experts for layer in layers]
    return ExpectedUsage(
        observed=np.concatenate(observed, axis=1),
        expected=np.concatenate(expected, axis=1),
        selections=np.stack(totals, axis=1),
        coverage=np.bincount(sample.group[known], minlength=len(sample.groups)) / sample.size,
        layer=np.repeat([layer.layer for layer in layers], numbers),
        expert=np.concatenate([np.arange(n) for n in numbers]),
        layer_index=np.repeat(np.arange(len(layers)), numbers),
        sample=sample.groups_alone(),
        min_count=min_count,
        given=given,
    )


def topic_beyond_vocabulary(  # noqa: PLR0913 (public analysis: keyword options with defaults)
    trace: Trace,
    *,
    label: str = "topic",
    given: str = "token",
    permutations: int = 1000,
    alpha: float = 0.05,
    usage: ExpectedUsage | None = None,
    strata: str | None = None,
    seed: int = 0,
) -> Result:
    """Test every expert and topic again, after subtracting the usage that the topic's words predict.

    Observed minus expected usage (`expected_usage`) of groups is tested exactly as usage itself is:
    Welch's t, topic against rest, topics permuted over groups.

    Parameters
    ----------
    trace : Trace
        With routing.
    label : str
        Label column.
    given : {"token", "previous token", "token pair"}
        The context.
    permutations : int
        Number of permutations of topics over groups.
    alpha : float
        Error rate of ``beyond``.
    usage : ExpectedUsage, optional
        Value of `expected_usage` for the same label and context, if already computed.
    strata : str, optional
        Label column within whose values topics are permuted.
    seed : int
        Seed of the expected usage and of the permutations.

    Returns
    -------
    Result
        ``beyond_vocabulary`` (or ``beyond_previous_token``, ``beyond_token_pairs``): ``layer, expert, topic``; ``share``
        (of the known tokens' selections), ``expected_share`` (from the context and positions), ``log2_ratio`` of the
        two with ``ci_low, ci_high`` (95 %, groups), ``p_value, q_value``, ``beyond`` (q at most alpha and observed above
        expected), ``coverage`` (share of the topic's tokens whose context occurs in other documents).

    Raises
    ------
    MoeProbeError
        As `expected_usage`, and when there is no such column of strata or no labels can be exchanged.
    """
    usage = usage or expected_usage(trace, label=label, given=given, seed=seed)
    sample = usage.sample
    keep = usage.coverage > 0
    topic, n_topics = sample.topic[keep], len(sample.topics)
    observed, expected = usage.observed[keep], usage.expected[keep]
    within = strata_of_groups(trace.documents, sample.groups, column=strata)
    test = permutation_test(
        observed - expected,
        topic,
        n_topics=n_topics,
        layer_index=usage.layer_index,
        permutations=permutations,
        seed=seed,
        strata=None if within is None else within[keep],
    )
    q_values = np.fmin(benjamini_hochberg(test.p_value), test.p_familywise)
    pseudo = half_selection(usage.selections[keep], topic, n_topics=n_topics)[:, usage.layer_index]
    ratio = _log2_ratio(observed, expected, topic, pseudo)
    coverage = float(np.average(usage.coverage, weights=sample.size))
    params = {
        "label": label,
        "given": given,
        "strata": strata,
        "permutations": permutations,
        "alpha": alpha,
        "folds": sample.n_folds,
        "min_count": usage.min_count,
        "coverage": coverage,
        "model_p": test.model_p,
    }
    few = f"Only {coverage:.0%} of tokens have a {given} that occurs in other documents: the others were left out."
    return Result(
        CONTEXTS[given],
        _table(usage, ratio, test.p_value, q_values, alpha),
        params,
        seed,
        _caption(params),
        (*sample.warnings, *([few] if coverage < 0.5 else [])),
        _CITATIONS,
    )


def _caption(params: dict[str, Any]) -> str:
    label, given, within = params["label"], params["given"], f" within {params['strata']}" if params["strata"] else ""
    return (
        f"Usage of every expert for every {label}, compared with the usage that each {given} and its position predict. Beyond: "
        f"used more than predicted, q at most {params['alpha']:g}. Predictions are learnt on other groups of documents "
        f"({params['folds']} folds; contexts that occur there at least {params['min_count']} times, {params['coverage']:.0%} of "
        f"all tokens). Test of the difference: Welch's t of group means, {params['permutations']:,} permutations of {label}s "
        f"over groups{within}, q over the whole family. Words that occur in one {label} only absorb its effect, so that "
        "the test errs on the side of words."
    )


class _Ratio(NamedTuple):
    """Observed (`share`) and expected shares, log2 of their ratio and its 95 % interval, shape (n_topics, n_columns)."""

    share: np.ndarray
    expected: np.ndarray
    log2: np.ndarray
    ci_low: np.ndarray
    ci_high: np.ndarray


def _log2_ratio(observed: np.ndarray, expected: np.ndarray, topic: np.ndarray, pseudo: np.ndarray) -> _Ratio:
    """Compare topic means of shares (n_groups, n_columns), with half a selection (n_topics, n_columns) added to both."""
    share, mean, log2, low, high = (np.full(pseudo.shape, np.nan) for _ in range(5))
    for t in range(len(pseudo)):
        rows = topic == t
        if rows.any():
            share[t], mean[t] = observed[rows].mean(0), expected[rows].mean(0)
            log2[t], low[t], high[t] = log2_ratio(observed[rows], expected[rows], half=pseudo[t])
    return _Ratio(share, mean, log2, low, high)


def _table(usage: ExpectedUsage, ratio: _Ratio, p: np.ndarray, q: np.ndarray, alpha: float) -> pd.DataFrame:
    """Lay out the outcome, one row per expert and topic; p and q of shape (n_topics, n_columns)."""
    topics, sample = usage.sample.topics, usage.sample
    tokens = sample.size.astype(float)
    coverage = np.bincount(sample.topic, weights=usage.coverage * tokens, minlength=len(topics)) / np.bincount(
        sample.topic, weights=tokens, minlength=len(topics)
    )
    values = {
        "share": ratio.share,
        "expected_share": ratio.expected,
        "log2_ratio": ratio.log2,
        "ci_low": ratio.ci_low,
        "ci_high": ratio.ci_high,
        "p_value": p,
        "q_value": q,
        "beyond": (q <= alpha) & (ratio.log2 > 0),
        "coverage": np.broadcast_to(coverage[:, None], q.shape),
    }
    return pair_table(usage, topics, values)


def _contexts(sample: TokenSample, given: str) -> np.ndarray:
    """Code the context of every token, int32, shape (n_tokens,); -1 where it occurs in one group only."""
    if given == "token pair":
        return shared_pairs(sample.previous, sample.token, sample.group).astype(np.int32)
    return sample.token if given == "token" else sample.previous


def _codes(key: np.ndarray, known: np.ndarray) -> np.ndarray:
    """Code the contexts that are known at some token, at all of their tokens; -1 elsewhere.

    A token whose context is too rare in other folds cannot be predicted itself, but others are predicted from it.
    """
    somewhere = np.bincount(key[known]) > 0
    number = np.full(int(key.max()) + 2, -1, dtype=np.int32)  # the last one is that of -1
    number[: len(somewhere)][somewhere] = np.arange(int(somewhere.sum()))
    return np.asarray(number[key])


def _known(key: np.ndarray, sample: TokenSample, min_count: int) -> np.ndarray:
    """Mark the tokens whose context occurs at least `min_count` times in other folds, shape (n_tokens,)."""
    known, n_keys = key >= 0, int(key.max()) + 1
    counts = np.zeros(sample.n_folds * n_keys, dtype=np.int64)
    parts = [slice(start, start + _AT_ONCE) for start in range(0, len(key), _AT_ONCE)]

    def cells(part: slice) -> np.ndarray:
        cell: np.ndarray = sample.fold[sample.group[part]][known[part]] * n_keys + key[part][known[part]]
        return cell

    for part in parts:
        counts += np.bincount(cells(part), minlength=len(counts))
    by_fold = counts.reshape(sample.n_folds, n_keys)
    often = (by_fold.sum(0) - by_fold >= min_count).ravel()
    for part in parts:
        known[part][known[part]] = often[cells(part)]
    return np.asarray(known)
