"""SAEs of a run that can be joined: those of one layer and hook by width, and the nested parts of a Matryoshka SAE."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from moe_probe.core.progress import track
from moe_probe.features.firing_cache import OF_RUNS
from moe_probe.features.run_saes import RunSaes
from moe_probe.features.tree.dictionary import Dictionary, decoder_rows, nested_parts
from moe_probe.features.tree.edges import join

if TYPE_CHECKING:
    import pandas as pd

    from moe_probe.recording.rundir import RunDirectory
    from moe_probe.sae import ActivationReader, Sae


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


class SeedJoins(NamedTuple):
    """Joins with a narrower dictionary that was trained from another seed.

    Attributes
    ----------
    parents : JoinedPair
        From it to the wider dictionary of the run.
    same_width : JoinedPair
        From the run's narrower dictionary to it.
    """

    parents: JoinedPair
    same_width: JoinedPair

    @classmethod
    def of(cls, joined: JoinedPair, retrained: Dictionary) -> SeedJoins:
        """Join a dictionary of another seed with both of a pair.

        Parameters
        ----------
        joined : JoinedPair
        retrained : Dictionary
            As wide as the parent.

        Returns
        -------
        SeedJoins
        """
        return cls(JoinedPair.of(retrained, joined.child), JoinedPair.of(joined.parent, retrained))


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
        config, sae = item.sae.config, item.sae
        if config.experts is not None:
            continue
        origin, training = read_trained_config(item.folder) or config, read_training(item.folder)
        readers, keys = (item.train, item.held_out), (item.key("train"), item.key("held out"))
        whole = Dictionary(item.name, config.d_sae, 0, sae, decoder_rows(sae), readers, training, origin, OF_RUNS, keys)
        nested = len(nested_widths(origin)) > 1
        rungs = by_width.setdefault((config.layer, config.hook, item.name if nested else ""), {})
        for dictionary in nested_parts(whole) if nested else [whole]:
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
