"""Pieces of a trace as it is read: the tokens of one shard, or their experts alone."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from moe_probe.core.schema import Manifest
from moe_probe.recording.trace.opened import open_routing


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


def iter_experts(root: Path, manifest: Manifest, layers: Sequence[int]) -> Iterator[np.ndarray]:
    """Read the expert ids of a trace shard by shard, without weights and without the token table.

    Parameters
    ----------
    root : Path
        Folder of the trace.
    manifest : Manifest
        Of the trace.
    layers : sequence of int
        Indices on the layer axis.

    Yields
    ------
    ndarray of uint8 or uint16, shape (n_tokens, n_layers, n_slots)
        The largest value of the type marks an empty slot.
    """
    for shard in manifest.shards:
        with open_routing(root, manifest, shard) as arrays:
            experts = arrays.experts(layers)
        yield experts
