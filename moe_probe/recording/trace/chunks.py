"""Pieces of a trace as it is read: the tokens of one shard."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np


class RoutingChunk(NamedTuple):
    """Tokens of one shard with their routing.

    Attributes
    ----------
    experts : ndarray of uint8 or uint16, shape (n_tokens, n_layers, n_slots)
        Expert ids; the largest value of the type marks an empty slot.
    weights : ndarray of float16, same shape, or None
        Gate weights, where the trace has them.
    document : ndarray of int, shape (n_tokens,)
        Row in `Trace.documents`.
    position, token_id : ndarray of int, shape (n_tokens,)
    special : ndarray of bool, shape (n_tokens,)
    """

    experts: np.ndarray
    weights: np.ndarray | None
    document: np.ndarray
    position: np.ndarray
    token_id: np.ndarray
    special: np.ndarray


class TokenChunk(NamedTuple):
    """Columns of the token table of one shard; ``first`` is the trace's row of its first token."""

    first: int
    columns: dict[str, np.ndarray]
