"""A dictionary of the tree: an SAE of a run, one trained again, or a nested part of a Matryoshka SAE."""

from __future__ import annotations

from collections.abc import Hashable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from moe_probe.features.firing import Firings, iter_firings
from moe_probe.features.matching.co_counts import MatrixUnits, TokenBlock
from moe_probe.features.matching.signals import ordered_firings
from moe_probe.features.tree.edges import Level

if TYPE_CHECKING:
    from scipy import sparse

    from moe_probe.features.firing_cache import FiringCache
    from moe_probe.sae import ActivationReader, Sae, SaeConfig, TrainingRecord


@dataclass(frozen=True)
class Dictionary:
    """An SAE of a run, or a nested part of one; its firings are encoded when they are asked for.

    Attributes
    ----------
    name : str
        Folder of its SAE below RUN/sae.
    width : int
        Latents of the SAE, or of a Matryoshka SAE's nested part up to this one.
    first : int
        Number of the first latent: those of a nested part begin where the part before ends.
    sae : Sae
    directions : ndarray of float, shape (n_features, d_in)
        Decoder rows.
    readers : tuple of ActivationReader
        Training and held-out activations.
    training : TrainingRecord
        What is recorded of its training.
    origin : SaeConfig
        Configuration as trained, which another seed needs as well: `sae` may be saved with a threshold in place of what chose
        its latents.
    kept : FiringCache
        Keeps firings for as long as they fit; others are encoded when they are asked for.
    keys : tuple of hashable
        Names of the firings on training and on held-out tokens in the cache; nested parts of one SAE have the same.
    """

    name: str
    width: int
    first: int
    sae: Sae
    directions: np.ndarray
    readers: tuple[ActivationReader, ActivationReader]
    training: TrainingRecord
    origin: SaeConfig
    kept: FiringCache
    keys: tuple[Hashable, Hashable]

    @property
    def train(self) -> Firings:
        """Firings on training tokens."""
        return self._of_part(self.firings_of_sae(0))

    @property
    def held_out(self) -> Firings:
        """Firings on held-out tokens."""
        return self._of_part(self.firings_of_sae(1))

    def firings_of_sae(self, part: int) -> Firings:
        """Encode, with the whole SAE, the training tokens (0) or the held-out ones (1)."""
        return self.kept.get(self.keys[part], lambda: ordered_firings(self.sae, self.readers[part]))

    def _of_part(self, firings: Firings) -> Firings:
        if not self.first and self.width == self.sae.config.d_sae:
            return firings
        return Firings(firings.matrix[:, self.first : self.width].tocsr(), firings.rows)

    @property
    def held_out_rows(self) -> np.ndarray:
        """Rows in the trace of the held-out tokens, increasing."""
        return np.sort(self.readers[1].rows)

    @cached_property
    def level(self) -> Level:
        """The dictionary on held-out tokens, as it is joined with others."""
        return Level(self.directions, HeldOutUnits(self))

    @property
    def layer(self) -> int:
        """MoE layer of the activations."""
        return self.sae.config.layer

    @property
    def imported(self) -> bool:
        """Whether the SAE was trained elsewhere."""
        return "loaded_from" in self.training

    @property
    def assumed(self) -> str:
        """A sentence on training options that were not recorded, so that defaults stand in; empty where all were."""
        values = [f"{name} {getattr(self.training.options, name):g}" for name in self.training.assumed]
        return f"{self.name} does not record how it was trained; assumed: {', '.join(values)}." if values else ""

    def retrain_with_seed(self, retrained: dict[str, Dictionary]) -> Dictionary:
        """Train the same dictionary from the next seed.

        Parameters
        ----------
        retrained : dict of str to Dictionary
            Remembers whole SAEs by name, so that a Matryoshka SAE is trained once for all its parts.

        Returns
        -------
        Dictionary
        """
        config = self.origin
        if self.name not in retrained:
            retrained[self.name] = self._train(config.model_copy(update={"seed": config.seed + 1}))
        whole = retrained[self.name]
        if not self.first and self.width == config.d_sae:
            return whole
        return next(part for part in nested_parts(whole) if part.width == self.width)

    def train_variant(self, width: int, *, k: int) -> Dictionary:
        """Train a TopK SAE of another width on the same activations.

        Parameters
        ----------
        width : int
            Latents.
        k : int
            Active latents per token.

        Returns
        -------
        Dictionary
        """
        change = {"architecture": "topk", "d_sae": width, "k": k, "nested": ()}
        return self._train(self.origin.model_copy(update=change))

    def _train(self, config: SaeConfig) -> Dictionary:
        from moe_probe.sae import train_on

        train, held_out = self.readers
        sae = train_on(train, [config], held_out=held_out, options=self.training.options)[0].sae.eval()
        return replace(
            self,
            name=f"{self.name} (trained again)",
            width=config.d_sae,
            first=0,
            sae=sae,
            directions=decoder_rows(sae),
            origin=config,
            keys=(object(), object()),
        )

    def all_firings(self) -> Firings:
        """Put the firings on training and held-out tokens together, in the order of the trace."""
        from scipy import sparse

        train, held_out = self.train, self.held_out
        rows = np.concatenate([train.rows, held_out.rows])
        order = np.argsort(rows, kind="stable")
        matrix = sparse.vstack([train.matrix, held_out.matrix], format="csr")[order]
        return Firings(matrix, rows[order])


@dataclass(frozen=True)
class HeldOutUnits:
    """The features of a dictionary as units of the held-out tokens; encoded shard by shard where its firings are not kept."""

    dictionary: Dictionary

    @property
    def shape(self) -> tuple[int, int]:
        """Tokens and features."""
        return self.dictionary.readers[1].n_tokens, len(self.dictionary.directions)

    def matrix(self) -> sparse.csr_array:
        """Return all firings."""
        return self.dictionary.held_out.matrix

    def blocks(self) -> Iterator[TokenBlock]:
        """Go through the tokens in the order of the trace."""
        dictionary = self.dictionary
        if dictionary.keys[1] in dictionary.kept:
            yield from MatrixUnits(self.matrix()).blocks()
            return
        start = 0
        for part in iter_firings(dictionary.sae, dictionary.readers[1]):
            matrix = part.matrix[:, dictionary.first : dictionary.width].tocsr()
            yield TokenBlock(start, matrix.indptr, matrix.indices)
            start += len(part.rows)


def decoder_rows(sae: Sae) -> np.ndarray:
    """Return the decoder rows of an SAE, shape (n_features, d_in)."""
    return np.asarray(sae.W_dec.detach().cpu().numpy())


def nested_parts(whole: Dictionary) -> Iterator[Dictionary]:
    """Yield every nested part that a Matryoshka SAE adds: what is new in it is joined with what came before."""
    from moe_probe.sae.architectures.matryoshka import nested_widths

    start = 0
    for width in nested_widths(whole.origin):
        yield replace(whole, width=width, first=start, directions=whole.directions[start:width])
        start = width
