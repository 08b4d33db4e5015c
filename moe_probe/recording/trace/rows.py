"""Chosen tokens of a trace, read from the shards that have them: memory follows the tokens asked for, not the trace."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from moe_probe.core.errors import MoeProbeError
from moe_probe.core.schema import Manifest
from moe_probe.core.text import quoted
from moe_probe.recording.trace.opened import TokenTable, open_routing

#: Rows between two chosen ones that are read along rather than skipped.
_GAP = 64


class RoutingRows(NamedTuple):
    """Routing of chosen tokens.

    Attributes
    ----------
    experts : ndarray of uint8 or uint16, shape (n_rows, n_layers, n_slots)
        Expert ids; the largest value of the type marks an empty slot.
    weights : ndarray of float16, same shape, or None
        Gate weights, where they were asked for and the trace has them.
    """

    experts: np.ndarray
    weights: np.ndarray | None


def read_routing_rows(root: Path, manifest: Manifest, rows: np.ndarray, *, layers: slice, weights: bool) -> RoutingRows:
    """Read the routing of tokens.

    Parameters
    ----------
    root : Path
        Folder of the trace.
    manifest : Manifest
    rows : ndarray of int, shape (n_rows,)
        Rows of tokens in the trace, in any order.
    layers : slice
        Positions on the layer axis.
    weights : bool
        Read gate weights too.

    Returns
    -------
    RoutingRows
    """
    names = ("experts", "weights") if weights and manifest.has_weights else ("experts",)
    out: dict[str, np.ndarray] = {}
    for shard, local, places in _by_shard(manifest, rows):
        with open_routing(root, manifest, manifest.shards[shard]) as arrays:
            for name, read in zip(names, (arrays.experts, arrays.weights), strict=False):
                for begin, end in _runs(local):
                    piece = read(layers, slice(int(local[begin]), int(local[end - 1]) + 1))
                    if name not in out:
                        out[name] = np.empty((len(rows), *piece.shape[1:]), dtype=piece.dtype)
                    if piece.shape[1:] != out[name].shape[1:]:
                        raise _other_slots(root)
                    out[name][places[begin:end]] = piece[local[begin:end] - local[begin]]
    if not out:  # no row was asked for
        shape = (0, len(range(*layers.indices(len(manifest.layers)))), 1)
        out = {"experts": np.zeros(shape, manifest.expert_dtype), "weights": np.zeros(shape, np.float16)}
    return RoutingRows(out["experts"], out.get("weights") if "weights" in names else None)


def read_token_rows(root: Path, manifest: Manifest, rows: np.ndarray, columns: Sequence[str]) -> dict[str, np.ndarray]:
    """Read columns of the token table at some rows.

    Parameters
    ----------
    root : Path
        Folder of the trace.
    manifest : Manifest
    rows : ndarray of int, shape (n_rows,)
        Rows of tokens in the trace, in any order.
    columns : sequence of str

    Returns
    -------
    dict of str to ndarray, shape (n_rows,)
        Token strings as they are stored.
    """
    file = TokenTable(root, manifest)
    out: dict[str, np.ndarray] = {}
    for shard, local, places in _by_shard(manifest, rows):
        table = file.shard(shard, columns).take(local)
        for name in columns:
            values = table[name].to_numpy()
            if name not in out:
                out[name] = np.empty(len(rows), dtype=values.dtype)
            out[name][places] = values
    return out or {name: np.zeros(0, dtype=object if name == "token" else np.int64) for name in columns}


def _other_slots(root: Path) -> MoeProbeError:
    return MoeProbeError(
        f"the shards of {root} have different numbers of slots",
        "a trace has one",
        f"moe-probe verify {quoted(root)}, and make it again",
    )


def _by_shard(manifest: Manifest, rows: np.ndarray) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
    """Yield the index of every shard that has some of the rows, these within it, ascending, and their places in `rows`."""
    starts = np.concatenate([[0], np.cumsum([shard.n_tokens for shard in manifest.shards])])
    if len(rows) and (int(rows.min()) < 0 or int(rows.max()) >= starts[-1]):
        raise IndexError(f"the trace has {starts[-1]} tokens, there is no row {rows.max()}")
    # in the type of the rows, since searching would copy all of them otherwise; and without an order where they have one
    limits = starts.astype(rows.dtype) if starts[-1] <= np.iinfo(rows.dtype).max else starts
    order = None if (rows[1:] >= rows[:-1]).all() else np.argsort(rows, kind="stable")
    borders = np.searchsorted(rows if order is None else rows[order], limits)
    for index in np.flatnonzero(np.diff(borders)):
        low, high = int(borders[index]), int(borders[index + 1])
        places = np.arange(low, high) if order is None else order[low:high]
        yield int(index), rows[places] - starts[index], places


def _runs(local: np.ndarray) -> Iterator[tuple[int, int]]:
    """Cut ascending rows into runs without wide gaps: begin and end of each, as indices."""
    cuts = np.flatnonzero(np.diff(local) > _GAP) + 1
    yield from zip(np.append(0, cuts).tolist(), np.append(cuts, len(local)).tolist(), strict=True)
