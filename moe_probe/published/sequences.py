"""Metrics of published work that look at tokens: their ids, their neighbours, two checkpoints of one model."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import numpy as np

from moe_probe.errors import MoeProbeError
from moe_probe.results import Result
from moe_probe.routing import dropped_id
from moe_probe.stats.labels import n_threads

if TYPE_CHECKING:
    from moe_probe.schema import MoeLayer
    from moe_probe.trace import Trace

_OLMOE = "Muennighoff et al. 2024 (OLMoE), arXiv:2409.02060"
_MIXTRAL = "Jiang et al. 2024 (Mixtral), arXiv:2401.04088, table 5"
_OPENMOE = "Xue et al. 2024 (OpenMoE), arXiv:2402.01739"
_REAP = "Lasby et al. 2025 (REAP), arXiv:2510.13999"


def first_choices(experts: np.ndarray, weights: np.ndarray | None) -> np.ndarray:
    """Expert of the largest gate weight, shape (n_tokens, n_layers); the first slot where weights are unknown."""
    if weights is None:
        return np.asarray(experts[..., 0])
    best = np.where(experts == dropped_id(experts.dtype), -1.0, weights).argmax(-1)
    return np.asarray(np.take_along_axis(experts, best[..., None], axis=-1)[..., 0])


def random_repetition(num_experts: int, top_k: int) -> float:
    """Chance that two independent uniform choices of `top_k` of `num_experts` share an expert.

    1 - C(E - k, k) / C(E, k): 46 % for 2 of 8 (Mixtral, table 5), 1 / E for one.
    """
    from math import comb

    return 1 - comb(num_experts - top_k, top_k) / comb(num_experts, top_k)


def every_nth_document(trace: Trace, max_tokens: int) -> np.ndarray:
    """Mark documents, evenly spaced, that hold about `max_tokens` tokens (all where there are no more)."""
    step = max(1, -(-trace.n_tokens // max_tokens))
    return np.arange(len(trace.documents)) % step == 0


def consecutive_repetition(trace: Trace, *, label: str = "topic", max_tokens: int = 300_000) -> Result:
    """Share of successive tokens that go to the same expert, per layer and domain.

    Mixtral, arXiv:2401.04088, table 5: the same first choice, and any expert shared among first and second
    choices; neighbours of one document only, special tokens left out. Measured on about `max_tokens` tokens.

    Returns
    -------
    Result
        ``consecutive_repetition``: ``layer, domain`` ("all" and every label), ``pairs, first_choice,
        first_choice_random`` (1 / E), ``first_or_second, first_or_second_random`` (NaN for top-1).
    """
    import pandas as pd

    names = ["all", *sorted(trace.documents[label].fillna("").astype(str).unique())]
    code = {name: i for i, name in enumerate(names)}
    domain = trace.documents[label].fillna("").astype(str).map(code).to_numpy()
    n_layers, used = len(trace.layers), every_nth_document(trace, max_tokens)
    same, shared, pairs = (np.zeros((len(names), n_layers)) for _ in range(3))
    for chunk in trace.iter_routing():
        take = used[chunk.document]
        document, position, special = chunk.document[take], chunk.position[take], chunk.special[take]
        two = _two_best(chunk.experts[take], None if chunk.weights is None else chunk.weights[take])
        follows = (document[1:] == document[:-1]) & (position[1:] == position[:-1] + 1) & ~special[1:] & ~special[:-1]
        before, after = two[:-1][follows], two[1:][follows]
        of = domain[document[1:][follows]]
        empty = dropped_id(two.dtype)
        first = (before[..., 0] == after[..., 0]) & (before[..., 0] != empty)
        any_of = np.zeros(first.shape, dtype=bool)
        for i in range(2):
            for j in range(2):
                any_of |= (before[..., i] == after[..., j]) & (before[..., i] != empty)
        for values, total in ((first, same), (any_of, shared), (np.ones(first.shape), pairs)):
            np.add.at(total, of, values)
            total[0] += values.sum(0)
    rows = []
    for place, layer in enumerate(trace.layers):
        n, k = layer.num_experts, min(layer.top_k, 2)
        for name, i in code.items():
            count = pairs[i, place]
            rows.append({
                "layer": layer.layer, "domain": name, "pairs": int(count),
                "first_choice": same[i, place] / count if count else np.nan, "first_choice_random": 1 / n,
                "first_or_second": shared[i, place] / count if count and k == 2 else np.nan,
                "first_or_second_random": random_repetition(n, 2) if k == 2 else np.nan})
    warnings = () if trace.manifest.has_weights else (
        "Gate weights are not known: the first slot was taken for the first choice.",)
    return Result("consecutive_repetition", pd.DataFrame(rows), params={"label": label}, warnings=warnings,
                  citations=(_MIXTRAL,), caption="Share of successive tokens with the same first choice, and with an expert "
                  "shared among first and second choices, beside what uniform independent choices give.")


def _two_best(experts: np.ndarray, weights: np.ndarray | None) -> np.ndarray:
    """First and second choice, shape (n_tokens, n_layers, 2); an empty slot where there is none."""
    empty = dropped_id(experts.dtype)
    if experts.shape[-1] == 1:
        return np.concatenate([experts, np.full_like(experts, empty)], axis=-1)
    if weights is None:
        return experts[..., :2]
    order = np.argsort(-np.where(experts == empty, -1.0, weights.astype(np.float32)), axis=-1, kind="stable")[..., :2]
    return np.asarray(np.take_along_axis(experts, order, axis=-1))


def vocabulary_specialisation(trace: Trace, *, min_count: int = 10, max_tokens: int = 300_000) -> Result:
    """How much experts specialise in token ids, by the measures of OLMoE and OpenMoE.

    OLMoE (arXiv:2409.02060, section 5.4): for an expert, the mean over its token ids of the share of the
    id's occurrences that go to it (by first choice, and among all k), for input ids and for the ids that follow
    (the output to be predicted). OpenMoE (arXiv:2402.01739, section 4): context-independence, how concentrated
    the first choices of one id are: share of the commonest expert and entropy, weighted by occurrences, beside
    the same with experts shuffled over tokens. Ids seen fewer than `min_count` times are left out. Measured on
    about `max_tokens` tokens.

    Returns
    -------
    Result
        ``vocabulary_specialisation``: ``layer, ids`` (input | output), ``top1, topk`` (mean over experts of OLMoE's
        measure), ``top1_shuffled``, ``context_independence`` (share of the commonest expert),
        ``context_independence_shuffled, entropy_bits`` of an id's choices, ``n_ids``.

    Raises
    ------
    MoeProbeError
        When no id occurs often enough.
    """
    import pandas as pd

    used = every_nth_document(trace, max_tokens)
    ids, take = _ids(trace, used)

    def measure(layer: MoeLayer) -> list[dict[str, Any]]:
        chunks = list(trace.iter_routing([layer.layer]))
        experts = np.concatenate([c.experts for c in chunks])[take]
        weights = np.concatenate([c.weights for c in chunks])[take] if trace.manifest.has_weights else None  # type: ignore[misc]
        first = first_choices(experts, weights)[:, 0]
        rng = np.random.default_rng(layer.layer)
        return [{"layer": layer.layer, "ids": name} | _vocabulary(
            code, experts[:, 0], first, num_experts=layer.num_experts, min_count=min_count, rng=rng)
            for name, code in ids.items()]

    with ThreadPoolExecutor(n_threads()) as pool:
        rows = [row for part in pool.map(measure, trace.layers) for row in part]
    return Result("vocabulary_specialisation", pd.DataFrame(rows), params={"min_count": min_count},
                  citations=(_OLMOE, _OPENMOE),
                  caption="OLMoE: mean over an expert's token ids of the share of their occurrences that it takes, averaged "
                  "over experts. OpenMoE: share of an id's first choices that go to its commonest expert.")


def _ids(trace: Trace, used: np.ndarray) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Input and following ids of the tokens of some documents, -1 for special ones and where none follows; their rows."""
    table = trace.tokens(["document", "token_id", "special"])
    ids, document = table["token_id"].to_numpy().astype(np.int64), table["document"].to_numpy()
    special = table["special"].to_numpy()
    following = np.full(len(ids), -1)
    next_to = (document[1:] == document[:-1]) & ~special[1:]
    following[:-1][next_to] = ids[1:][next_to]
    take = np.flatnonzero(used[document])
    return {"input": np.where(special, -1, ids)[take], "output": np.where(special, -1, following)[take]}, take


