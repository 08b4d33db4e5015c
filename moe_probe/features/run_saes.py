"""The SAEs of a run, opened one at a time, and the firings of those opened last."""

from __future__ import annotations

from collections.abc import Hashable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from moe_probe.features.firing import SplitFirings, fire
from moe_probe.features.firing_cache import OF_RUNS, FiringCache
from moe_probe.recording.trace.files import CHECKSUM
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

    def key(self, part: str) -> Hashable:
        """Name the firings on a part of the documents: the files that they come from, as they are now."""
        trace = self.train.trace.root / CHECKSUM
        files = self.folder / "sae_weights.safetensors", trace
        changed = tuple((str(path.resolve()), path.stat().st_mtime_ns) for path in files)
        return changed, self.held_out_documents.tobytes(), part


class RunSaes:
    """The SAEs of a run; iterating opens them one after the other.

    Analyses that follow one another in one process share the firings, as far as these fit in memory.

    Parameters
    ----------
    run : RunDirectory
    memory_bytes : int, optional
        What the firings kept may take; by default they are kept for all that opens SAEs of the same run.

    Raises
    ------
    MoeProbeError
        When the run has no SAEs; while iterating, when one does not fit the trace.
    """

    def __init__(self, run: RunDirectory, *, memory_bytes: int | None = None) -> None:
        self.run, self.folders = run, saes_of(run.path)
        self._firings = OF_RUNS if memory_bytes is None else FiringCache(memory_bytes)

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
        train, held_out = item.key("train"), item.key("held out")
        return SplitFirings(
            self._firings.get(train, lambda: fire(item.sae, item.train)),
            self._firings.get(held_out, lambda: fire(item.sae, item.held_out)),
        )
