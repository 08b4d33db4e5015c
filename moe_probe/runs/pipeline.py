"""Model and corpus in, report out."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from moe_probe.core.errors import MoeProbeError
from moe_probe.core.extras import need_corpus_extra
from moe_probe.core.files import OutputKind, check_output_folder, disk_errors, sha256_file
from moe_probe.core.progress import Say, silent
from moe_probe.core.results import Result
from moe_probe.recording.corpus import Columns, Corpus
from moe_probe.recording.trace import Trace
from moe_probe.runs.config import RunConfig, check_labels, dump_config
from moe_probe.runs.ledger import Ledger, source_state, stage_key
from moe_probe.studies.analyses import Settings, analyze

if TYPE_CHECKING:
    from moe_probe.models import LoadedModel
    from moe_probe.sae.training.request import TrainRequest

#: Everything a run writes at its top level; --force removes these and nothing else.
WRITTEN = ("run.yaml", "trace", "sae", "results", "figures", "report.html", "report.md", "logs")
_COLLECT = (
    "model", "revision", "dtype", "device", "experts_implementation", "trust_remote_code", "corpus", "id_column",
    "text_column", "topic_column", "subtopic_column", "group_column", "split_column", "label", "skip_bad", "limit",
    "dataset_config", "dataset_split", "hidden_share", "max_length", "overlap", "batch_tokens",
    "shard_tokens", "no_text", "seed",
)


@dataclass(frozen=True)
class RunOutcome:
    """Where a run's products lie, and which stages had nothing to do."""

    root: Path
    report: Path
    skipped: tuple[str, ...]


def open_corpus(config: RunConfig) -> Corpus:
    """The corpus that the settings name."""
    columns = Columns(id=config.id_column, text=config.text_column, topic=config.topic_column,
                      subtopic=config.subtopic_column, group=config.group_column, split=config.split_column,
                      labels=config.label)
    return Corpus(config.corpus, columns=columns, skip_bad=config.skip_bad, limit=config.limit,
                  name=config.dataset_config, split=config.dataset_split)


def run(config: RunConfig, out: str | Path, *, mode: str = "new", say: Say = silent,
        progress: bool = False) -> RunOutcome:
    """Collect, analyse, train and label SAEs where the settings ask for them, and report.

    Parameters
    ----------
    out : str or Path
        Run directory.
    mode : {"new", "resume", "force"}
        Refuse a folder that holds anything; go on, skipping stages whose inputs and parameters are
        unchanged; or remove what an earlier run wrote and start over.

    Returns
    -------
    RunOutcome

    Raises
    ------
    MoeProbeError
        In one sentence, whatever stage it comes from; earlier stages stay and are not repeated.
    """
    root = Path(out)
    check_labels(config)
    need_corpus_extra(config.corpus)
    _prepare(root, mode)
    with disk_errors(root):
        root.mkdir(parents=True, exist_ok=True)
        dump_config(config, root / "run.yaml")
    ledger = Ledger(root)
    skipped = []
    stages: tuple[tuple[str, Callable[[], list[Path]], Callable[[], str]], ...] = (
        ("collect", lambda: _collect(config, root, say=say, progress=progress), lambda: _collect_key(config)),
        ("analyze", lambda: _analyze(config, root, say=say), lambda: _analyze_key(config, root)),
        ("sae", lambda: _train_saes(config, root, say=say, progress=progress), lambda: _sae_key(config, root)),
        ("features", lambda: _features(config, root, say=say), lambda: _features_key(config, root)),
        ("match", lambda: _match(config, root, say=say), lambda: _match_key(config, root)),
        ("tree", lambda: _tree(config, root, say=say), lambda: _tree_key(config, root)),
        ("ablate", lambda: _ablate(config, root, say=say), lambda: _ablate_key(config, root)),
        ("cost", lambda: _cost(config, root, say=say), lambda: _cost_key(config, root)),
        ("report", lambda: _report(root), lambda: _report_key(root)),
    )
    for name, work, key_of in stages:
        if not _wanted(name, config):
            continue
        key = key_of()
        if ledger.is_done(name, key):
            skipped.append(name)
            say(f"{name}: unchanged, skipped")
            continue
        started = time.monotonic()
        files = work()
        seconds = time.monotonic() - started
        with disk_errors(root):
            ledger.record(name, key, files, seconds=seconds)
        say(f"{name}: done in {seconds:.1f} s")
    return RunOutcome(root, root / "report.html", tuple(skipped))


def _wanted(stage: str, config: RunConfig) -> bool:
    """Whether the settings ask for a stage."""
    if stage in ("sae", "features", "match"):
        return bool(config.sae_widths)
    if stage == "tree":
        levels = len(set(config.sae_widths)) > 1 or (bool(config.sae_widths) and config.sae_architecture == "matryoshka")
        return levels and (config.tree or config.depth_first)
    return stage != "ablate" or bool(config.ablate)


