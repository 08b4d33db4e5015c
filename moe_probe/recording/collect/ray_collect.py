"""Collecting with Ray: workers hold the model and collect parts of the corpus, which are joined to one trace at the end."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from moe_probe.core.errors import MoeProbeError
from moe_probe.core.files import check_output_folder, disk_errors
from moe_probe.core.lock import writing
from moe_probe.core.own_files import TRACE_FILES
from moe_probe.core.progress import Bar, Say
from moe_probe.core.schema import MANIFEST
from moe_probe.core.workers.cluster import connected
from moe_probe.core.workers.plan import make_plan
from moe_probe.core.workers.pool import Pool, State
from moe_probe.core.workers.work import Task, Work
from moe_probe.models.settings import ModelSettings
from moe_probe.recording.collect.parts import Parts
from moe_probe.recording.settings import CollectOptions, CorpusSettings
from moe_probe.recording.trace.files import read_manifest
from moe_probe.recording.trace.merge import merge_traces
from moe_probe.recording.trace.reader import Trace

if TYPE_CHECKING:
    from moe_probe.core.workers.settings import WorkerSettings
    from moe_probe.models import LoadedModel
    from moe_probe.recording.collect.collect import Cut
    from moe_probe.recording.corpus import Corpus

#: Parts for each worker: a lost one costs little, and the last ones end at about the same time.
_PARTS_A_WORKER = 4


class Prepared(NamedTuple):
    """What a worker tells when it is ready: size of the corpus, and the error of the self-check."""

    n_documents: int
    cut: Cut
    error: float


class Given(NamedTuple):
    """A part to collect: its folder, which one it is, and the tokens of a batch, which must not depend on the worker."""

    path: Path
    part: tuple[int, int] | None = None
    batch_tokens: int = 0


class Collected(NamedTuple):
    """A part that is done, and what was said of it."""

    n_documents: int
    n_tokens: int
    said: tuple[str, ...]


class CollectWork(Work):
    """Collect parts of a corpus.

    Parameters
    ----------
    model : ModelSettings
    corpus : CorpusSettings
    options : CollectOptions
    """

    #: Where parts are written; none where a trace that is there is only checked.
    parts: Parts | None = None

    def __init__(self, model: ModelSettings, corpus: CorpusSettings, options: CollectOptions) -> None:
        self.model, self.corpus, self.options = model, corpus, options
        self._loaded: LoadedModel
        self._opened: Corpus

    def prepare(self) -> Prepared:
        """Load the model, and prove that recording works.

        Returns
        -------
        Prepared

        Raises
        ------
        MoeProbeError
            As `load_model` and `CheckReport.raise_if_failed` do; or when this machine does not see the folder of parts.
        """
        from moe_probe.models import load_model, self_check
        from moe_probe.recording.collect.collect import cut_of

        if self.parts is not None:
            self.parts.check_seen()
        self._opened = self.corpus.open()
        self._loaded = load_model(self.model.name, **self.model.load_options())
        report = self_check(self._loaded)
        report.raise_if_failed()
        cut = cut_of(self._loaded, self._opened, self.options)
        return Prepared(self._opened.summarize().n_documents, cut, max(site.relative_error for site in report.sites))

    def do(self, given: Given, *, again: bool) -> Collected:  # noqa: ARG002
        """Collect a part, or go on with it: whole shards are kept, whoever wrote them.

        Parameters
        ----------
        given : Given
        again : bool
            Makes no difference.

        Returns
        -------
        Collected
        """
        from moe_probe.recording.collect.collect import collect_under_lock

        said: list[str] = []
        path, part, batch_tokens = given
        options = self.options.model_copy(update={"batch_tokens": batch_tokens or self.options.batch_tokens})
        # the driver has the lock of the trace; the lease of the part says which worker writes it
        more: dict[str, Any] = {"options": options, "shard": part, "mode": "resume", "say": said.append}
        trace = collect_under_lock(self._loaded, self._opened, path, **more)
        return Collected(trace.manifest.n_documents, trace.manifest.n_tokens, tuple(said))


def collect_with_ray(work: CollectWork, workers: WorkerSettings, path: Path, *, mode: str, say: Say) -> Trace:
    """Collect a corpus in parts, and join them; parts of an earlier call are gone on with.

    Parameters
    ----------
    work : CollectWork
    workers : WorkerSettings
    path : Path
        Folder of the trace.
    mode : {"new", "resume", "force"}
        What to do with a trace or parts that are there.
    say : callable
        Takes a sentence for the person at the terminal.

    Returns
    -------
    Trace
        Sealed; equal to one that a single process collects.

    Raises
    ------
    MoeProbeError
        As `connected`, `make_plan`, `Pool.run`, `collect_trace` and `merge_traces` do; or when a trace was begun in one
        process, parts are there and `mode` is "new", or another process writes to the folder. Whole shards are kept in
        every case.
    """
    with writing(path):
        return _collect(work, workers, path, mode=mode, say=say)


def _collect(work: CollectWork, workers: WorkerSettings, path: Path, *, mode: str, say: Say) -> Trace:
    parts = Parts.of(path)
    _clear(parts, path, mode)
    with connected(workers) as cluster:
        plan = make_plan(workers, cluster.nodes(), gpu=not work.model.device.startswith("cpu"))
        say(f"{cluster.title}; {plan.describe()}")
        if parts.exist or not (path / MANIFEST).exists():
            work.parts = parts = parts.begin()
        job = _Job(parts, path.absolute(), plan.n_workers, say)
        with Bar("collect", unit="documents") as bar:
            job.bar = bar
            Pool(cluster, plan, work, say=say).run(job.tasks, job.show)
    if parts.exist:
        say(f"joining {job.n_parts} parts")
        merge_traces([parts.folder(i, job.n_parts) for i in range(job.n_parts)], path, mode="resume")
        parts.remove()
    return Trace.open(path)


def _clear(parts: Parts, path: Path, mode: str) -> None:
    """Remove what is to be made anew, and refuse what cannot be gone on with."""
    check_output_folder(path, mode)
    if mode == "force":
        parts.remove()
        with disk_errors(path):
            TRACE_FILES.remove(path)
    elif mode == "new" and parts.exist:
        raise MoeProbeError(
            f"{parts.root} has parts of a trace", "refusing to overwrite", "--resume to go on with them, or --force"
        )
    elif parts.exist and _is_sealed(path):
        parts.remove()  # they were joined, and the driver was killed while it removed them
    elif not parts.exist and (path / MANIFEST).exists() and not _is_sealed(path):
        raise MoeProbeError(
            f"{path} was begun without --ray",
            "its shards are no parts that workers could go on with",
            "--resume without --ray, or --force to start over",
        )


def _is_sealed(path: Path) -> bool:
    return (path / MANIFEST).exists() and read_manifest(path).status == "sealed"


@dataclass
class _Job:
    """The parts of one trace, and their progress."""

    parts: Parts
    path: Path
    n_workers: int
    say: Say
    n_parts: int = 0
    bar: Bar | None = None
    shown: set[int] = field(default_factory=set)

    def tasks(self, prepared: Prepared) -> Sequence[Task]:
        """List the parts, sealed ones too: their worker finds out whether they belong to this model and corpus."""
        self.say(
            f"checked: recording leaves outputs unchanged; recorded routing explains every block (error {prepared.error:.1e})"
        )
        if self.bar is not None:
            self.bar.update(0, total=prepared.n_documents)
        if not self.parts.exist:  # sealed: nothing to do, unless it is of another model or corpus
            return [Task("the trace", self.path.with_name(f"{self.path.name}.lease"), Given(self.path))]
        n_parts = min(prepared.cut.n_blocks, _PARTS_A_WORKER * self.n_workers)
        n, batch_tokens = self.parts.settle(n_parts, prepared.cut.batch_tokens)
        self.n_parts = n
        return [
            Task(f"part {i} of {n}", self.parts.lease(i, n), Given(self.parts.folder(i, n), (i, n), batch_tokens))
            for i in range(n)
        ]

    def show(self, state: State) -> None:
        """Show documents, parts and tokens that are done."""
        if self.bar is None:
            return
        for number in {*state.results} - self.shown:
            self.shown.add(number)
            for sentence in state.results[number].said:
                self.say(f"part {number}: {sentence}")
        n_tokens = sum(part.n_tokens for part in state.results.values())
        n_documents = sum(part.n_documents for part in state.results.values()) + sum(n for n, _ in state.running.values())
        ready = f"{state.n_ready} of {self.n_workers} workers"
        note = f"{len(state.results)} of {self.n_parts} parts, {n_tokens:,} tokens" if self.n_parts else "loading the model"
        self.bar.update(n_documents - self.bar.n, note=f"{note}, {ready}")
