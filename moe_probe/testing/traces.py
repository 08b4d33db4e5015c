"""Planted routing written as a sealed trace."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from moe_probe.core.schema import CorpusInfo, Manifest, ModelInfo
from moe_probe.testing.planted import PlantedExpert, PlantedRouting, planted_routing

if TYPE_CHECKING:
    from moe_probe.recording.trace import Trace


def planted_trace(path: str | Path, *, planted: tuple[PlantedExpert, ...], **settings: Any) -> Trace:
    """Write planted routing as a sealed trace.

    Parameters
    ----------
    path : str or Path
        Folder that is made.
    planted : tuple of PlantedExpert
        Experts with a reason.
    **settings
        As `planted_routing`.

    Returns
    -------
    Trace

    Raises
    ------
    MoeProbeError
        As `planted_routing` and `TraceWriter.create` do.
    """
    routing = planted_routing(planted=planted, **settings)
    return write_routing(path, routing, seed=int(settings.get("seed", 0)))


def null_trace(path: str | Path, **settings: Any) -> Trace:
    """Write a trace of pure noise: documents have habits, topics mean nothing. An analysis must claim nothing.

    Parameters
    ----------
    path : str or Path
        Folder that is made.
    **settings
        As `planted_routing`.

    Returns
    -------
    Trace
    """
    return planted_trace(path, planted=(), **settings)


def write_routing(path: str | Path, routing: PlantedRouting, *, seed: int = 0) -> Trace:
    """Write planted routing, changed as you like, as a sealed trace in two shards.

    Parameters
    ----------
    path : str or Path
        Folder that is made.
    routing : PlantedRouting
        Columns of its documents beyond the known ones are kept as labels.
    seed : int
        Seed that the manifest names.

    Returns
    -------
    Trace

    Raises
    ------
    MoeProbeError
        As `TraceWriter.create` does.
    """
    from moe_probe.recording.trace import TraceWriter

    writer = TraceWriter.create(path, planted_manifest(routing, seed=seed))
    half = len(routing.documents) // 2
    for documents in np.split(np.arange(len(routing.documents)), [half]):
        inside = np.isin(routing.document, documents)
        writer.append(**shard(routing, documents, [f"{' ' if i % 2 else ''}word{i}" for i in routing.token_id[inside]]))
    return writer.seal()


def planted_manifest(routing: PlantedRouting, *, seed: int, kept: tuple[str, ...] = ("routing",)) -> Manifest:
    """Make the manifest of a trace of planted routing.

    Parameters
    ----------
    routing : PlantedRouting
    seed : int
        Seed that it was drawn with.
    kept : tuple of str
        Parts of the trace.

    Returns
    -------
    Manifest
    """
    known = {"document", "topic", "subtopic", "group", "split", "n_tokens"}
    labels = tuple(c for c in routing.documents.columns if c not in known)
    return Manifest(
        model=ModelInfo(id="planted", architecture="none: drawn at random"),
        kept=kept,
        corpus=CorpusInfo(name="planted", n_documents=len(routing.documents), label_columns=labels),
        layers=routing.layers,
        has_text=False,
        seed=seed,
    )


def shard(routing: PlantedRouting, documents: np.ndarray, words: Sequence[str]) -> dict[str, Any]:
    """Cut some documents out of planted routing, as `TraceWriter.append` takes them.

    Parameters
    ----------
    routing : PlantedRouting
    documents : ndarray of int
        Consecutive documents.
    words : sequence of str
        Text of each of their tokens.

    Returns
    -------
    dict
        ``documents, tokens, experts, weights``.
    """
    inside = np.isin(routing.document, documents)
    return {
        "documents": routing.documents.iloc[documents].drop(columns="n_tokens").to_dict("records"),
        "tokens": {
            "document": routing.document[inside] - documents[0],
            "position": routing.position[inside],
            "token_id": routing.token_id[inside],
            "token": list(words),
            "special": np.zeros(int(inside.sum()), dtype=bool),
        },
        "experts": routing.experts[inside],
        "weights": routing.weights[inside],
    }
