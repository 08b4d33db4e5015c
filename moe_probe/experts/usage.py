"""How experts are used: load and balance per layer, what routing tells of topics, which experts go together."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import numpy as np

from moe_probe.core.errors import MoeProbeError
from moe_probe.core.results import Result
from moe_probe.core.routing import coactivation, load_cv
from moe_probe.core.stats import GroupUsage, group_usage, macro_mutual_information
from moe_probe.core.stats.information import effective_experts, entropy_bits
from moe_probe.core.stats.labels import n_threads
from moe_probe.core.text import some_of

if TYPE_CHECKING:
    from moe_probe.core.routing import Usage
    from moe_probe.recording.trace import Trace

_FOLDS = 5


def layer_usage(
    trace: Trace | Usage,
    *,
    label: str = "topic",
    permutations: int = 1000,
    strata: str | None = None,
    seed: int = 0,
    explained: Result | None = None,
) -> Result:
    """Balance of every layer, and how much its routing tells of the topic.

    Parameters
    ----------
    trace : Trace or Usage
    label : str
        Column of labels.
    permutations, seed : int
    strata : str, optional
        Column within whose values labels are exchanged.
    explained : Result, optional
        ``layers`` of `moe_probe.experts.explain.explain_routing`, for the two columns of tokens.

    Returns
    -------
    Result
        ``layers``, a row a layer: ``entropy_bits, effective_experts, load_cv, max_over_mean,
        dead_experts`` of the load over the whole corpus; ``mi_topic_bits`` (information between expert and
        topic per selection, topics weighing the same, less its mean under permutation, which is
        ``mi_topic_null_bits``), ``mi_topic_p``; ``decode_accuracy`` (share of held-out groups whose topic
        is told from the square roots of their usage shares by multinomial logistic regression, 5-fold),
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
    groups = group_usage(usage, label=label, strata=strata)
    if len(groups.topics) < 2:
        raise MoeProbeError(
            f"all documents have the {label} '{groups.topics[0]}'",
            "routing is compared between topics",
            "a corpus of two topics or more, or another --by",
        )
    information = macro_mutual_information(
        groups.shares,
        groups.topic,
        n_topics=len(groups.topics),
        layer_index=groups.layer_index,
        permutations=permutations,
        seed=seed,
        strata=groups.strata,
    )
    rows = []
    warnings = list(groups.warnings)
    decodable = _decodable(groups, warnings)
    for place, layer in enumerate(usage.layers):
        load = usage.selections[:, place, : layer.num_experts].sum(0)
        accuracy, baseline, majority = _decode(decodable, place, seed=seed)
        mean = load.mean()
        rows.append(
            {
                "layer": layer.layer,
                "entropy_bits": float(entropy_bits(load)),
                "effective_experts": float(effective_experts(load)),
                "load_cv": float(load_cv(load)),
                "max_over_mean": float(load.max() / mean) if mean else np.nan,
                "dead_experts": int((load == 0).sum()),
                "mi_topic_bits": information.plugin[place] - information.null[place],
                "mi_topic_null_bits": information.null[place],
                "mi_topic_p": information.p_value[place],
                "mi_token_bits": _bits_of(explained, layer.layer, "alone", "token"),
                "mi_topic_given_token_bits": _bits_of(explained, layer.layer, "beyond token", "topic"),
                "decode_accuracy": accuracy,
                "decode_baseline": baseline,
                "decode_majority": majority,
            }
        )
    return Result(
        "layers",
        pd.DataFrame(rows),
        seed=seed,
        warnings=tuple(warnings),
        params={
            "label": label,
            "strata": strata,
            "permutations": permutations,
            "folds": _FOLDS,
            "groups": len(groups.groups),
            "topics": len(groups.topics),
        },
        caption="Load: selections of each expert over the corpus, special tokens left out; entropy and its equivalent "
        "number of equally used experts, coefficient of variation. Bits: Jensen-Shannon divergence of the topics' mean "
        f"usage, less its mean under {permutations:,} permutations of topics over groups. Decoding: multinomial logistic "
        "regression on square roots of usage shares, each group guessed by a model that did not see it.",
        citations=(
            "Lin 1991, Jensen-Shannon divergence, DOI 10.1109/18.61115",
            "Shazeer et al. 2017, coefficient of variation of loads, arXiv:1701.06538",
        ),
    )


def _bits_of(explained: Result | None, layer: int, order: str, factor: str) -> float:
    if explained is None:
        return float("nan")
    table = explained.table
    row = table[(table["layer"] == layer) & (table["order"] == order) & (table["factor"] == factor)]
    return float(row["bits"].iloc[0])


def _decodable(groups: GroupUsage, warnings: list[str]) -> GroupUsage | None:
    """Groups of topics with at least two groups; None where that leaves fewer than two topics."""
    sizes = groups.groups_per_topic
    small = sizes < 2
    if (~small).sum() < 2:
        warnings.append("Topics could not be decoded: fewer than two topics have two groups of documents.")
        return None
    if small.any():
        left_out = some_of(groups.topics[t] for t in np.flatnonzero(small))
        warnings.append(f"Topics of a single group were left out of the decoding: {left_out}.")
    return groups.select(~small[groups.topic])


