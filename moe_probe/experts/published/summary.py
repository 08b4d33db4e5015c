"""All published metrics of a trace in one table, one row per layer and metric."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from moe_probe.core.errors import MoeProbeError
from moe_probe.core.evidence import missing_evidence
from moe_probe.core.results import Result
from moe_probe.core.schema import Evidence
from moe_probe.experts.published.choices import SAMPLE_TOKENS, sampled_documents
from moe_probe.experts.published.domains import domain_table, esft_scores
from moe_probe.experts.published.sequences import consecutive_repetition, saliency
from moe_probe.experts.published.vocabulary import OPENMOE, vocabulary_specialisation
from moe_probe.experts.usage import layer_usage

if TYPE_CHECKING:
    from moe_probe.recording.trace import Trace

#: Results that are measured on a sample of a large corpus.
_SAMPLED = ("consecutive_repetition", "vocabulary_specialisation")


class _Metric(NamedTuple):
    """One row of the table; `citation` where it is not the first of its result."""

    metric: str
    layer: int
    value: float
    baseline: float
    unit: str = ""
    note: str = ""
    citation: str = ""


class _Part(NamedTuple):
    """Rows of one result; `name`, citations and warnings are the result's."""

    name: str
    metrics: list[_Metric]
    citations: tuple[str, ...]
    warnings: tuple[str, ...] = ()


def published_metrics(  # noqa: PLR0913 (public analysis: keyword options with defaults)
    trace: Trace,
    *,
    label: str = "topic",
    layers: Result | None = None,
    top: int = 1,
    seed: int = 0,
    max_tokens: int = SAMPLE_TOKENS,
) -> Result:
    """Summarise, layer by layer, the metrics that published work reports, each beside its baseline.

    Parameters
    ----------
    trace : Trace
        With routing.
    label : str
        Label column of the domains.
    layers : Result, optional
        Value of `moe_probe.experts.usage.layer_usage`, for load balance.
    top : int
        Number of a layer's most specialised pairs of expert and domain to list.
    seed : int
        Seed of the sample of a large corpus, and of the shuffled choices that are the baselines of vocabulary.
    max_tokens : int
        Number of tokens that repetition and vocabulary are measured on, about.

    Returns
    -------
    Result
        ``published``: ``metric, source, layer, value, baseline, unit`` (expert and domain of the value,
        if it is a maximum), ``note`` (on the baseline), ``documents`` (that it was measured on: of a
        large corpus consecutive repetition and vocabulary specialisation are measured on a sample). ``params``:
        ``documents, tokens`` (of the trace), ``sampled_documents, sampled_tokens`` (of the sample, special ones included).

    Raises
    ------
    MoeProbeError
        When documents have no such label.
    """
    import pandas as pd

    drawn = sampled_documents(trace, max_tokens, seed=seed)
    sizes = {
        "documents": len(trace.documents),
        "tokens": trace.n_tokens,
        "sampled_documents": int(drawn.sum()),
        "sampled_tokens": int(trace.documents["n_tokens"].to_numpy()[drawn].sum()),
    }
    options = {"max_tokens": max_tokens, "seed": seed}
    parts = [
        _domains(domain_table(trace, label=label), top, "largest domain specialisation"),
        _domains(domain_table(trace, label=label, first=True), top, "largest domain specialisation, first choice"),
        _esft(esft_scores(trace, label=label)),
        _repetition(consecutive_repetition(trace, label=label, **options)),
    ]
    left_out = []
    try:
        if lacking := missing_evidence(trace.manifest.evidence, Evidence.WORDS):
            raise MoeProbeError("vocabulary cannot be measured", lacking, "a trace with token ids")
        parts.append(_vocabulary(vocabulary_specialisation(trace, **options)))
    except MoeProbeError as error:
        left_out.append(f"Vocabulary specialisation was left out: {error}")
    parts.append(_balance(layers or layer_usage(trace, label=label, permutations=99)))
    if "expert_output_norms" in trace.manifest.kept:
        parts.append(_saliency(saliency(trace)))
    return Result(
        "published",
        pd.DataFrame([row for part in parts for row in _rows(part, sizes)]),
        params={"label": label, "top": top, **sizes},
        seed=seed,
        warnings=tuple(dict.fromkeys([*(w for part in parts for w in part.warnings), *left_out])),
        citations=tuple(dict.fromkeys(c for part in parts for c in part.citations)),
        caption="Metrics as their authors define them. Compare each with its baseline, that of a router without preferences "
        "(of choices by token id: the same choices shuffled over tokens). They describe routing, and test nothing. "
        + sample_sentence(sizes),
    )


