"""SAEs of a run that can be joined: those of one layer and hook by width, and the nested parts of a Matryoshka SAE."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from moe_probe.core.progress import track
from moe_probe.features.firing import Firings
from moe_probe.features.run_saes import RunSaes
from moe_probe.features.tree.edges import Level, join

if TYPE_CHECKING:
    import pandas as pd

    from moe_probe.recording.rundir import RunDirectory
    from moe_probe.sae import ActivationReader, Sae, SaeConfig, TrainingRecord


@dataclass(frozen=True)
class Dictionary:
    """An SAE of a run, or a nested part of one, with its firings.

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
    train, held_out : Firings
        On training and on held-out tokens.
    readers : tuple of ActivationReader
        Training and held-out activations.
    training : TrainingRecord
        What is recorded of its training.
    origin : SaeConfig
        Configuration as trained, which another seed needs as well: `sae` may be saved with a threshold in place of what chose
        its latents.
    """

    name: str
    width: int
    first: int
    sae: Sae
    directions: np.ndarray
    train: Firings
    held_out: Firings
    readers: tuple[ActivationReader, ActivationReader]
    training: TrainingRecord
    origin: SaeConfig

    @property
    def level(self) -> Level:
        """The dictionary on held-out tokens, as it is joined with others."""
        return Level(self.directions, self.held_out.matrix)

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
        return next(part for part in _nested(whole) if part.width == self.width)

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
        return _whole(f"{self.name} (trained again)", sae, self.readers, self.training, config)

    def all_firings(self) -> Firings:
        """Put the firings on training and held-out tokens together, in the order of the trace."""
        from scipy import sparse

        rows = np.concatenate([self.train.rows, self.held_out.rows])
        order = np.argsort(rows, kind="stable")
        matrix = sparse.vstack([self.train.matrix, self.held_out.matrix], format="csr")[order]
        return Firings(matrix, rows[order])


class SaeLadder(NamedTuple):
    """Dictionaries of one layer and hook, or of one Matryoshka SAE, from narrow to wide.

    Attributes
    ----------
    layer : int
    hook : str
        Activation site, as `SaeConfig`.
    sae : str
        Name of the Matryoshka SAE; "" where the dictionaries are SAEs of their own.
    dictionaries : sequence of Dictionary
        Two or more.
    """

    layer: int
    hook: str
    sae: str
    dictionaries: Sequence[Dictionary]


class JoinedPair(NamedTuple):
    """Two dictionaries and the edges from the narrower one's features to those of the wider one."""

    parent: Dictionary
    child: Dictionary
    edges: pd.DataFrame

    @classmethod
    def of(cls, parent: Dictionary, child: Dictionary) -> JoinedPair:
        """Join two dictionaries on held-out tokens.

        Parameters
        ----------
        parent, child : Dictionary
            The narrower and the wider one.

        Returns
        -------
        JoinedPair
        """
        return cls(parent, child, join(parent.level, child.level))

    @property
    def columns(self) -> dict[str, int]:
        """Columns by which result tables name the pair."""
        return {"layer": self.parent.layer, "parent_width": self.parent.width, "child_width": self.child.width}


def iter_sae_ladders(run: RunDirectory) -> Iterator[SaeLadder]:
    """Open the SAEs of a run as ladders; layers and hooks with a single width are left out.

    Of several SAEs of one width the plain one (TopK, the run's seed) is taken, or the first.

    Parameters
    ----------
    run : RunDirectory

    Yields
    ------
    SaeLadder
        By layer and hook.

    Raises
    ------
    MoeProbeError
        When there are no SAEs, or one does not fit the trace.
    """
    from moe_probe.sae import read_trained_config, read_training
    from moe_probe.sae.architectures.matryoshka import nested_widths

    by_width: dict[tuple[int, str, str], dict[int, Dictionary]] = {}
    for item in track(RunSaes(run), "read SAEs", unit="SAEs"):
        config = item.sae.config
        if config.experts is not None:
            continue
        origin = read_trained_config(item.folder) or config
        whole = _whole(item.name, item.sae, (item.train, item.held_out), read_training(item.folder), origin)
        nested = len(nested_widths(origin)) > 1
        rungs = by_width.setdefault((config.layer, config.hook, item.name if nested else ""), {})
        for dictionary in _nested(whole) if nested else [whole]:
            rungs.setdefault(dictionary.width, dictionary)
    for key, rungs in sorted(by_width.items()):
        if len(rungs) > 1:
            yield SaeLadder(*key, [rungs[width] for width in sorted(rungs)])


def read_activations(reader: ActivationReader, sae: Sae, rows: np.ndarray) -> np.ndarray:
    """Read the activations of some tokens.

    Parameters
    ----------
    reader : ActivationReader
        Of the part of the trace that holds the tokens.
    sae : Sae
        Says which activations it reads.
    rows : ndarray of int, shape (n,)
        Rows of the trace, increasing.

    Returns
    -------
    ndarray of float32, shape (n, d_in)
    """
    from moe_probe.sae.activations import select

    out = np.empty((len(rows), reader.d_in), dtype=np.float32)
    for batch in reader.in_order():
        at = np.minimum(np.searchsorted(rows, batch.rows.numpy()), max(len(rows) - 1, 0))
        wanted = rows[at] == batch.rows.numpy()
        out[at[wanted]] = select(batch, sae.config).float().numpy()[wanted]
    return out


def _whole(
    name: str,
    sae: Sae,
    readers: tuple[ActivationReader, ActivationReader],
    training: TrainingRecord,
    origin: SaeConfig,
) -> Dictionary:
    from moe_probe.features.matching.signals import ordered_firings

    directions = sae.W_dec.detach().cpu().numpy()
    held_out, train = ordered_firings(sae, readers[1]), ordered_firings(sae, readers[0])
    return Dictionary(name, sae.config.d_sae, 0, sae, directions, train, held_out, readers, training, origin)


def _nested(whole: Dictionary) -> Iterator[Dictionary]:
    """Yield every nested part that a Matryoshka SAE adds: what is new in it is joined with what came before."""
    from moe_probe.sae.architectures.matryoshka import nested_widths

    start = 0
    for width in nested_widths(whole.origin):
        part = slice(start, width)
        train, held_out = (Firings(f.matrix[:, part].tocsr(), f.rows) for f in (whole.train, whole.held_out))
        yield replace(whole, width=width, first=start, directions=whole.directions[part], train=train, held_out=held_out)
        start = width
