"""Metrics of published work on token ids: how far an id alone determines the expert."""

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
from moe_probe.experts.published.choices import (
    OLMOE,
    SAMPLE_TOKENS,
    LayerChoices,
    chosen_rows,
    sampled_documents,
    weight_warnings,
)

if TYPE_CHECKING:
    from moe_probe.core.schema import MoeLayer
    from moe_probe.recording.trace import Trace

OPENMOE = "Xue et al. 2024 (OpenMoE), context-independent specialisation, arXiv:2402.01739"


class _IdCounts(NamedTuple):
    """Tokens of every frequent id by expert, (n_ids, n_experts), by first and by all choices, and of every id, (n_ids,)."""

    first: np.ndarray
    every: np.ndarray
    first_shuffled: np.ndarray
    every_shuffled: np.ndarray
    total: np.ndarray


class _Options(NamedTuple):
    """Options of the measures in this module; see `vocabulary_specialisation`."""

    min_count: int
    max_tokens: int
    seed: int


def vocabulary_specialisation(
    trace: Trace, *, min_count: int = 10, max_tokens: int = SAMPLE_TOKENS, seed: int = 0
) -> Result:
    """Measure how much experts specialise in token ids, by the definitions of OLMoE and OpenMoE, layer by layer.

    OLMoE (arXiv:2409.02060, section 5.4, and scripts/run_moe_analysis.py of repository allenai/OLMoE): share of
    an id's occurrences that have the id's commonest expert as first choice (among all k choices), averaged over
    ids with equal weights; for input ids and for the ids that follow (ground-truth output). The third,
    predicted output ids, needs predictions, which traces do not hold. The authors' last script takes every id;
    one that occurs once has share 1 by itself, so ids of fewer than `min_count` occurrences (10, as in their
    tables of tokens) are left out here; 1 takes all.

    OpenMoE (arXiv:2402.01739, section 4) shows that routing depends on token ids; as numbers: share of the
    commonest expert and entropy of an id's first choices, ids weighted by their occurrences.

    The commonest expert of few occurrences has a high share by chance. So every measure comes with its value for
    choices shuffled over tokens.

    Parameters
    ----------
    trace : Trace
        With routing.
    min_count : int
        Number of occurrences that an id needs.
    max_tokens : int
        Number of tokens to measure on, about (random documents).
    seed : int
        Seed of the sample and of the shuffled choices.

    Returns
    -------
    Result
        ``vocabulary_specialisation``: ``layer, ids`` (input | output), ``top1, topk`` (OLMoE), ``top1_shuffled,
        topk_shuffled``, ``context_independence, context_independence_shuffled, entropy_bits,
        entropy_bits_shuffled`` (OpenMoE), ``n_ids``.

    Raises
    ------
    MoeProbeError
        When the trace has no token ids, or none occurs often enough.
    """

    def measure(layer: MoeLayer, ids: str, counts: _IdCounts) -> list[dict[str, Any]]:
        total = counts.total[:, None]
        weight = counts.total / counts.total.sum()
        tables = {
            "top1": counts.first,
            "topk": counts.every,
            "top1_shuffled": counts.first_shuffled,
            "topk_shuffled": counts.every_shuffled,
        }
        row: dict[str, Any] = {key: float((table / total).max(1).mean()) for key, table in tables.items()}
        for end, table in (("", counts.first), ("_shuffled", counts.first_shuffled)):
            row[f"context_independence{end}"] = float((table / total).max(1) @ weight)
            row[f"entropy_bits{end}"] = float(entropy_bits(table) @ weight)
        return [{"layer": layer.layer, "ids": ids} | row | {"n_ids": len(total)}]

    return Result(
        "vocabulary_specialisation",
        **_measured(trace, measure, _Options(min_count, max_tokens, seed)),
        citations=(OLMOE, OPENMOE),
        caption="How far a token id alone determines the expert, in every layer. Compare each measure with its shuffled value, "
        "of choices dealt to tokens at random. OLMoE: share of an id's occurrences that its commonest expert takes, mean over "
        "ids. OpenMoE: the same of first choices, weighted by occurrences.",
    )


