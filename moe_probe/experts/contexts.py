"""Contexts of experts: the text around the tokens that an expert was given with its highest gate weights."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from moe_probe.core.pieces import whole_characters
from moe_probe.core.results import Result

if TYPE_CHECKING:
    from moe_probe.recording.trace import RoutingChunk, Trace

#: Tokens shown before and behind the token with the high gate weight.
BEFORE, BEHIND = 16, 6
#: Candidates per expert, from which tokens of different documents are shown.
_POOL = 64
#: Further tokens on either side that a character may begin or end in.
_MORE = 4


def expert_contexts(trace: Trace, *, per_expert: int = 4, max_experts: int = 1024) -> Result:
    """Cut out the text around every expert's highest gate weights, each from another document as far as possible.

    Parameters
    ----------
    trace : Trace
        With gate weights and token strings.
    per_expert : int
        Number of contexts per expert, at most.
    max_experts : int
        Number of experts, about; layers of a larger model are left out evenly.

    Returns
    -------
    Result
        ``expert_contexts``: ``layer, expert, rank, document, topic, position, weight`` (gate weight of the
        token), ``tokens, weights`` (lists: the text around it, as `moe_probe.core.pieces` writes tokens; the expert's gate
        weight on each, 0 where it was not chosen).
    """
    import pandas as pd

    trace.need_words()
    step = max(1, -(-sum(item.num_experts for item in trace.layers) // max_experts))
    layers = trace.layers[::step]
    pools = [_Pool(item.num_experts) for item in layers]
    for chunk, first_row in _chunks(trace, [item.layer for item in layers]):
        for index, pool in enumerate(pools):
            pool.add(chunk, index, first_row)
    shown = [
        (i, expert, rank, row)
        for i, pool in enumerate(pools)
        for expert in range(pool.n_experts)
        for rank, row in enumerate(_highest(pool.rows_of(expert), pool.documents_of(expert), per_expert), start=1)
    ]
    surroundings = _Surroundings(trace, np.array([row for *_, row in shown], dtype=np.int64))
    names, topics = trace.documents["document"].astype(str).to_numpy(), trace.documents["topic"].astype(str).to_numpy()
    rows: list[dict[str, Any]] = []
    for i, expert, rank, row in shown:
        document, position, tokens, weights, own = surroundings.around(row, i * step, expert)
        rows.append(
            {
                "layer": layers[i].layer,
                "expert": expert,
                "rank": rank,
                "document": names[document],
                "topic": topics[document],
                "position": position,
                "weight": own,
                "tokens": tokens,
                "weights": weights,
            }
        )
    columns = ["layer", "expert", "rank", "document", "topic", "position", "weight", "tokens", "weights"]
    return Result(
        "expert_contexts",
        pd.DataFrame(rows, columns=columns),
        params={"per_expert": per_expert},
        warnings=() if step == 1 else (f"Contexts are of every {step}th layer only, to save space.",),
        caption="Tokens that each expert was given with its highest gate weights, with the text around them, one per document "
        "as far as possible. The highest weights are the expert's clearest cases, not its typical ones.",
    )


def _chunks(trace: Trace, layers: list[int]) -> Iterator[tuple[RoutingChunk, int]]:
    """Yield the routing of some layers with the trace's row of its first token."""
    first = 0
    for chunk in trace.iter_routing(layers):
        yield chunk, first
        first += len(chunk.experts)


class _Pool:
    """Tokens of the highest gate weights of every expert of a layer: the first ones of equal weights."""

    def __init__(self, n_experts: int) -> None:
        self.n_experts = n_experts
        self._least = np.zeros(n_experts + 1, dtype=np.float32)  # a token needs more than that; the last: empty slots
        self._least[-1] = np.inf
        self._expert = np.zeros(0, dtype=np.int64)
        self._weight = np.zeros(0, dtype=np.float32)
        self._row, self._document = np.zeros((2, 0), dtype=np.int64)

    def add(self, chunk: RoutingChunk, index: int, first_row: int) -> None:
        """Add the tokens of a shard; `index` is the layer's place in it."""
        assert chunk.weights is not None
        experts = np.minimum(chunk.experts[:, index], self.n_experts)
        weights = chunk.weights[:, index].astype(np.float32)
        token, slot = np.nonzero((weights > self._least[experts]) & ~chunk.special[:, None])
        if not len(token):
            return
        expert = np.concatenate([self._expert, experts[token, slot].astype(np.int64)])
        weight = np.concatenate([self._weight, weights[token, slot]])
        row = np.concatenate([self._row, token + first_row])
        document = np.concatenate([self._document, chunk.document[token]])
        order = np.lexsort((row, -weight, expert))
        starts = np.searchsorted(expert[order], np.arange(self.n_experts))
        rank = np.arange(len(order)) - starts[expert[order]]
        kept = order[rank < _POOL]
        self._expert, self._weight, self._row, self._document = expert[kept], weight[kept], row[kept], document[kept]
        last = order[rank == _POOL - 1]
        self._least[expert[last]] = weight[last]

    def rows_of(self, expert: int) -> np.ndarray:
        """Rows of an expert's tokens, those of the highest gate weights first."""
        return np.asarray(self._row[self._expert == expert])

    def documents_of(self, expert: int) -> np.ndarray:
        """Documents of `rows_of`."""
        return np.asarray(self._document[self._expert == expert])


class _Surroundings:
    """Tokens and gate weights around some tokens of a trace."""

    def __init__(self, trace: Trace, rows: np.ndarray) -> None:
        around = np.unique(np.clip(rows[:, None] + np.arange(-BEFORE - _MORE, BEHIND + _MORE + 1), 0, trace.n_tokens - 1))
        found = trace.tokens_at(around, ["document", "position", "token", "special"])
        self._row, self._document, self._position = around, found["document"], found["position"]
        self._special = found["special"]
        self._text = trace.spaced(found["token"], whole=False)
        self._routing = trace.routing_at(around, weights=True)

    def around(self, row: int, layer_index: int, expert: int) -> tuple[int, int, list[str], list[float], float]:
        """Document and position of a token, the text around it, an expert's gate weights there and at the token."""
        at = int(np.searchsorted(self._row, row))
        document = self._document[at]
        near = slice(max(0, at - BEFORE - _MORE), at + BEHIND + _MORE + 1)
        offset = (
            self._row[near] - row - np.arange(len(self._row[near])) + at - near.start
        )  # 0 where no token is left out between
        inside = np.flatnonzero((self._document[near] == document) & (offset == 0))
        begin, end = near.start + int(inside[0]), near.start + int(inside[-1]) + 1
        low, high = whole_characters(self._text, max(at - BEFORE, begin), min(at + BEHIND + 1, end), within=(begin, end))
        experts, weights = self._routing.experts[low:high, layer_index], self._routing.weights
        assert weights is not None
        chosen = (experts == expert) & ~self._special[low:high, None]
        weight = np.where(chosen, weights[low:high, layer_index].astype(np.float32), 0).max(1).astype(float)
        return (
            int(document),
            int(self._position[at]),
            self._text[low:high].tolist(),
            weight.tolist(),
            float(weight[at - low]),
        )


def _highest(rows: np.ndarray, documents: np.ndarray, n: int) -> list[int]:
    """Take the first rows, of different documents first; both arrays (n_candidates,), in order."""
    _, first = np.unique(documents, return_index=True)
    chosen = np.sort(first)[:n]
    rest = np.setdiff1d(np.arange(len(rows)), chosen)[: n - len(chosen)]
    return [int(row) for row in rows[np.sort(np.concatenate([chosen, rest]))]]
