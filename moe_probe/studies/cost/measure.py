"""What a run's stages took, in operations, seconds and bytes, beside what training the model took."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from moe_probe.core.files import write_json
from moe_probe.core.flops import match_operations, sae_encode_flops, sae_train_flops
from moe_probe.core.results import Result
from moe_probe.studies.cost import PRESETS, growth, project, shape_of
from moe_probe.studies.cost.project import EXPLAIN_TOKENS, SCORE_TOKENS

if TYPE_CHECKING:
    import pandas as pd

    from moe_probe.recording.trace import Trace

Say = Callable[[str], None]
#: Parameters of a language model that labels; width and training tokens of the SAEs that are projected.
LABELLER = 70e9
_WIDTH, _SAE_TOKENS = 131_072, 5e8
_SOURCES = (
    "Kaplan et al. 2020, operations of training and inference, arXiv:2001.08361",
    "Gao et al. 2024, training SAEs over active latents, arXiv:2406.04093",
    "EleutherAI 2024, tokens of explaining and scoring a feature, https://blog.eleuther.ai/autointerp/",
    "Lieberum et al. 2024, Gemma Scope, arXiv:2408.05147",
)
_STEPS = (
    "Floating-point operations are counted by hand (a multiplication with its addition is two) and agree with torch's counter; "
    "seconds and bytes are of this run, on the machine it ran on. Training the model: three times its forward pass over its "
    "training tokens. Once: paid for a model and its features; every output: paid again for each text that is looked at."
)
_PROJECTED = (
    "An SAE of width 131,072 at every layer, trained on 500 million tokens; a language model of 70 B parameters explains and "
    "scores every latent (993 and 3,950 tokens). Fractions of the operations of training the model, 6 x active parameters x "
    "tokens. Per output: encoding a token over the model's own forward pass."
)


def measure_cost(
    run: Path,
    trace: Trace,
    *,
    model: str | None = None,
    revision: str | None = None,
    train_tokens: float | None = None,
    say: Say = print,
) -> dict[str, Any]:
    """Count the operations of a run's stages and set them beside their seconds and bytes.

    Parameters
    ----------
    model : str, optional
        Checkpoint whose configuration gives the sizes; that of ``run.yaml`` when left out. Operations of the model are not
        counted where there is neither.
    train_tokens : float, optional
        Tokens that the model was trained on; read from its ``training.json`` when it lies beside the checkpoint.

    Returns
    -------
    dict
        ``model`` (sizes), ``training_flops`` (None where the tokens are not known), ``steps``: one an entry, with ``step, paid``
        (once | every output), ``tokens, flops, seconds, bytes, llm_tokens, of_training`` (None where not known), ``note``.
    """
    known = _model(run, model, revision, train_tokens, trace.documents["n_tokens"].to_numpy(), say)
    seconds = _seconds(run)
    tokens = trace.n_tokens
    per_token = known["forward_flops_no_logits"]
    collected = None if per_token is None else per_token * tokens
    steps = [
        _step(
            "collect",
            tokens,
            collected,
            seconds.get("collect"),
            _bytes(run / "trace"),
            "one forward pass without predictions over documents as long as they are; bytes of the whole trace",
        ),
        _step(
            "analyze",
            tokens,
            None,
            seconds.get("analyze"),
            _bytes(run / "results"),
            "counting and permuting, no matrix products to speak of; bytes of all result tables",
        ),
    ]
    steps += _sae_steps(run, trace, seconds, known)
    training = known["training_flops"]
    for step in steps:
        counted = training and step["flops"] is not None and step["paid"] == "once"
        step["of_training"] = step["flops"] / training if counted else None
    return {"model": known, "training_flops": training, "steps": steps}


def _step(
    name: str,
    tokens: float,
    flops: float | None,
    seconds: float | None,
    size: int,
    note: str,
    paid: str = "once",
    llm_tokens: int = 0,
) -> dict[str, Any]:
    return {
        "step": name,
        "paid": paid,
        "tokens": int(tokens),
        "flops": flops,
        "seconds": seconds,
        "bytes": size,
        "llm_tokens": llm_tokens,
        "note": note,
    }


def _sae_steps(run: Path, trace: Trace, seconds: dict[str, float], known: dict[str, Any]) -> list[dict[str, Any]]:
    from moe_probe.sae import load_sae, read_training
    from moe_probe.sae.store import saes_of

    folders = saes_of(run) if (run / "sae").exists() else []
    if not folders:
        return []
    made = [(load_sae(folder).config, read_training(folder)) for folder in folders]
    latents = sum(config.d_sae for config, _ in made)
    widest = max((config for config, _ in made), key=lambda config: config.d_sae)
    train = {
        f"{folder.parent.name}/{folder.name}": int(told.get("tokens", 0))
        * sae_train_flops(config.d_in, config.d_sae, config.k, batch_tokens=int(told.get("batch_tokens", 2048)))
        for folder, (config, told) in zip(folders, made, strict=True)
    }
    encode = sum(sae_encode_flops(config.d_in, config.d_sae) for config, _ in made)
    read = sum(int(told.get("tokens", 0)) for _, told in made)
    per_token = sae_encode_flops(widest.d_in, widest.d_sae)
    forward = known["forward_flops"]
    share = "" if forward is None else f": {per_token / forward:.1%} of the model's own forward"
    out = [
        _step(
            "train SAEs",
            read,
            sum(train.values()),
            seconds.get("sae"),
            _bytes(run / "sae"),
            f"{len(folders)} SAEs with {latents:,} latents; tokens counted once for each SAE and pass",
        ),
        _step(
            "label and measure features",
            trace.n_tokens,
            encode * trace.n_tokens,
            seconds.get("features"),
            0,
            "encoding all tokens once; measuring losses and making rules come on top of it in the seconds",
        ),
    ]
    out.append(
        _step(
            "label by a language model",
            0,
            2.0 * LABELLER * latents * (EXPLAIN_TOKENS + SCORE_TOKENS),
            None,
            0,
            f"not done here: what one of {LABELLER / 1e9:.0f} B parameters would take to explain and score every latent",
            llm_tokens=latents * (EXPLAIN_TOKENS + SCORE_TOKENS),
        )
    )
    if "match" in seconds:
        chosen = sum(item.top_k for item in trace.layers)
        out.append(
            _step(
                "match",
                trace.n_tokens,
                match_operations(trace.n_tokens, chosen, sum(config.k for config, _ in made)),
                seconds["match"],
                0,
                "additions of the sparse products; regressions and random dictionaries come on top",
            )
        )
    if "tree" in seconds:
        out.append(
            _step(
                "tree",
                trace.n_tokens,
                _again(run, train),
                seconds["tree"],
                0,
                "training the narrower SAEs from another seed; joining, testing and depth first come on top",
            )
        )
    if "ablate" in seconds:
        out.append(
            _step("ablate", 0, None, seconds["ablate"], 0, "forward passes over held-out documents, one a unit and control")
        )
    out.append(
        _step(
            "encode an output",
            1,
            per_token,
            None,
            0,
            f"one SAE of width {widest.d_sae:,} on every token{share}",
            paid="every output",
        )
    )
    return out


def _again(run: Path, train: dict[str, float]) -> float | None:
    """Operations of training again the SAEs that the tree has from another seed, by its table; None where there is none."""
    if not (run / "results" / "splitting.parquet").exists():
        return None
    table = Result.load(run / "results", "splitting").table
    again = set(table.loc[table["split_same_width"].notna(), "parent_sae"])
    return float(sum(flops for name, flops in train.items() if name in again))


def _model(
    run: Path,
    model: str | None,
    revision: str | None,
    train_tokens: float | None,
    lengths: np.ndarray,
    say: Say,
) -> dict[str, Any]:
    """Sizes of the model; None where they are not known. `lengths` are tokens of the documents that were collected."""
    names = ("forward_flops", "forward_flops_no_logits", "training_flops", "train_tokens")
    nothing: dict[str, Any] = {"name": model} | dict.fromkeys(names)
    if model is None and (run / "run.yaml").exists():
        from moe_probe.runs.config import load_config

        config = load_config(run / "run.yaml", {})
        model, revision = config.model, config.revision
    if model is None:
        say("note: no model was named, its operations are not counted (--model MODEL)")
        return nothing
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(model, revision=revision)
    shape = shape_of(config)
    length = min(int(getattr(config.get_text_config(), "max_position_embeddings", 2048)), 4096)
    forward = shape.forward_flops(length)
    # documents were collected as long as they are, or in windows: the mean window of a token
    read = round(float(np.average(np.minimum(lengths, length), weights=lengths))) if lengths.sum() else length
    note = Path(model) / "training.json"
    if train_tokens is None and note.is_file():
        said = json.loads(note.read_text(encoding="utf-8"))
        if {"step", "settings"} <= set(said):
            train_tokens = float(said["step"]) * float(said["settings"]["batch_tokens"])
    # three times the forward: backward passes do twice its work (Kaplan et al. 2020, arXiv:2001.08361, section 2.1)
    return {
        "name": str(model),
        "forward_flops": forward,
        "forward_flops_no_logits": shape.forward_flops(read, logits=False),
        "train_tokens": train_tokens,
        "training_flops": 3 * forward * train_tokens if train_tokens else None,
        "window": length,
        "window_collected": read,
        "d_model": shape.d_model,
    }


def _seconds(run: Path) -> dict[str, float]:
    try:
        stages = json.loads((run / "logs" / "stages.json").read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return {}  # stages run one by one keep no ledger
    return {name: float(entry["seconds"]) for name, entry in stages.items()}


def _bytes(folder: Path) -> int:
    return sum(p.stat().st_size for p in folder.rglob("*") if p.is_file()) if folder.exists() else 0


def save_cost(run: Path, found: dict[str, Any]) -> list[Path]:
    """Write ``results/cost.json``, and for the report the tables ``costs`` (its steps) and ``cost_projected``.

    Returns
    -------
    list of Path
    """
    import pandas as pd

    folder = run / "results"
    path = folder / "cost.json"
    write_json(path, found)
    steps = pd.DataFrame(found["steps"]).astype({"flops": float, "seconds": float, "of_training": float})
    costs = Result(
        "costs",
        steps,
        caption=_STEPS,
        citations=_SOURCES,
        params={
            "training_flops": found["training_flops"],
            "train_tokens": found["model"]["train_tokens"],
            "forward_flops": found["model"]["forward_flops"],
            "model": str(found["model"]["name"]),
        },
    )
    projected = Result(
        "cost_projected",
        published_projections(),
        caption=_PROJECTED,
        citations=_SOURCES,
        params={
            "exponents": growth().groupby("rule")["exponent"].first().to_dict(),
            "width": _WIDTH,
            "sae_tokens": _SAE_TOKENS,
        },
    )
    written = [path]
    for result in (costs, projected):
        written += [result.save(folder), folder / f"{result.name}.json"]
    return written


def published_projections() -> pd.DataFrame:
    """The same steps for published models: an SAE at every layer.

    Returns
    -------
    pandas.DataFrame
        ``model, active, training_tokens, layers, capture, sae, labelling`` (fractions of training; NaN where its tokens were not
        published), ``per_output_all, per_output_one`` (encoding with the SAEs of all layers, or of one, over a forward pass),
        ``source``.
    """
    import pandas as pd

    rows = []
    for name, known in PRESETS.items():
        found = project(
            active=known.active,
            tokens=known.tokens,
            d_model=known.d_model,
            layers=known.n_layers,
            width=_WIDTH,
            sae_tokens=_SAE_TOKENS,
        )
        share = found.fractions()
        rows.append(
            {
                "model": name,
                "active": known.active,
                "training_tokens": known.tokens,
                "layers": known.n_layers,
                "capture": share["capture"],
                "sae": share["sae"],
                "labelling": share["labelling"],
                "per_output_all": share["per output"],
                "per_output_one": share["per output"] / known.n_layers,
                "source": known.source,
            }
        )
    return pd.DataFrame(rows)