def vocabulary_experts(trace: Trace, *, min_count: int = 10, max_tokens: int = SAMPLE_TOKENS, seed: int = 0) -> Result:
    """Measure the vocabulary specialisation of single experts: over the ids whose commonest expert it is, their mean share.

    OLMoE, arXiv:2409.02060, section 5.4, per expert, by first choices.

    Parameters
    ----------
    trace : Trace
        With routing.
    min_count : int
        Number of occurrences that an id needs.
    max_tokens : int
        Number of tokens to measure on, about (random documents).
    seed : int
        Seed of the sample.

    Returns
    -------
    Result
        ``vocabulary_experts``: ``layer, expert, ids`` (input | output), ``specialisation`` (NaN where it is no
        id's commonest expert), ``n_ids``.

    Raises
    ------
    MoeProbeError
        When the trace has no token ids, or none occurs often enough.
    """

    def measure(layer: MoeLayer, ids: str, counts: _IdCounts) -> list[dict[str, Any]]:
        share = counts.first / counts.total[:, None]
        owner, best = share.argmax(1), share.max(1)
        n_ids = np.bincount(owner, minlength=layer.num_experts)
        with np.errstate(invalid="ignore"):
            mean = np.bincount(owner, weights=best, minlength=layer.num_experts) / n_ids
        return [
            {"layer": layer.layer, "expert": e, "ids": ids, "specialisation": float(mean[e]), "n_ids": int(n_ids[e])}
            for e in range(layer.num_experts)
        ]

    return Result(
        "vocabulary_experts",
        **_measured(trace, measure, _Options(min_count, max_tokens, seed)),
        citations=(OLMOE,),
        caption="Vocabulary specialisation of every expert: mean share, over the ids whose commonest expert it is, of an id's "
        "occurrences that it takes. Ids of few occurrences have high shares by chance.",
    )


def _measured(
    trace: Trace, measure: Callable[[MoeLayer, str, _IdCounts], list[dict[str, Any]]], options: _Options
) -> dict[str, Any]:
    """Apply a measure to the counts of every layer and kind of ids; return the fields of a `Result`."""
    import pandas as pd

    trace.need_words()
    drawn = sampled_documents(trace, options.max_tokens, seed=options.seed)
    ids, rows_of = _ids(trace, drawn)
    experts, first = chosen_rows(trace, rows_of)

    def work(index: int) -> list[dict[str, Any]]:
        layer, choices = trace.layers[index], LayerChoices(experts[:, index], first[:, index])
        rng = np.random.default_rng([options.seed, layer.layer])
        rows = []
        for kind, codes in ids.items():
            rows += measure(layer, kind, _count(codes, choices, layer.num_experts, options.min_count, rng))
        return rows

    with ThreadPoolExecutor(n_threads()) as pool:
        rows = [row for part in pool.map(work, range(len(trace.layers))) for row in part]
    return {
        "table": pd.DataFrame(rows),
        "seed": options.seed,
        "params": {
            "min_count": options.min_count,
            "max_tokens": options.max_tokens,
            "sampled_documents": int(drawn.sum()),
        },
        "warnings": weight_warnings(trace),
    }


def _ids(trace: Trace, used: np.ndarray) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Read the input and following ids of some documents' tokens; -1 for special tokens and where none follows.

    Returns
    -------
    ids : dict of str to ndarray of int, shape (n_taken,)
    rows : ndarray of int, shape (n_taken,)
        Rows of these tokens.
    """
    parts: dict[str, list[np.ndarray]] = {"input": [], "output": [], "row": []}
    columns = ["document", "position", "token_id", "special"]
    for _, chunk in trace.iter_tokens(columns, documents=used):
        document, position, token_id, special = (chunk.columns[name] for name in columns)
        ids, following = token_id.astype(np.int64), np.full(len(token_id), -1)
        next_to = (document[1:] == document[:-1]) & (position[1:] == position[:-1] + 1) & ~special[1:]
        following[:-1][next_to] = ids[1:][next_to]
        take = used[document]
        parts["input"].append(np.where(special, -1, ids)[take])
        parts["output"].append(np.where(special, -1, following)[take])
        parts["row"].append(np.flatnonzero(take) + chunk.first)
    ids_of = {name: np.concatenate(found) for name, found in parts.items()}
    return ids_of, ids_of.pop("row")


def _count(ids: np.ndarray, choices: LayerChoices, num_experts: int, min_count: int, rng: np.random.Generator) -> _IdCounts:
    """Count tokens by frequent id and expert, as they are and with choices shuffled over tokens."""
    experts, first = choices
    empty = dropped_id(experts.dtype)
    known = (ids >= 0) & (first != empty)
    values, code, count = np.unique(ids[known], return_inverse=True, return_counts=True)
    often = count >= min_count
    if not often.any():
        raise MoeProbeError(
            f"no token id occurs {min_count} times",
            "its choices cannot be distinguished from chance",
            "a larger corpus or a smaller count",
        )

    def table(chosen: np.ndarray) -> np.ndarray:
        use = chosen != empty
        cell = code[use] * num_experts + chosen[use].astype(np.int64)
        return np.bincount(cell, minlength=len(values) * num_experts).reshape(-1, num_experts)[often]

    def tables(rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        slots = [table(experts[known][rows, slot]) for slot in range(experts.shape[1])]
        return table(first[known][rows]), np.sum(slots, axis=0)

    n = int(known.sum())
    one, every = tables(np.arange(n))
    one_shuffled, every_shuffled = tables(rng.permutation(n))
    return _IdCounts(one, every, one_shuffled, every_shuffled, count[often])
