"""Small dictionaries below a feature: one where it fires, another where one of that one's features fires, and so on."""

from __future__ import annotations

import heapq
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from moe_probe.core.flops import sae_encode_flops, sae_train_flops
from moe_probe.core.progress import Bar

if TYPE_CHECKING:
    import torch

    from moe_probe.features.tree.options import DepthOptions
    from moe_probe.sae import Sae

#: Firing tokens, held out, from which on a latent counts as a child.
_MIN_FIRINGS = 8
#: A latent that fires on more than this share of its node's tokens says no more than the node does.
_EVERYWHERE = 0.9


class TokenFirings(NamedTuple):
    """All firings of a small dictionary; arrays are (n_firings,).

    Attributes
    ----------
    row : ndarray of int
        Token, as a row among those given to `grow`.
    latent : ndarray of int
    activation : ndarray of float32
        In the units of the dictionary, above 0.
    """

    row: np.ndarray
    latent: np.ndarray
    activation: np.ndarray


@dataclass(frozen=True)
class SmallDictionary:
    """A small dictionary below one feature.

    Attributes
    ----------
    path : tuple of int
        Latents from the root's dictionary down to this node; empty for the root.
    sae : Sae
    train, held_out : TokenFirings
    flops : float
        Operations of training it and of encoding the node's tokens with it.
    tokens : int
        Training tokens of the node.
    """

    path: tuple[int, ...]
    sae: Sae
    train: TokenFirings
    held_out: TokenFirings
    flops: float
    tokens: int


def grow(
    train: torch.Tensor, held_out: torch.Tensor, *, options: DepthOptions, base: dict[str, object]
) -> list[SmallDictionary]:
    """Train a small dictionary on some tokens, and again on the tokens of each of its latents, largest first.

    Parameters
    ----------
    train, held_out : Tensor, shape (n_tokens, d_in)
        Activations on the tokens where the root feature fires.
    options : DepthOptions
    base : dict
        Fields of `SaeConfig` that all dictionaries share (layer, hook, model).

    Returns
    -------
    list of SmallDictionary
        In the order in which they were trained, the root's first; empty where there are fewer than ``min_tokens`` tokens.
    """
    waiting: list[tuple[int, tuple[int, ...], np.ndarray, np.ndarray]] = [
        (-len(train), (), np.arange(len(train)), np.arange(len(held_out)))
    ]
    grown: list[SmallDictionary] = []
    with Bar("depth-first", total=options.most, unit="dictionaries at most") as bar:
        while waiting and len(grown) < options.most:
            _, path, rows, held_rows = heapq.heappop(waiting)
            if len(rows) < max(options.min_tokens, options.width) or len(held_rows) < _MIN_FIRINGS:
                continue
            sae = _trained(train[rows], options, base)
            firings, held_firings = _firings(sae, train, rows), _firings(sae, held_out, held_rows)
            flops = _flops(len(rows), train.shape[1], options)
            grown.append(SmallDictionary(path, sae, firings, held_firings, flops, len(rows)))
            bar.update()
            if len(path) + 1 >= options.depth:
                continue
            for latent in range(options.width):
                below = firings.row[firings.latent == latent]
                if len(below) <= _EVERYWHERE * len(rows):
                    held_below = held_firings.row[held_firings.latent == latent]
                    heapq.heappush(waiting, (-len(below), (*path, latent), below, held_below))
    return grown


def _flops(n_tokens: int, d_in: int, options: DepthOptions) -> float:
    """Count the operations of training a dictionary on a node's tokens, and of encoding them once."""
    train = sae_train_flops(d_in, options.width, options.k, batch_tokens=_batch(n_tokens))
    return n_tokens * (options.passes * train + sae_encode_flops(d_in, options.width))


def _batch(n_tokens: int) -> int:
    """Choose the tokens of a step: a node of few tokens needs small ones to take enough of them."""
    return int(min(2048, max(64, n_tokens // 16)))


def _trained(x: torch.Tensor, options: DepthOptions, base: dict[str, object]) -> Sae:
    import torch

    from moe_probe.sae import SaeConfig, TrainOptions, train_saes

    config = SaeConfig.model_validate(
        base | {"architecture": "topk", "d_in": x.shape[1], "d_sae": options.width, "k": options.k, "seed": options.seed}
    )
    size = _batch(len(x))
    generator = torch.Generator().manual_seed(options.seed)

    def batches() -> Iterator[torch.Tensor]:
        for _ in range(options.passes + 1):
            order = torch.randperm(len(x), generator=generator)
            for start in range(0, len(x) - size + 1, size):
                yield x[order[start : start + size]]

    steps = options.passes * (len(x) // size)
    training = TrainOptions(steps=steps, learning_rate=options.learning_rate, sample=min(len(x), 8192), device="cpu")
    return train_saes(batches(), [config], options=training)[0]


def _firings(sae: Sae, activations: torch.Tensor, rows: np.ndarray) -> TokenFirings:
    """Encode some rows of the activations."""
    import torch

    with torch.inference_mode():
        latents = sae.encode(activations[rows].float())
    token, slot = (latents.values > 0).nonzero(as_tuple=True)
    return TokenFirings(rows[token.numpy()], latents.indices[token, slot].numpy(), latents.values[token, slot].numpy())
