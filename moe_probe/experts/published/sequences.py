"""Metrics of published work on tokens: repetition of neighbours, two checkpoints of one model, norms of outputs."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from moe_probe.core.errors import MoeProbeError
from moe_probe.core.results import Result
from moe_probe.core.routing import dropped_id
from moe_probe.core.stats import labelled_documents
from moe_probe.experts.published.choices import (
    OLMOE,
    SAMPLE_TOKENS,
    LayerChoices,
    first_choices,
    sampled_documents,
    weight_warnings,
)

if TYPE_CHECKING:
    from moe_probe.recording.trace import Trace

_MIXTRAL = "Jiang et al. 2024 (Mixtral), repeated choices of consecutive tokens, arXiv:2401.04088"
_REAP = "Lasby et al. 2025 (REAP), router-weighted expert activation, arXiv:2510.13999"


def random_repetition(num_experts: int, top_k: int) -> float:
    """Compute the probability that two independent uniform choices share an expert.

    1 - C(E - k, k) / C(E, k): 46 % for 2 of 8 (Mixtral, arXiv:2401.04088, table 5), 1 / E for one.

    Parameters
    ----------
    num_experts, top_k : int
        Experts of the layer (E), and experts of a choice (k).

    Returns
    -------
    float
    """
    from math import comb

    return 1 - comb(num_experts - top_k, top_k) / comb(num_experts, top_k)


def consecutive_repetition(trace: Trace, *, label: str = "topic", max_tokens: int = SAMPLE_TOKENS, seed: int = 0) -> Result:
    """Measure the share of successive tokens that go to the same expert, per layer and domain.

    Mixtral, arXiv:2401.04088, table 5: the same first choice, and any expert shared among first and second
    choices; neighbours within one document only, without special tokens. Documents without a label count for "all"
    only.

    Parameters
    ----------
    trace : Trace
        With routing.
    label : str
        Label column of the domains.
    max_tokens : int
        Number of tokens to measure on, about (random documents).
    seed : int
        Seed of the sample.

    Returns
    -------
    Result
        ``consecutive_repetition``: ``layer, domain`` ("all" and every label), ``pairs, first_choice,
        first_choice_random`` (1 / E), ``first_or_second, first_or_second_random`` (NaN for top-1).

    Raises
    ------
    MoeProbeError
        When documents have no such label.
    """
    import pandas as pd

    keep, labels, _ = labelled_documents(trace.documents, label=label)
    domains = ["all", *sorted(set(labels[keep]))]
    code = {name: i for i, name in enumerate(domains)}
    domain = np.array([code[name] if known else -1 for name, known in zip(labels, keep, strict=True)])
    used = sampled_documents(trace, max_tokens, seed=seed)
    same, shared, pairs = _repetitions(trace, domain, used, len(domains))
    rows = []
    for index, layer in enumerate(trace.layers):
        n, k = layer.num_experts, min(layer.top_k, 2)
        for i, name in enumerate(domains):
            count = pairs[i, index]
            rows.append(
                {
                    "layer": layer.layer,
                    "domain": name,
                    "pairs": int(count),
                    "first_choice": same[i, index] / count if count else np.nan,
                    "first_choice_random": 1 / n,
                    "first_or_second": shared[i, index] / count if count and k == 2 else np.nan,
                    "first_or_second_random": random_repetition(n, 2) if k == 2 else np.nan,
                }
            )
    return Result(
        "consecutive_repetition",
        pd.DataFrame(rows),
        warnings=weight_warnings(trace),
        seed=seed,
        citations=(_MIXTRAL,),
        params={"label": label, "max_tokens": max_tokens, "sampled_documents": int(used.sum())},
        caption="Share of successive tokens with the same first choice, and with an expert shared among first and second "
        "choices. Compare with the random values, those of uniform independent choices.",
    )


def _repetitions(
    trace: Trace, domain: np.ndarray, used: np.ndarray, n_domains: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Count pairs of successive tokens in the `used` documents, by domain (row 0: all) and layer.

    Returns
    -------
    same, shared, pairs : ndarray of float, shape (n_domains, n_layers)
        Pairs of one first choice, pairs that share one of two choices, and all pairs.
    """
    same, shared, pairs = (np.zeros((n_domains, len(trace.layers))) for _ in range(3))
    for chunk in trace.iter_routing(documents=used):
        take = used[chunk.document]
        document, position, special = chunk.document[take], chunk.position[take], chunk.special[take]
        two = _two_best(chunk.experts[take], None if chunk.weights is None else chunk.weights[take])
        follows = (document[1:] == document[:-1]) & (position[1:] == position[:-1] + 1) & ~special[1:] & ~special[:-1]
        before, after = two[:-1][follows], two[1:][follows]
        of_pair = domain[document[1:][follows]]
        filled = before != dropped_id(two.dtype)
        first = (before[..., 0] == after[..., 0]) & filled[..., 0]
        either = ((before[..., :, None] == after[..., None, :]) & filled[..., :, None]).any((-2, -1))
        for values, total in ((first, same), (either, shared), (np.ones(first.shape), pairs)):
            np.add.at(total, of_pair[of_pair > 0], values[of_pair > 0])
            total[0] += values.sum(0)
    return same, shared, pairs


