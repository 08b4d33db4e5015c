"""Token samples: text tokens sorted by group of documents, with every factor that may explain their routing."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from moe_probe.core.errors import MoeProbeError
from moe_probe.core.routing import dropped_id
from moe_probe.core.stats import labelled_documents, one_value_per_group
from moe_probe.core.stats.labels import n_threads
from moe_probe.recording.corpus.splits import stratified_split
from moe_probe.recording.trace.ids import previous_ids

if TYPE_CHECKING:
    from moe_probe.core.schema import MoeLayer
    from moe_probe.recording.trace import Trace


@dataclass(frozen=True)
class TokenSample:
    """Text tokens of labelled documents, sorted by group (special tokens left out).

    Attributes
    ----------
    row : ndarray of int64, shape (n_tokens,)
        Row of the token in the trace.
    group : ndarray of int, shape (n_tokens,)
        Index into `groups`, in ascending order.
    token, previous : ndarray of int, shape (n_tokens,)
        Codes 0, 1, ... of the token id and of the id before it in the document; the first token of a
        document has a `previous` of its own.
    position : ndarray of int, shape (n_tokens,)
        Position in the document, counted from 0.
    topic : ndarray of int, shape (n_groups,)
        Index into `topics`.
    fold : ndarray of int, shape (n_groups,)
        Groups of one fold are predicted from those of the others.
    topics, groups : tuple of str
        Names of the topics and of the groups of documents.
    vocabulary : ndarray of int64, shape (n_codes,)
        Token id of every code.
    n_folds : int
    warnings : tuple of str
        Sentences for the results that rest on the sample.
    """

    row: np.ndarray
    group: np.ndarray
    token: np.ndarray
    previous: np.ndarray
    position: np.ndarray
    topic: np.ndarray
    fold: np.ndarray
    topics: tuple[str, ...]
    groups: tuple[str, ...]
    vocabulary: np.ndarray
    n_folds: int
    warnings: tuple[str, ...] = ()

    @property
    def token_fold(self) -> np.ndarray:
        """Fold of every token, shape (n_tokens,)."""
        return np.asarray(self.fold[self.group])

    def groups_alone(self) -> TokenSample:
        """Return the sample without what it says of single tokens, their groups apart: for results that are kept."""
        none = np.zeros(0, dtype=np.int64)
        return replace(self, row=none, token=none, previous=none, position=none)


#: Slots whose cells are counted at a time, at least.
_COUNTED = 1 << 20
#: Bytes of expert ids that are in memory at a time, about.
_ROUTING_BYTES = 1 << 28


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
        filled = self.chosen != dropped_id(self.chosen.dtype)
        return None if filled.all() else filled

    @cached_property
    def slots(self) -> np.ndarray:
        """Filled slots of every token, ndarray of int, shape (n_tokens,)."""
        return np.full(len(self.chosen), self.chosen.shape[1]) if self.filled is None else np.asarray(self.filled.sum(1))

    @cached_property
    def token(self) -> np.ndarray:
        """Index of the token of every selection, ascending, shape (n_selections,): large, for samples of few tokens."""
        return np.repeat(np.arange(len(self.chosen)), self.slots)

    @cached_property
    def expert(self) -> np.ndarray:
        """Expert of every selection, ndarray of int64, shape (n_selections,)."""
        chosen = self.chosen.ravel() if self.filled is None else self.chosen[self.filled]
        return chosen.astype(np.int64)

    def counts(self, unit: np.ndarray, n_units: int) -> np.ndarray:
        """Count selections by a unit of the tokens (a group, say) and expert.

        Parameters
        ----------
        unit : ndarray of int, shape (n_tokens,)
            Unit of every token; -1 leaves a token out.
        n_units : int

        Returns
        -------
        ndarray of int64, shape (n_units, num_experts)
        """
        size = n_units * self.num_experts
        out = np.zeros(size, dtype=np.int64)
        # blocks of fewer slots than there are cells would spend their time on adding up tables
        step = max(1, max(_COUNTED, size) // self.chosen.shape[1])
        for start in range(0, len(unit), step):
            part = slice(start, start + step)
            use, filled = unit[part] >= 0, None if self.filled is None else self.filled[part]
            if use.all():
                cell = unit[part, None] * self.num_experts + self.chosen[part]
            else:
                cell = unit[part][use, None] * self.num_experts + self.chosen[part][use]
                filled = None if filled is None else filled[use]
            out += np.bincount(cell.ravel() if filled is None else cell[filled], minlength=size)
        return out.reshape(n_units, self.num_experts)


def sample_tokens(
    trace: Trace, *, label: str = "topic", folds: int = 4, max_tokens: int | None = None, seed: int = 0
) -> TokenSample:
    """Read the factors that may explain the routing of every token: its id, the id before it, position and topic.

    Parameters
    ----------
    trace : Trace
        With routing.
    label : str
        Label column; documents without a label are left out.
    folds : int
        Number of folds that groups are divided into, each topic evenly.
    max_tokens : int, optional
        Number of tokens to keep, about: whole groups, drawn evenly over topics.
    seed : int
        Seed of the division and of the draw.

    Returns
    -------
    TokenSample

    Raises
    ------
    MoeProbeError
        When the trace has no routing or the documents have no such label, or a fold stays without groups
        (fewer groups than folds).
    """
    trace.need_routing()
    keep, labels, names = labelled_documents(trace.documents, label=label)
    n_text = trace.documents["n_tokens"].to_numpy().astype(np.int64)
    use = keep & (n_text > 0)
    if not use.any():
        raise MoeProbeError(
            "no labelled document has text tokens", "there is nothing to explain", "check that the corpus is not empty"
        )
    topic_of = one_value_per_group(labels[keep], names[keep], what=label)
    groups = tuple(sorted(set(names[use])))
    code = {name: i for i, name in enumerate(groups)}
    topics = tuple(sorted({topic_of[g] for g in groups}))
    number = {name: i for i, name in enumerate(topics)}
    topic = np.array([number[topic_of[g]] for g in groups])
    fold = _folds([topics[t] for t in topic], list(groups), folds, seed)
    group = np.array([code.get(name, -1) for name in names])
    size = np.bincount(group[use], weights=n_text[use], minlength=len(groups)).astype(np.int64)
    chosen = _thin(topic, fold, groups, share=1.0 if max_tokens is None else max_tokens / size.sum(), seed=seed)
    number_of = np.where(chosen, np.cumsum(chosen) - 1, -1)
    drawn = use & chosen[group]
    arrays = _read(trace, use, np.where(drawn, number_of[group], -1), np.where(drawn, n_text, 0))
    part = f"{len(arrays['row']):,} of {size.sum():,} tokens"
    thinned = f"Measured on {part} to save time: whole documents, drawn evenly over topics."
    return TokenSample(
        **arrays,
        topic=topic[chosen],
        fold=fold[chosen],
        topics=topics,
        groups=tuple(g for g, c in zip(groups, chosen, strict=True) if c),
        vocabulary=trace.ids_of(use)[0],
        n_folds=folds,
        warnings=() if chosen.all() else (thinned,),
    )


def _read(trace: Trace, use: np.ndarray, group: np.ndarray, n_text: np.ndarray) -> dict[str, np.ndarray]:
    """Read the text tokens of some documents, sorted by group.

    Arrays (n_documents,): documents that codes are counted in, groups (-1: not read), and text tokens that are to be read.
    """
    order = np.argsort(np.where(group < 0, len(group), group), kind="stable")
    place = np.empty(len(group), dtype=np.int64)  # of the first token of every document
    place[order] = np.cumsum(n_text[order]) - n_text[order]
    out = {name: np.empty(n_text.sum(), dtype=np.int64) for name in ("row", "group", "token", "previous", "position")}
    coders = [_coder(ids) for ids in trace.ids_of(use)]
    found = 0
    columns = ["document", "position", "token_id", "special"]
    for _, chunk in trace.iter_tokens(columns, documents=group >= 0):
        document, position, ids, special = (chunk.columns[name] for name in columns)
        kept = np.flatnonzero(~special & (group[document] >= 0))
        own = document[kept]
        starts = np.flatnonzero(np.diff(own, prepend=-1))
        rank = np.arange(len(own)) - np.repeat(starts, np.diff(np.append(starts, len(own))))
        to = place[own] + rank
        found += len(own)
        values = (kept + chunk.first, group[own], coders[0](ids[kept]), coders[1](previous_ids(document, ids)[kept]))
        for array, value in zip(out.values(), (*values, position[kept]), strict=True):
            array[to] = value
    if found != len(out["row"]):
        raise MoeProbeError(
            f"the trace at {trace.root} is damaged",
            f"its documents have {len(out['row']):,} text tokens, its token table has {found:,}",
            "run moe-probe verify",
        )
    return out


def _coder(ids: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
    """Give a function from ids to their places among ascending ids."""
    if len(ids) and int(ids[-1]) < 1 << 24:
        table = np.zeros(int(ids[-1]) + 2, dtype=np.int64)  # ids may begin at -1
        table[ids + 1] = np.arange(len(ids))
        return lambda values: table[values + 1]
    return lambda values: np.searchsorted(ids, values)


def _folds(topics: list[str], groups: list[str], folds: int, seed: int) -> np.ndarray:
    names = {str(f): 1 / folds for f in range(folds)}
    fold = stratified_split(topics, groups, shares=names, seed=seed).astype(int)
    empty = sorted(set(range(folds)) - set(fold.tolist()))
    if empty:
        raise MoeProbeError(
            f"{len(groups)} groups of documents cannot be divided into {folds} folds",
            "routing is explained on held-out documents",
            "a corpus of more documents",
        )
    return np.asarray(fold)


def _thin(topic: np.ndarray, fold: np.ndarray, groups: tuple[str, ...], *, share: float, seed: int) -> np.ndarray:
    """Choose whole groups (n_groups,), each topic to the same share; all of them for a share of 1 and more."""
    every = np.ones(len(groups), dtype=bool)
    if share >= 1:
        return every
    # drawn within (topic, fold), so that no fold runs empty
    strata = [f"{t}/{f}" for t, f in zip(topic, fold, strict=True)]
    part = stratified_split(strata, list(groups), shares={"in": share, "out": 1 - share}, seed=seed + 1)
    chosen = np.asarray(part == "in")
    return chosen if len(set(fold[chosen].tolist())) == len(set(fold.tolist())) else every


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

    of_threads = n_threads() * max(len(sample.row), 1) * max(layer.top_k for layer in trace.layers)
    at_once = n_threads() * max(1, _ROUTING_BYTES // of_threads)
    # layers share the cores; products inside them must not ask for all cores again
    with ThreadPoolExecutor(n_threads()) as pool, threadpool_limits(1):
        for start in range(0, len(trace.layers), at_once):
            layers = trace.layers[start : start + at_once]
            experts = trace.routing_at(sample.row, slice(start, start + len(layers))).experts
            items = [
                layer_selections(experts[:, i], layer=item.layer, num_experts=item.num_experts)
                for i, item in enumerate(layers)
            ]
            del experts
            while items:  # a layer is let go of once it is done
                yield from pool.map(work, items[: n_threads()])
                del items[: n_threads()]


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