def _vocabulary(
    ids: np.ndarray, experts: np.ndarray, first: np.ndarray, *, num_experts: int, min_count: int, rng: np.random.Generator
) -> dict[str, float]:
    known = (ids >= 0) & (first != dropped_id(experts.dtype))
    values, code, count = np.unique(ids[known], return_inverse=True, return_counts=True)
    often = count >= min_count
    if not often.any():
        raise MoeProbeError(f"no token id occurs {min_count} times", "its choices cannot be told from chance",
                            "a larger corpus or a smaller count")

    def table(chosen: np.ndarray) -> np.ndarray:
        use = chosen != dropped_id(experts.dtype)
        cell = code[use] * num_experts + chosen[use].astype(np.int64)
        return np.bincount(cell, minlength=len(values) * num_experts).reshape(-1, num_experts)[often]

    one = table(first[known])
    every = sum(table(experts[known][:, slot]) for slot in range(experts.shape[1]))
    shuffled = table(rng.permutation(first[known]))
    total = count[often][:, None]
    share = one / total
    with np.errstate(divide="ignore", invalid="ignore"):
        entropy = -np.where(one > 0, share * np.log2(share), 0.0).sum(1)
    weight = count[often] / count[often].sum()
    return {"top1": _mean_over_ids(one, total), "top1_shuffled": _mean_over_ids(shuffled, total),
            "topk": _mean_over_ids(np.asarray(every), total), "context_independence": float(share.max(1) @ weight),
            "context_independence_shuffled": float((shuffled / total).max(1) @ weight),
            "entropy_bits": float(entropy @ weight), "n_ids": int(often.sum())}


