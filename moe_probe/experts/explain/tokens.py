"""Token samples: text tokens sorted by group of documents, with every factor that may explain their routing."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from moe_probe.core.errors import MoeProbeError
from moe_probe.core.stats import labelled_documents, one_value_per_group
from moe_probe.recording.corpus.splits import stratified_split
from moe_probe.recording.trace.ids import previous_ids

if TYPE_CHECKING:
    from moe_probe.recording.trace import Trace


@dataclass(frozen=True)
class TokenSample:
    """Text tokens of labelled documents, sorted by group (special tokens left out).

    Attributes
    ----------
    row : ndarray of int32 (of int64 where the trace has 2^31 tokens or more), shape (n_tokens,)
        Row of the token in the trace.
    group : ndarray of int32, shape (n_tokens,)
        Index into `groups`, in ascending order.
    token, previous : ndarray of int32, shape (n_tokens,)
        Codes 0, 1, ... of the token id and of the id before it in the document; the first token of a
        document has a `previous` of its own.
    position : ndarray of int32, shape (n_tokens,)
        Position in the document, counted from 0.
    size : ndarray of int64, shape (n_groups,)
        Tokens of every group.
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
    size: np.ndarray
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
        """Return the sample without what it says of single tokens: for results that are kept."""
        return replace(self.rows_alone(), row=_NONE, group=_NONE)

    def rows_alone(self) -> TokenSample:
        """Return the sample without its factors: with what reading and counting the routing of its tokens needs."""
        return replace(self, token=_NONE, previous=_NONE, position=_NONE)


_NONE = np.zeros(0, dtype=np.int32)


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
        size=size[chosen],
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
    n, short = int(n_text.sum()), np.dtype(np.int32)
    row = short if trace.n_tokens <= np.iinfo(short).max else np.dtype(np.int64)
    out = {"row": np.empty(n, dtype=row)} | {
        name: np.empty(n, dtype=short) for name in ("group", "token", "previous", "position")
    }
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
