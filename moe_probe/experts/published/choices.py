"""Choices of tokens as published metrics count them: first choices, and samples of documents."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from moe_probe.core.routing import dropped_id

if TYPE_CHECKING:
    from moe_probe.recording.trace import Trace

OLMOE = "Muennighoff et al. 2024 (OLMoE), published metrics, arXiv:2409.02060"
#: Tokens of the sample that costly metrics are measured on.
SAMPLE_TOKENS = 150_000
_NO_WEIGHTS = "Gate weights are not known: the first slot was taken for the first choice."


class LayerChoices(NamedTuple):
    """Choices of tokens in one layer.

    Attributes
    ----------
    experts : ndarray of unsigned int, shape (n_tokens, n_slots)
    first : ndarray of unsigned int, shape (n_tokens,)
        Expert of the largest gate weight.
    """

    experts: np.ndarray
    first: np.ndarray


def weight_warnings(*traces: Trace) -> tuple[str, ...]:
    """Warn where first choices had to be taken from the order of slots."""
    return () if all(trace.manifest.has_weights for trace in traces) else (_NO_WEIGHTS,)


def first_choices(experts: np.ndarray, weights: np.ndarray | None) -> np.ndarray:
    """Find the expert of the largest gate weight.

    Parameters
    ----------
    experts : ndarray of unsigned int, shape (n_tokens, n_layers, n_slots)
        The largest value of the type marks an empty slot.
    weights : ndarray of float, same shape, or None

    Returns
    -------
    ndarray of unsigned int, shape (n_tokens, n_layers)
        Without weights, the expert of the first slot.
    """
    first = np.array(experts[..., 0])
    if weights is None:
        return first
    empty = dropped_id(experts.dtype)
    largest = np.where(first == empty, np.float16(-1), weights[..., 0]).astype(np.float32)
    for slot in range(1, experts.shape[-1]):  # slot by slot: much faster than along an axis as short as top-k
        weight = weights[..., slot].astype(np.float32)
        above = (weight > largest) & (experts[..., slot] != empty)
        np.copyto(largest, weight, where=above)
        np.copyto(first, experts[..., slot], where=above)
    return first


def chosen_rows(trace: Trace, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Read the choices of some tokens.

    Parameters
    ----------
    trace : Trace
        With routing.
    rows : ndarray of int, shape (n_rows,)
        Rows of the tokens in the trace.

    Returns
    -------
    experts : ndarray of unsigned int, shape (n_rows, n_layers, n_slots)
    first : ndarray of unsigned int, shape (n_rows, n_layers)
        Experts of the largest gate weights.
    """
    found = trace.routing_at(rows, weights=True)
    return found.experts, first_choices(found.experts, found.weights)


def sampled_documents(trace: Trace, max_tokens: int, *, seed: int = 0) -> np.ndarray:
    """Mark a random choice of documents that has about `max_tokens` tokens (all where there are no more).

    At random, not every nth: in a corpus whose topics take turns, every nth document has one topic.

    Parameters
    ----------
    trace : Trace
    max_tokens : int
        Number of tokens.
    seed : int
        Seed of the choice.

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
