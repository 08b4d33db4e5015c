"""Selections of one layer by the tokens of a sample, and how a function is applied to layer after layer."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from moe_probe.core.routing import dropped_id
from moe_probe.core.stats.labels import n_threads

if TYPE_CHECKING:
    from moe_probe.core.schema import MoeLayer
    from moe_probe.experts.explain.tokens import TokenSample
    from moe_probe.recording.trace import Trace

#: Slots whose cells are counted at a time, at least.
_COUNTED = 1 << 20
#: Bytes of expert ids that are in memory at a time, about; and while fewer layers than threads are read in one pass.
_ROUTING_BYTES, _MOST_ROUTING_BYTES = 1 << 26, 1 << 28
#: Bytes of one layer's expert ids from which on layers are read one by one, so that none is held twice.
_LARGE_LAYER = 1 << 22


@dataclass(frozen=True)
class LayerSelections:
    """Selections of one layer by the tokens of a `TokenSample`.

    Attributes
    ----------
    layer : int
        Number of the layer in the model.
    num_experts : int
    chosen : ndarray of unsigned int, shape (n_tokens, n_slots)
        Experts of every token; the largest value of the type marks an empty slot.
    """

    layer: int
    num_experts: int
    chosen: np.ndarray

    @cached_property
    def filled(self) -> np.ndarray | None:
        """Filled slots, bool, shape (n_tokens, n_slots); None where all are."""
        empty = dropped_id(self.chosen.dtype)
        if not any((self.chosen[start : start + _COUNTED] == empty).any() for start in range(0, len(self.chosen), _COUNTED)):
            return None
        return np.asarray(self.chosen != empty)

    @cached_property
    def slots(self) -> np.ndarray:
        """Filled slots of every token, ndarray of uint16, shape (n_tokens,)."""
        if self.filled is None:
            return np.full(len(self.chosen), self.chosen.shape[1], dtype=np.uint16)
        return np.asarray(self.filled.sum(1, dtype=np.uint16))

    @cached_property
    def token(self) -> np.ndarray:
        """Index of the token of every selection, ascending, shape (n_selections,): large, for samples of few tokens."""
        return np.repeat(np.arange(len(self.chosen)), self.slots)

    @cached_property
    def expert(self) -> np.ndarray:
        """Expert of every selection, ndarray of int64, shape (n_selections,)."""
        chosen = self.chosen.ravel() if self.filled is None else self.chosen[self.filled]
        return chosen.astype(np.int64)

    def counts(self, unit: np.ndarray | Callable[[slice], np.ndarray], n_units: int) -> np.ndarray:
        """Count selections by a unit of the tokens (a group, say) and expert.

        Parameters
        ----------
        unit : ndarray of int, shape (n_tokens,), or callable
            Unit of every token; -1 leaves a token out. Or a function that gives the units of a slice of tokens: so units
            that are computed are never held for all tokens.
        n_units : int

        Returns
        -------
        ndarray of int64, shape (n_units, num_experts)
        """
        size = n_units * self.num_experts
        out = np.zeros(size, dtype=np.int64)
        # blocks of fewer slots than there are cells would spend their time on adding up tables
        step = max(1, max(_COUNTED, size) // self.chosen.shape[1])
        for start in range(0, len(self.chosen), step):
            part = slice(start, start + step)
            first = (unit(part) if callable(unit) else unit[part]).astype(np.int64) * self.num_experts
            use, filled = first >= 0, None if self.filled is None else self.filled[part]
            if use.all():
                cell = first[:, None] + self.chosen[part]
            else:
                cell = first[use, None] + self.chosen[part][use]
                filled = None if filled is None else filled[use]
            out += np.bincount(cell.ravel() if filled is None else cell[filled], minlength=size)
        return out.reshape(n_units, self.num_experts)


def load_layer(trace: Trace, sample: TokenSample, item: MoeLayer) -> LayerSelections:
    """Read the selections of one layer by the tokens of a sample.

    Parameters
    ----------
    trace : Trace
    sample : TokenSample
        Of that trace.
    item : MoeLayer
        The layer.

    Returns
    -------
    LayerSelections
    """
    index = trace.layer_index(item.layer)
    experts = trace.routing_at(sample.row, slice(index, index + 1)).experts[:, 0]
    return layer_selections(experts, layer=item.layer, num_experts=item.num_experts)


def map_layers(trace: Trace, sample: TokenSample, work: Callable[[LayerSelections], Any]) -> Iterator[Any]:
    """Apply a function to the selections of every layer, on several threads.

    Parameters
    ----------
    trace : Trace
    sample : TokenSample
        Of that trace.
    work : callable
        Called with the `LayerSelections` of a layer; called from several threads at once, so it must not change state.

    Yields
    ------
    object
        Value of `work` for every layer, in order; as many layers as fit in some memory are read in one pass.
    """
    from threadpoolctl import threadpool_limits

    threads = n_threads()
    slot = np.dtype(trace.manifest.expert_dtype).itemsize
    of_layer = max(len(sample.row), 1) * max(layer.top_k for layer in trace.layers) * slot
    at_once = max(1, _ROUTING_BYTES // of_layer, min(threads, _MOST_ROUTING_BYTES // of_layer))

    def one(layer: MoeLayer, chosen: np.ndarray) -> Any:
        return work(layer_selections(chosen, layer=layer.layer, num_experts=layer.num_experts))

    # layers share the cores; products inside them must not ask for all cores again
    with ThreadPoolExecutor(threads) as pool, threadpool_limits(1):
        for start in range(0, len(trace.layers), at_once):
            layers = list(trace.layers[start : start + at_once])
            experts = _read_layers(trace, sample.row, start, len(layers), apart=of_layer >= _LARGE_LAYER)
            while layers:  # a layer is let go of once it is done
                yield from pool.map(one, layers[:threads], experts[:threads])
                del layers[:threads], experts[:threads]


def _read_layers(trace: Trace, rows: np.ndarray, first: int, n: int, *, apart: bool) -> list[np.ndarray]:
    """Read expert ids of some layers, each (n_tokens, n_slots): in one pass, or in one for each."""
    if apart:
        return [trace.routing_at(rows, slice(i, i + 1)).experts[:, 0] for i in range(first, first + n)]
    experts = trace.routing_at(rows, slice(first, first + n)).experts
    return [experts[:, i] for i in range(n)]


def layer_selections(experts: np.ndarray, *, layer: int, num_experts: int) -> LayerSelections:
    """Take the expert ids of one layer as selections.

    Parameters
    ----------
    experts : ndarray of unsigned int, shape (n_tokens, n_slots)
        The largest value of the type marks an empty slot.
    layer : int
        Number of the layer in the model.
    num_experts : int

    Returns
    -------
    LayerSelections
    """
    return LayerSelections(layer, num_experts, np.ascontiguousarray(experts))
