"""Commands about features: sae train, sae load, sae eval, label, find."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from moe_probe.cli.shell import Console, Debug, Force, Json, Quiet, Resume, Seed, guarded, mode_of, need_label
from moe_probe.core.errors import MoeProbeError, UsageError
from moe_probe.core.extras import need_extra
from moe_probe.core.text import table_text

if TYPE_CHECKING:
    from moe_probe.core.results import Result
    from moe_probe.models import LoadedModel

RunPath = Annotated[Path, typer.Argument(metavar="RUN", help="Run directory.", show_default=False)]
ModelOption = Annotated[
    str | None, typer.Option("--model", help="The trace's model [default: that of run.yaml].", show_default=False)
]
Trust = Annotated[bool, typer.Option("--trust-remote-code", help="Run code from --model.")]
Strata = Annotated[
    str | None,
    typer.Option(
        "--strata",
        help="Label within which documents are permuted; none: among all [default: as the run was analyzed].",
        show_default=False,
    ),
]
Hook = Annotated[str, typer.Option("--hook", help="router_input, expert_output or residual.")]
Name = Annotated[
    str,
    typer.Option(
        "--name",
        metavar="NAME",
        help="Ending of the folder's name: two SAEs of one width can lie side by side.",
        show_default=False,
    ),
]


def register(app: typer.Typer) -> None:
    """Add the commands of this module."""
    sae = typer.Typer(
        no_args_is_help=True, rich_markup_mode="markdown", help="Sparse autoencoders: train, load and measure them."
    )
    sae.command("train", epilog="Example: moe-probe sae train runs/mine --layer 2 --width 1024 --width 4096")(guarded(train))
    sae.command("load", epilog="Example: moe-probe sae load runs/mine path/to/sae --layer 2")(guarded(load))
    sae.command("eval", epilog="Example: moe-probe sae eval runs/mine")(guarded(evaluate))
    app.add_typer(sae, name="sae")
    app.command("label", epilog="Example: moe-probe label runs/mine --labels my_labels.csv")(guarded(label))
    app.command("find", epilog='Example: moe-probe find runs/mine "anthrax"')(guarded(find))


def train(
    run: RunPath,
    *,
    layer: Annotated[
        list[int] | None,
        typer.Option("--layer", help="MoE layer (repeat for more) [default: first, middle and last].", show_default=False),
    ] = None,
    width: Annotated[
        list[int] | None,
        typer.Option("--width", help="Latents (repeat for more) [default: 256, 1024, 4096].", show_default=False),
    ] = None,
    architecture: Annotated[
        str, typer.Option("--architecture", help="topk, batchtopk, matryoshka, jumprelu, standard.")
    ] = "topk",
    k: Annotated[int, typer.Option("--k", help="Active latents a token.")] = 16,
    sparsity: Annotated[float, typer.Option("--sparsity", help="Weight of the penalty (standard, jumprelu).")] = 1e-3,
    hook: Hook = "router_input",
    experts: Annotated[
        str,
        typer.Option(
            "--experts", help="SAEs of some experts' tokens: all (one each), 3,5 or groups 1+2,7.", show_default=False
        ),
    ] = "",
    epochs: Annotated[int, typer.Option("--epochs", help="Passes over the activations.")] = 4,
    batch_tokens: Annotated[int, typer.Option("--batch-tokens", help="Tokens of a step.")] = 2048,
    learning_rate: Annotated[float, typer.Option("--learning-rate", help="Peak learning rate.")] = 3e-3,
    device: Annotated[str, typer.Option("--device", help="auto, cpu, cuda ...")] = "auto",
    precision: Annotated[str, typer.Option("--precision", help="auto, float32 or bfloat16 (encoder's product).")] = "auto",
    name: Name = "",
    resume: Resume = False,
    force: Force = False,
    seed: Seed = 0,
    as_json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Train SAEs on the activations of a trace: all widths and experts of a layer in one pass, resumable."""
    from moe_probe.recording.rundir import RunDirectory
    from moe_probe.sae.settings import SaeSettings
    from moe_probe.sae.training.layers import train_layers
    from moe_probe.sae.training.request import TrainRequest

    console = Console(quiet=quiet, as_json=as_json)
    settings = SaeSettings(
        layers=tuple(layer or ()),
        widths=tuple(width or ()),
        architecture=architecture,
        k=k,
        sparsity=sparsity,
        hook=hook,
        experts=experts,
        epochs=epochs,
        sae_batch_tokens=batch_tokens,
        learning_rate=learning_rate,
        precision=precision,
        name=name,
    )
    request = TrainRequest(settings, seed=seed, device=device, mode=mode_of(resume=resume, force=force))
    folders = train_layers(RunDirectory.open(run), request, say=console.say)
    console.result(
        {"saes": [str(f) for f in folders]},
        f"{len(folders)} SAEs in {run / 'sae'}. Next: moe-probe sae eval {run}, moe-probe label {run}",
    )