def _two_best(experts: np.ndarray, weights: np.ndarray | None) -> np.ndarray:
    """Select first and second choices, shape (n_tokens, n_layers, 2); an empty slot where there is none."""
    empty = dropped_id(experts.dtype)
    if experts.shape[-1] == 1:
        return np.concatenate([experts, np.full_like(experts, empty)], axis=-1)
    if weights is None:
        return experts[..., :2]
    order = np.argsort(-np.where(experts == empty, -1.0, weights.astype(np.float32)), axis=-1, kind="stable")[..., :2]
    return np.asarray(np.take_along_axis(experts, order, axis=-1))


def router_saturation(early: Trace, final: Trace) -> Result:
    """Measure the share of the final checkpoint's choices that an earlier one already makes.

    OLMoE, arXiv:2409.02060, section 5.1, equation 8: mean over tokens of |E_t intersected with E_T| / k. A
    random router gives k / E. The authors give it for first choices as well (k = 1), as here.

    Parameters
    ----------
    early, final : Trace
        Of one corpus and tokenizer, with routing.

    Returns
    -------
    Result
        ``router_saturation``: ``layer, saturation, baseline`` (k / E), ``first_choice, first_choice_baseline``
        (1 / E).

    Raises
    ------
    MoeProbeError
        When the traces hold different tokens or layers.
    """
    import pandas as pd

    _same_tokens(early, final)
    text = ~final.tokens(["special"])["special"].to_numpy()
    rows = []
    for layer in final.layers:
        a, b = (_layer_choices(trace, layer.layer) for trace in (early, final))
        empty = dropped_id(b.experts.dtype)
        filled = (b.experts != empty) & text[:, None]
        hit = ((a.experts[:, :, None] == b.experts[:, None, :]).any(1) & filled).sum(1)
        n = filled.sum(1)
        first = (a.first == b.first)[(b.first != empty) & text]
        rows.append(
            {
                "layer": layer.layer,
                "saturation": float((hit[n > 0] / n[n > 0]).mean()),
                "baseline": layer.top_k / layer.num_experts,
                "first_choice": float(first.mean()),
                "first_choice_baseline": 1 / layer.num_experts,
            }
        )
    return Result(
        "router_saturation",
        pd.DataFrame(rows),
        citations=(OLMOE,),
        warnings=weight_warnings(early, final),
        caption="Share of the later checkpoint's choices (and first choices) that the earlier one already makes. Compare with "
        "the baseline, that of a random router.",
    )


def _layer_choices(trace: Trace, layer: int) -> LayerChoices:
    """Read the choices of one layer, those of all tokens."""
    experts, first = [], []
    for chunk in trace.iter_routing([layer]):
        experts.append(chunk.experts[:, 0])
        first.append(first_choices(chunk.experts, chunk.weights)[:, 0])
    return LayerChoices(np.concatenate(experts), np.concatenate(first))


def _same_tokens(early: Trace, final: Trace) -> None:
    """Refuse traces that differ in tokens or layers."""
    shapes = [[(x.layer, x.num_experts, x.top_k) for x in t.layers] for t in (early, final)]
    columns = ["document", "position", "token_id"]
    if early.n_tokens != final.n_tokens or shapes[0] != shapes[1]:
        why = (
            f"they hold {early.n_tokens:,} and {final.n_tokens:,} "
            f"tokens in {len(early.layers)} and {len(final.layers)} layers, or experts differ in number"
        )
    elif not (early.tokens(columns) == final.tokens(columns)).to_numpy().all():
        why = "their tokens differ"
    else:
        return
    raise MoeProbeError("the two traces cannot be compared", why, "two checkpoints on one corpus")


def saliency(trace: Trace) -> Result:
    """Average gate weight times output norm over an expert's tokens.

    REAP, arXiv:2510.13999, equation 9: S_j = mean over tokens routed to j of g_j(x) ||f_j(x)||. Traces hold the
    norm of each selected expert's *weighted* output (collect --keep expert_output_norms), which is this product.

    Parameters
    ----------
    trace : Trace
        With routing and output norms.

    Returns
    -------
    Result
        ``saliency``: ``layer, expert, saliency, tokens``.

    Raises
    ------
    MoeProbeError
        When the trace holds no output norms.
    """
    import pandas as pd

    if "expert_output_norms" not in trace.manifest.kept:
        raise MoeProbeError(
            "the trace holds no output norms",
            "saliency is gate weight times output norm",
            "collect again with --keep expert_output_norms",
        )
    parts = []
    for layer in trace.layers:
        total, count = np.zeros(layer.num_experts), np.zeros(layer.num_experts)
        extras = trace.iter_extras(f"expert_output/layer_{layer.layer:02d}")
        for part, chunk in zip(extras, trace.iter_routing([layer.layer]), strict=True):
            norms = part["norms"].float().numpy()
            experts = chunk.experts[:, 0, : norms.shape[1]]
            use = (experts != dropped_id(experts.dtype)) & ~chunk.special[:, None]
            np.add.at(total, experts[use], norms[use])
            np.add.at(count, experts[use], 1)
        with np.errstate(invalid="ignore"):
            mean = total / count
        columns = {"layer": layer.layer, "expert": np.arange(layer.num_experts), "saliency": mean}
        parts.append(pd.DataFrame(columns | {"tokens": count.astype(int)}))
    return Result(
        "saliency",
        pd.concat(parts, ignore_index=True),
        citations=(_REAP,),
        caption="Mean norm of what an expert adds to the residual stream, over the tokens routed to it. Higher means that the "
        "expert changes its tokens more.",
    )
