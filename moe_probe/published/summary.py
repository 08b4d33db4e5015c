"""All published metrics of a trace in one table, a row per layer and metric."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from moe_probe.errors import MoeProbeError
from moe_probe.published.domains import domain_table, esft_scores
from moe_probe.published.sequences import consecutive_repetition, saliency, vocabulary_specialisation
from moe_probe.results import Result
from moe_probe.usage import layer_usage

if TYPE_CHECKING:
    from moe_probe.trace import Trace


def published_metrics(trace: Trace, *, label: str = "topic", layers: Result | None = None) -> Result:
    """Summarise, layer by layer, the metrics that published work reports, each beside its baseline.

    Parameters
    ----------
    trace : Trace
    label : str
        What counts as a domain.
    layers : Result, optional
        From `moe_probe.usage.layer_usage`, for load balance.

    Returns
    -------
    Result
        ``published``: ``metric, source, layer, value, baseline, unit`` (which expert and domain the value
        belongs to, where it is a maximum).

    Raises
    ------
    MoeProbeError
        When documents have no such label.
    """
    import pandas as pd

    rows: list[dict[str, Any]] = []
    citations: dict[str, None] = {}
    warnings: list[str] = []

    def add(metric: str, source: Result, layer: int, value: float, baseline: float = float("nan"), unit: str = "") -> None:
        citations.update(dict.fromkeys(source.citations))
        rows.append({"metric": metric, "source": source.citations[0].split(",")[0], "layer": layer, "value": value,
                     "baseline": baseline, "unit": unit})

    domains = domain_table(trace, label=label)
    for layer, part in domains.table.groupby("layer"):
        top = part.loc[part["specialisation"].idxmax()]
        add("largest domain specialisation", domains, int(layer), top["specialisation"], top["baseline"],
            f"expert {int(top['expert'])}, {top['domain']}")
    esft = esft_scores(trace, label=label)
    for layer, part in esft.table.groupby("layer"):
        size = part.groupby("task")["chosen_by_ratio"].sum()
        n = part["expert"].nunique()
        add("ESFT: experts for a fifth of a task's selections", esft, int(layer), float(size.mean()),
            float(np.ceil(0.2 * n)), "mean over tasks")
    repeats = consecutive_repetition(trace, label=label)
    warnings += repeats.warnings
    for _, row in repeats.table[repeats.table["domain"] == "all"].iterrows():
        add("consecutive repetition, first choice", repeats, int(row["layer"]), row["first_choice"],
            row["first_choice_random"])
        if not np.isnan(row["first_or_second"]):
            add("consecutive repetition, first or second choice", repeats, int(row["layer"]), row["first_or_second"],
                row["first_or_second_random"])
    _add_vocabulary(trace, add, warnings)
    _add_balance(trace, layers, label, add)
    if "expert_output_norms" in trace.manifest.kept:
        salient = saliency(trace)
        for layer, part in salient.table.groupby("layer"):
            ratio = part["saliency"] / part["saliency"].mean()
            add("REAP saliency, smallest expert over mean", salient, int(layer), float(ratio.min()), 1.0,
                f"expert {int(ratio.idxmin() - part.index[0])}")
    return Result("published", pd.DataFrame(rows), params={"label": label}, warnings=tuple(warnings),
                  citations=tuple(citations),
                  caption="Metrics as their authors define them, beside what a router without preferences would give "
                  "(of first choices by token id: the same choices shuffled over tokens). They describe, and test nothing.")


def _add_vocabulary(trace: Trace, add: Any, warnings: list[str]) -> None:
    try:
        words = vocabulary_specialisation(trace)
    except MoeProbeError as error:
        warnings.append(f"Vocabulary specialisation was left out: {error}")
        return
    for _, row in words.table.iterrows():
        place = trace.place(int(row["layer"]))
        even = trace.layers[place].top_k / trace.layers[place].num_experts
        add(f"vocabulary specialisation, {row['ids']} ids, first choice", words, int(row["layer"]), row["top1"],
            row["top1_shuffled"])
        add(f"vocabulary specialisation, {row['ids']} ids, all choices", words, int(row["layer"]), row["topk"], even)
        if row["ids"] == "input":
            add("context independence", words, int(row["layer"]), row["context_independence"],
                row["context_independence_shuffled"])


def _add_balance(trace: Trace, layers: Result | None, label: str, add: Any) -> None:
    balance = layers or layer_usage(trace, label=label, permutations=99)
    source = Result("balance", balance.table, citations=("Shazeer et al. 2017, arXiv:1701.06538",))
    for _, row in balance.table.iterrows():
        add("load: coefficient of variation", source, int(row["layer"]), row["load_cv"], 0.0)
        add("load: largest over mean", source, int(row["layer"]), row["max_over_mean"], 1.0)
        add("load: dead experts", source, int(row["layer"]), float(row["dead_experts"]), 0.0)
