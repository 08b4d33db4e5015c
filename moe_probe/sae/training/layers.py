"""Train the SAEs of a run layer by layer: all widths and experts of a layer in one pass over its activations."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from moe_probe.core.errors import MoeProbeError, UsageError
from moe_probe.core.files import disk_errors
from moe_probe.core.lock import locked
from moe_probe.core.own_files import CHECKPOINT_FILES, SAE_FILES
from moe_probe.core.progress import Bar, Say
from moe_probe.core.sites import ActivationSite
from moe_probe.core.text import figure, some_of
from moe_probe.core.units import parse_members
from moe_probe.recording.rundir import RunDirectory
from moe_probe.recording.trace import Trace
from moe_probe.sae.activations import ActivationReader
from moe_probe.sae.config import SaeConfig
from moe_probe.sae.formats.io import CONFIG, read_training, save_sae
from moe_probe.sae.held_out import HELD_OUT_SHARE, held_out_documents
from moe_probe.sae.settings import DEFAULT_WIDTHS
from moe_probe.sae.store import ending, folder_name
from moe_probe.sae.training.record import TrainingRecord
from moe_probe.sae.training.request import TrainRequest
from moe_probe.sae.training.steps import Progress
from moe_probe.sae.training.train import Trained, train_on


@locked(lambda run, *_, **__: run.path)
def train_layers(run: RunDirectory, request: TrainRequest, *, say: Say = print) -> list[Path]:
    """Train SAEs on the activations of a run and save them below RUN/sae.

    Parameters
    ----------
    run : RunDirectory
    request : TrainRequest
    say : callable
        Called with a sentence on each SAE.

    Returns
    -------
    list of Path
        Folders of all SAEs asked for.

    Raises
    ------
    MoeProbeError
        When the trace does not have the activations, there are fewer tokens than latents, an SAE exists already, or another
        process writes to the run.
    """
    return [folder for layer in layers_of(run, request) for folder in train_layer(run, request, layer, say)]


def layers_of(run: RunDirectory, request: TrainRequest) -> list[int]:
    """List the layers that SAEs are trained on: those of the settings, or three.

    Parameters
    ----------
    run : RunDirectory
    request : TrainRequest

    Returns
    -------
    list of int

    Raises
    ------
    MoeProbeError
        When there are none with activations in the trace.
    """
    return list(request.settings.layers) or _three_layers(run, request.settings.hook)


def train_layer(run: RunDirectory, request: TrainRequest, layer: int, say: Say) -> list[Path]:
    """Train the SAEs of one layer.

    Parameters
    ----------
    run : RunDirectory
    request : TrainRequest
    layer : int
    say : callable

    Returns
    -------
    list of Path
        Their folders.

    Raises
    ------
    MoeProbeError
        As `train_layers`.
    """
    settings, options = request.settings, request.options
    held_out = held_out_documents(run, seed=request.seed)
    shared: dict[str, Any] = {
        "layer": layer,
        "hook": settings.hook,
        "slots": bool(settings.experts),
        "seed": request.seed,
        "batch_tokens": options.batch_tokens,
    }
    reader, other = (ActivationReader(run, documents=which, **shared) for which in (~held_out, held_out))
    wanted = {run.sae_folder / folder_name(c, settings.name): c for c in _configs(reader, request, say)}
    existing = [folder for folder in wanted if (folder / CONFIG).exists()]
    if existing and request.mode == "new":
        raise MoeProbeError(
            f"{existing[0]} exists already",
            "refusing to overwrite it",
            "pass --resume to train what is missing, --force to train anew, or --name NAME to keep both",
        )
    checkpoint = run.sae_folder / "training" / f"layer_{layer:02d}-{settings.hook}{ending(settings.name)}"
    if request.mode == "force":
        with disk_errors(run.sae_folder):
            _remove(existing, checkpoint)
        existing = []
    for folder in existing:
        _check_training(folder, request)
    missing = {folder: config for folder, config in wanted.items() if folder not in existing}
    if not missing:
        say(f"layer {layer}: all {len(wanted)} SAEs exist already")
        return list(wanted)
    with _progress(f"SAE layer {layer}") as update:
        trained = train_on(
            reader, list(missing.values()), held_out=other, options=options, checkpoint=checkpoint, say=update
        )
    for item, folder in zip(trained, missing, strict=True):
        _save(item, folder, run, request)
        p = item.progress
        say(
            f"{folder.parent.name}/{folder.name}: FVU {figure(p.fvu, '.3f', 'unknown')}, L0 {p.l0:.1f}, {p.dead:.0%} dead, "
            f"{p.tokens / max(item.seconds, 1e-9):,.0f} tokens/s"
        )
    return list(wanted)


def _remove(saes: Sequence[Path], checkpoint: Path) -> None:
    """Remove SAEs and the checkpoint of their training, all of them or none; what others put beside them stays."""
    own = [*((folder, SAE_FILES) for folder in saes), (checkpoint, CHECKPOINT_FILES)]
    for folder, files in own:
        files.listed(folder)
    for folder, files in own:
        files.remove_folder(folder)


def _check_training(folder: Path, request: TrainRequest) -> None:
    """Refuse to go on with an SAE that was trained otherwise than the settings say."""
    record, options = read_training(folder), request.options
    asked = {name: getattr(options, name) for name in TrainingRecord.OPTIONS} | {"held_out_seed": request.seed}
    for name, value in asked.items():
        if name in record and record[name] != value:
            words = {"held_out_seed": "seed", "batch_tokens": "sae-batch-tokens"}.get(name, name.replace("_", "-"))
            raise MoeProbeError(
                f"{folder} was trained with --{words} {record[name]}, not {value}",
                "it would be taken for what the settings say",
                "the same settings, moe-probe sae train RUN --force to train anew, or --name NAME to keep both",
            )


def _save(item: Trained, folder: Path, trace: Trace, request: TrainRequest) -> None:
    """Write an SAE with the record of its training (`TrainingRecord`)."""
    training = {
        "tokens": item.progress.tokens,
        "steps": item.progress.steps,
        "seconds": round(item.seconds, 3),
        **{name: getattr(request.options, name) for name in TrainingRecord.OPTIONS},
        "fvu_last_batch": item.progress.fvu,
        "held_out_share": HELD_OUT_SHARE,
        "held_out_seed": request.seed,
        "corpus_hash": trace.manifest.corpus.hash,
    }
    save_sae(item.sae, folder, training=training)


@contextmanager
def _progress(text: str) -> Iterator[Callable[[Progress], None]]:
    """Show the progress of SAEs that are trained together: the bar is the one of the SAE with the most steps."""
    with Bar(text) as bar:

        def update(progress: Progress) -> None:
            bar.update(
                max(0, progress.step - bar.n),
                total=max(bar.total or 0, progress.steps),
                note=f"width {progress.config.d_sae}: FVU {progress.fvu:.3f}, L0 {progress.l0:.1f}, {progress.dead:.0%} dead",
            )

        yield update


def _three_layers(trace: Trace, hook: str) -> list[int]:
    """Choose the first, the middle and the last layer whose activations the trace has."""
    site = ActivationSite.of_hook(hook)
    kept = {f.path.rsplit("/", 1)[0] for f in trace.manifest.shards[0].files}
    layers = [item.layer for item in trace.layers if site.folder_of(item.layer) in kept]
    if not layers:
        raise MoeProbeError(
            f"the trace at {trace.root} has no activations ({hook})",
            "SAEs are trained on them",
            f"collect again with --keep {site.keep}",
        )
    return sorted({layers[0], layers[len(layers) // 2], layers[-1]})


def _configs(reader: ActivationReader, request: TrainRequest, say: Say) -> list[SaeConfig]:
    settings, model = request.settings, reader.trace.manifest.model
    widths = settings.widths or DEFAULT_WIDTHS
    shared: dict[str, Any] = {
        **settings.model_dump(include={"architecture", "k", "sparsity", "hook"}),
        "d_in": reader.d_in,
        "layer": reader.layer,
        "seed": request.seed,
        "model_id": model.id,
        "model_fingerprint": model.fingerprint,
    }
    groups = _expert_groups(settings.experts, reader, min(widths), say)
    return [SaeConfig(d_sae=width, experts=experts, **shared) for experts in groups for width in widths]


def _expert_groups(text: str, reader: ActivationReader, width: int, say: Say) -> Sequence[tuple[int, ...] | None]:
    """Read ``--experts``: groups of experts whose tokens one SAE is trained on; None for all tokens."""
    if not text:
        return [None]
    counts = reader.expert_counts()
    if text == "all":
        scarce = [e for e, n in enumerate(counts) if n < width]
        if scarce:
            say(f"layer {reader.layer}: experts {some_of(scarce)} have fewer than {width:,} tokens and get no SAE")
        if len(scarce) == len(counts):
            raise MoeProbeError(
                f"no expert of layer {reader.layer} has {width:,} tokens",
                "an SAE needs at least as many tokens as latents",
                "pass smaller --widths, or collect more documents",
            )
        return [(e,) for e, n in enumerate(counts) if n >= width]
    try:
        groups = [tuple(sorted(set(parse_members(part)))) for part in text.split(",")]
    except ValueError as error:
        raise UsageError(f"--experts {text} cannot be read", "", "--experts all, --experts 3,5, or groups: 1+2,7") from error
    for group in groups:
        if not group or group[0] < 0 or group[-1] >= len(counts):
            raise UsageError(
                f"--experts {text} names an expert that does not exist",
                f"layer {reader.layer} has {len(counts)}",
                f"name experts from 0 to {len(counts) - 1}",
            )
    return groups