def load(
    run: RunPath,
    source: Annotated[Path, typer.Argument(help="Folder of SAELens, sparsify or dictionary_learning.", show_default=False)],
    *,
    layer: Annotated[int, typer.Option("--layer", help="MoE layer whose activations it reads.", show_default=False)],
    hook: Hook = "router_input",
    name: Name = "",
    ignore_field: Annotated[
        list[str] | None,
        typer.Option(
            "--ignore-field",
            metavar="FIELD",
            help="Unknown field of its configuration that does not change what it computes (repeat for more).",
            show_default=False,
        ),
    ] = None,
    as_json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Bring an SAE that was trained elsewhere into a run."""
    from moe_probe.recording.rundir import RunDirectory
    from moe_probe.sae.load_into import LoadSettings, load_into

    console = Console(quiet=quiet, as_json=as_json)
    settings = LoadSettings(layer, hook, name, tuple(ignore_field or ()))
    folder = load_into(RunDirectory.open(run), source, settings, say=console.say)
    console.result({"sae": str(folder)}, f"SAE: {folder}. Next: moe-probe sae eval {run}, moe-probe label {run}")


def evaluate(
    run: RunPath,
    *,
    model: ModelOption = None,
    tokens: Annotated[int, typer.Option("--tokens", min=64, help="Held-out tokens that losses are measured on.")] = 8192,
    trust_remote_code: Trust = False,
    seed: Seed = 0,
    as_json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Measure SAEs on held-out documents: variance, sparsity, dead latents, loss with reconstructions spliced in."""
    from moe_probe.features.evaluate import EvaluateSettings
    from moe_probe.features.evaluate import evaluate as measure
    from moe_probe.recording.rundir import RunDirectory

    console = Console(quiet=quiet, as_json=as_json)
    result = measure(
        RunDirectory.open(run),
        EvaluateSettings(tokens, seed),
        loaded=model_of(run, model, trust=trust_remote_code, console=console),
        say=console.say,
    )
    result.save(run / "results")
    for warning in result.warnings:
        console.say(f"note: {warning}")
    columns = ["sae", "fvu", "l0", "dead", "dense", "ce_recovered", "redundancy"]
    console.result(
        {"sae_quality": result.table.to_dict("records")},
        f"{table_text(result.table[columns].round(3))}\nTable: {run / 'results' / 'sae_quality.parquet'}",
    )


def model_of(
    run: Path,
    name: str | None,
    *,
    trust: bool,
    console: Console,
    without: str = "losses are not measured",
) -> LoadedModel | None:
    """The model named, else the one of run.yaml; None where there is neither."""
    from moe_probe.recording.run_model import load_model_of

    loaded = load_model_of(run, name, trust_remote_code=trust)
    if loaded is None and without:
        console.say(f"note: no model was named, {without} (--model MODEL)")
    return loaded


def label(
    run: RunPath,
    *,
    by: Annotated[str, typer.Option("--by", help="Label that features are tested against.")] = "topic",
    labels: Annotated[
        Path | None,
        typer.Option(
            "--labels",
            help="Your own labels: CSV of sae, feature, label, and optionally "
            "pattern (a regular expression that is scored).",
            show_default=False,
        ),
    ] = None,
    cards: Annotated[int, typer.Option("--cards", min=0, help="Features of each SAE with excerpts.")] = 8,
    strata: Strata = None,
    permutations: Annotated[int, typer.Option("--permutations", min=99, help="Label permutations.")] = 1000,
    alpha: Annotated[float, typer.Option("--alpha", min=0.0001, max=0.5, help="Error rate of claims.")] = 0.05,
    llm_url: Annotated[
        str | None,
        typer.Option(
            "--llm-url",
            help="OpenAI-compatible endpoint. Sends excerpts of your corpus there; nothing is sent without it.",
            show_default=False,
        ),
    ] = None,
    llm_model: Annotated[str, typer.Option("--llm-model", help="Model of the endpoint.", show_default=False)] = "",
    llm_key_env: Annotated[str, typer.Option("--llm-key-env", help="Environment variable with its key.")] = "OPENAI_API_KEY",
    llm_price: Annotated[
        tuple[float, float], typer.Option("--llm-price", help="Dollars per million tokens, in and out.")
    ] = (0.0, 0.0),
    yes: Annotated[bool, typer.Option("--yes", help="Send without asking, once the cost has been estimated.")] = False,
    seed: Seed = 0,
    as_json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Label features by rules that are scored on held-out text; by a language model or by hand if asked."""
    from moe_probe.experts.strata import choose_strata
    from moe_probe.features.describe import LabelSettings
    from moe_probe.features.label import label as label_all
    from moe_probe.recording.rundir import RunDirectory

    console = Console(quiet=quiet, as_json=as_json)
    trace = RunDirectory.open(run)
    need_label(trace, by, "--by")
    within = choose_strata(run, trace, by=by, given=strata)
    _check_sources(labels, llm_url, llm_model)
    settings = LabelSettings(by, strata=within, cards=cards, permutations=permutations, alpha=alpha, seed=seed)
    features, excerpts = label_all(trace, settings, say=console.say)
    if llm_url is not None:
        features = _label_by_llm(
            trace,
            features,
            excerpts,
            url=llm_url,
            model=llm_model,
            key_env=llm_key_env,
            price=llm_price,
            yes=yes,
            seed=seed,
            console=console,
        )
    if labels is not None:
        from moe_probe.features.labels.human_labels import apply_labels

        features = apply_labels(trace, features, labels)
    for result in (features, excerpts):
        result.save(run / "results")
    for warning in features.warnings:
        console.say(f"note: {warning}")
    good = int(features.table["good"].sum())
    console.result(
        {"features": len(features.table), "good": good, "table": str(run / "results" / "features.parquet")},
        f"{good:,} of {len(features.table):,} features have a good label: {run / 'results' / 'features.parquet'}. "
        f"Next: moe-probe report {run}",
    )


def _check_sources(labels: Path | None, url: str | None, model: str) -> None:
    """Refuse at once what would only be noticed after features have been labelled, which takes minutes."""
    if labels is not None and not labels.is_file():
        raise MoeProbeError(f"{labels} cannot be read", "there is no such file", "a CSV of sae, feature, label")
    if url is not None and not model:
        raise UsageError("no --llm-model was given", "an endpoint serves several", "--llm-model NAME")
    if url is not None:
        need_extra("llm", "labels by a language model")


def _label_by_llm(
    run: Any,
    features: Result,
    excerpts: Result,
    *,
    url: str,
    model: str,
    key_env: str,
    price: tuple[float, float],
    yes: bool,
    seed: int,
    console: Console,
) -> Result:
    """Estimate, ask, then label the features that have cards."""
    import os

    from moe_probe.features.labels.endpoint import Endpoint
    from moe_probe.features.labels.llm_labels import estimate_cost, label_by_llm

    endpoint = Endpoint(
        base_url=url, model=model, api_key=os.environ.get(key_env, ""), price_in=price[0] or None, price_out=price[1] or None
    )
    console.say(estimate_cost(run, excerpts, endpoint, seed=seed).sentence())
    if not yes:
        if not sys.stdin.isatty():
            raise MoeProbeError(
                "nothing was sent", "labelling by a language model has to be confirmed", "--yes", exit_code=2
            )
        typer.confirm(f"Send excerpts of this corpus to {url}?", abort=True, err=True)
    return label_by_llm(run, features, excerpts, endpoint, seed=seed)


def find(
    run: RunPath,
    query: Annotated[
        str, typer.Argument(help="Word or phrase; with --regex a regular expression.", show_default=False)
    ] = "",
    *,
    regex: Annotated[bool, typer.Option("--regex", help="QUERY is a regular expression.")] = False,
    contrast: Annotated[
        tuple[Path, Path] | None,
        typer.Option(
            "--contrast", help="Two text files: what fires in the first and not in the second.", show_default=False
        ),
    ] = None,
    limit: Annotated[int, typer.Option("--limit", min=1, help="Features and experts to list.")] = 10,
    model: ModelOption = None,
    trust_remote_code: Trust = False,
    as_json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Find features and experts by a word, a phrase, a regular expression, or a pair of contrast files."""
    from moe_probe.features.search import Query, find_units
    from moe_probe.recording.rundir import RunDirectory

    console = Console(quiet=quiet, as_json=as_json)
    if bool(query) == (contrast is not None):
        raise UsageError("find takes a QUERY or --contrast A B", "one of the two", 'moe-probe find RUN "anthrax"')
    found = find_units(
        RunDirectory.open(run),
        Query(query, regex, contrast, limit),
        load=lambda: model_of(run, model, trust=trust_remote_code, console=console),
        say=console.say,
    )
    console.result(
        {
            "query": query,
            "source": found.source,
            "occurrences": found.n_tokens,
            "features": found.features.to_dict("records"),
            "experts": found.experts.to_dict("records"),
        },
        found.text(),
    )
