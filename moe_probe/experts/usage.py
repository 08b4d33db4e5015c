"""Usage of experts: load and balance per layer, information about topics, co-activation."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import numpy as np

from moe_probe.core.results import Result
from moe_probe.core.routing import coactivation, load_cv
from moe_probe.core.stats import GroupUsage, macro_mutual_information
from moe_probe.core.stats.information import MutualInformation, effective_experts, entropy_bits
from moe_probe.core.stats.labels import n_threads
from moe_probe.experts.decoding import FOLDS, decodable_groups, decoding_accuracy
from moe_probe.experts.topic_groups import topic_groups

if TYPE_CHECKING:
    from moe_probe.core.routing import Usage
    from moe_probe.recording.trace import Trace

#: Warning where labels cannot be permuted.
NO_NULL = (
    "The information about the topic has no null: every topic is a single group (or sum) of documents. It contains an upward "
    "bias of unknown size."
)


def layer_usage(  # noqa: PLR0913 (public analysis: keyword options with defaults)
    trace: Trace | Usage,
    *,
    label: str = "topic",
    permutations: int = 1000,
    strata: str | None = None,
    seed: int = 0,
    explained: Result | None = None,
) -> Result:
    """Measure the balance of every layer, and the information that its routing has about the topic.

    Parameters
    ----------
    trace : Trace or Usage
    label : str
        Label column of the topics.
    permutations : int
        Number of permutations of topics over groups of documents.
    strata : str, optional
        Label column within whose values topics are permuted.
    seed : int
        Seed of permutations and folds.
    explained : Result, optional
        ``layers`` of `moe_probe.experts.explain.explain_routing`, for the two columns of tokens.

    Returns
    -------
    Result
        ``layers``, one row per layer: ``entropy_bits, effective_experts, load_cv, max_over_mean,
        dead_experts`` of the load over the whole corpus; ``mi_topic_bits`` (information between expert and
        topic per selection, topics with equal weights, less its mean under permutation, which is
        ``mi_topic_null_bits``), ``mi_topic_p``; where labels cannot be permuted the information contains its bias, and null
        and p are NaN; ``decode_accuracy`` (share of held-out groups whose topic
        is decoded correctly from the square roots of their usage shares by multinomial logistic regression, 5-fold),
        ``decode_baseline`` (the same with shuffled topics), ``decode_majority`` (always the commonest
        topic). ``mi_token_bits`` (held-out bits per selection that the token id saves) and
        ``mi_topic_given_token_bits`` (that the topic saves once the token is known), NaN without `explained`.

    Raises
    ------
    MoeProbeError
        When documents have no such label or only one topic.
    """
    import pandas as pd

    usage = trace.usage()
    groups = topic_groups(usage, label=label, strata=strata)
    information, untested = _information(groups, permutations=permutations, seed=seed)
    (decodable, warnings), rows, load = decodable_groups(groups, seed=seed), [], _whole(usage, "selections")
    for index, layer in enumerate(usage.layers):
        decoding = decoding_accuracy(decodable, index, seed=seed)
        rows.append(
            {"layer": layer.layer}
            | _balance(load[usage.columns[index]])
            | {
                "mi_topic_bits": information.plugin[index] - (0.0 if untested else information.null[index]),
                "mi_topic_null_bits": information.null[index],
                "mi_topic_p": information.p_value[index],
                "mi_token_bits": _bits_of(explained, layer.layer, "alone", "token"),
                "mi_topic_given_token_bits": _bits_of(explained, layer.layer, "beyond token", "topic"),
            }
            | {f"decode_{name}": value for name, value in decoding._asdict().items()}
        )
    null = (
        "with its upward bias, since no null can be computed"
        if untested
        else (f"less its mean under {permutations:,} permutations of {label}s over groups")
    )
    return Result(
        "layers",
        pd.DataFrame(rows),
        seed=seed,
        warnings=(*groups.warnings, *untested, *warnings),
        params={
            "label": label,
            "strata": strata,
            "permutations": permutations,
            "folds": FOLDS,
            "groups": len(groups.groups),
            "topics": len(groups.topics),
        },
        caption=f"Balance of the load in every layer, and how much its routing depends on the {label}. Effective experts: number "
        "of equally used experts with the same entropy. Load: selections of each expert over the corpus, without special "
        f"tokens. Information: Jensen-Shannon divergence of the {label}s' mean usage in bits, "
        f"{null}. Decoding: multinomial logistic regression on square roots of "
        "usage shares, each group decoded by a model that was trained on others.",
        citations=(
            "Lin 1991, Jensen-Shannon divergence, DOI 10.1109/18.61115",
            "Shazeer et al. 2017, coefficient of variation of loads, arXiv:1701.06538",
        ),
    )


def _information(groups: GroupUsage, *, permutations: int, seed: int) -> tuple[MutualInformation, tuple[str, ...]]:
    """Information of every layer with its null; where every topic is one group there is none, and a warning says so."""
    information = macro_mutual_information(
        groups.shares,
        groups.topic,
        n_topics=len(groups.topics),
        layer_index=groups.layer_index,
        permutations=permutations if groups.testable else 1,
        seed=seed,
        strata=groups.strata if groups.testable else None,
    )
    if groups.testable:
        return information, ()
    unknown = np.full_like(information.plugin, np.nan)
    return information._replace(null=unknown, p_value=unknown), (NO_NULL,)


def _whole(usage: Usage, measure: str) -> np.ndarray:
    """Sum a measure over all documents, shape (n_columns,)."""
    return np.asarray(usage.summed(np.zeros(len(usage.documents), dtype=np.int64), 1, measure=measure)[0])


def _balance(load: np.ndarray) -> dict[str, Any]:
    """Describe the balance of one layer's selections by expert, shape (n_experts,)."""
    mean = load.mean()
    return {
        "entropy_bits": float(entropy_bits(load)),
        "effective_experts": float(effective_experts(load)),
        "load_cv": float(load_cv(load)),
        "max_over_mean": float(load.max() / mean) if mean else np.nan,
        "dead_experts": int((load == 0).sum()),
    }


