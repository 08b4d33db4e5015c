"""All published metrics of a trace in one table, a row per layer and metric."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from moe_probe.core.errors import MoeProbeError
from moe_probe.core.results import Result
from moe_probe.experts.published.domains import domain_table, esft_scores
from moe_probe.experts.published.sequences import SAMPLE_TOKENS, consecutive_repetition, saliency, sampled_documents
from moe_probe.experts.published.vocabulary import OPENMOE, vocabulary_specialisation
from moe_probe.experts.usage import layer_usage

if TYPE_CHECKING:
    from moe_probe.recording.trace import Trace

#: Results that are measured on a sample of a large corpus.
_SAMPLED = ("consecutive_repetition", "vocabulary_specialisation")


def published_metrics(
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
    label : str
        What counts as a domain.
    layers : Result, optional
        From `moe_probe.experts.usage.layer_usage`, for load balance.
    top : int, default 1
        How many of a layer's most specialised pairs of expert and domain to list.
    seed : int, default 0
        Chooses documents of a large corpus, and shuffles choices for the baselines of vocabulary.
    max_tokens : int
        Size of the sample that repetition and vocabulary are measured on.

    Returns
    -------
    Result
        ``published``: ``metric, source, layer, value, baseline, unit`` (which expert and domain the value
        belongs to, where it is a maximum), ``note`` (what the baseline is), ``documents`` (that it was measured on: of a
        large corpus consecutive repetition and vocabulary specialisation are measured on a sample). ``params``:
        ``documents, tokens`` (of the trace), ``sampled_documents, sampled_tokens`` (of the sample, special ones included).

    Raises
    ------
    MoeProbeError
        When documents have no such label.
    """
    import pandas as pd

    rows: list[dict[str, Any]] = []
    n = len(trace.documents)
    drawn = sampled_documents(trace, max_tokens, seed=seed)
    citations: dict[str, None] = {}
    warnings: list[str] = []

    def add(
        metric: str,
        source: Result,
        layer: int,
        value: float,
        baseline: float = float("nan"),
        unit: str = "",
        note: str = "",
        citation: str = "",
    ) -> None:
        citations.update(dict.fromkeys(source.citations))
        rows.append(
            {
                "metric": metric,
                "source": (citation or source.citations[0]).split(",")[0],
                "layer": layer,
                "value": value,
                "baseline": baseline,
                "unit": unit,
                "note": note,
                "documents": int(drawn.sum()) if source.name in _SAMPLED else n,
            }
        )

    _add_domains(trace, label, top, add, warnings)
    esft = esft_scores(trace, label=label)
    for layer, part in esft.table.groupby("layer"):
        size = part.groupby("task")["chosen_by_ratio"].sum()
        add(
            "ESFT: experts for a fifth of a task's selections",
            esft,
            int(layer),
            float(size.mean()),
            float(-(-part["expert"].nunique() // 5)),
            "mean over tasks",
            "baseline: equal shares",
        )
    repeats = consecutive_repetition(trace, label=label, max_tokens=max_tokens, seed=seed)
    warnings += repeats.warnings
    for _, row in repeats.table[repeats.table["domain"] == "all"].iterrows():
        add(
            "consecutive repetition, first choice",
            repeats,
            int(row["layer"]),
            row["first_choice"],
            row["first_choice_random"],
            note="baseline: uniform choices",
        )
        if not np.isnan(row["first_or_second"]):
            add(
                "consecutive repetition, first or second choice",
                repeats,
                int(row["layer"]),
                row["first_or_second"],
                row["first_or_second_random"],
                note="baseline: uniform choices",
            )
    _add_vocabulary(trace, add, warnings, {"max_tokens": max_tokens, "seed": seed})
    _add_balance(trace, layers, label, add)
    _add_saliency(trace, add)
    sizes = {
        "documents": n,
        "tokens": trace.n_tokens,
        "sampled_documents": int(drawn.sum()),
        "sampled_tokens": int(trace.documents["n_tokens"].to_numpy()[drawn].sum()),
    }
    return Result(
        "published",
        pd.DataFrame(rows),
        params={"label": label, "top": top, **sizes},
        seed=seed,
        warnings=tuple(dict.fromkeys(warnings)),
        citations=tuple(citations),
        caption="Metrics as their authors define them, beside what a router without preferences would give "
        "(of choices by token id: the same choices shuffled over tokens). They describe, and test nothing. "
        + sample_sentence(sizes),
    )


def sample_sentence(sizes: Mapping[str, Any]) -> str:
    """Say what the metrics were measured on.

    Parameters
    ----------
    sizes : mapping
        ``params`` of the result; one that an earlier version wrote does not say, and gives "".
    """
    if "sampled_documents" not in sizes:
        return ""
    if sizes["sampled_documents"] == sizes["documents"]:
        return f"Measured on all {sizes['documents']:,} documents."
    return (
        f"Consecutive repetition, vocabulary specialisation and context independence were measured on a random sample of "
        f"{sizes['sampled_documents']:,} of {sizes['documents']:,} documents ({sizes['sampled_tokens']:,} of "
        f"{sizes['tokens']:,} tokens), the other metrics on all."
    )


def _add_domains(trace: Trace, label: str, top: int, add: Any, warnings: list[str]) -> None:
    for first, name in ((False, "largest domain specialisation"), (True, "largest domain specialisation, first choice")):
        domains = domain_table(trace, label=label, first=first)
        warnings += domains.warnings
        for layer, part in domains.table.groupby("layer"):
            for _, pair in part.nlargest(top, "specialisation").iterrows():
                add(
                    name,
                    domains,
                    int(layer),
                    pair["specialisation"],
                    pair["baseline"],
                    f"expert {int(pair['expert'])}, {pair['domain']}",
                    "baseline: any one pair; the largest lies above",
                )


def _add_saliency(trace: Trace, add: Any) -> None:
    if "expert_output_norms" in trace.manifest.kept:
        salient = saliency(trace)
        for layer, part in salient.table.groupby("layer"):
            ratio = part["saliency"] / part["saliency"].mean()
            add(
                "REAP saliency, smallest expert over mean",
                salient,
                int(layer),
                float(ratio.min()),
                1.0,
                f"expert {int(ratio.idxmin() - part.index[0])}",
            )


def _add_vocabulary(trace: Trace, add: Any, warnings: list[str], options: dict[str, int]) -> None:
    try:
        words = vocabulary_specialisation(trace, **options)
    except MoeProbeError as error:
        warnings.append(f"Vocabulary specialisation was left out: {error}")
        return
    note = "baseline: the same choices shuffled over tokens"
    for _, row in words.table.iterrows():
        layer, ids = int(row["layer"]), row["ids"]
        name = f"vocabulary specialisation, {ids} ids"
        add(f"{name}, first choice", words, layer, row["top1"], row["top1_shuffled"], note=note)
        add(f"{name}, all choices", words, layer, row["topk"], row["topk_shuffled"], note=note)
        if ids == "input":
            add(
                "context independence",
                words,
                layer,
                row["context_independence"],
                row["context_independence_shuffled"],
                note=note,
                citation=OPENMOE,
            )


def _add_balance(trace: Trace, layers: Result | None, label: str, add: Any) -> None:
    balance = layers or layer_usage(trace, label=label, permutations=99)
    source = Result("balance", balance.table, citations=("Shazeer et al. 2017, arXiv:1701.06538",))
    for _, row in balance.table.iterrows():
        add("load: coefficient of variation", source, int(row["layer"]), row["load_cv"], 0.0)
        add("load: largest over mean", source, int(row["layer"]), row["max_over_mean"], 1.0)
        add("load: dead experts", source, int(row["layer"]), float(row["dead_experts"]), 0.0)
