"""Train the SAEs of a run with Ray: workers take one layer after the other, and end with the files of a single process."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

from moe_probe.core.lock import locked
from moe_probe.core.progress import Bar, Say
from moe_probe.core.workers.cluster import connected
from moe_probe.core.workers.plan import make_plan
from moe_probe.core.workers.pool import Pool, State
from moe_probe.core.workers.settings import WorkerSettings
from moe_probe.core.workers.work import Task, Work
from moe_probe.recording.rundir import RunDirectory
from moe_probe.sae.store import ending
from moe_probe.sae.training.layers import layers_of, train_layer, train_layers
from moe_probe.sae.training.request import TrainRequest


class TrainedLayer(NamedTuple):
    """Folders of a layer's SAEs, and what was said of them."""

    folders: list[Path]
    said: list[str]


class LayerWork(Work):
    """Train the SAEs of one layer.

    Parameters
    ----------
    root : Path
        Run directory.
    request : TrainRequest
    """

    def __init__(self, root: Path, request: TrainRequest) -> None:
        self.root, self.request = root, request

    def prepare(self) -> None:
        """Open the run: a machine that does not see it is refused.

        Raises
        ------
        MoeProbeError
        """
        RunDirectory.open(self.root)

    def do(self, given: int, *, again: bool) -> TrainedLayer:
        """Train a layer; after a loss from its last checkpoint.

        Parameters
        ----------
        given : int
            Layer.
        again : bool
            What a lost worker wrote is gone on with, also where the request says to start anew.

        Returns
        -------
        TrainedLayer
        """
        said: list[str] = []
        request = replace(self.request, mode="resume") if again else self.request
        return TrainedLayer(train_layer(RunDirectory.open(self.root), request, given, said.append), said)


@dataclass(frozen=True)
class _Shown:
    """Progress of the layers, and what was said of those that are done."""

    layers: list[int]
    bar: Bar
    say: Say
    shown: set[int]

    def __call__(self, state: State) -> None:
        for number in {*state.results} - self.shown:
            self.shown.add(number)
            for sentence in state.results[number].said:
                self.say(sentence)
        notes = [f"layer {self.layers[number]}: {note}" for number, (_, note) in sorted(state.running.items()) if note]
        self.bar.update(len(state.results) - self.bar.n, note="; ".join(notes))


@locked(lambda run, *_, **__: run.path)
def train_where(run: RunDirectory, request: TrainRequest, *, workers: WorkerSettings, say: Say) -> list[Path]:
    """Train SAEs as `train_layers` does, in this process or by Ray workers.

    Parameters
    ----------
    run : RunDirectory
    request : TrainRequest
    workers : WorkerSettings
    say : callable
        Called with a sentence on each SAE.

    Returns
    -------
    list of Path
        Folders of all SAEs asked for.

    Raises
    ------
    MoeProbeError
        As `train_layers`, `connected`, `make_plan` and `Pool.run` do. Layers that are done are kept.
    """
    if not workers.ray:
        return train_layers(run, request, say=say)
    layers, root = layers_of(run, request), run.path.absolute()
    folder = run.sae_folder.absolute() / "training"
    name = f"{request.settings.hook}{ending(request.settings.name)}"
    tasks = [Task(f"layer {layer}", folder / f"layer_{layer:02d}-{name}.lease", layer) for layer in layers]
    with connected(workers) as cluster, Bar("SAEs", total=len(layers), unit="layers") as bar:
        plan = make_plan(workers, cluster.nodes(), gpu=not request.device.startswith("cpu"), most=len(layers))
        say(f"{cluster.title}; {plan.describe()}")
        trained = Pool(cluster, plan, LayerWork(root, request), say=say).run(
            lambda _: tasks, _Shown(layers, bar, say, set())
        )
    with contextlib.suppress(OSError):  # checkpoints of another training lie there
        folder.rmdir()
    return [path for layer in trained for path in layer.folders]