def _bits_of(explained: Result | None, layer: int, order: str, factor: str) -> float:
    if explained is None:
        return float("nan")
    table = explained.table
    row = table[(table["layer"] == layer) & (table["order"] == order) & (table["factor"] == factor)]
    return float(row["bits"].iloc[0])


def expert_usage(trace: Trace | Usage, *, explained: Result | None = None) -> Result:
    """Measure the load of every expert, beside the factors that explain it.

    Parameters
    ----------
    trace : Trace or Usage
    explained : Result, optional
        ``experts`` of `moe_probe.experts.explain.explain_routing`, whose columns are added.

    Returns
    -------
    Result
        ``experts``: ``layer, expert, load`` (share of the layer's selections), ``selections``,
        ``gate_mass_share`` (share of the layer's summed gate weights), ``mean_gate_weight`` (per
        selection), both NaN without weights, ``dead`` (never chosen), and the columns of `explained`.
    """
    import pandas as pd

    usage = trace.usage()
    parts, selections = [], _whole(usage, "selections").astype(np.int64)
    gate_mass = _whole(usage, "gate_mass") if usage.has_gate_mass else np.full(len(selections), np.nan)
    for layer, columns_of in zip(usage.layers, usage.columns, strict=True):
        n, counts, mass = layer.num_experts, selections[columns_of], gate_mass[columns_of]
        with np.errstate(invalid="ignore", divide="ignore"):
            columns = {
                "layer": layer.layer,
                "expert": np.arange(n),
                "load": counts / max(counts.sum(), 1),
                "selections": counts,
                "gate_mass_share": mass / mass.sum(),
                "mean_gate_weight": mass / counts,
                "dead": counts == 0,
            }
        parts.append(pd.DataFrame(columns))
    table = pd.concat(parts, ignore_index=True)
    caption = (
        "Share of a layer's selections (load) and of its gate weights that goes to each expert over the whole corpus, without "
        "special tokens."
    )
    if explained is None:
        return Result("experts", table, caption=caption)
    return Result(
        "experts",
        table.merge(explained.table, on=["layer", "expert"], how="left", validate="1:1"),
        seed=explained.seed,
        params=explained.params,
        warnings=explained.warnings,
        citations=explained.citations,
        caption=f"{caption} {explained.caption}",
    )


def coactivation_table(trace: Trace) -> Result:
    """Count, per layer and pair of experts, the tokens that chose both.

    Parameters
    ----------
    trace : Trace
        With routing.

    Returns
    -------
    Result
        ``coactivation``: ``layer, expert_a, expert_b`` (a < b), ``tokens`` that chose both,
        ``share_of_a, share_of_b`` (of the tokens that chose a, or b; OLMoE's co-activation,
        arXiv:2409.02060), ``lift`` (tokens over the number expected if the two were chosen independently).

    Raises
    ------
    MoeProbeError
        When the trace holds counts per document only.
    """
    import pandas as pd

    counts, n_tokens = _coactivations(trace)
    parts = []
    for layer, pairs in zip(trace.layers, counts, strict=True):
        a, b = np.triu_indices(layer.num_experts, k=1)
        both, single = pairs[a, b], np.diag(pairs)
        with np.errstate(invalid="ignore", divide="ignore"):
            columns = {
                "layer": layer.layer,
                "expert_a": a,
                "expert_b": b,
                "tokens": both,
                "share_of_a": both / single[a],
                "share_of_b": both / single[b],
                "lift": both * n_tokens / (single[a] * single[b].astype(float)),
            }
        parts.append(pd.DataFrame(columns))
    return Result(
        "coactivation",
        pd.concat(parts, ignore_index=True),
        params={"tokens": n_tokens},
        caption="Tokens that chose both experts of a pair. A lift above 1 means more than expected if the two were chosen "
        "independently at their own rates.",
        citations=("Muennighoff et al. 2024 (OLMoE), expert co-activation, arXiv:2409.02060",),
    )


def _coactivations(trace: Trace) -> tuple[list[np.ndarray], int]:
    """Count the text tokens that chose both experts, per layer of shape (n_experts, n_experts), and all text tokens."""
    counts = [np.zeros((layer.num_experts, layer.num_experts), dtype=np.int64) for layer in trace.layers]
    n_tokens = 0
    with ThreadPoolExecutor(n_threads()) as pool:
        for chunk in trace.iter_routing(weights=False):
            text = ~chunk.special
            n_tokens += int(text.sum())
            chosen = chunk.experts if text.all() else chunk.experts[text]

            def count(index: int, chosen: np.ndarray = chosen) -> np.ndarray:
                return coactivation(chosen[:, index], num_experts=trace.layers[index].num_experts)

            for total, part in zip(counts, pool.map(count, range(len(counts))), strict=True):
                total += part
    return counts, n_tokens