def _prepare(root: Path, mode: str) -> None:
    check_output_folder(root, mode, OutputKind("a run", "run.yaml"))
    with disk_errors(root):
        if mode == "force":
            for name in WRITTEN:
                path = root / name
                if path.is_dir():
                    shutil.rmtree(path)
                else:
                    path.unlink(missing_ok=True)


def _collect_key(config: RunConfig) -> str:
    settings = {name: getattr(config, name) for name in _COLLECT}
    settings |= {"keep": config.kept(), "hidden_layers": config.kept_layers()}
    return stage_key("collect", settings, source_state(config.model), source_state(config.corpus))


def collect_as_configured(config: RunConfig, path: str | Path, *, mode: str, say: Say,
                  progress: bool) -> Trace:
    """Load the model, prove that recording works, and collect the corpus into a trace.

    Raises
    ------
    MoeProbeError
        As `load_model`, `CheckReport.raise_if_failed` and `collect_trace` do.
    """
    from moe_probe.models import load_model, self_check
    from moe_probe.recording.collect import CollectOptions, collect_trace

    options = CollectOptions(
        keep=config.kept(), hidden_share=config.hidden_share, hidden_layers=config.kept_layers(),
        max_length=config.max_length, overlap=config.overlap,
        batch_tokens=config.batch_tokens, shard_tokens=config.shard_tokens, text=not config.no_text, seed=config.seed)
    need_corpus_extra(config.corpus)
    check_output_folder(Path(path), mode)
    corpus = open_corpus(config)
    for note in corpus.summarize().notes:  # read to the end: whatever is wrong with it is noticed before the model loads
        say(f"note: {note}")
    say(f"loading {config.model}")
    loaded = load_model(config.model, revision=config.revision, dtype=config.dtype, device=config.device,
                        trust_remote_code=config.trust_remote_code,
                        experts_implementation=config.experts_implementation, progress=progress)
    report = self_check(loaded)
    report.raise_if_failed()
    worst = max(site.relative_error for site in report.sites)
    say(f"checked: outputs unchanged by recording; recorded routing explains every block (error {worst:.1e})")
    trace = collect_trace(loaded, corpus, path, options=options, mode=mode, progress=progress)
    if trace.manifest.corpus.skipped_rows:
        say(f"note: {trace.manifest.corpus.skipped_rows} bad rows were left out")
    say(f"trace: {trace.manifest.n_documents:,} documents, {trace.n_tokens:,} tokens, {len(trace.layers)} MoE layers")
    return trace


def _collect(config: RunConfig, root: Path, *, say: Say, progress: bool) -> list[Path]:
    # resuming a trace that is not there begins one, and one made from other inputs is refused
    collect_as_configured(config, root / "trace", mode="resume", say=say, progress=progress)
    return [root / "trace" / "trace.json"]


def _settings(config: RunConfig) -> Settings:
    return Settings(by=config.by, strata=config.strata, permutations=config.permutations, alpha=config.alpha,
                    seed=config.seed, model=config.model, revision=config.revision, dtype=config.dtype,
                    trust_remote_code=config.trust_remote_code)


def _analyze_key(config: RunConfig, root: Path) -> str:
    from moe_probe import __version__

    return stage_key("analyze", __version__, vars(_settings(config)), sha256_file(root / "trace" / "trace.json"))


def _analyze(config: RunConfig, root: Path, *, say: Say) -> list[Path]:
    results = analyze(Trace.open(root), root / "results", settings=_settings(config), say=say)
    if "usage_verdicts" in results:
        from moe_probe.studies.ablation.ablate import update_verdicts

        update_verdicts(root)
    # what features and causes add to the verdicts later is no damage to this stage
    return _result_files(root, [name for name in results if name != "verdicts"])


def _sae_request(config: RunConfig) -> TrainRequest:
    from moe_probe.sae.settings import SaeSettings
    from moe_probe.sae.training.request import TrainRequest

    settings = SaeSettings(layers=config.sae_layers, widths=config.sae_widths, architecture=config.sae_architecture,
                           k=config.sae_k, hook=config.sae_hook, epochs=config.sae_epochs)
    return TrainRequest(settings, seed=config.seed, device=config.device, mode="resume")


def _sae_key(config: RunConfig, root: Path) -> str:
    from moe_probe import __version__

    request = _sae_request(config)
    made = [request.settings.model_dump(), request.seed, request.device]
    return stage_key("sae", __version__, made, sha256_file(root / "trace" / "trace.json"))


def _train_saes(config: RunConfig, root: Path, *, say: Say, progress: bool) -> list[Path]:
    from moe_probe.core.progress import showing
    from moe_probe.recording.rundir import RunDirectory
    from moe_probe.sae.training.layers import train_layers

    with showing(progress):
        folders = train_layers(RunDirectory.open(root), _sae_request(config), say=say)
    return [folder / name for folder in folders for name in ("cfg.json", "sae_weights.safetensors")]


def _features_key(config: RunConfig, root: Path) -> str:
    return stage_key("features", _analyze_key(config, root), [[p.parent.name, sha256_file(p)] for p in _sae_files(root)])


