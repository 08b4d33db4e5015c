"""Information that token, previous token, position and topic have about routing, in bits on held-out documents."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from moe_probe.core.results import Result
from moe_probe.core.stats import Resamples, ratio_interval
from moe_probe.core.stats.bootstrap import BOOTSTRAP
from moe_probe.experts.explain.selections import LayerSelections, map_layers
from moe_probe.experts.explain.stacking import Prediction, Stack, position_octaves, shared_pairs
from moe_probe.experts.explain.tokens import TokenSample, sample_tokens

if TYPE_CHECKING:
    import pandas as pd

    from moe_probe.recording.trace import Trace

#: Factors in the order of the two chains.
LOCAL_FIRST = ("token", "previous token", "position", "topic")
TOPIC_FIRST = ("topic", "token", "previous token", "position")
_SCORED = ("token", "previous token", "position", "topic", "topic given token", "token given topic")
_CITATIONS = (
    "Wolpert 1992, stacked generalisation, DOI 10.1016/S0893-6080(05)80023-1",
    "Xue et al. 2024 (OpenMoE), context-independent specialisation, arXiv:2402.01739",
    *BOOTSTRAP,
)


class Explained(NamedTuple):
    """Two results: ``explained`` (`layers`, the two chains of factors) and ``explained_experts`` (`experts`)."""

    layers: Result
    experts: Result


class _LayerGains(NamedTuple):
    """Bits that factors save in one layer.

    Attributes
    ----------
    layer : int
    gains : dict of tuple of str to ndarray of float, shape (n_groups, n_experts)
        Bits saved by the factors of the key, in their order; keys of the chains begin with "chain".
    selections : ndarray of int, shape (n_groups, n_experts)
    """

    layer: int
    gains: dict[tuple[str, ...], np.ndarray]
    selections: np.ndarray


def explain_routing(  # noqa: PLR0913 (public analysis: keyword options with defaults)
    trace: Trace,
    *,
    label: str = "topic",
    folds: int = 4,
    max_tokens: int | None = 80_000,
    resamples: int = 500,
    seed: int = 0,
) -> Explained:
    """Measure, in bits on held-out documents, how well token, previous token, position and topic predict routing.

    Parameters
    ----------
    trace : Trace
        With routing.
    label : str
        Label column of the topic.
    folds : int
        Number of folds; groups are predicted from the groups of the other folds.
    max_tokens : int, optional
        Number of tokens to measure on, about (whole documents).
    resamples : int
        Number of bootstrap resamples of groups, for the 95 % intervals.
    seed : int
        Seed of folds, sample and resamples.

    Returns
    -------
    Explained
        ``layers``: Result ``explained``, one row per layer, order ("alone", "beyond token", "token first", "topic
        first") and factor: ``layer, order, step, factor, bits, ci_low, ci_high`` (bits per selection that the factor adds
        after those before it; alone: over the base rate), ``base_bits`` (cross-entropy under the base
        rate). ``experts``: Result ``explained_experts``, one row per expert: ``layer, expert`` and per factor
        ``bits_<factor>, bits_<factor>_low, bits_<factor>_high`` in bits per selection *of the expert*,
        ``explained_by`` (topic | token | position | none) and ``best_factor``.

    Raises
    ------
    MoeProbeError
        As `sample_tokens`.
    """
    import pandas as pd

    trace.need_words()
    sample = sample_tokens(trace, label=label, folds=folds, max_tokens=max_tokens, seed=seed)
    keys = factor_keys(sample)
    drawn = Resamples.pooled(len(sample.groups), n=resamples, seed=seed)
    chains: list[dict[str, Any]] = []
    experts: list[pd.DataFrame] = []
    for measured in map_layers(trace, sample, lambda item: _layer_gains(item, sample, keys)):
        chains += _chain_rows(measured, drawn)
        experts.append(_expert_rows(measured, drawn))
    params = {"label": label, "folds": folds, "resamples": resamples, "max_tokens": max_tokens, "tokens": len(sample.row)}
    how = (
        f"Measured: the cross-entropy of the chosen experts that is saved over the base rate, on held-out groups of documents "
        f"({folds} folds over {len(sample.groups):,} groups). Intervals: 95 %, bootstrap over groups. Held-out gains cannot "
        "be inflated by fitting, and may be negative."
    )

    def result(name: str, table: pd.DataFrame, caption: str) -> Result:
        return Result(name, table, params, seed, f"{caption} {how}", sample.warnings, _CITATIONS)

    return Explained(
        result(
            "explained",
            pd.DataFrame(chains),
            "Bits per selection that token, previous token, position and topic save in predicting each layer's routing. In "
            'the two orders each factor counts what it adds to the factors before it. "Previous token" after "token" is the '
            "pair of both, and word sense the pair of token and topic.",
        ),
        result(
            "explained_experts",
            pd.concat(experts, ignore_index=True),
            "Bits per selection of each expert that token, previous token, position and topic save. Explained by: the factor "
            "that alone saves most, with an interval above 0; topic only where it still saves bits once the token is known. "
            "An expert's bits (Poisson likelihood ratio) add up to its layer's.",
        ),
    )


def factor_keys(sample: TokenSample) -> dict[str, np.ndarray]:
    """Code the value of every factor at every token, arrays of shape (n_tokens,); -1 where it carries nothing over.

    ``pair`` is the token with the one before it, ``sense`` the token with the topic.
    """
    return {
        "token": sample.token,
        "previous token": sample.previous,
        "position": position_octaves(sample.position),
        "topic": sample.topic[sample.group],
        "pair": shared_pairs(sample.previous, sample.token, sample.group),
        "sense": shared_pairs(sample.token, sample.topic[sample.group], sample.group),
    }


def _layer_gains(item: LayerSelections, sample: TokenSample, keys: Mapping[str, np.ndarray]) -> _LayerGains:
    """Score every factor alone, topic and word sense after the token, and the two chains."""
    stack = Stack(item, sample)
    gains: dict[tuple[str, ...], np.ndarray] = {}

    def add(before: Prediction, name: tuple[str, ...], key: str) -> Prediction:
        prediction = stack.add(before, keys[key])
        gains[name] = stack.gain(prediction)
        return prediction

    for factor in ("previous token", "position"):
        add(stack.base, (factor,), factor)
    token, topic = add(stack.base, ("token",), "token"), add(stack.base, ("topic",), "topic")
    # after the token: the topic as such, then the sense that a word has within the topic
    add(add(token, ("token", "topic"), "topic"), ("token", "topic", "sense"), "sense")
    for first, order in ((token, LOCAL_FIRST), (topic, TOPIC_FIRST)):
        prediction = first
        so_far: tuple[str, ...] = order[:1]
        for factor in order[1:]:
            so_far = (*so_far, factor)
            prediction = add(prediction, ("chain", *so_far), "pair" if factor == "previous token" else factor)
    return _LayerGains(item.layer, gains, item.counts(sample.group, len(sample.groups)))


def _bits(gains: np.ndarray, selections: np.ndarray, drawn: Resamples) -> np.ndarray:
    """Divide gains by selections; return it with its 95 % interval, shape (3, ...), NaN for experts never chosen."""
    return np.stack(ratio_interval(drawn, gains, selections))


def _chain_rows(item: _LayerGains, drawn: Resamples) -> list[dict[str, Any]]:
    selections = item.selections.sum(1).astype(float)
    share = item.selections.sum(0) / item.selections.sum()
    base = float(-(share[share > 0] * np.log2(share[share > 0])).sum())
    rows = []

    def row(order: str, step: int, factor: str, added: np.ndarray) -> None:
        bits, low, high = _bits(added.sum(1), selections, drawn)
        rows.append(
            {
                "layer": item.layer,
                "order": order,
                "step": step,
                "factor": factor,
                "bits": bits,
                "ci_low": low,
                "ci_high": high,
                "base_bits": base,
            }
        )

    for factor in LOCAL_FIRST:
        row("alone", 0, factor, item.gains[(factor,)])
    row("beyond token", 0, "topic", item.gains[("token", "topic")] - item.gains[("token",)])
    row("beyond token", 1, "word sense", item.gains[("token", "topic", "sense")] - item.gains[("token", "topic")])
    for order, name in ((LOCAL_FIRST, "token first"), (TOPIC_FIRST, "topic first")):
        before = np.zeros_like(item.gains[("token",)])
        for step, factor in enumerate(order):
            so_far = order[: step + 1]
            after = item.gains[so_far if step == 0 else ("chain", *so_far)]
            row(name, step, factor, after - before)
            before = after
    return rows


def _expert_rows(item: _LayerGains, drawn: Resamples) -> pd.DataFrame:
    import pandas as pd

    gains = {factor: item.gains[(factor,)] for factor in LOCAL_FIRST}
    gains["topic given token"] = item.gains[("token", "topic")] - item.gains[("token",)]
    gains["token given topic"] = item.gains[("token", "topic")] - item.gains[("topic",)]
    columns: dict[str, Any] = {"layer": item.layer, "expert": np.arange(item.selections.shape[1])}
    for factor in _SCORED:
        name = f"bits_{factor.replace(' ', '_')}"
        columns[name], columns[f"{name}_low"], columns[f"{name}_high"] = _bits(gains[factor], item.selections, drawn)
    table = pd.DataFrame(columns)
    table["best_factor"] = [_best_factor(row) for row in table.to_dict("records")]
    table["explained_by"] = table["best_factor"].replace({"previous token": "token"})
    return table


def _best_factor(row: Mapping[str, Any]) -> str:
    """Name the factor that alone saves most bits; topic only where it still saves bits once the token is known."""
    bits = {f: row[f"bits_{f.replace(' ', '_')}"] for f in LOCAL_FIRST if row[f"bits_{f.replace(' ', '_')}_low"] > 0}
    if "topic" in bits and not row["bits_topic_given_token_low"] > 0:
        del bits["topic"]
    return max(bits, key=lambda f: bits[f]) if bits else "none"
