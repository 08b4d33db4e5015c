"""Commands that make a run: `demo`, `run`, `collect`, `analyze` and `report`."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from moe_probe.cli.console import Console, need_label
from moe_probe.cli.ending import after_run, ending
from moe_probe.cli.model_choice import ModelChoice, serve_first_process
from moe_probe.cli.options import Mode, Out, Sections, Seed, command
from moe_probe.core.errors import MoeProbeError, UsageError
from moe_probe.core.files import run_folder_of
from moe_probe.core.lock import locked
from moe_probe.core.settings import StatisticsSettings, setting
from moe_probe.core.text import quoted
from moe_probe.recording.serving.settings import ServerSettings

if TYPE_CHECKING:
    from collections.abc import Mapping

    from moe_probe.core.results import Result
    from moe_probe.recording.trace import Trace

Model = Annotated[str, typer.Argument(help="Folder of a checkpoint, or its name on a hub.", show_default=False)]
_CORPUS = typer.Option(
    "--corpus",
    help="Labelled documents: .jsonl, .json, .csv, .tsv or .parquet (also .gz, .zst), a quoted glob, a folder of such "
    "files or of topic/subtopic/*.txt, or datasets:NAME.",
    show_default=False,
)


def register(app: typer.Typer) -> None:
    """Add the commands of this module."""
    command(app, "demo", "moe-probe demo --out runs/demo")(demo)
    command(app, "run", "moe-probe run path/to/model --corpus corpus.jsonl --out runs/mine", leave_out=("tp_plan",))(run)
    statistics = ("statistics", "sae", "tree", "ablation")
    command(
        app,
        "collect",
        "moe-probe collect path/to/model --corpus corpus.jsonl --out traces/mine",
        "a served model: moe-probe collect path/to/model --corpus corpus.jsonl --out traces/mine --server http://localhost:8000",
        leave_out=statistics,
    )(collect)
    command(app, "analyze", "moe-probe analyze runs/mine --permutations 10000")(analyze)
    command(
        app,
        "report",
        "moe-probe report runs/mine",
        "for a talk: moe-probe report runs/mine --sections verdicts,topics --title 'Our model' --format html --out talk",
    )(report)


def demo(
    *,
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder to write.")] = Path("runs/demo"),
    mode: Mode,
    seed: Seed = 0,
    console: Console,
) -> None:
    """Report on the small trained model and the probe corpus that come with the project."""
    data = _demo_data()
    settings = {
        "model": {"name": str(data / "model" / "final"), "dtype": "float32"},  # fast also without bfloat16 units
        "corpus": {"source": str(data / "probe_corpus.jsonl"), "label": ["register"]},
        "recording": {"hidden_share": 1.0},
        "statistics": {"strata": "register"},
        "sae": {"layers": [5], "widths": [256, 1024, 4096]},  # where the model's topics are: make study has other layers
        "tree": {"depth_first": True},
        "ablation": {"ablate": "mask"},
        "seed": seed,
    }
    _run(settings, None, out, mode, console)


def run(
    model: Annotated[
        str | None, typer.Argument(help="Folder of a checkpoint, or its name on a hub.", show_default=False)
    ] = None,
    *,
    corpus: Annotated[str | None, _CORPUS] = None,
    out: Out,
    config: Annotated[
        Path | None,
        typer.Option(
            "--config",
            help="run.yaml with any of these settings; options on the line override it.",
            show_default=False,
        ),
    ] = None,
    mode: Mode,
    settings: Sections,
    seed: Annotated[int | None, typer.Option("--seed", help="Seed of every random choice.")] = None,
    console: Console,
) -> None:
    """Do everything: collect routing, analyse it, train SAEs (--widths), write the report; unchanged stages are skipped."""
    given: dict[str, Any] = dict(settings) | ({} if seed is None else {"seed": seed})
    _run(_named(given, model, corpus), config, out, mode, console)


def _named(settings: dict[str, Any], model: str | None, corpus: str | None) -> dict[str, Any]:
    """Add model and corpus to the settings of their sections."""
    for section, name, value in (("model", "name", model), ("corpus", "source", corpus)):
        if value is not None:
            settings[section] = {name: value} | settings.get(section, {})
    return settings


def _run(settings: dict[str, Any], config: Path | None, out: Path, mode: str, console: Console) -> None:
    from moe_probe.core.results import Results
    from moe_probe.recording.trace import Trace
    from moe_probe.runs.config import load_config, need_consent
    from moe_probe.runs.pipeline import run as run_pipeline

    if config is not None:
        need_consent(config, settings)
    made = load_config(config, settings)
    if config is not None:
        console.say(f"{config} names the model {made.model.name} and the corpus {made.corpus.source}")
    if made.model.tp_plan is not None:
        raise UsageError(
            "a whole run cannot be split over processes",
            "knock-outs and spliced activations are impossible there",
            "torchrun ... -m moe_probe collect MODEL --tp-plan auto, then moe-probe analyze TRACE",
        )
    if made.sae.layers and not made.sae.widths:
        console.say("note: --sae-layers has no effect without --widths: no SAE is trained")
    outcome = run_pipeline(made, out, mode=mode, say=console.say)
    trace, results = Trace.open(outcome.root), Results(outcome.root / "results")
    limits = _limits(trace, results, made.statistics.by)
    console.notes(limits)
    end = ending(results, _written(outcome.report), after_run(trace, results, outcome.root))
    made_files = {"run": str(outcome.root), "report": str(outcome.report), "skipped": list(outcome.skipped)}
    console.result({**made_files, "limits": limits, **end.data}, end.lines)


def _written(report: Path, files: Sequence[Path] | None = None) -> list[str]:
    """Say where the report and its figures lie; `files`: what was written, where figures may not be among it."""
    figures = report.parent / "figures"
    kinds = (
        ["png", "svg", "pdf"] if files is None else list(dict.fromkeys(f.suffix[1:] for f in files if f.parent == figures))
    )
    return [f"Report: {report}", *([f"Figures: {figures} ({', '.join(kinds).upper()})"] if kinds else [])]


def _limits(trace: Trace, results: Mapping[str, Result], label: str) -> list[str]:
    """Say what the record leaves open, and which lifts the verdicts of a run could have found; a line each."""
    from moe_probe.recording.trace.facts import unknowns
    from moe_probe.studies.verdicts import power_sentences

    power = power_sentences(results["verdicts"]) if "verdicts" in results else ""
    return [line for line in (" ".join(unknowns(trace.manifest, trace.documents, label=label)), power) if line]


def collect(
    model: Model,
    *,
    corpus: Annotated[str, _CORPUS],
    out: Out,
    shard: Annotated[
        str | None,
        typer.Option(
            "--shard",
            metavar="I/N",
            help="Collect part I (counted from 0) of N parts of the corpus, into a trace that moe-probe merge joins with "
            "the others.",
            show_default=False,
        ),
    ] = None,
    mode: Mode,
    settings: Sections,
    server: ServerSettings,
    seed: Seed = 0,
    console: Console,
) -> None:
    """Run a corpus through a model, here or at a serving engine (--server), and record its routing as a trace."""
    from moe_probe.recording.collect.blocks import read_part
    from moe_probe.recording.collect.stage import CollectStage
    from moe_probe.runs.config import load_config

    config, part = load_config(None, _named({**settings, "seed": seed}, model, corpus)), read_part(shard) if shard else None
    if server.server is not None and config.workers.ray:
        raise UsageError("--server and --ray exclude each other", "the server runs the model", "one of the two")
    if server.server is None:
        serve_first_process(config.model)
        stage = CollectStage(config.model, config.corpus, config.collect_options(), config.workers)
        trace = stage.collect(out, mode=mode, say=console.say, shard=part)
    else:
        from moe_probe.recording.serving import collect_from_server

        served = partial(collect_from_server, server=server, options=config.collect_options(), shard=part, mode=mode)
        trace = served(config.model, config.corpus, out, say=console.say)
        console.notes(trace.warnings)
    size = sum(p.stat().st_size for p in out.rglob("*") if p.is_file())
    console.result(
        {
            "trace": str(out),
            "documents": trace.manifest.n_documents,
            "tokens": trace.n_tokens,
            "bytes": size,
            **({"warnings": list(trace.warnings)} if server.server else {}),
        },
        f"Trace: {out} ({size / 1e6:,.1f} MB). Next: moe-probe analyze {quoted(out)}",
    )


class WeightsChoice(ModelChoice):
    """Options that choose the weights to compare experts by."""

    model: str | None = setting(None, "the trace's model, to compare experts by their weights")
    revision: str | None = setting(None, "branch, tag or commit of --model")


@locked(lambda *, path, out, **_: (out or run_folder_of(path)) if path.is_dir() else None)
def analyze(
    path: Annotated[Path, typer.Argument(help="Run directory, or a trace.", show_default=False)],
    *,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            "-o",
            help="Run directory to write into [default: the run of the trace, or TRACE-run].",
            show_default=False,
        ),
    ] = None,
    statistics: StatisticsSettings,
    weights: WeightsChoice,
    seed: Seed = 0,
    console: Console,
) -> None:
    """Compute the result tables of a trace."""
    from moe_probe.core.files import disk_errors
    from moe_probe.core.links import refuse_links_out
    from moe_probe.core.results import Results
    from moe_probe.models.settings import ModelSettings
    from moe_probe.recording.run_model import dtype_of
    from moe_probe.recording.trace import Trace
    from moe_probe.studies.analyses import AnalysisSettings
    from moe_probe.studies.analyses import analyze as compute

    trace = Trace.open(path)
    need_label(trace, statistics.by, "--by")
    need_label(trace, statistics.strata, "--strata")
    root = out or run_folder_of(path)
    refuse_links_out(root, trace=True)
    with disk_errors(root):  # a folder that cannot be written shows before anything is computed
        (root / "results").mkdir(parents=True, exist_ok=True)
    name, options = weights.model, weights.model_dump(exclude={"model"})
    model = None if name is None else ModelSettings(name=name, dtype=dtype_of(root), **options)
    settings = AnalysisSettings(**statistics.model_dump(), seed=seed, model=model)
    results = compute(trace, root / "results", settings=settings, say=console.say)
    link = root / "trace"
    if trace.root.resolve() != link.resolve() and not link.exists():
        link.symlink_to(trace.root.resolve(), target_is_directory=True)  # a run that only analyses knows where its trace is
    limits = _limits(trace, results, statistics.by)
    console.notes(limits)
    products, then = [f"Results: {root / 'results'}"], f"moe-probe report {shlex.quote(str(root))}"
    try:
        end = ending(Results(root / "results"), products, then)  # with those of other commands, as in the report
    except MoeProbeError as error:  # one of these is damaged; the analysis is not
        console.notes([str(error)])
        end = ending(results, products, then)
    tables = {name: str(root / "results" / f"{name}.parquet") for name in results}
    console.result({"results": tables, "limits": limits, **end.data}, end.lines)


def report(
    run_path: Annotated[Path, typer.Argument(metavar="RUN", help="Run directory.", show_default=False)],
    *,
    sections: Annotated[
        list[str] | None,
        typer.Option(
            "--sections",
            metavar="LIST",
            help="Sections to write, such as verdicts,topics,tree [default: all]; an unknown name lists them.",
            show_default=False,
        ),
    ] = None,
    title: Annotated[
        str | None, typer.Option("--title", help="Title of the report [default: names the model].", show_default=False)
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="Folder for the report [default: RUN].", show_default=False)
    ] = None,
    formats: Annotated[
        list[str] | None,
        typer.Option(
            "--format",
            metavar="LIST",
            help="html (one file that works offline), md (report.md, report/, figures/), or both [default: html,md].",
            show_default=False,
        ),
    ] = None,
    appendix: Annotated[
        bool,
        typer.Option("--appendix", help="Also write report_appendix.html, with all folds open: for printing everything."),
    ] = False,
    figures: Annotated[
        list[str] | None,
        typer.Option(
            "--figures",
            metavar="LIST",
            help="Files of each figure: svg, pdf, png (300 dpi; always beside Markdown) [default: png,svg,pdf].",
            show_default=False,
        ),
    ] = None,
    console: Console,
) -> None:
    """Write report.html, report.md and figures from the results of a run. Needs neither model nor torch."""
    from moe_probe.core.links import refuse_links_out
    from moe_probe.report import ReportOptions, write_report

    chosen = {"sections": _listed_names(sections), "formats": _listed_names(formats), "figures": _listed_names(figures)}
    options = ReportOptions(title=title, out=out, appendix=appendix, **{k: v for k, v in chosen.items() if v is not None})
    if out is not None and out.is_dir():
        refuse_links_out(out)
    files = write_report(run_path, options)
    first = next(f for f in files if f.name in ("report.html", "report.md"))
    console.result({"report": str(first), "files": [str(f) for f in files]}, _written(first, files))


def _listed_names(values: list[str] | None) -> tuple[str, ...] | None:
    """Split what an option lists: names after one another, with commas or as options of their own."""
    if values is None:
        return None
    return tuple(dict.fromkeys(name.strip() for value in values for name in value.split(",") if name.strip()))


def _demo_data() -> Path:
    """Find the project's ``data/``: beside the package in a checkout, or in the current folder."""
    for folder in (Path(__file__).resolve().parents[2] / "data", Path("data")):
        if (folder / "probe_corpus.jsonl").exists() and (folder / "model" / "final").exists():
            return folder
    raise MoeProbeError(
        "the demo's model and corpus are not here",
        "they lie in the project's data/ folder, which is not part of an installed package",
        "run it from a clone of the repository",
    )