def sample_sentence(sizes: Mapping[str, Any]) -> str:
    """Describe the sample that the metrics were measured on.

    Parameters
    ----------
    sizes : mapping
        ``params`` of the result; "" is returned for those of an earlier version, which lack the sizes.
    """
    if "sampled_documents" not in sizes:
        return ""
    if sizes["sampled_documents"] == sizes["documents"]:
        return f"Measured on all {sizes['documents']:,} documents."
    return (
        f"Consecutive repetition, vocabulary specialisation and context independence were measured on a random sample of "
        f"{sizes['sampled_documents']:,} of {sizes['documents']:,} documents ({sizes['sampled_tokens']:,} of "
        f"{sizes['tokens']:,} tokens), the other metrics on all documents."
    )


def _rows(part: _Part, sizes: Mapping[str, int]) -> list[dict[str, Any]]:
    """Format the rows of one result."""
    n_documents = sizes["sampled_documents" if part.name in _SAMPLED else "documents"]
    return [
        {
            "metric": item.metric,
            "source": (item.citation or part.citations[0]).split(",")[0],
            "layer": item.layer,
            "value": item.value,
            "baseline": item.baseline,
            "unit": item.unit,
            "note": item.note,
            "documents": n_documents,
        }
        for item in part.metrics
    ]


def _part(result: Result, metrics: list[_Metric]) -> _Part:
    return _Part(result.name, metrics, result.citations, result.warnings)


def _domains(domains: Result, top: int, name: str) -> _Part:
    note = "baseline: any one pair; the largest lies above"
    metrics = []
    for layer, part in domains.table.groupby("layer"):
        for _, pair in part.nlargest(top, "specialisation").iterrows():
            unit = f"expert {int(pair['expert'])}, {pair['domain']}"
            metrics.append(_Metric(name, int(layer), pair["specialisation"], pair["baseline"], unit, note))
    return _part(domains, metrics)


def _esft(esft: Result) -> _Part:
    name, unit = "ESFT: experts for a fifth of a task's selections", "mean over tasks"
    metrics = []
    for layer, part in esft.table.groupby("layer"):
        size = float(part.groupby("task")["chosen_by_ratio"].sum().mean())
        fifth = float(-(-part["expert"].nunique() // 5))
        metrics.append(_Metric(name, int(layer), size, fifth, unit, "baseline: equal shares"))
    return _part(esft, metrics)


def _repetition(repetition: Result) -> _Part:
    metrics = []
    for _, row in repetition.table[repetition.table["domain"] == "all"].iterrows():
        for column, name in (("first_choice", "first choice"), ("first_or_second", "first or second choice")):
            if column == "first_choice" or not np.isnan(row[column]):
                name = f"consecutive repetition, {name}"
                values = row[column], row[f"{column}_random"]
                metrics.append(_Metric(name, int(row["layer"]), *values, note="baseline: uniform choices"))
    return _part(repetition, metrics)


def _vocabulary(words: Result) -> _Part:
    note = "baseline: the same choices shuffled over tokens"
    metrics = []
    for _, row in words.table.iterrows():
        layer, name = int(row["layer"]), f"vocabulary specialisation, {row['ids']} ids"
        for column, choices in (("top1", "first choice"), ("topk", "all choices")):
            metrics.append(_Metric(f"{name}, {choices}", layer, row[column], row[f"{column}_shuffled"], note=note))
        if row["ids"] == "input":
            values = row["context_independence"], row["context_independence_shuffled"]
            metrics.append(_Metric("context independence", layer, *values, note=note, citation=OPENMOE))
    return _part(words, metrics)


def _balance(layers: Result) -> _Part:
    metrics = []
    for _, row in layers.table.iterrows():
        layer = int(row["layer"])
        metrics.append(_Metric("load: coefficient of variation", layer, row["load_cv"], 0.0))
        metrics.append(_Metric("load: largest over mean", layer, row["max_over_mean"], 1.0))
        metrics.append(_Metric("load: dead experts", layer, float(row["dead_experts"]), 0.0))
    return _Part("balance", metrics, ("Shazeer et al. 2017, coefficient of variation of loads, arXiv:1701.06538",))


def _saliency(salient: Result) -> _Part:
    metrics = []
    for layer, part in salient.table.groupby("layer"):
        ratio = part["saliency"] / part["saliency"].mean()
        unit = f"expert {int(ratio.idxmin() - part.index[0])}"
        metrics.append(_Metric("REAP saliency, smallest expert over mean", int(layer), float(ratio.min()), 1.0, unit))
    return _part(salient, metrics)
