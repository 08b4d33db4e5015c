"""Commands that write: demo, run, collect, import, analyze, report."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from moe_probe.cli.settings import with_settings
from moe_probe.cli.shell import Console, Debug, Force, Json, Quiet, Resume, Seed, guarded, mode_of, need_label
from moe_probe.core.errors import MoeProbeError, UsageError

Model = Annotated[str, typer.Argument(help="Folder of a checkpoint, or its name on a hub.", show_default=False)]
CorpusPath = Annotated[
    str,
    typer.Option(
        "--corpus",
        help="Labelled documents: .jsonl, .json, .csv, .tsv or .parquet "
        "(also .gz, .zst), a quoted glob, a folder of such files or of "
        "topic/subtopic/*.txt, or datasets:NAME.",
        show_default=False,
    ),
]
Out = Annotated[Path, typer.Option("--out", "-o", help="Folder to write.", show_default=False)]


def register(app: typer.Typer) -> None:
    """Add the commands of this module."""
    app.command("demo", epilog="Example: moe-probe demo --out runs/demo")(guarded(demo))
    app.command("run", epilog="Example: moe-probe run path/to/model --corpus corpus.jsonl --out runs/mine")(
        guarded(with_settings(run))
    )
    app.command("collect", epilog="Example: moe-probe collect path/to/model --corpus corpus.jsonl --out traces/mine")(
        guarded(with_settings(collect, leave_out={"Statistics", "Sparse autoencoders", "Causes"}))
    )
    app.command("import", epilog="Example: moe-probe import routing.parquet --out traces/mine --num-experts 32")(
        guarded(import_)
    )
    app.command("analyze", epilog="Example: moe-probe analyze runs/mine --permutations 10000")(guarded(analyze))
    app.command("report", epilog="Example: moe-probe report runs/mine")(guarded(report))


def demo(
    *,
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder to write.")] = Path("runs/demo"),
    resume: Resume = False,
    force: Force = False,
    seed: Seed = 0,
    as_json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Report on the small trained model and the probe corpus that come with the project."""
    data = _demo_data()
    settings = {
        "model": str(data / "model" / "final"),
        "corpus": str(data / "probe_corpus.jsonl"),
        "label": ["register"],
        "strata": "register",
        "seed": seed,
        "hidden_share": 1.0,
        # where the model's topics live: make study has the other layers. float32: processors without bfloat16 units
        # need two to four times as long for the same weights
        "sae_layers": [5],
        "sae_widths": [256, 1024, 4096],
        "depth_first": True,
        "dtype": "float32",
        "ablate": "mask",
    }
    _run(settings, None, out, mode_of(resume=resume, force=force), Console(quiet=quiet, as_json=as_json))


