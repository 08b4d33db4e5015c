"""The stage `collect`: model and corpus in, trace out."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from typing_extensions import override

from moe_probe.core.errors import MoeProbeError, UsageError
from moe_probe.core.extras import need_corpus_extra
from moe_probe.core.files import check_output_folder
from moe_probe.core.lock import writing
from moe_probe.core.progress import Say
from moe_probe.core.stage import Stage, stage_key
from moe_probe.core.textfiles import expand
from moe_probe.core.workers.settings import IN_THIS_PROCESS, WorkerSettings
from moe_probe.models.settings import ModelSettings
from moe_probe.recording.collect.parts import Parts, check_no_parts
from moe_probe.recording.corpus import Corpus
from moe_probe.recording.settings import CollectOptions, CorpusSettings
from moe_probe.recording.trace import Trace


@dataclass(frozen=True)
class CollectStage(Stage):
    """Run the corpus through the model, and record its routing."""

    name = "collect"
    model: ModelSettings
    corpus: CorpusSettings
    options: CollectOptions
    #: Where it is done, which changes nothing of what comes out.
    workers: WorkerSettings = IN_THIS_PROCESS

    @override
    def settings(self) -> Any:
        return [self.model.content(), self.corpus.model_dump(), self.options.model_dump()]

    @override
    def key(self, root: Path) -> str:
        # not the version: a trace stays valid, and collecting is what costs most
        sources = [source_state(source) for source in (self.model.name, self.corpus.source)]
        return stage_key(self.name, self.settings(), sources)

    @override
    def run(self, root: Path, say: Say) -> list[Path]:
        # resuming a trace that is not there begins one, and one made from other inputs is refused
        self.collect(root / "trace", mode="resume", say=say)
        return [root / "trace" / "trace.json"]

    def collect(self, path: Path, *, mode: str, say: Say, shard: tuple[int, int] | None = None) -> Trace:
        """Load the model, prove that recording works, and collect the corpus into a trace.

        Parameters
        ----------
        path : Path
            Folder of the trace.
        mode : {"new", "resume", "force"}
            What to do with a trace that is there.
        say : callable
            Takes a sentence for the person at the terminal.
        shard : (int, int), optional
            Part of the corpus that is collected, counted from 0, and the number of parts; the whole by default.

        Returns
        -------
        Trace

        Raises
        ------
        MoeProbeError
            As `load_model`, `CheckReport.raise_if_failed`, `collect_trace` and `collect_with_ray` do.
        """
        with writing(path):
            return self._collect(path, mode, say, shard)

    def _collect(self, path: Path, mode: str, say: Say, shard: tuple[int, int] | None) -> Trace:
        need_corpus_extra(self.corpus.source)
        check_output_folder(path, mode)
        if mode == "force":
            Parts.of(path).check_removable()
        corpus = self.corpus.open()
        for note in corpus.summarize().notes:  # read to the end: whatever is wrong with it shows before the model loads
            say(f"note: {note}")
        trace = self._by_workers(path, mode, say, shard) if self.workers.ray else self._here(corpus, path, mode, say, shard)
        if trace.manifest.corpus.skipped_rows:
            say(f"note: {trace.manifest.corpus.skipped_rows} bad rows were left out")
        m = trace.manifest
        say(f"trace: {m.n_documents:,} documents, {trace.n_tokens:,} tokens, {len(trace.layers)} MoE layers")
        return trace

    def _here(self, corpus: Corpus, path: Path, mode: str, say: Say, shard: tuple[int, int] | None) -> Trace:
        from moe_probe.models import load_model, self_check
        from moe_probe.recording.collect import collect_trace

        check_no_parts(path, mode)
        say(f"loading {self.model.name}")
        loaded = load_model(self.model.name, **self.model.load_options())
        report = self_check(loaded)
        report.raise_if_failed()
        worst = max(site.relative_error for site in report.sites)
        say(f"checked: recording leaves outputs unchanged; recorded routing explains every block (error {worst:.1e})")
        return collect_trace(loaded, corpus, path, options=self.options, shard=shard, mode=mode, say=say)

    def _by_workers(self, path: Path, mode: str, say: Say, shard: tuple[int, int] | None) -> Trace:
        from moe_probe.recording.collect.ray_collect import CollectWork, collect_with_ray

        if shard is not None:
            raise UsageError(
                "--shard and --ray exclude each other", "workers share out the parts themselves", "one of the two"
            )
        if self.model.tp_plan is not None:
            raise UsageError(
                "--tp-plan and --ray exclude each other",
                "torchrun starts the processes of a split model",
                "--ray --gpus-per-worker 4 --device-map auto for models over several GPUs",
            )
        work = CollectWork(self.model, self.corpus, self.options)
        return collect_with_ray(work, self.workers, path, mode=mode, say=say)


def source_state(source: str) -> list[list[Any]] | None:
    """Names, sizes and times of a local file, folder or glob, which show whether it changed; None for a name on a hub."""
    path = Path(source).expanduser()
    if path.exists():
        files = [path] if path.is_file() else sorted(p for p in path.rglob("*") if p.is_file())
    else:
        try:
            files = list(expand(path).files)
        except MoeProbeError:
            return None
    return [[p.name, p.stat().st_size, p.stat().st_mtime_ns] for p in files]
