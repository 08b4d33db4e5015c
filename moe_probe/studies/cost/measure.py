"""What a run's stages took, in operations, seconds and bytes, beside what training the model took."""

from __future__ import annotations

import json
from collections.abc import Collection
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from moe_probe.core.errors import MoeProbeError
from moe_probe.core.flops import match_operations, sae_encode_flops, sae_train_flops, shape_of
from moe_probe.core.own_files import LOCK_PREFIX
from moe_probe.core.progress import Say
from moe_probe.core.stage import read_stages
from moe_probe.core.textfiles import read_text
from moe_probe.studies.cost.project import EXPLAIN_TOKENS, LABELLER, SCORE_TOKENS

if TYPE_CHECKING:
    from moe_probe.recording.rundir import RunDirectory
    from moe_probe.sae import SaeConfig


#: What `save_cost` writes: left out of what it counts, so that the same command again finds the same.
_OWN = ("cost.json", *(f"{name}.{ending}" for name in ("costs", "cost_projected") for ending in ("json", "parquet")))


@dataclass(frozen=True, kw_only=True)
class CostStep:
    """One step of a run: a row of ``costs``.

    Attributes
    ----------
    step, note : str
    paid : {"once", "every output"}
    tokens : int
        Tokens that the step reads.
    flops, seconds : float or None
        None where they are not known.
    bytes : int
        On the disk.
    llm_tokens : int
        Tokens that a language model reads and writes.
    of_training : float or None
        Operations over those of training the model.
    """

    step: str
    paid: str = "once"
    tokens: int
    flops: float | None = None
    seconds: float | None = None
    bytes: int = 0
    llm_tokens: int = 0
    note: str
    of_training: float | None = None


class TrainedSae(NamedTuple):
    """An SAE of a run: its folder below RUN/sae, the tokens that it was trained on (every pass counts), and operations."""

    name: str
    config: SaeConfig
    tokens: int
    training_flops: float

    @property
    def encode_flops(self) -> float:
        """Operations of encoding a token."""
        return sae_encode_flops(self.config.d_in, self.config.d_sae)


def measure_cost(  # noqa: PLR0913 (keyword options with defaults)
    run: RunDirectory,
    *,
    model: str | None,
    revision: str | None = None,
    train_tokens: float | None = None,
    download: bool = True,
    say: Say = print,
) -> dict[str, Any]:
    """Count the operations of a run's stages and set them beside their seconds and bytes.

    Parameters
    ----------
    run : RunDirectory
    model : str or None
        Checkpoint whose configuration gives the sizes; without one, operations of the model are not counted.
    revision : str, optional
        Of the checkpoint.
    train_tokens : float, optional
        Tokens that the model was trained on; by default read from ``training.json`` beside the checkpoint.
    download : bool
        Ask the hub for the configuration, where `model` is the name of a repository.
    say : callable
        Gets a note where operations cannot be counted.

    Returns
    -------
    dict
        ``model`` (sizes), ``training_flops`` (None where the tokens are not known), ``steps``: one entry per step, with
        ``step, paid`` (once | every output), ``tokens, flops, seconds, bytes, llm_tokens, of_training`` (None where not
        known), ``note``.

    Raises
    ------
    MoeProbeError
        When the configuration, or ``training.json``, is missing or cannot be read.
    """
    lengths = run.documents["n_tokens"].to_numpy()
    sizes = (
        _unknown_model() if model is None else _model_sizes(_config_of(model, revision, download=download), model, lengths)
    )
    if model is None:
        say("note: operations of the model are not counted: no model was named (--model MODEL)")
    else:
        tokens = train_tokens if train_tokens is not None else _recorded_tokens(Path(model) / "training.json")
        # three times the forward: backward passes do twice its work (Kaplan et al. 2020, arXiv:2001.08361, section 2.1)
        sizes |= {"train_tokens": tokens, "training_flops": 3 * sizes["forward_flops"] * tokens if tokens else None}
    seconds, training = _stage_seconds(run.path), sizes["training_flops"]
    steps = []
    for step in (*_trace_steps(run, seconds, sizes), *_sae_steps(run, seconds, sizes)):
        counted = training and step.flops is not None and step.paid == "once"
        steps.append(asdict(replace(step, of_training=step.flops / training if counted else None)))
    return {"model": sizes, "training_flops": training, "steps": steps}


def _trace_steps(run: RunDirectory, seconds: dict[str, float], model: dict[str, Any]) -> list[CostStep]:
    per_token = model["forward_flops_no_logits"]
    return [
        CostStep(
            step="collect",
            tokens=run.n_tokens,
            flops=None if per_token is None else per_token * run.n_tokens,
            seconds=seconds.get("collect"),
            bytes=_bytes(run.path / "trace"),
            note="one forward pass without predictions over documents as long as they are; bytes of the whole trace",
        ),
        CostStep(
            step="analyze",
            tokens=run.n_tokens,
            seconds=seconds.get("analyze"),
            bytes=_bytes(run.results_folder, but=_OWN),
            note="counting and permuting, no matrix products to speak of; bytes of all result tables but those of cost",
        ),
    ]