def _sae_files(root: Path) -> list[Path]:
    from moe_probe.sae.store import saes_of

    return [folder / "cfg.json" for folder in saes_of(root)]


def _features(config: RunConfig, root: Path, *, say: Say) -> list[Path]:
    from moe_probe.features.describe import LabelSettings
    from moe_probe.features.evaluate import EvaluateSettings, evaluate
    from moe_probe.features.label import label
    from moe_probe.features.run_saes import RunSaes
    from moe_probe.recording.rundir import RunDirectory

    run = RunDirectory.open(root)
    saes = RunSaes(run)
    results = [evaluate(run, EvaluateSettings(seed=config.seed), loaded=_model(config), saes=saes, say=say)]
    settings = LabelSettings(config.by, strata=config.strata, permutations=config.permutations, alpha=config.alpha,
                             seed=config.seed)
    results += label(run, settings, saes=saes, say=say)
    run.save(results)
    return _result_files(root, [r.name for r in results])


def _match_key(config: RunConfig, root: Path) -> str:
    return stage_key("match", _features_key(config, root))


def _match(config: RunConfig, root: Path, *, say: Say) -> list[Path]:
    from moe_probe.features.matching.match import match
    from moe_probe.recording.rundir import RunDirectory
    from moe_probe.studies.ablation.ablate import update_verdicts

    results = match(RunDirectory.open(root), by=config.by, alpha=config.alpha, loaded=_model(config), seed=config.seed, say=say)
    for result in results:
        result.save(root / "results")
    update_verdicts(root)
    return _result_files(root, [r.name for r in results])


def _tree_key(config: RunConfig, root: Path) -> str:
    return stage_key("tree", _features_key(config, root), config.tree, config.depth_first)


def _tree(config: RunConfig, root: Path, *, say: Say) -> list[Path]:
    from moe_probe.features.tree import DepthFirstSettings, TreeSettings, build_tree, depth_first, iter_sae_ladders
    from moe_probe.recording.rundir import RunDirectory

    run, results = RunDirectory.open(root), list[Result]()
    ladders = list(iter_sae_ladders(run))
    settings = TreeSettings(by=config.by, alpha=config.alpha, seed=config.seed, strata=config.strata)
    if config.tree:
        results += build_tree(run, settings=settings, ladders=ladders, say=say)
    if config.depth_first:
        try:
            results += depth_first(run, DepthFirstSettings(tests=settings), ladders=ladders, say=say)
        except MoeProbeError as error:  # a small corpus has no feature with tokens enough; the run goes on without
            say(f"note: no dictionaries were trained depth-first: {error}")
    run.save(results)
    return _result_files(root, [r.name for r in results])


def _cost_key(config: RunConfig, root: Path) -> str:
    from moe_probe import __version__

    stages = {name: entry["key"] for name, entry in Ledger(root).stages.items() if name not in ("cost", "report")}
    return stage_key("cost", __version__, stages)


def _cost(config: RunConfig, root: Path, *, say: Say) -> list[Path]:
    from moe_probe.recording.rundir import RunDirectory
    from moe_probe.studies.cost import measure_cost, save_cost

    run = RunDirectory.open(root)
    return save_cost(run, measure_cost(run, model=config.model, revision=config.revision, say=say))


def _ablate_key(config: RunConfig, root: Path) -> str:
    before = _match_key(config, root) if config.sae_widths else _analyze_key(config, root)
    return stage_key("ablate", before, config.ablate, config.ablate_tokens)


def _ablate(config: RunConfig, root: Path, *, say: Say) -> list[Path]:
    from moe_probe.studies.ablation.ablate import AblationSettings, ablate, update_verdicts

    settings = AblationSettings(how=config.ablate, tokens=config.ablate_tokens, seed=config.seed)
    loaded, files = _model(config), _result_files(root, ["ablation"])
    try:
        ablate(root, Trace.open(root), loaded, by=config.by, settings=settings, say=say).save(root / "results")
    except MoeProbeError as error:  # a small corpus may have no unit to knock out or one topic held out; the run goes on
        say(f"note: nothing was knocked out: {error}")
        for old in files:
            old.unlink(missing_ok=True)  # of other settings: its numbers must not enter these verdicts
    update_verdicts(root)
    return [path for path in files if path.exists()]


def _model(config: RunConfig) -> LoadedModel:
    from moe_probe.models import load_model

    return load_model(config.model, revision=config.revision, dtype=config.dtype, device=config.device,
                      trust_remote_code=config.trust_remote_code, progress=False)


def _result_files(root: Path, names: Sequence[str]) -> list[Path]:
    return [root / "results" / f"{name}.{ending}" for name in names for ending in ("parquet", "json")]


def _report_key(root: Path) -> str:
    from moe_probe import __version__

    files = sorted((root / "results").glob("*.*"))
    return stage_key("report", __version__, [[p.name, sha256_file(p)] for p in files],
                     sha256_file(root / "trace" / "trace.json"))


def _report(root: Path) -> list[Path]:
    from moe_probe.report import write_report

    return write_report(root)
