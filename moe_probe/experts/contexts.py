"""The texts an expert is surest of: tokens that it got with the highest gate weights, and what stands around them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from moe_probe.core.pieces import whole_characters
from moe_probe.core.results import Result

if TYPE_CHECKING:
    from moe_probe.recording.trace import Trace

#: Tokens shown before and behind the one in question.
BEFORE, BEHIND = 16, 6
#: Candidates kept of every expert, from which those of different documents are shown.
_POOL = 64


def expert_contexts(trace: Trace, *, per_expert: int = 4, max_experts: int = 1024) -> Result:
    """Cut out the text around every expert's highest gate weights, each from another document as far as possible.

    Parameters
    ----------
    trace : Trace
        With gate weights and token strings.
    per_expert : int
    max_experts : int
        Of a larger model, the layers are thinned evenly until about so many experts are left.

    Returns
    -------
    Result
        ``expert_contexts``: ``layer, expert, rank, document, topic, position, weight`` (gate weight of the token in
        question), ``tokens, weights`` (lists: the text around it, as `moe_probe.core.pieces` writes tokens; the expert's gate
        weight on each, 0 where it was not chosen).
    """
    import pandas as pd

    table = trace.tokens(["document", "position", "token", "special"])
    text = trace.spaced(table["token"].to_numpy(dtype=object))
    document, position = table["document"].to_numpy(), table["position"].to_numpy()
    names, topics = trace.documents["document"].astype(str).to_numpy(), trace.documents["topic"].astype(str).to_numpy()
    step = max(1, -(-sum(item.num_experts for item in trace.layers) // max_experts))
    rows: list[dict[str, Any]] = []
    for item in trace.layers[::step]:
        chunks = list(trace.iter_routing([item.layer]))
        experts = np.concatenate([c.experts[:, 0] for c in chunks])
        weights = np.concatenate([c.weights[:, 0] for c in chunks if c.weights is not None]).astype(np.float32)
        usable = np.concatenate([~c.special for c in chunks])
        for expert in range(item.num_experts):
            hit = (experts == expert) & usable[:, None]
            mine = np.where(hit, weights, 0).max(1)
            pool = np.argpartition(-mine, min(_POOL, len(mine) - 1))[:_POOL]
            pool = pool[mine[pool] > 0]
            order = pool[np.lexsort((pool, -mine[pool]))]
            for rank, token in enumerate(_spread(order, document, per_expert), start=1):
                ends = tuple(int(np.searchsorted(document, document[token], side=side)) for side in ("left", "right"))
                first, last = whole_characters(
                    text, max(token - BEFORE, ends[0]), min(token + BEHIND + 1, ends[1]), within=(ends[0], ends[1])
                )
                rows.append(
                    {
                        "layer": item.layer,
                        "expert": expert,
                        "rank": rank,
                        "document": names[document[token]],
                        "topic": topics[document[token]],
                        "position": int(position[token]),
                        "weight": float(mine[token]),
                        "tokens": text[first:last].tolist(),
                        "weights": mine[first:last].astype(float).tolist(),
                    }
                )
    columns = ["layer", "expert", "rank", "document", "topic", "position", "weight", "tokens", "weights"]
    return Result(
        "expert_contexts",
        pd.DataFrame(rows, columns=columns),
        params={"per_expert": per_expert},
        warnings=() if step == 1 else (f"Contexts of every {step}th layer only, to save room.",),
        caption="Tokens that each expert was given with its highest gate weights, one a document as far as "
        "possible. The highest weights are the expert's clearest cases, not its typical ones.",
    )


def _spread(order: np.ndarray, document: np.ndarray, n: int) -> list[int]:
    """The first n of different documents; filled up with others where there are not so many."""
    _, first = np.unique(document[order], return_index=True)
    chosen = np.sort(first)[:n]
    rest = np.setdiff1d(np.arange(len(order)), chosen)[: n - len(chosen)]
    return [int(t) for t in order[np.sort(np.concatenate([chosen, rest]))]]