def _decode(groups: GroupUsage | None, place: int, *, seed: int) -> tuple[float, float, float]:
    """Held-out accuracy, the same with topics shuffled (within strata), and the commonest topic's share."""
    if groups is None:
        return np.nan, np.nan, np.nan
    features = np.sqrt(groups.shares[:, groups.layer_index == place])
    shuffled = groups.topic.copy()
    rng = np.random.default_rng([seed, place])
    strata = np.zeros(len(shuffled), dtype=int) if groups.strata is None else groups.strata
    for stratum in np.unique(strata):
        rows = np.flatnonzero(strata == stratum)
        shuffled[rows] = rng.permutation(shuffled[rows])
    majority = float(np.bincount(groups.topic).max() / len(groups.topic))
    return (
        float(_told(features, groups.topic, seed=seed).mean()),
        float(_told(features, shuffled, seed=seed).mean()),
        majority,
    )


def topics_told(groups: GroupUsage, place: int, *, seed: int = 0) -> np.ndarray:
    """Say of every group whether a decoder that did not see it tells its topic from its usage of one layer.

    The mean over groups is the ``decode_accuracy`` of `layer_usage`.

    Parameters
    ----------
    groups : GroupUsage
    place : int
        Ordinal of the layer.
    seed : int

    Returns
    -------
    ndarray of float, shape (n_groups,)
        1 where it does, 0 where it does not, NaN for groups of topics that have no other group.
    """
    out = np.full(len(groups.groups), np.nan)
    usable = (groups.groups_per_topic >= 2)[groups.topic]
    if len(np.unique(groups.topic[usable])) >= 2:
        part = groups.select(usable)
        out[usable] = _told(np.sqrt(part.shares[:, part.layer_index == place]), part.topic, seed=seed)
    return out


def _told(features: np.ndarray, topic: np.ndarray, *, seed: int) -> np.ndarray:
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import StratifiedKFold
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler
    from threadpoolctl import threadpool_limits

    sizes = np.bincount(topic)
    folds = StratifiedKFold(min(_FOLDS, int(sizes[sizes > 0].min())), shuffle=True, random_state=seed)
    right = np.zeros(len(topic), dtype=bool)
    with threadpool_limits(1):  # products this small are slower on many threads
        for seen, unseen in folds.split(features, topic):
            model = make_pipeline(StandardScaler(), LogisticRegression(max_iter=300, tol=1e-3))
            right[unseen] = model.fit(features[seen], topic[seen]).predict(features[unseen]) == topic[unseen]
    return right


def expert_usage(trace: Trace | Usage, *, explained: Result | None = None) -> Result:
    """Load of every expert, and what explains it.

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
    parts = []
    for place, layer in enumerate(usage.layers):
        counts = usage.selections[:, place, : layer.num_experts].sum(0)
        mass = (
            np.full(layer.num_experts, np.nan)
            if usage.gate_mass is None
            else (usage.gate_mass[:, place, : layer.num_experts].sum(0))
        )
        with np.errstate(invalid="ignore", divide="ignore"):
            parts.append(
                pd.DataFrame(
                    {
                        "layer": layer.layer,
                        "expert": np.arange(layer.num_experts),
                        "load": counts / max(counts.sum(), 1),
                        "selections": counts,
                        "gate_mass_share": mass / mass.sum(),
                        "mean_gate_weight": mass / counts,
                        "dead": counts == 0,
                    }
                )
            )
    table = pd.concat(parts, ignore_index=True)
    caption = (
        "Share of a layer's selections (load) and of its gate weights that each expert takes over the whole corpus, "
        "special tokens left out."
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

    Returns
    -------
    Result
        ``coactivation``: ``layer, expert_a, expert_b`` (a < b), ``tokens`` that chose both,
        ``share_of_a, share_of_b`` (of the tokens that chose a, or b; OLMoE's co-activation,
        arXiv:2409.02060), ``lift`` (tokens over the number expected were the two chosen independently).

    Raises
    ------
    MoeProbeError
        When the trace holds counts per document only.
    """
    import pandas as pd

    counts = [np.zeros((layer.num_experts, layer.num_experts), dtype=np.int64) for layer in trace.layers]
    n_tokens = 0
    for chunk in trace.iter_routing():
        text = ~chunk.special
        n_tokens += int(text.sum())
        chosen = chunk.experts[text]
        with ThreadPoolExecutor(n_threads()) as pool:
            found = pool.map(
                lambda place, chosen=chosen: coactivation(chosen[:, place], num_experts=trace.layers[place].num_experts),
                range(len(counts)),
            )
            for place, part in enumerate(found):
                counts[place] += part
    parts = []
    for layer, pairs in zip(trace.layers, counts, strict=True):
        a, b = np.triu_indices(layer.num_experts, k=1)
        both, single = pairs[a, b], np.diag(pairs)
        with np.errstate(invalid="ignore", divide="ignore"):
            parts.append(
                pd.DataFrame(
                    {
                        "layer": layer.layer,
                        "expert_a": a,
                        "expert_b": b,
                        "tokens": both,
                        "share_of_a": both / single[a],
                        "share_of_b": both / single[b],
                        "lift": both * n_tokens / (single[a] * single[b].astype(float)),
                    }
                )
            )
    return Result(
        "coactivation",
        pd.concat(parts, ignore_index=True),
        params={"tokens": n_tokens},
        caption="Tokens that chose both experts of a pair, over the number expected if the two were chosen "
        "independently of each other at their own rates.",
        citations=("OLMoE, expert co-activation, arXiv:2409.02060",),
    )
