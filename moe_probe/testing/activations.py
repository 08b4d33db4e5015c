"""Traces with activations of a known dictionary: features that fire on words, topics, after words, or at random."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from moe_probe.core.errors import MoeProbeError
from moe_probe.testing.planted import PlantedRouting, planted_routing
from moe_probe.testing.traces import planted_manifest, shard

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
    path : str or Path
        Folder that is made.
    features : tuple of PlantedFeature
    d_in : int
        Width of the activations.
    noise : float
        Standard deviation of each component; features have length 1 to 2.
    seed : int
        Seed of everything.
    **settings
        As `planted_routing` (documents, tokens, topics, vocabulary ...).

    Returns
    -------
    PlantedActivations

    Raises
    ------
    MoeProbeError
        When a kind is not known.
    """
    if any(f.kind not in _KINDS for f in features):
        raise MoeProbeError(f"{features} cannot be planted", "one kind is not known", f"kinds are {', '.join(_KINDS)}")
    routing = planted_routing(planted=(), seed=seed, **{"n_layers": 1, **settings})  # type: ignore[arg-type]
    rng = np.random.default_rng([seed, 3])
    fires = _fires(rng, routing, features)
    directions = rng.normal(size=(len(features), d_in))
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    strength, mean = fires * rng.uniform(1, 2, fires.shape), rng.normal(size=d_in)
    hidden = strength @ directions + mean + noise * rng.normal(size=(len(fires), d_in))
    trace = _write(path, routing, hidden, seed=seed)
    return PlantedActivations(trace, directions.astype(np.float32), fires, mean.astype(np.float32))


def _fires(rng: np.random.Generator, routing: PlantedRouting, features: tuple[PlantedFeature, ...]) -> np.ndarray:
    """Say where every feature fires, shape (n_tokens, n_features)."""
    topic = np.array([int(t.rsplit("-", 1)[1]) for t in routing.documents["topic"]])[routing.document]
    before = np.where(routing.position == 0, -1, np.roll(routing.token_id, 1))
    columns = [
        {
            "word": routing.token_id == f.target,
            "before": before == f.target,
            "topic": (topic == f.target) & (rng.random(len(topic)) < 0.5),
            "noise": rng.random(len(topic)) < 0.05,
        }[f.kind]
        for f in features
    ]
    return np.stack(columns, axis=1)


def _write(path: str | Path, routing: PlantedRouting, hidden: np.ndarray, *, seed: int) -> Trace:
    """Write routing with activations (n_tokens, d_in), and expert outputs that are shares of them, in three shards."""
    import torch

    from moe_probe.recording.trace import TraceWriter
    from moe_probe.recording.trace.sampled import SHARD_ROWS

    manifest = planted_manifest(routing, seed=seed, kept=("routing", "hidden", "expert_outputs"))
    writer = TraceWriter.create(path, manifest)
    shares = routing.weights[:, 0].astype(np.float64)
    for documents in np.array_split(np.arange(len(routing.documents)), 3):
        inside = np.isin(routing.document, documents)
        rows = torch.arange(int(inside.sum()))
        outputs = hidden[inside][:, None] * shares[inside][..., None]
        named = {"hidden/layer_00": hidden[inside], "expert_output/layer_00": outputs}
        writer.append(
            **shard(routing, documents, [f" word{i}" for i in routing.token_id[inside]]),
            extras={
                folder: {"values": torch.from_numpy(values).to(torch.bfloat16), SHARD_ROWS: rows}
                for folder, values in named.items()
            },
        )
    return writer.seal()
