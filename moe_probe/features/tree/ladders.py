"""Dictionaries of a run that can be joined: SAEs of one layer and hook by width, and the nested parts of a Matryoshka SAE."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from moe_probe.core.progress import track
from moe_probe.features.run_saes import RunSaes
from moe_probe.recording.rundir import RunDirectory

if TYPE_CHECKING:
    import numpy as np

    from moe_probe.features.firing import Firings
    from moe_probe.features.tree import Level
    from moe_probe.recording.trace import Trace
    from moe_probe.sae import ActivationReader, Sae, SaeConfig


class Place(NamedTuple):
    """One layer and hook, or one Matryoshka SAE."""

    layer: int
    hook: str
    sae: str = ""


@dataclass(frozen=True)
class Dictionary:
    """One level that can be joined with a finer one.

    Attributes
    ----------
    name : str
        Folder of its SAE below RUN/sae.
    width : int
        Latents of the SAE, or of a Matryoshka SAE's nested part up to this level.
    first : int
        Number of the level's first latent: those of a nested part begin where the part before ends.
    sae : Sae
    level : Level
        On held-out tokens.
    held_out, train : Firings
    readers : tuple of ActivationReader
        Training and held-out activations.
    told : dict
        What is known of its training.
    origin : SaeConfig
        As it was trained, which another seed has to be too: `sae` may be saved with a threshold in place of what chose latents.
    """

    name: str
    width: int
    first: int
    sae: Sae
    level: Level
    held_out: Firings
    train: Firings
    readers: tuple[ActivationReader, ActivationReader]
    told: dict[str, Any]
    origin: SaeConfig

    def again(self, made: dict[str, Dictionary]) -> Dictionary:
        """The same from another seed; a Matryoshka SAE is trained again once for all its parts, which `made` remembers."""
        config = self.origin
        if self.name not in made:
            made[self.name] = self._trained(config.model_copy(update={"seed": config.seed + 1}))
        other = made[self.name]
        if not self.first and self.width == config.d_sae:
            return other
        return next(d for d in _nested(other) if d.width == self.width)

    def like(self, width: int, *, k: int) -> Dictionary:
        """A TopK SAE of another width on the same activations."""
        change = {"architecture": "topk", "d_sae": width, "k": k, "nested": ()}
        return self._trained(self.origin.model_copy(update=change))

    def _trained(self, config: SaeConfig) -> Dictionary:
        from moe_probe.sae import TrainOptions, train_on

        options = TrainOptions(
            epochs=int(self.told.get("epochs", 4)),
            batch_tokens=int(self.told.get("batch_tokens", 2048)),
            learning_rate=float(self.told.get("learning_rate", 3e-3)),
        )
        train, held_out = self.readers
        made = train_on(train, [config], held_out=held_out, options=options)[0].sae.eval()
        return _plain(f"{self.name} (trained again)", made, train, held_out, self.told, config)

    def everywhere(self) -> Firings:
        """Firings on all documents."""
        import numpy as np
        from scipy import sparse

        from moe_probe.features.firing import Firings

        rows = np.concatenate([self.train.rows, self.held_out.rows])
        order = np.argsort(rows, kind="stable")
        matrix = sparse.vstack([self.train.matrix, self.held_out.matrix], format="csr")[order]
        return Firings(matrix, rows[order])


def places(run: Path, trace: Trace) -> Iterator[tuple[Place, list[Dictionary]]]:
    """Dictionaries that can be joined, from narrow to wide; places with one only are left out.

    Of several SAEs of one width the plain one (TopK, the run's seed) is taken, or the first.
    """
    from moe_probe.sae import read_trained_config, read_training
    from moe_probe.sae.architectures.matryoshka import nested_widths

    groups: dict[Place, dict[int, Dictionary]] = {}
    for item in track(RunSaes(RunDirectory(trace, run)), "read SAEs", unit="SAEs"):
        config = item.sae.config
        if config.experts is not None:
            continue
        origin = read_trained_config(item.folder) or config
        opened = _plain(item.name, item.sae, item.train, item.held_out, read_training(item.folder), origin)
        if len(nested_widths(origin)) > 1:
            mine = groups.setdefault(Place(config.layer, config.hook, item.name), {})
            mine.update({d.width: d for d in _nested(opened)})
        else:
            mine = groups.setdefault(Place(config.layer, config.hook), {})
            mine.setdefault(config.d_sae, opened)
    for place, levels in sorted(groups.items()):
        if len(levels) > 1:
            yield place, [levels[width] for width in sorted(levels)]


def activations(reader: ActivationReader, sae: Sae, rows: np.ndarray) -> np.ndarray:
    """Activations of some tokens, in the order of `rows` (rows of the trace, increasing), shape (n, d)."""
    import numpy as np

    from moe_probe.sae.activations import select

    out = np.empty((len(rows), reader.d_in), dtype=np.float32)
    for batch in reader.in_order():
        place = np.searchsorted(rows, batch.rows.numpy())
        place = np.minimum(place, max(len(rows) - 1, 0))
        mine = rows[place] == batch.rows.numpy()
        out[place[mine]] = select(batch, sae.config).float().numpy()[mine]
    return out


def _plain(
    name: str,
    sae: Sae,
    train: ActivationReader,
    held_out: ActivationReader,
    told: dict[str, Any],
    origin: SaeConfig,
) -> Dictionary:
    from moe_probe.features.matching.signals import fired
    from moe_probe.features.tree import Level

    found = fired(sae, held_out)
    return Dictionary(
        name,
        sae.config.d_sae,
        0,
        sae,
        Level(_rows(sae), found.matrix),
        found,
        fired(sae, train),
        (train, held_out),
        told,
        origin,
    )


def _nested(whole: Dictionary) -> Iterator[Dictionary]:
    """Every nested part that a Matryoshka SAE adds is a level: what is new in it hangs below what came before."""
    from moe_probe.features.firing import Firings
    from moe_probe.features.tree import Level
    from moe_probe.sae.architectures.matryoshka import nested_widths

    start = 0
    for width in nested_widths(whole.origin):
        part = slice(start, width)
        yield replace(
            whole,
            width=width,
            first=start,
            level=Level(whole.level.directions[part], whole.level.firings[:, part].tocsr()),
            held_out=Firings(whole.held_out.matrix[:, part].tocsr(), whole.held_out.rows),
            train=Firings(whole.train.matrix[:, part].tocsr(), whole.train.rows),
        )
        start = width


def _rows(sae: Sae) -> np.ndarray:
    return sae.W_dec.detach().cpu().numpy()
