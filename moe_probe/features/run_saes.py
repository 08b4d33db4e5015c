"""The SAEs of a run, opened one at a time, and the firings of those opened last."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from moe_probe.features.firing import SplitFirings, fire
from moe_probe.sae.held_out import held_out_documents
from moe_probe.sae.store import readers, saes_of

if TYPE_CHECKING:
    import numpy as np

    from moe_probe.recording.rundir import RunDirectory
    from moe_probe.sae import ActivationReader, Sae


@dataclass(frozen=True)
class OpenSae:
    """An SAE of a run with its activations and the documents held out from it.

    Attributes
    ----------
    name : str
        ``layer_NN/width_WWWWW``, its folder below RUN/sae.
    folder : Path
    sae : Sae
    train, held_out : ActivationReader
        Activations of training and of held-out documents.
    held_out_documents : ndarray of bool, shape (n_documents,)
    """

    name: str
    folder: Path
    sae: Sae
    train: ActivationReader
    held_out: ActivationReader
    held_out_documents: np.ndarray


class RunSaes:
    """The SAEs of a run; iterating opens them one after the other.

    Analyses that follow one another share the firings when they are given the same object.

    Parameters
    ----------
    run : RunDirectory
    memory_bytes : int
        What the firings kept may take; the oldest are dropped first.

    Raises
    ------
    MoeProbeError
        When the run has no SAEs; while iterating, when one does not fit the trace.
    """

    def __init__(self, run: RunDirectory, *, memory_bytes: int = 2**29) -> None:
        self.run, self.folders = run, saes_of(run.path)
        self._memory_bytes = memory_bytes
        self._firings: dict[tuple[str, int], SplitFirings] = {}

    def __len__(self) -> int:
        """Count the SAEs."""
        return len(self.folders)

    def __iter__(self) -> Iterator[OpenSae]:
        """Open the SAEs."""
        from moe_probe.sae import load_sae, read_training

        for folder in self.folders:
            sae = load_sae(folder)
            held_out = held_out_documents(self.run, seed=int(read_training(folder).get("held_out_seed", 0)))
            name = f"{folder.parent.name}/{folder.name}"
            yield OpenSae(name, folder, sae, *readers(self.run, sae, held_out), held_out)

    def firings(self, item: OpenSae) -> SplitFirings:
        """Encode the training and held-out documents of an SAE, or return the firings kept from the last time."""
        key = item.name, (item.folder / "sae_weights.safetensors").stat().st_mtime_ns
        if key not in self._firings:
            firings = SplitFirings(fire(item.sae, item.train), fire(item.sae, item.held_out))
            if firings.nbytes > self._memory_bytes:
                return firings
            while self._firings and firings.nbytes + sum(f.nbytes for f in self._firings.values()) > self._memory_bytes:
                self._firings.pop(next(iter(self._firings)))
            self._firings[key] = firings
        return self._firings[key]
