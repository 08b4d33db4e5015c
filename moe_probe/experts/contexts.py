"""Contexts of experts: the text around the tokens that an expert was given with its highest gate weights."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from moe_probe.core.pieces import whole_characters
from moe_probe.core.results import Result

if TYPE_CHECKING:
    from moe_probe.recording.trace import Trace

#: Tokens shown before and behind the token with the high gate weight.
BEFORE, BEHIND = 16, 6
#: Candidates per expert, from which tokens of different documents are shown.
_POOL = 64


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
            weight = np.where((experts == expert) & usable[:, None], weights, 0).max(1)
            for rank, token in enumerate(_highest(weight, document, per_expert), start=1):
                begin, end = (int(np.searchsorted(document, document[token], side=side)) for side in ("left", "right"))
                first, last = whole_characters(
                    text, max(token - BEFORE, begin), min(token + BEHIND + 1, end), within=(begin, end)
                )
                rows.append(
                    {
                        "layer": item.layer,
                        "expert": expert,
                        "rank": rank,
                        "document": names[document[token]],
                        "topic": topics[document[token]],
                        "position": int(position[token]),
                        "weight": float(weight[token]),
                        "tokens": text[first:last].tolist(),
                        "weights": weight[first:last].astype(float).tolist(),
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


def _highest(weight: np.ndarray, document: np.ndarray, n: int) -> list[int]:
    """Find the tokens of the highest gate weights, of different documents first; both arrays (n_tokens,)."""
    pool = np.argpartition(-weight, min(_POOL, len(weight) - 1))[:_POOL]
    pool = pool[weight[pool] > 0]
    order = pool[np.lexsort((pool, -weight[pool]))]
    _, first = np.unique(document[order], return_index=True)
    chosen = np.sort(first)[:n]
    rest = np.setdiff1d(np.arange(len(order)), chosen)[: n - len(chosen)]
    return [int(t) for t in order[np.sort(np.concatenate([chosen, rest]))]]
