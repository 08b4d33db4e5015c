"""What a run's stages took, in operations, seconds and bytes, beside what training the model took."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from moe_probe.cost import shape_of
from moe_probe.cost.counts import match_operations, sae_encode_flops, sae_train_flops

if TYPE_CHECKING:
    from moe_probe.trace import Trace

Say = Callable[[str], None]


def measure_cost(run: Path, trace: Trace, *, model: str | None = None, revision: str | None = None,
                 train_tokens: float | None = None, say: Say = print) -> dict[str, Any]:
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
        (once | every output), ``tokens, flops, seconds, bytes, of_training`` (None where not known), ``note``.
    """
    known = _model(run, model, revision, train_tokens, say)
    seconds = _seconds(run)
    tokens = trace.n_tokens
    per_token = known["forward_flops_no_logits"]
    steps = [_step("collect", tokens, None if per_token is None else per_token * tokens, seconds.get("collect"),
                   _bytes(run / "trace"), "one forward pass without predictions; the trace with all that was kept"),
             _step("analyze", tokens, None, seconds.get("analyze"), _bytes(run / "results"), "counting and permuting, no "
                                                                                             "matrix "
                   "products to speak of; bytes of all result tables")]
    steps += _sae_steps(run, trace, seconds, known)
    training = known["training_flops"]
    for step in steps:
        counted = training and step["flops"] is not None and step["paid"] == "once"
        step["of_training"] = step["flops"] / training if counted else None
    return {"model": known, "training_flops": training, "steps": steps}


def _step(name: str, tokens: float, flops: float | None, seconds: float | None, size: int, note: str, paid: str = "once",
          ) -> dict[str, Any]:
    return {"step": name, "paid": paid, "tokens": int(tokens), "flops": flops, "seconds": seconds, "bytes": size, "note": note}


def _sae_steps(run: Path, trace: Trace, seconds: dict[str, float], known: dict[str, Any]) -> list[dict[str, Any]]:
    from moe_probe.pipeline.saes import saes_of
    from moe_probe.sae import load_sae, read_training

    folders = saes_of(run) if (run / "sae").exists() else []
    if not folders:
        return []
    train, train_tokens, encode, latents = 0.0, 0, 0.0, 0
    widest = None
    for folder in folders:
        config, training = load_sae(folder).config, read_training(folder)
        n = int(training.get("tokens", 0))
        train += n * sae_train_flops(config.d_in, config.d_sae, config.k, batch_tokens=int(training.get("batch_tokens", 2048)))
        train_tokens += n
        encode += sae_encode_flops(config.d_in, config.d_sae)
        latents += config.d_sae
        if widest is None or config.d_sae > widest.d_sae:
            widest = config
    assert widest is not None
    out = [_step("train SAEs", train_tokens, train, seconds.get("sae"), _bytes(run / "sae"), f"{len(folders)} SAEs with "
                 f"{latents:,} latents; tokens counted once for each SAE and pass"),
           _step("label features", trace.n_tokens, encode * trace.n_tokens, seconds.get("features"), 0, "encoding all "
                                                                                                        "tokens once; "
                 "measuring losses and making rules come on top of it in the seconds")]
    if "match" in seconds:
        chosen = sum(item.top_k for item in trace.layers)
        out.append(_step("match", trace.n_tokens, match_operations(trace.n_tokens, chosen, widest.k) * len(folders),
                         seconds["match"], 0, "additions of the sparse products; regressions and random dictionaries come "
                                              "on top"))
    if "ablate" in seconds:
        out.append(_step("ablate", 0, None, seconds["ablate"], 0, "forward passes over held-out documents, one a unit and "
                                                                  "control"))
    forward = known["forward_flops"]
    out.append(_step("encode an output", 1, sae_encode_flops(widest.d_in, widest.d_sae), None, 0,
                     f"one SAE of width {widest.d_sae:,} on every token"
                     + ("" if forward is None else f": {sae_encode_flops(widest.d_in, widest.d_sae) / forward:.1%} of the "
                                                   f"model's "
                        "own forward"), paid="every output"))
    return out


def _model(run: Path, model: str | None, revision: str | None, train_tokens: float | None, say: Say) -> dict[str, Any]:
    """Sizes of the model; None where they are not known."""
    names = ("forward_flops", "forward_flops_no_logits", "training_flops", "train_tokens")
    nothing: dict[str, Any] = {"name": model} | dict.fromkeys(names)
    if model is None and (run / "run.yaml").exists():
        from moe_probe.pipeline.config import load_config

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
    note = Path(model) / "training.json"
    if train_tokens is None and note.is_file():
        said = json.loads(note.read_text(encoding="utf-8"))
        if {"step", "settings"} <= set(said):
            train_tokens = float(said["step"]) * float(said["settings"]["batch_tokens"])
    # three times the forward: backward passes do twice its work (Kaplan et al. 2020, arXiv:2001.08361, section 2.1)
    return {"name": str(model), "forward_flops": forward, "forward_flops_no_logits": shape.forward_flops(length, logits=False),
            "train_tokens": train_tokens, "training_flops": 3 * forward * train_tokens if train_tokens else None,
            "window": length, "d_model": shape.d_model}


def _seconds(run: Path) -> dict[str, float]:
    try:
        stages = json.loads((run / "logs" / "stages.json").read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return {}  # stages run one by one keep no ledger
    return {name: float(entry["seconds"]) for name, entry in stages.items()}


def _bytes(folder: Path) -> int:
    return sum(p.stat().st_size for p in folder.rglob("*") if p.is_file()) if folder.exists() else 0


def save_cost(run: Path, found: dict[str, Any]) -> Path:
    """Write ``results/cost.json``."""
    path = run / "results" / "cost.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".json.partial")
    partial.write_text(json.dumps(found, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    os.replace(partial, path)
    return path


