"""What explains routing, in bits on documents that the explanation has not seen."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from moe_probe.core.results import Result
from moe_probe.core.stats import Resamples, ratio_interval
from moe_probe.core.stats.bootstrap import BOOTSTRAP
from moe_probe.experts.explain.stacking import Prediction, Stack, position_octaves, shared_pairs
from moe_probe.experts.explain.tokens import LayerSelections, TokenSample, map_layers, sample_tokens

if TYPE_CHECKING:
    import pandas as pd

    from moe_probe.recording.trace import Trace

#: Factors in the order of the two chains; "features" joins them where an SAE is there.
LOCAL_FIRST = ("token", "previous token", "position", "topic")
TOPIC_FIRST = ("topic", "token", "previous token", "position")
_SCORED = ("token", "previous token", "position", "topic", "topic given token", "token given topic")
_CITATIONS = (
    "Wolpert 1992, stacked generalisation, DOI 10.1016/S0893-6080(05)80023-1",
    "Xue et al. 2024 (OpenMoE), context-independent specialisation, arXiv:2402.01739",
    *BOOTSTRAP,
)


class Explained(NamedTuple):
    """Two results: `layers` (the chains, for the stacked picture) and `experts`."""

    layers: Result
    experts: Result


class _LayerGains(NamedTuple):
    """Bits saved per group and expert, by (chain, factors so far), and selections per group and expert."""

    layer: int
    gains: dict[tuple[str, ...], np.ndarray]
    selections: np.ndarray


def explain_routing(
    trace: Trace,
    *,
    label: str = "topic",
    folds: int = 4,
    max_tokens: int | None = 80_000,
    resamples: int = 500,
    seed: int = 0,
) -> Explained:
    """Measure in held-out bits what token, previous token, position and topic tell of routing.

    Parameters
    ----------
    trace : Trace
    label : str
    folds : int
        Groups are predicted from the groups of the other folds.
    max_tokens : int, optional
        Measure on about so many tokens, whole documents.
    resamples : int
        Bootstrap resamples of groups, for 95 % intervals.
    seed : int

    Returns
    -------
    Explained
        ``layers``: Result ``explained``, a row per layer, order ("alone", "beyond token", "token first", "topic
        first") and factor: ``layer, order, step, factor, bits, ci_low, ci_high`` (bits per selection that the factor adds
        after those before it; alone: over the base rate), ``base_bits`` (cross-entropy under the base
        rate). ``experts``: Result ``explained_experts``, a row an expert: ``layer, expert`` and per factor
        ``bits_<factor>, bits_<factor>_low, bits_<factor>_high`` in bits per selection *of the expert*,
        ``explained_by`` (topic | token | position | none) and ``best_factor``.

    Raises
    ------
    MoeProbeError
        As `sample_tokens`.
    """
    sample = sample_tokens(trace, label=label, folds=folds, max_tokens=max_tokens, seed=seed)
    keys = factor_keys(sample)
    drawn = Resamples(np.zeros(len(sample.groups), dtype=int), n=resamples, seed=seed)
    chains: list[dict[str, Any]] = []
    experts: list[pd.DataFrame] = []
    for measured in _measure(trace, sample, keys):
        chains += _chain_rows(measured, drawn)
        experts.append(_expert_rows(measured, drawn))
    return _results(
        chains,
        experts,
        sample,
        {"label": label, "folds": folds, "resamples": resamples, "max_tokens": max_tokens, "tokens": len(sample.row)},
        seed,
    )


def factor_keys(sample: TokenSample) -> dict[str, np.ndarray]:
    """Values of every factor at every token; "previous token" after "token" is the pair of both."""
    return {
        "token": sample.token,
        "previous token": sample.previous,
        "position": position_octaves(sample.position),
        "topic": sample.topic[sample.group],
        "pair": shared_pairs(sample.previous, sample.token, sample.group),
        "sense": shared_pairs(sample.token, sample.topic[sample.group], sample.group),
    }


def _measure(trace: Trace, sample: TokenSample, keys: Mapping[str, np.ndarray]) -> Iterator[_LayerGains]:
    """Gains of every layer, on all threads, a few layers in memory at a time."""
    yield from map_layers(trace, sample, lambda item: _layer_gains(item, sample, keys))


def _layer_gains(item: LayerSelections, sample: TokenSample, keys: Mapping[str, np.ndarray]) -> _LayerGains:
    stack = Stack(item, sample)
    gains: dict[tuple[str, ...], np.ndarray] = {}

    def add(before: Prediction, name: tuple[str, ...], key: str) -> Prediction:
        prediction = stack.add(before, keys[key])
        gains[name] = stack.gain(prediction)
        return prediction

    for factor in ("previous token", "position"):
        add(stack.base, (factor,), factor)
    token, topic = add(stack.base, ("token",), "token"), add(stack.base, ("topic",), "topic")
    # beyond the token: the topic as such, then the sense that a word has within the topic
    add(add(token, ("token", "topic"), "topic"), ("token", "topic", "sense"), "sense")
    for first, order in ((token, LOCAL_FIRST), (topic, TOPIC_FIRST)):
        prediction = first
        so_far: tuple[str, ...] = order[:1]
        for factor in order[1:]:
            so_far = (*so_far, factor)
            prediction = add(prediction, ("chain", *so_far), "pair" if factor == "previous token" else factor)
    counts = np.bincount(
        sample.group[item.token] * item.num_experts + item.expert, minlength=len(sample.groups) * item.num_experts
    )
    return _LayerGains(item.layer, gains, counts.reshape(len(sample.groups), item.num_experts))


def _bits(gains: np.ndarray, selections: np.ndarray, drawn: Resamples) -> np.ndarray:
    """Gains over selections, and the ends of its 95 % interval; shape (3, ...). NaN for experts that nobody chose."""
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
    """The factor that alone tells most of the expert; topic only where something of it is left beyond the token."""
    found = {f: row[f"bits_{f.replace(' ', '_')}"] for f in LOCAL_FIRST if row[f"bits_{f.replace(' ', '_')}_low"] > 0}
    if "topic" in found and not row["bits_topic_given_token_low"] > 0:
        del found["topic"]
    return max(found, key=lambda f: found[f]) if found else "none"


def _results(
    chains: list[dict[str, Any]], experts: list[pd.DataFrame], sample: TokenSample, params: dict[str, Any], seed: int
) -> Explained:
    import pandas as pd

    how = (
        f"Cross-entropy of the chosen experts on groups of documents that the explanation has not seen "
        f"({sample.n_folds} folds over {len(sample.groups):,} groups), saved over the base rate; intervals: 95 %, "
        "bootstrap over groups. Gains cannot be inflated by fitting, and may be negative."
    )
    layers = Result(
        "explained",
        pd.DataFrame(chains),
        params=params,
        seed=seed,
        warnings=sample.warnings,
        citations=_CITATIONS,
        caption=f'{how} In the two orders each factor is given what it adds after those before it; "previous token" '
        'after "token" is the pair of both. Word sense: the pair of token and topic, after both.',
    )
    table = pd.concat(experts, ignore_index=True)
    return Explained(
        layers,
        Result(
            "explained_experts",
            table,
            params=params,
            seed=seed,
            warnings=sample.warnings,
            citations=_CITATIONS,
            caption=f"{how} Per selection of the expert (Poisson likelihood ratio, which adds up to the layer's bits). "
            "Explained by: the factor that alone saves most, its interval above 0; topic only where the topic still saves "
            "bits once the token is known.",
        ),
    )
