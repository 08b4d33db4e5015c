"""Traces of planted routing."""

from __future__ import annotations

from pathlib import Path
from typing import TypedDict

import numpy as np

from moe_probe.recording.trace import Trace


class RoutingShape(TypedDict, total=False):
    """Sizes of `planted_routing`."""

    topics: int
    documents_per_topic: int
    tokens: int
    n_layers: int
    num_experts: int
    top_k: int


class RoutingOptions(RoutingShape, total=False):
    """Sizes, and how strong planted and unplanted habits are."""

    lift: float
    group_size: int
    group_effect: float
    document_effect: float


def write(path: Path, routing, keep: np.ndarray) -> Trace:
    from moe_probe.core.schema import CorpusInfo, Manifest, ModelInfo
    from moe_probe.recording.trace import TraceWriter

    writer = TraceWriter.create(
        path,
        Manifest(model=ModelInfo(id="planted"), corpus=CorpusInfo(name="planted"), layers=routing.layers, has_text=False),
    )
    writer.append(
        documents=routing.documents.drop(columns="n_tokens").to_dict("records"),
        tokens={
            "document": routing.document[keep],
            "position": routing.position[keep],
            "token_id": routing.token_id[keep],
            "token": [f" w{i}" for i in routing.token_id[keep]],
            "special": np.zeros(int(keep.sum()), dtype=bool),
        },
        experts=routing.experts[keep],
        weights=routing.weights[keep],
    )
    return writer.seal()
