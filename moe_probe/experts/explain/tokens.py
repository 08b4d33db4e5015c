"""Token samples: text tokens sorted by group of documents, with every factor that may explain their routing."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from moe_probe.core.errors import MoeProbeError
from moe_probe.core.routing import dropped_id
from moe_probe.core.stats import labelled_documents, one_value_per_group
from moe_probe.core.stats.labels import n_threads
from moe_probe.recording.corpus.splits import stratified_split

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

    def take(self, groups: np.ndarray) -> TokenSample:
        """Keep the tokens of some groups (boolean mask, shape (n_groups,)); codes stay."""
        keep = groups[self.group]
        number = np.cumsum(groups) - 1
        return replace(
            self,
            row=self.row[keep],
            group=number[self.group[keep]],
            token=self.token[keep],
            previous=self.previous[keep],
            position=self.position[keep],
            topic=self.topic[groups],
            fold=self.fold[groups],
            groups=tuple(g for g, k in zip(self.groups, groups, strict=True) if k),
        )


@dataclass(frozen=True)
class LayerSelections:
    """Selections of one layer by the tokens of a `TokenSample`: one entry per filled slot.

    Attributes
    ----------
    layer : int
        Number of the layer in the model.
    num_experts : int
    token : ndarray of int, shape (n_selections,)
        Index of the token in the sample, in ascending order.
    expert : ndarray of int64, shape (n_selections,)
    slots : ndarray of int, shape (n_tokens,)
        Filled slots of every token.
    """

    layer: int
    num_experts: int
    token: np.ndarray
    expert: np.ndarray
    slots: np.ndarray

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
        cell = unit[self.token] * self.num_experts + self.expert
        cell = cell[cell >= 0]  # an expert's number is below num_experts, so unit -1 gives a negative cell
        return np.bincount(cell, minlength=n_units * self.num_experts).reshape(n_units, self.num_experts)


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
    keep, labels, names = labelled_documents(trace.documents, label=label)
    table = trace.tokens(["document", "position", "token_id", "special"])
    document = table["document"].to_numpy().astype(np.int64)
    ids = table["token_id"].to_numpy().astype(np.int64)
    position = table["position"].to_numpy().astype(np.int64)
    before = np.full(len(ids), -1, dtype=np.int64)
    follows = document[1:] == document[:-1]
    before[1:][follows] = ids[:-1][follows]
    use = ~table["special"].to_numpy() & keep[document]
    if not use.any():
        raise MoeProbeError(
            "no labelled document has text tokens", "there is nothing to explain", "check that the corpus is not empty"
        )
    rows = np.flatnonzero(keep)
    topic_of = one_value_per_group(labels[rows], names[rows], what=label)
    groups = tuple(sorted({names[d] for d in np.unique(document[use])}))
    code = {name: i for i, name in enumerate(groups)}
    group_of_document = np.array([code.get(name, -1) for name in names])
    kept = np.flatnonzero(use)
    kept = kept[np.argsort(group_of_document[document[kept]], kind="stable")]
    vocabulary, token = np.unique(ids[kept], return_inverse=True)
    _, previous = np.unique(before[kept], return_inverse=True)
    topics = tuple(sorted({topic_of[g] for g in groups}))
    topic = np.array([topics.index(topic_of[g]) for g in groups])
    sample = TokenSample(
        row=kept,
        group=group_of_document[document[kept]],
        token=token,
        previous=previous,
        position=position[kept],
        topic=topic,
        fold=_folds([topics[t] for t in topic], list(groups), folds, seed),
        topics=topics,
        groups=groups,
        vocabulary=vocabulary,
        n_folds=folds,
    )
    return sample if max_tokens is None else _thin(sample, max_tokens, seed)


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


def _thin(sample: TokenSample, max_tokens: int, seed: int) -> TokenSample:
    """Keep whole groups, each topic to the same share, so that about `max_tokens` stay."""
    share = max_tokens / len(sample.row)
    if share >= 1:
        return sample
    # drawn within (topic, fold), so that no fold runs empty
    strata = [f"{t}/{f}" for t, f in zip(sample.topic, sample.fold, strict=True)]
    part = stratified_split(strata, list(sample.groups), shares={"in": share, "out": 1 - share}, seed=seed + 1)
    chosen = part == "in"
    if len(set(sample.fold[chosen].tolist())) < sample.n_folds:
        return sample
    thinned = sample.take(chosen)
    return replace(
        thinned,
        warnings=(
            (
                f"Measured on {len(thinned.row):,} of {len(sample.row):,} tokens to save time: whole documents, "
                "drawn evenly over topics."
            ),
        ),
    )


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
    experts = np.concatenate([chunk.experts[:, 0] for chunk in trace.iter_routing([item.layer])])[sample.row]
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
        Value of `work` for every layer, in order; as many layers as threads are in memory at a time.
    """

    def read_and_work(item: MoeLayer) -> Any:
        return work(load_layer(trace, sample, item))

    from threadpoolctl import threadpool_limits

    # layers share the cores; products inside them must not ask for all cores again
    with ThreadPoolExecutor(n_threads()) as pool, threadpool_limits(1):
        for start in range(0, len(trace.layers), n_threads()):
            yield from pool.map(read_and_work, trace.layers[start : start + n_threads()])


def layer_selections(experts: np.ndarray, *, layer: int, num_experts: int) -> LayerSelections:
    """Flatten the expert ids of one layer into its filled slots.

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
    filled = experts != dropped_id(experts.dtype)
    if filled.all():  # the usual case; much faster than looking for the filled slots
        n_tokens, n_slots = experts.shape
        token = np.repeat(np.arange(n_tokens), n_slots)
        return LayerSelections(layer, num_experts, token, experts.ravel().astype(np.int64), np.full(n_tokens, n_slots))
    token, slot = np.nonzero(filled)
    return LayerSelections(layer, num_experts, token, experts[token, slot].astype(np.int64), filled.sum(1))
