"""Depth first: a small dictionary only where a feature fires, another where one of its features fires, and so on."""

from __future__ import annotations

import heapq
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from moe_probe.core.flops import sae_encode_flops, sae_train_flops
from moe_probe.core.progress import Say, silent

if TYPE_CHECKING:
    import torch

    from moe_probe.sae import Sae

#: Firing tokens, held out, from which on a latent counts as a child.
_MIN_FIRINGS = 8
#: A latent that fires on more than this share of its node's tokens says no more than the node does.
_EVERYWHERE = 0.9


@dataclass(frozen=True)
class DepthOptions:
    """How to go down.

    Attributes
    ----------
    width, k : int
        Latents of every small dictionary, and active ones a token.
    depth : int
        Levels below the root.
    min_tokens : int
        Training tokens below which a node is left as it is: 20 a latent by default.
    most : int
        Dictionaries in all; the features with most tokens come first.
    passes : int
        Passes over a node's tokens.
    learning_rate : float
    seed : int
    """

    width: int = 32
    k: int = 4
    depth: int = 3
    min_tokens: int = 640
    most: int = 24
    passes: int = 8
    learning_rate: float = 3e-3
    seed: int = 0


@dataclass(frozen=True)
class Grown:
    """A small dictionary below one feature.

    Attributes
    ----------
    path : tuple of int
        Latents from the root's dictionary down to this node; empty for the root.
    sae : Sae
    train, held_out : tuple of ndarray
        All firings: row (among those given to `grow`), latent and activation.
    flops : float
        Of training it and of encoding the node's tokens with it.
    tokens : int
        Training tokens of the node.
    """

    path: tuple[int, ...]
    sae: Sae
    train: tuple[np.ndarray, np.ndarray, np.ndarray]
    held_out: tuple[np.ndarray, np.ndarray, np.ndarray]
    flops: float
    tokens: int


def grow(
    train: torch.Tensor,
    held_out: torch.Tensor,
    *,
    options: DepthOptions,
    base: dict[str, object],
    say: Say = silent,
) -> list[Grown]:
    """Train a small dictionary on some tokens, and again on the tokens of each of its latents, largest first.

    Parameters
    ----------
    train, held_out : Tensor, shape (n_tokens, d)
        Activations on the tokens where the root feature fires.
    options : DepthOptions
    base : dict
        Fields of `SaeConfig` that all dictionaries share (layer, hook, model).

    Returns
    -------
    list of Grown
        In the order in which they were trained, the root's first; empty where there are fewer than ``min_tokens`` tokens.
    """
    waiting: list[tuple[int, tuple[int, ...], np.ndarray, np.ndarray]] = [
        (-len(train), (), np.arange(len(train)), np.arange(len(held_out)))
    ]
    found: list[Grown] = []
    while waiting and len(found) < options.most:
        _, path, rows, held_rows = heapq.heappop(waiting)
        if len(rows) < max(options.min_tokens, options.width) or len(held_rows) < _MIN_FIRINGS:
            continue
        node = _grown(train, held_out, rows, held_rows, path, options, base)
        found.append(node)
        say(f"depth first: {'root' if not path else 'latent ' + '/'.join(map(str, path))}, {len(rows):,} tokens")
        if len(path) + 1 >= options.depth:
            continue
        (row, latent, _), (held_row, held_latent, _) = node.train, node.held_out
        for child in range(options.width):
            mine = row[latent == child]
            if len(mine) <= _EVERYWHERE * len(rows):
                heapq.heappush(waiting, (-len(mine), (*path, child), mine, held_row[held_latent == child]))
    return found


def _grown(
    train: torch.Tensor,
    held_out: torch.Tensor,
    rows: np.ndarray,
    held_rows: np.ndarray,
    path: tuple[int, ...],
    options: DepthOptions,
    base: dict[str, object],
) -> Grown:
    sae = _trained(train[rows], options, base)
    d = train.shape[1]
    flops = len(rows) * (
        options.passes * sae_train_flops(d, options.width, options.k, batch_tokens=_batch(len(rows)))
        + sae_encode_flops(d, options.width)
    )
    return Grown(path, sae, _firing(sae, train[rows], rows), _firing(sae, held_out[held_rows], held_rows), flops, len(rows))


def _batch(n: int) -> int:
    """Tokens of a step: a node of few tokens needs small ones to take enough of them."""
    return int(min(2048, max(64, n // 16)))


def _trained(x: torch.Tensor, options: DepthOptions, base: dict[str, object]) -> Sae:
    import torch

    from moe_probe.sae import SaeConfig, TrainOptions, train_saes

    config = SaeConfig.model_validate(
        base | {"architecture": "topk", "d_in": x.shape[1], "d_sae": options.width, "k": options.k, "seed": options.seed}
    )
    size = _batch(len(x))
    steps = options.passes * (len(x) // size)
    generator = torch.Generator().manual_seed(options.seed)

    def batches() -> object:
        for _ in range(options.passes + 1):
            order = torch.randperm(len(x), generator=generator)
            for start in range(0, len(x) - size + 1, size):
                yield x[order[start : start + size]]

    told = TrainOptions(steps=steps, learning_rate=options.learning_rate, sample=min(len(x), 8192), device="cpu")
    return train_saes(batches(), [config], options=told)[0]  # type: ignore[arg-type]


def _firing(sae: Sae, x: torch.Tensor, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Rows, latents and activations of all firings."""
    import torch

    with torch.inference_mode():
        latents = sae.encode(x.float())
    token, slot = (latents.values > 0).nonzero(as_tuple=True)
    return rows[token.numpy()], latents.indices[token, slot].numpy(), latents.values[token, slot].numpy()
