"""Metrics of published work that look at tokens: their neighbours, two checkpoints of one model, what they add."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from moe_probe.core.errors import MoeProbeError
from moe_probe.core.results import Result
from moe_probe.core.routing import dropped_id
from moe_probe.core.stats import labelled_documents

if TYPE_CHECKING:
    from moe_probe.recording.trace import Trace

_OLMOE = "Muennighoff et al. 2024 (OLMoE), arXiv:2409.02060"
#: Tokens of the sample on which what is costly is measured.
SAMPLE_TOKENS = 150_000
_MIXTRAL = "Jiang et al. 2024 (Mixtral), arXiv:2401.04088, table 5"
_REAP = "Lasby et al. 2025 (REAP), arXiv:2510.13999"
NO_WEIGHTS = "Gate weights are not known: the first slot was taken for the first choice."


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


def sampled_documents(trace: Trace, max_tokens: int, *, seed: int = 0) -> np.ndarray:
    """Mark a random choice of documents that holds about `max_tokens` tokens (all where there are no more).

    At random, not every nth: in a corpus whose topics take turns, every nth document is of one topic.

    Returns
    -------
    ndarray of bool, shape (n_documents,)
        At least one is marked.
    """
    n = len(trace.documents)
    take = n if trace.n_tokens <= max_tokens else max(1, round(n * max_tokens / trace.n_tokens))
    used = np.zeros(n, dtype=bool)
    used[np.random.default_rng(seed).permutation(n)[:take]] = True
    return used


def consecutive_repetition(trace: Trace, *, label: str = "topic", max_tokens: int = SAMPLE_TOKENS, seed: int = 0) -> Result:
    """Share of successive tokens that go to the same expert, per layer and domain.

    Mixtral, arXiv:2401.04088, table 5: the same first choice, and any expert shared among first and second
    choices; neighbours of one document only, special tokens left out. Measured on about `max_tokens` tokens of
    documents chosen at random by `seed`. Documents without a label count for "all" alone.

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
    names = ["all", *sorted(set(labels[keep]))]
    code = {name: i for i, name in enumerate(names)}
    domain = np.array([code[name] if known else -1 for name, known in zip(labels, keep, strict=True)])
    n_layers, used = len(trace.layers), sampled_documents(trace, max_tokens, seed=seed)
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
            np.add.at(total, of[of > 0], values[of > 0])
            total[0] += values.sum(0)
    rows = []
    for place, layer in enumerate(trace.layers):
        n, k = layer.num_experts, min(layer.top_k, 2)
        for name, i in code.items():
            count = pairs[i, place]
            rows.append(
                {
                    "layer": layer.layer,
                    "domain": name,
                    "pairs": int(count),
                    "first_choice": same[i, place] / count if count else np.nan,
                    "first_choice_random": 1 / n,
                    "first_or_second": shared[i, place] / count if count and k == 2 else np.nan,
                    "first_or_second_random": random_repetition(n, 2) if k == 2 else np.nan,
                }
            )
    warnings = () if trace.manifest.has_weights else (NO_WEIGHTS,)
    return Result(
        "consecutive_repetition",
        pd.DataFrame(rows),
        warnings=warnings,
        seed=seed,
        citations=(_MIXTRAL,),
        params={"label": label, "max_tokens": max_tokens, "sampled_documents": int(used.sum())},
        caption="Share of successive tokens with the same first choice, and with an expert shared among first and "
        "second choices, beside what uniform independent choices give.",
    )


def _two_best(experts: np.ndarray, weights: np.ndarray | None) -> np.ndarray:
    """First and second choice, shape (n_tokens, n_layers, 2); an empty slot where there is none."""
    empty = dropped_id(experts.dtype)
    if experts.shape[-1] == 1:
        return np.concatenate([experts, np.full_like(experts, empty)], axis=-1)
    if weights is None:
        return experts[..., :2]
    order = np.argsort(-np.where(experts == empty, -1.0, weights.astype(np.float32)), axis=-1, kind="stable")[..., :2]
    return np.asarray(np.take_along_axis(experts, order, axis=-1))


def router_saturation(early: Trace, final: Trace) -> Result:
    """Share of the final checkpoint's choices that an earlier one makes already.

    OLMoE, arXiv:2409.02060, section 5.1, equation 8: mean over tokens of |E_t intersected with E_T| / k. A
    random router gives k / E. The authors give it for first choices as well (k = 1), as here.

    Parameters
    ----------
    early, final : Trace
        Of one corpus and tokenizer.

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
    special = final.tokens(["special"])["special"].to_numpy()
    rows = []
    for layer in final.layers:
        a, b = (_one_layer(t, layer.layer) for t in (early, final))
        empty = dropped_id(b[0].dtype)
        filled = (b[0] != empty) & ~special[:, None]
        hit = ((a[0][:, :, None] == b[0][:, None, :]).any(1) & filled).sum(1)
        n = filled.sum(1)
        first = (a[1] == b[1])[(b[1] != empty) & ~special]
        rows.append(
            {
                "layer": layer.layer,
                "saturation": float((hit[n > 0] / n[n > 0]).mean()),
                "baseline": layer.top_k / layer.num_experts,
                "first_choice": float(first.mean()),
                "first_choice_baseline": 1 / layer.num_experts,
            }
        )
    warnings = () if early.manifest.has_weights and final.manifest.has_weights else (NO_WEIGHTS,)
    return Result(
        "router_saturation",
        pd.DataFrame(rows),
        citations=(_OLMOE,),
        warnings=warnings,
        caption="Share of the later checkpoint's choices (and first choices) that the earlier one makes already.",
    )


def _same_tokens(early: Trace, final: Trace) -> None:
    shapes = [[(x.layer, x.num_experts, x.top_k) for x in t.layers] for t in (early, final)]
    if early.n_tokens != final.n_tokens or shapes[0] != shapes[1]:
        raise MoeProbeError(
            "the two traces cannot be compared",
            f"they hold {early.n_tokens:,} and {final.n_tokens:,} "
            f"tokens in {len(early.layers)} and {len(final.layers)} layers, or experts differ in number",
            "two checkpoints on one corpus",
        )
    columns = ["document", "position", "token_id"]
    if not (early.tokens(columns) == final.tokens(columns)).to_numpy().all():
        raise MoeProbeError("the two traces cannot be compared", "their tokens differ", "two checkpoints on one corpus")


def _one_layer(trace: Trace, layer: int) -> tuple[np.ndarray, np.ndarray]:
    """Chosen experts (n_tokens, n_slots) and first choices (n_tokens,) of one layer."""
    experts, first = [], []
    for chunk in trace.iter_routing([layer]):
        experts.append(chunk.experts[:, 0])
        first.append(first_choices(chunk.experts, chunk.weights)[:, 0])
    return np.concatenate(experts), np.concatenate(first)


def _norms(trace: Trace, layer: int) -> Iterator[dict[str, Any]]:
    if "expert_output_norms" not in trace.manifest.kept:
        raise MoeProbeError(
            "the trace holds no output norms",
            "saliency is gate weight times output norm",
            "collect again with --keep expert_output_norms",
        )
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
            parts.append(
                pd.DataFrame(
                    {
                        "layer": layer.layer,
                        "expert": np.arange(layer.num_experts),
                        "saliency": total / count,
                        "tokens": count.astype(int),
                    }
                )
            )
    return Result(
        "saliency",
        pd.concat(parts, ignore_index=True),
        citations=(_REAP,),
        caption="Mean norm of what an expert adds to the residual stream, over the tokens routed to it.",
    )