def _sae_steps(run: RunDirectory, seconds: dict[str, float], model: dict[str, Any]) -> list[CostStep]:
    saes = _trained_saes(run)
    if not saes:
        return []
    latents = sum(sae.config.d_sae for sae in saes)
    label_tokens = EXPLAIN_TOKENS + SCORE_TOKENS
    widest = max(saes, key=lambda sae: sae.config.d_sae)
    forward = model["forward_flops"]
    share = "" if forward is None else f": {widest.encode_flops / forward:.1%} of the model's own forward"
    return [
        CostStep(
            step="train SAEs",
            tokens=sum(sae.tokens for sae in saes),
            flops=sum(sae.training_flops for sae in saes),
            seconds=seconds.get("sae"),
            bytes=_bytes(run.sae_folder),
            note=f"{len(saes)} SAEs with {latents:,} latents; tokens counted once for each SAE and pass",
        ),
        CostStep(
            step="label and measure features",
            tokens=run.n_tokens,
            flops=sum(sae.encode_flops for sae in saes) * run.n_tokens,
            seconds=seconds.get("features"),
            note="encoding all tokens once; measuring losses and making rules come on top of it in the seconds",
        ),
        CostStep(
            step="label by a language model",
            tokens=0,
            flops=2.0 * LABELLER * latents * label_tokens,
            llm_tokens=latents * label_tokens,
            note=f"not done here: what one of {LABELLER / 1e9:.0f} B parameters would take to explain and score every latent",
        ),
        *_later_steps(run, saes, seconds),
        CostStep(
            step="encode an output",
            paid="every output",
            tokens=1,
            flops=widest.encode_flops,
            note=f"one SAE of width {widest.config.d_sae:,} on every token{share}",
        ),
    ]


def _later_steps(run: RunDirectory, saes: list[TrainedSae], seconds: dict[str, float]) -> list[CostStep]:
    """Those of matching, trees and knock-outs that the run's ledger has."""
    n_chosen = sum(layer.top_k for layer in run.layers)
    steps = {
        "match": (
            run.n_tokens,
            match_operations(run.n_tokens, n_chosen, sum(sae.config.k for sae in saes)),
            "additions of the sparse products; regressions and random dictionaries come on top",
        ),
        "tree": (
            run.n_tokens,
            _retraining_flops(run, saes),
            "training the narrower SAEs from another seed; joining, testing and depth first come on top",
        ),
        "ablate": (0, None, "forward passes over held-out documents, one a unit and control"),
    }
    return [
        CostStep(step=name, tokens=tokens, flops=flops, seconds=seconds[name], note=note)
        for name, (tokens, flops, note) in steps.items()
        if name in seconds
    ]


def _trained_saes(run: RunDirectory) -> list[TrainedSae]:
    from moe_probe.sae import load_sae, read_training
    from moe_probe.sae.store import saes_of

    out = []
    for folder in saes_of(run.path) if run.sae_folder.exists() else []:
        config, training = load_sae(folder).config, read_training(folder)
        tokens = int(training.get("tokens", 0))
        batch_tokens = int(training.get("batch_tokens", 2048))
        flops = tokens * sae_train_flops(config.d_in, config.d_sae, config.k, batch_tokens=batch_tokens)
        out.append(TrainedSae(f"{folder.parent.name}/{folder.name}", config, tokens, flops))
    return out


def _retraining_flops(run: RunDirectory, saes: list[TrainedSae]) -> float | None:
    """Operations of training again the SAEs that the tree has from another seed, by its table; None where there is none."""
    splitting = run.results.get("splitting")
    if splitting is None:
        return None
    table = splitting.table
    retrained = set(table.loc[table["split_same_width"].notna(), "parent_sae"])
    return float(sum(sae.training_flops for sae in saes if sae.name in retrained))


def _unknown_model() -> dict[str, Any]:
    return dict.fromkeys(("name", "forward_flops", "forward_flops_no_logits", "training_flops", "train_tokens"))


def _config_of(model: str, revision: str | None, *, download: bool) -> Any:
    from moe_probe.models.checkpoint import local_folder, read_config
    from moe_probe.models.network import hub_access

    local = local_folder(model)
    try:
        with hub_access(allowed=download and local is None):
            return read_config(model, {} if local is not None or revision is None else {"revision": revision})
    except MoeProbeError as error:  # sizes are all that is wanted: they can be given, too
        raise MoeProbeError(error.what, error.why, "moe-probe cost --params N --d-model N, without the run") from error


def _model_sizes(config: Any, model: str, lengths: np.ndarray) -> dict[str, Any]:
    """Sizes of the model; `lengths` are tokens of the documents that were collected."""
    shape = shape_of(config)
    window = min(int(getattr(config.get_text_config(), "max_position_embeddings", 2048)), 4096)
    forward = shape.forward_flops(window)
    # documents were collected as long as they are, or in windows: the mean window of a token
    collected = round(float(np.average(np.minimum(lengths, window), weights=lengths))) if lengths.sum() else window
    return {
        "name": str(model),
        "forward_flops": forward,
        "forward_flops_no_logits": shape.forward_flops(collected, logits=False),
        "train_tokens": None,
        "training_flops": None,
        "window": window,
        "window_collected": collected,
        "d_model": shape.d_model,
    }


def _recorded_tokens(path: Path) -> float | None:
    """Training tokens by the notes of this project's own training script."""
    if not path.is_file():
        return None
    try:
        notes = json.loads(read_text(path))
        return (
            float(notes["step"]) * float(notes["settings"]["batch_tokens"]) if {"step", "settings"} <= set(notes) else None
        )
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise MoeProbeError(
            f"{path} cannot be read", f"it is no record of training ({error})", "--train-tokens N, or remove the file"
        ) from error


def _stage_seconds(run: Path) -> dict[str, float]:
    return {name: entry.seconds for name, entry in read_stages(run).items()}


def _bytes(folder: Path, but: Collection[str] = ()) -> int:
    """Add up the files of a folder, without locks and what else is hidden: those are of the command that is at work."""
    return sum(
        path.stat().st_size
        for path in folder.rglob("*")
        if path.name not in but
        and not any(part.startswith(LOCK_PREFIX) for part in path.relative_to(folder).parts)
        and path.is_file()
    )