def _mean_over_ids(counts: np.ndarray, total: np.ndarray) -> float:
    """Mean over experts of the mean, over the ids that an expert ever takes, of the share it takes."""
    taken = counts > 0
    per_expert = (counts / total * taken).sum(0) / np.maximum(taken.sum(0), 1)
    return float(per_expert[taken.any(0)].mean())


def router_saturation(early: Trace, final: Trace) -> Result:
    """Share of the final checkpoint's choices that an earlier one makes already.

    OLMoE, arXiv:2409.02060, section 5.1, equation 8: mean over tokens of |E_t intersected with E_T| / k. A
    random router gives k / E.

    Parameters
    ----------
    early, final : Trace
        Of one corpus and tokenizer.

    Returns
    -------
    Result
        ``router_saturation``: ``layer, saturation, baseline`` (k / E).

    Raises
    ------
    MoeProbeError
        When the traces hold different tokens or layers.
    """
    import pandas as pd

    if early.n_tokens != final.n_tokens or [x.layer for x in early.layers] != [x.layer for x in final.layers]:
        raise MoeProbeError("the two traces cannot be compared", f"they hold {early.n_tokens:,} and {final.n_tokens:,} "
                            f"tokens in {len(early.layers)} and {len(final.layers)} layers",
                            "two checkpoints on one corpus")
    if not (early.tokens(["token_id"])["token_id"] == final.tokens(["token_id"])["token_id"]).all():
        raise MoeProbeError("the two traces cannot be compared", "their tokens differ", "two checkpoints on one corpus")
    special = final.tokens(["special"])["special"].to_numpy()
    rows = []
    for layer in final.layers:
        a, b = (np.concatenate([c.experts[:, 0] for c in t.iter_routing([layer.layer])])[~special] for t in (early, final))
        filled = b != dropped_id(b.dtype)
        hit = ((a[:, :, None] == b[:, None, :]).any(1) & filled).sum(1)
        n = filled.sum(1)
        rows.append({"layer": layer.layer, "saturation": float((hit[n > 0] / n[n > 0]).mean()),
                     "baseline": layer.top_k / layer.num_experts})
    return Result("router_saturation", pd.DataFrame(rows), citations=(_OLMOE,),
                  caption="Share of the later checkpoint's choices that the earlier one makes already.")


def _norms(trace: Trace, layer: int) -> Iterator[dict[str, Any]]:
    if "expert_output_norms" not in trace.manifest.kept:
        raise MoeProbeError("the trace holds no output norms", "saliency is gate weight times output norm",
                            "collect again with --keep expert_output_norms")
    return trace.iter_extras(f"expert_output/layer_{layer:02d}")


def saliency(trace: Trace) -> Result:
    """Mean over an expert's tokens of gate weight times output norm.

    REAP, arXiv:2510.13999, equation 9: S_j = mean over tokens routed to j of g_j(x) ||f_j(x)||. Traces hold the
    norm of each selected expert's *weighted* output (collect --keep expert_output_norms), which is this product.

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

    parts = []
    for layer in trace.layers:
        total, count = np.zeros(layer.num_experts), np.zeros(layer.num_experts)
        extras = _norms(trace, layer.layer)
        for part, chunk in zip(extras, trace.iter_routing([layer.layer]), strict=True):
            norms = part["norms"].float().numpy()
            experts = chunk.experts[:, 0, : norms.shape[1]]
            use = (experts != dropped_id(experts.dtype)) & ~chunk.special[:, None]
            np.add.at(total, experts[use], norms[use])
            np.add.at(count, experts[use], 1)
        with np.errstate(invalid="ignore"):
            parts.append(pd.DataFrame({"layer": layer.layer, "expert": np.arange(layer.num_experts),
                                       "saliency": total / count, "tokens": count.astype(int)}))
    return Result("saliency", pd.concat(parts, ignore_index=True), citations=(_REAP,),
                  caption="Mean norm of what an expert adds to the residual stream, over the tokens routed to it.")
