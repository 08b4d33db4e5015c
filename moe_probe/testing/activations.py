"""Traces with activations of a known dictionary: features that fire on words, topics, after words, or at random."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from moe_probe.core.errors import MoeProbeError
from moe_probe.core.schema import CorpusInfo, Manifest, ModelInfo
from moe_probe.testing.planted import planted_routing

if TYPE_CHECKING:
    from moe_probe.recording.trace import Trace

_KINDS = ("word", "topic", "before", "noise")


@dataclass(frozen=True)
class PlantedFeature:
    """A direction that is added to the activations of some tokens.

    ``kind`` says which: tokens of id `target` (``word``), half of the tokens of topic `target` (``topic``), tokens behind
    the id `target` (``before``), or a twentieth of all tokens (``noise``).
    """

    kind: str
    target: int = 0


@dataclass(frozen=True)
class PlantedActivations:
    """A trace with the truth about its activations.

    Attributes
    ----------
    trace : Trace
        With ``hidden/layer_00`` (all tokens) and ``expert_output/layer_00`` (each slot: the expert's share of it).
    directions : ndarray of float32, shape (n_features, d_in)
        Unit rows.
    fires : ndarray of bool, shape (n_tokens, n_features)
    mean : ndarray of float32, shape (d_in,)
        What is added to all activations.
    """

    trace: Trace
    directions: np.ndarray
    fires: np.ndarray
    mean: np.ndarray


def planted_activations(
    path: str | Path,
    *,
    features: tuple[PlantedFeature, ...],
    d_in: int = 32,
    noise: float = 0.02,
    seed: int = 0,
    **settings: int | float,
) -> PlantedActivations:
    """Write a trace of one layer whose activations are sums of planted features, a mean and noise.

    Parameters
    ----------
    features : tuple of PlantedFeature
    d_in : int
    noise : float
        Standard deviation of each component; features have length 1 to 2.
    settings
        As `planted_routing` (documents, tokens, topics, vocabulary ...).

    Raises
    ------
    MoeProbeError
        When a kind is not known.
    """
    import torch

    from moe_probe.recording.trace import TraceWriter

    if any(f.kind not in _KINDS for f in features):
        raise MoeProbeError(f"{features} cannot be planted", "one kind is not known", f"kinds are {', '.join(_KINDS)}")
    routing = planted_routing(planted=(), seed=seed, **{"n_layers": 1, **settings})  # type: ignore[arg-type]
    rng = np.random.default_rng([seed, 3])
    topic = np.array([int(t.rsplit("-", 1)[1]) for t in routing.documents["topic"]])[routing.document]
    before = np.where(routing.position == 0, -1, np.roll(routing.token_id, 1))
    fires = np.stack(
        [
            {
                "word": routing.token_id == f.target,
                "before": before == f.target,
                "topic": (topic == f.target) & (rng.random(len(topic)) < 0.5),
                "noise": rng.random(len(topic)) < 0.05,
            }[f.kind]
            for f in features
        ],
        axis=1,
    )
    directions = rng.normal(size=(len(features), d_in))
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    strength, mean = fires * rng.uniform(1, 2, fires.shape), rng.normal(size=d_in)
    hidden = strength @ directions + mean + noise * rng.normal(size=(len(topic), d_in))
    shares = routing.weights[:, 0].astype(np.float64)
    manifest = Manifest(
        model=ModelInfo(id="planted", architecture="none: drawn at random"),
        kept=("routing", "hidden", "expert_outputs"),
        corpus=CorpusInfo(name="planted", n_documents=len(routing.documents)),
        layers=routing.layers,
        has_text=False,
        seed=seed,
    )
    writer = TraceWriter.create(path, manifest)
    pieces = np.array_split(np.arange(len(routing.documents)), 3)
    for piece in pieces:
        inside = np.isin(routing.document, piece)
        rows = torch.from_numpy(np.flatnonzero(inside))
        values = torch.from_numpy(hidden[inside]).to(torch.bfloat16)
        writer.append(
            documents=routing.documents.iloc[piece].drop(columns="n_tokens").to_dict("records"),
            tokens={
                "document": routing.document[inside] - piece[0],
                "position": routing.position[inside],
                "token_id": routing.token_id[inside],
                "token": [f" word{i}" for i in routing.token_id[inside]],
                "special": np.zeros(int(inside.sum()), dtype=bool),
            },
            experts=routing.experts[inside],
            weights=routing.weights[inside],
            extras={
                "hidden/layer_00": {"values": values, "rows": rows},
                "expert_output/layer_00": {
                    "rows": rows,
                    "values": torch.from_numpy(hidden[inside][:, None] * shares[inside][..., None]).to(torch.bfloat16),
                },
            },
        )
    return PlantedActivations(writer.seal(), directions.astype(np.float32), fires, mean.astype(np.float32))
