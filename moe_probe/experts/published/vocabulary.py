"""Metrics of published work on token ids: how far an id alone decides the expert."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from moe_probe.core.errors import MoeProbeError
from moe_probe.core.results import Result
from moe_probe.core.routing import dropped_id
from moe_probe.core.stats.information import entropy_bits
from moe_probe.core.stats.labels import n_threads
from moe_probe.experts.published.sequences import NO_WEIGHTS, SAMPLE_TOKENS, first_choices, sampled_documents

if TYPE_CHECKING:
    from moe_probe.core.schema import MoeLayer
    from moe_probe.recording.trace import Trace

_OLMOE = "Muennighoff et al. 2024 (OLMoE), arXiv:2409.02060"
OPENMOE = "Xue et al. 2024 (OpenMoE), arXiv:2402.01739"


class _IdCounts(NamedTuple):
    """Tokens of every frequent id by expert, (n_ids, n_experts), and of every id, (n_ids,)."""

    first: np.ndarray
    every: np.ndarray
    first_shuffled: np.ndarray
    every_shuffled: np.ndarray
    total: np.ndarray


def vocabulary_specialisation(
    trace: Trace, *, min_count: int = 10, max_tokens: int = SAMPLE_TOKENS, seed: int = 0
) -> Result:
    """How much experts specialise in token ids, by the measures of OLMoE and OpenMoE, layer by layer.

    OLMoE (arXiv:2409.02060, section 5.4, and scripts/run_moe_analysis.py of repository allenai/OLMoE): share of
    an id's occurrences that have the id's commonest expert as first choice (among all k choices), averaged over
    ids, each id weighing the same; for input ids and for the ids that follow (ground-truth output). The third,
    predicted output ids, needs predictions, which traces do not hold. The authors' last script takes every id;
    one that occurs once has share 1 by itself, so ids of fewer than `min_count` occurrences (10, as in their
    tables of tokens) are left out here; 1 takes all.

    OpenMoE (arXiv:2402.01739, section 4) shows that experts follow token ids; in numbers: share of the
    commonest expert and entropy of an id's first choices, each id weighing as often as it occurs.

    The commonest expert of few occurrences has a high share by chance: beside every measure stands the same with
    choices shuffled over tokens. Measured on about `max_tokens` tokens of documents chosen at random by `seed`.

    Returns
    -------
    Result
        ``vocabulary_specialisation``: ``layer, ids`` (input | output), ``top1, topk`` (OLMoE), ``top1_shuffled,
        topk_shuffled``, ``context_independence, context_independence_shuffled, entropy_bits,
        entropy_bits_shuffled`` (OpenMoE), ``n_ids``.

    Raises
    ------
    MoeProbeError
        When no id occurs often enough.
    """

    def measure(layer: MoeLayer, name: str, counts: _IdCounts) -> list[dict[str, Any]]:
        total = counts.total[:, None]
        weight = counts.total / counts.total.sum()
        best = {
            "top1": counts.first,
            "topk": counts.every,
            "top1_shuffled": counts.first_shuffled,
            "topk_shuffled": counts.every_shuffled,
        }
        row: dict[str, Any] = {key: float((table / total).max(1).mean()) for key, table in best.items()}
        for end, table in (("", counts.first), ("_shuffled", counts.first_shuffled)):
            row[f"context_independence{end}"] = float((table / total).max(1) @ weight)
            row[f"entropy_bits{end}"] = float(entropy_bits(table) @ weight)
        return [{"layer": layer.layer, "ids": name} | row | {"n_ids": len(total)}]

    return _over_layers(
        trace,
        measure,
        name="vocabulary_specialisation",
        min_count=min_count,
        max_tokens=max_tokens,
        seed=seed,
        citations=(_OLMOE, OPENMOE),
        caption="OLMoE: share of an id's occurrences that its commonest expert takes, mean "
        "over ids. OpenMoE: the same of first choices, weighted by occurrences. Shuffled: choices dealt at random.",
    )


def vocabulary_experts(trace: Trace, *, min_count: int = 10, max_tokens: int = SAMPLE_TOKENS, seed: int = 0) -> Result:
    """Vocabulary specialisation of single experts: over the ids whose commonest expert it is, their mean share.

    OLMoE, arXiv:2409.02060, section 5.4, per expert, by first choices; parameters as for
    `vocabulary_specialisation`.

    Returns
    -------
    Result
        ``vocabulary_experts``: ``layer, expert, ids`` (input | output), ``specialisation`` (NaN where it is no
        id's commonest expert), ``n_ids``.

    Raises
    ------
    MoeProbeError
        When no id occurs often enough.
    """

    def measure(layer: MoeLayer, name: str, counts: _IdCounts) -> list[dict[str, Any]]:
        share = counts.first / counts.total[:, None]
        owner, best = share.argmax(1), share.max(1)
        n_ids = np.bincount(owner, minlength=layer.num_experts)
        with np.errstate(invalid="ignore"):
            mean = np.bincount(owner, weights=best, minlength=layer.num_experts) / n_ids
        return [
            {"layer": layer.layer, "expert": e, "ids": name, "specialisation": float(mean[e]), "n_ids": int(n_ids[e])}
            for e in range(layer.num_experts)
        ]

    return _over_layers(
        trace,
        measure,
        name="vocabulary_experts",
        min_count=min_count,
        max_tokens=max_tokens,
        seed=seed,
        citations=(_OLMOE,),
        caption="Mean share, over the ids whose commonest expert it is, of an id's occurrences that the expert takes.",
    )


def _over_layers(
    trace: Trace,
    measure: Callable[[MoeLayer, str, _IdCounts], list[dict[str, Any]]],
    *,
    name: str,
    min_count: int,
    max_tokens: int,
    seed: int,
    citations: tuple[str, ...],
    caption: str,
) -> Result:
    import pandas as pd

    drawn = sampled_documents(trace, max_tokens, seed=seed)
    ids, take = _ids(trace, drawn)

    def work(layer: MoeLayer) -> list[dict[str, Any]]:
        experts, first = _choices(trace, layer.layer, take)
        rng = np.random.default_rng([seed, layer.layer])
        rows = []
        for kind, code in ids.items():
            counts = _count(code, experts, first, num_experts=layer.num_experts, min_count=min_count, rng=rng)
            rows += measure(layer, kind, counts)
        return rows

    with ThreadPoolExecutor(n_threads()) as pool:
        rows = [row for part in pool.map(work, trace.layers) for row in part]
    return Result(
        name,
        pd.DataFrame(rows),
        seed=seed,
        params={"min_count": min_count, "max_tokens": max_tokens, "sampled_documents": int(drawn.sum())},
        warnings=() if trace.manifest.has_weights else (NO_WEIGHTS,),
        citations=citations,
        caption=caption,
    )


def _choices(trace: Trace, layer: int, take: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Choices (n_taken, n_slots) and first choices (n_taken,) of one layer, of the tokens marked in `take`."""
    experts, first, start = [], [], 0
    for chunk in trace.iter_routing([layer]):
        rows = take[start : start + len(chunk.experts)]
        start += len(chunk.experts)
        experts.append(chunk.experts[rows, 0])
        first.append(first_choices(chunk.experts[rows], None if chunk.weights is None else chunk.weights[rows])[:, 0])
    return np.concatenate(experts), np.concatenate(first)


def _ids(trace: Trace, used: np.ndarray) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Input and following ids of some documents' tokens, -1 for special ones and where none follows; the tokens' mask."""
    table = trace.tokens(["document", "position", "token_id", "special"])
    ids, document = table["token_id"].to_numpy().astype(np.int64), table["document"].to_numpy()
    special, position = table["special"].to_numpy(), table["position"].to_numpy()
    following = np.full(len(ids), -1)
    next_to = (document[1:] == document[:-1]) & (position[1:] == position[:-1] + 1) & ~special[1:]
    following[:-1][next_to] = ids[1:][next_to]
    take = used[document]
    return {"input": np.where(special, -1, ids)[take], "output": np.where(special, -1, following)[take]}, take


def _count(
    ids: np.ndarray, experts: np.ndarray, first: np.ndarray, *, num_experts: int, min_count: int, rng: np.random.Generator
) -> _IdCounts:
    known = (ids >= 0) & (first != dropped_id(experts.dtype))
    values, code, count = np.unique(ids[known], return_inverse=True, return_counts=True)
    often = count >= min_count
    if not often.any():
        raise MoeProbeError(
            f"no token id occurs {min_count} times",
            "its choices cannot be told from chance",
            "a larger corpus or a smaller count",
        )

    def table(chosen: np.ndarray) -> np.ndarray:
        use = chosen != dropped_id(experts.dtype)
        cell = code[use] * num_experts + chosen[use].astype(np.int64)
        return np.bincount(cell, minlength=len(values) * num_experts).reshape(-1, num_experts)[often]

    def tables(rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        slots = [table(experts[known][rows, slot]) for slot in range(experts.shape[1])]
        return table(first[known][rows]), np.sum(slots, axis=0)

    n = int(known.sum())
    one, every = tables(np.arange(n))
    one_shuffled, every_shuffled = tables(rng.permutation(n))
    return _IdCounts(one, every, one_shuffled, every_shuffled, count[often])