def run(
    model: Annotated[
        str | None, typer.Argument(help="Folder of a checkpoint, or its name on a hub.", show_default=False)
    ] = None,
    *,
    corpus: Annotated[
        str | None,
        typer.Option(
            "--corpus",
            help="Labelled documents: .jsonl, .json, .csv, .tsv or .parquet (also .gz, .zst), a quoted glob, "
            "a folder of such files or of topic/subtopic/*.txt, or datasets:NAME.",
            show_default=False,
        ),
    ] = None,
    out: Out,
    config: Annotated[
        Path | None,
        typer.Option(
            "--config", help="run.yaml with any of these settings; options on the line override it.", show_default=False
        ),
    ] = None,
    resume: Resume = False,
    force: Force = False,
    settings: dict[str, Any],
    seed: Annotated[
        int | None,
        typer.Option(
            "--seed", help="Seed of every random choice [default: 0].", show_default=False, rich_help_panel="Common"
        ),
    ] = None,
    as_json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Do everything: collect routing, analyse it, train SAEs (--sae-widths), write the report; unchanged stages are skipped."""
    given = settings | {"model": model, "corpus": corpus, "seed": seed}
    _run(given, config, out, mode_of(resume=resume, force=force), Console(quiet=quiet, as_json=as_json))


def _run(settings: dict[str, Any], config: Path | None, out: Path, mode: str, console: Console) -> None:
    from moe_probe.runs.config import load_config
    from moe_probe.runs.pipeline import run as run_pipeline

    outcome = run_pipeline(load_config(config, settings), out, mode=mode, say=console.say, progress=console.progress)
    console.result(
        {"run": str(outcome.root), "report": str(outcome.report), "skipped": list(outcome.skipped)},
        f"Report: {outcome.report}",
    )


def collect(
    model: Model,
    *,
    corpus: CorpusPath,
    out: Out,
    resume: Resume = False,
    force: Force = False,
    settings: dict[str, Any],
    seed: Seed = 0,
    as_json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Run a corpus through a model and record its routing as a trace."""
    from moe_probe.runs.config import load_config
    from moe_probe.runs.pipeline import collect_as_configured

    console = Console(quiet=quiet, as_json=as_json)
    config = load_config(None, settings | {"model": model, "corpus": corpus, "seed": seed})
    trace = collect_as_configured(
        config, out, mode=mode_of(resume=resume, force=force), say=console.say, progress=console.progress
    )
    size = sum(p.stat().st_size for p in out.rglob("*") if p.is_file())
    console.result(
        {"trace": str(out), "documents": trace.manifest.n_documents, "tokens": trace.n_tokens, "bytes": size},
        f"Trace: {out} ({size / 1e6:,.1f} MB). Next: moe-probe analyze {out}",
    )


def import_(
    source: Annotated[
        Path,
        typer.Argument(
            help="Interchange table (.parquet, .jsonl), answers (.jsonl, .json), or folder of "
            "fingerprints; text files may be .gz or .zst, and a folder or a glob stands for "
            "several.",
            show_default=False,
        ),
    ],
    *,
    out: Out,
    format_: Annotated[
        str,
        typer.Option(
            "--format", help="table (a row per token), vllm or sglang (a row per answer), fingerprints (a file per answer)."
        ),
    ] = "table",
    topics: Annotated[
        Path | None, typer.Option("--topics", help="CSV of dataset, category, topic, for fingerprints.", show_default=False)
    ] = None,
    num_experts: Annotated[
        str | None,
        typer.Option(
            "--num-experts",
            help="Experts of each layer: one number, or 0:8,1:64 (layer:experts) where layers differ.",
            show_default=False,
        ),
    ] = None,
    layers: Annotated[
        str | None,
        typer.Option(
            "--layers", help="Layers to keep, e.g. 1-23 or 1,3,5; servers return dense layers too.", show_default=False
        ),
    ] = None,
    top_k: Annotated[
        int | None,
        typer.Option(
            "--top-k", min=1, help="Experts per token, for SGLang, whose answers do not say it.", show_default=False
        ),
    ] = None,
    tokenizer: Annotated[
        Path | None,
        typer.Option(
            "--tokenizer",
            help="Folder of the model's tokenizer: gives token ids their text and leaves special tokens out of the counts.",
            show_default=False,
        ),
    ] = None,
    drop_constant: Annotated[
        bool,
        typer.Option(
            "--drop-constant",
            help="Leave out tokens that share one set of experts in every layer with many others, as warm-up requests do.",
        ),
    ] = False,
    model_id: Annotated[str, typer.Option("--model-id", help="Name of the model, for captions.")] = "unknown",
    label: Annotated[list[str] | None, typer.Option("--label", help="Further label column to keep.")] = None,
    shard_tokens: Annotated[int, typer.Option("--shard-tokens", min=1, help="Tokens of a shard.")] = 65536,
    resume: Resume = False,
    force: Force = False,
    as_json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Make a trace from routing that was recorded elsewhere."""
    from moe_probe.recording.importers import ImportOptions, import_fingerprints, import_responses, import_table

    console = Console(quiet=quiet, as_json=as_json)
    if format_ not in ("table", "vllm", "sglang", "fingerprints"):
        raise UsageError(f"--format {format_} is not known", "", "table, vllm, sglang or fingerprints")
    options = ImportOptions(
        num_experts=_num_experts(num_experts),
        model_id=model_id,
        labels=tuple(label or ()),
        shard_tokens=shard_tokens,
        layers=_layers(layers),
        tokenizer=tokenizer,
        drop_constant=drop_constant,
    )
    mode = mode_of(resume=resume, force=force)
    if topics is not None and format_ != "fingerprints":
        raise UsageError(
            f"--topics cannot be used with --format {format_}",
            "it names the topics of fingerprints",
            "omit --topics; the column topic names them",
        )
    if format_ == "table":
        trace = import_table(source, out, options=options, mode=mode)
    elif format_ == "fingerprints":
        trace = import_fingerprints(source, out, topics=topics, options=options, mode=mode)
    else:
        trace = import_responses(source, out, top_k=top_k, options=options, mode=mode)
    for warning in trace.warnings:
        console.say(f"note: {warning}")
    console.result(
        {
            "trace": str(out),
            "documents": trace.manifest.n_documents,
            "tokens": trace.n_tokens,
            "warnings": list(trace.warnings),
        },
        f"Trace: {out}. Next: moe-probe analyze {out}",
    )


def _layers(text: str | None) -> tuple[int, ...] | None:
    if text is None:
        return None
    out: list[int] = []
    for part in text.split(","):
        first, _, last = (piece.strip() for piece in part.partition("-"))
        if not _is_number(first) or (last and not _is_number(last)) or int(last or first) < int(first):
            raise UsageError(f"--layers {text} cannot be read", f"'{part}' is no number or range", "--layers 0-23")
        out += range(int(first), int(last or first) + 1)
    if len(set(out)) < len(out):
        raise UsageError(f"--layers {text} names a layer twice", "", "each layer once")
    return tuple(out)


def _num_experts(text: str | None) -> int | dict[int, int] | None:
    if text is None:
        return None
    if _is_number(text.strip()):
        return int(text)
    out: dict[int, int] = {}
    for part in text.split(","):
        layer, _, n = (piece.strip() for piece in part.partition(":"))
        if not _is_number(layer) or not _is_number(n) or int(layer) in out:
            raise UsageError(
                f"--num-experts {text} cannot be read",
                f"'{part}' is not layer:experts, or the layer comes twice",
                "--num-experts 64, or --num-experts 0:8,1:64",
            )
        out[int(layer)] = int(n)
    return out


def _is_number(text: str) -> bool:
    return text.isascii() and text.isdigit() and len(text) < 7


def analyze(
    path: Annotated[Path, typer.Argument(help="Run directory, or a trace.", show_default=False)],
    *,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            "-o",
            help="Run directory to write into [default: the run that holds the trace, or TRACE-run].",
            show_default=False,
        ),
    ] = None,
    by: Annotated[str, typer.Option("--by", help="Label that experts are tested against.")] = "topic",
    strata: Annotated[str | None, typer.Option("--strata", help="Label within which documents are permuted.")] = None,
    permutations: Annotated[int, typer.Option("--permutations", min=99, help="Label permutations.")] = 1000,
    alpha: Annotated[float, typer.Option("--alpha", min=0.0001, max=0.5, help="Error rate of claims.")] = 0.05,
    model: Annotated[
        str | None,
        typer.Option("--model", help="The trace's model, to compare experts by their weights.", show_default=False),
    ] = None,
    revision: Annotated[
        str | None, typer.Option("--revision", help="Branch, tag or commit of --model.", show_default=False)
    ] = None,
    trust_remote_code: Annotated[bool, typer.Option("--trust-remote-code", help="Run code from --model.")] = False,
    seed: Seed = 0,
    as_json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Compute the result tables of a trace."""
    from moe_probe.core.files import disk_errors
    from moe_probe.recording.run_model import dtype_of
    from moe_probe.recording.trace import Trace
    from moe_probe.studies.ablation.ablate import update_verdicts
    from moe_probe.studies.analyses import Settings
    from moe_probe.studies.analyses import analyze as analyze_trace

    console = Console(quiet=quiet, as_json=as_json)
    trace = Trace.open(path)
    need_label(trace, by, "--by")
    need_label(trace, strata, "--strata")
    root = out or run_directory(path)
    with disk_errors(root):  # a folder that cannot be written is noticed before anything is computed
        (root / "results").mkdir(parents=True, exist_ok=True)
    settings = Settings(
        by=by,
        strata=strata,
        permutations=permutations,
        alpha=alpha,
        seed=seed,
        model=model,
        revision=revision,
        dtype=dtype_of(root),
        trust_remote_code=trust_remote_code,
    )
    results = analyze_trace(trace, root / "results", settings=settings, say=console.say)
    update_verdicts(root)  # what features and causes said of this run before stays in its verdicts
    if trace.root.resolve() != (root / "trace").resolve():
        _remember_trace(root, trace.root)
    console.result(
        {"results": {name: str(root / "results" / f"{name}.parquet") for name in results}},
        f"Results: {root / 'results'}. Next: moe-probe report {root}",
    )


def run_directory(path: Path) -> Path:
    """The run that a path belongs to: itself, the folder above its ``trace``, or one made beside the trace."""
    if (path / "trace" / "trace.json").exists():
        return path
    return path.parent if path.name == "trace" else path.with_name(path.name + "-run")


def _remember_trace(root: Path, trace: Path) -> None:
    """Note in a run that only analyses where its trace lies."""
    link = root / "trace"
    if not link.exists():
        link.symlink_to(trace.resolve(), target_is_directory=True)


def report(
    run_path: Annotated[Path, typer.Argument(metavar="RUN", help="Run directory.", show_default=False)],
    *,
    as_json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Write report.html, report.md and figures from the results of a run. Needs neither model nor torch."""
    from moe_probe.report import write_report

    console = Console(quiet=quiet, as_json=as_json)
    files = write_report(run_path)
    console.result(
        {"report": str(run_path / "report.html"), "files": [str(f) for f in files]}, f"Report: {run_path / 'report.html'}"
    )


def _demo_data() -> Path:
    """The project's ``data/``: beside the package in a checkout, or in the current folder."""
    for folder in (Path(__file__).resolve().parents[2] / "data", Path("data")):
        if (folder / "probe_corpus.jsonl").exists() and (folder / "model" / "final").exists():
            return folder
    raise MoeProbeError(
        "the demo's model and corpus are not here",
        "they lie in the project's data/ folder, which is not part of an installed package",
        "run it from a clone of the repository",
    )
