"""SAEs of a run: trained or loaded into RUN/sae, measured, and their features labelled into RUN/results."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from moe_probe.core.errors import MoeProbeError, UsageError
from moe_probe.core.progress import Bar
from moe_probe.core.sites import ActivationSite
from moe_probe.core.text import figure, printable, some_of

if TYPE_CHECKING:
    import numpy as np

    from moe_probe.recording.trace import Trace
    from moe_probe.sae import ActivationReader, Progress, Sae, SaeConfig, Trained

Say = Callable[[str], None]
#: Names of SAEs: part of a folder's name, and of references such as ``layer_05/width_01024_NAME:334``.
_NAME = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._-]{0,38}[A-Za-z0-9])?")


@dataclass(frozen=True)
class SaeSettings:
    """Which SAEs to train.

    Attributes
    ----------
    layers : tuple of int
        Empty means three: the first, the middle and the last that the trace holds activations of.
    widths : tuple of int
    architecture, k, sparsity, hook, seed
        As `SaeConfig`.
    experts : str
        "" for all tokens; ``all`` for one SAE per expert; else experts and groups: ``3,5,1+2``.
    epochs, batch_tokens, learning_rate, device, precision
        As `TrainOptions`.
    name : str
        Ending of the folders, so that SAEs that differ in nothing else lie side by side; "" for none.
    """

    layers: tuple[int, ...] = ()
    widths: tuple[int, ...] = (256, 1024, 4096)
    architecture: str = "topk"
    k: int = 16
    sparsity: float = 1e-3
    hook: str = "router_input"
    experts: str = ""
    epochs: int = 4
    batch_tokens: int = 2048
    learning_rate: float = 3e-3
    device: str = "auto"
    precision: str = "auto"
    seed: int = 0
    name: str = ""

    def __post_init__(self) -> None:
        check_name(self.name)
        for name, value in (
            ("width", min(self.widths, default=0)),
            ("k", self.k),
            ("epochs", self.epochs),
            ("batch-tokens", self.batch_tokens),
        ):
            if value < 1:
                raise UsageError(
                    f"a {name} of {value} is no SAE" if name == "width" else f"--{name} {value} is too small",
                    "it must be 1 or more",
                    f"--{name} 1024" if name == "width" else f"a larger --{name}",
                )


@dataclass(frozen=True)
class LoadSettings:
    """How an SAE of elsewhere is brought into a run.

    Attributes
    ----------
    layer, hook
        Whose activations it reads.
    name : str
        Ending of its folder, so that SAEs of one width and layer lie side by side; "" for none.
    ignore_fields : tuple of str
        As `load_sae`.
    """

    layer: int
    hook: str = "router_input"
    name: str = ""
    ignore_fields: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        check_name(self.name)


def check_name(name: str) -> None:
    """Check the name of an SAE.

    Raises
    ------
    UsageError
        When it could not be a part of a folder's name and of references to features.
    """
    if name and not _NAME.fullmatch(name):
        raise UsageError(
            f"--name {printable(name)} cannot be the name of an SAE",
            "use up to 40 letters a to z, digits, '.', '_' and '-', with a letter or digit first and last",
            "--name pile-v2",
        )


def ending(name: str) -> str:
    """What a name adds to the folder of an SAE; nothing that `folder_name` adds begins with ``_``."""
    return f"_{name}" if name else ""


def folder_name(config: SaeConfig) -> str:
    """Folder of an SAE below RUN/sae without `ending`: ``layer_NN/width_WWWWW``, and what differs from the plain one."""
    from moe_probe.sae import SaeConfig as Plain

    plain = Plain(d_in=1, d_sae=1)
    parts = [f"width_{config.d_sae:05d}"]
    if config.hook != plain.hook:
        parts.append(config.hook)
    if config.experts is not None:
        parts.append("e" + "+".join(map(str, config.experts)))
    if config.architecture != plain.architecture:
        parts.append(config.architecture)
    if config.k != plain.k:
        parts.append(f"k{config.k}")
    if config.sparsity != plain.sparsity and config.architecture in ("standard", "jumprelu"):
        parts.append(f"s{config.sparsity:g}")
    if config.seed != plain.seed:
        parts.append(f"seed{config.seed}")
    return f"layer_{config.layer:02d}/{'-'.join(parts)}"


def saes_of(run: Path) -> list[Path]:
    """Folders of all SAEs of a run, in order.

    Raises
    ------
    MoeProbeError
        When there are none.
    """
    found = sorted(p.parent for p in (run / "sae").glob("layer_*/width_*/cfg.json"))
    if not found:
        raise MoeProbeError(f"there are no SAEs in {run}", f"{run / 'sae'} holds none", f"moe-probe sae train {run}")
    return found


def train(
    trace: Trace,
    run: Path,
    settings: SaeSettings,
    *,
    mode: str = "new",
    say: Say = print,
    progress: bool = False,
) -> list[Path]:
    """Train SAEs on a trace's activations and save them below RUN/sae; all widths (and experts) of a layer in one pass.

    Parameters
    ----------
    mode : {"new", "resume", "force"}
        What to do with SAEs that are there: refuse, keep them and train the missing ones (from the last
        checkpoint where there is one), or train all anew.

    Returns
    -------
    list of Path
        Folders of all SAEs asked for.

    Raises
    ------
    MoeProbeError
        When the trace does not hold the activations, there are fewer tokens than latents, or an SAE is there.
    """
    folders: list[Path] = []
    for layer in settings.layers or _three_layers(trace, settings.hook):
        folders += _train_layer(trace, run, settings, layer, mode=mode, say=say, progress=progress)
    return folders


def _train_layer(
    trace: Trace,
    run: Path,
    settings: SaeSettings,
    layer: int,
    *,
    mode: str,
    say: Say,
    progress: bool,
) -> list[Path]:
    from moe_probe.sae import ActivationReader, TrainOptions, train_on
    from moe_probe.sae.held_out import held_out_documents

    held = held_out_documents(trace, seed=settings.seed)
    shared: dict[str, Any] = {
        "layer": layer,
        "hook": settings.hook,
        "slots": bool(settings.experts),
        "seed": settings.seed,
        "batch_tokens": settings.batch_tokens,
    }
    reader, other = (ActivationReader(trace, documents=which, **shared) for which in (~held, held))
    configs = _configs(trace, reader, settings, say)
    folders = [run / "sae" / (folder_name(c) + ending(settings.name)) for c in configs]
    there = [f for f in folders if (f / "cfg.json").exists()]
    if there and mode == "new":
        raise MoeProbeError(
            f"{there[0]} is there already",
            "nothing is overwritten unasked",
            "--resume to train what is missing, --force to train anew, --name NAME to keep both",
        )
    checkpoint = run / "sae" / "training" / f"layer_{layer:02d}-{settings.hook}{ending(settings.name)}"
    if mode == "force":
        for folder in (*there, checkpoint):
            shutil.rmtree(folder, ignore_errors=True)
    wanted = [(c, f) for c, f in zip(configs, folders, strict=True) if mode == "force" or f not in there]
    if not wanted:
        say(f"layer {layer}: all {len(folders)} SAEs are there")
        return folders
    options = TrainOptions(
        epochs=settings.epochs,
        batch_tokens=settings.batch_tokens,
        learning_rate=settings.learning_rate,
        device=settings.device,
        precision=settings.precision,
    )
    with _Bar(f"SAE layer {layer}", shown=progress) as bar:
        trained = train_on(
            reader, [c for c, _ in wanted], held_out=other, options=options, checkpoint=checkpoint, say=bar.say
        )
    for made, (_, folder) in zip(trained, wanted, strict=True):
        _save(made, folder, trace, settings, say)
    return folders


def _save(made: Trained, folder: Path, trace: Trace, settings: SaeSettings, say: Say) -> None:
    from moe_probe.sae import save_sae
    from moe_probe.sae.held_out import HELD_OUT_SHARE

    training = {
        "tokens": made.progress.tokens,
        "steps": made.progress.steps,
        "seconds": round(made.seconds, 3),
        "epochs": settings.epochs,
        "batch_tokens": settings.batch_tokens,
        "learning_rate": settings.learning_rate,
        "fvu_last_batch": made.progress.fvu,
        "held_out_share": HELD_OUT_SHARE,
        "held_out_seed": settings.seed,
        "corpus_hash": trace.manifest.corpus.hash,
    }
    save_sae(made.sae, folder, training=training)
    p = made.progress
    say(
        f"{folder.parent.name}/{folder.name}: FVU {figure(p.fvu, '.3f', 'unknown')}, L0 {p.l0:.1f}, {p.dead:.0%} dead, "
        f"{p.tokens / max(made.seconds, 1e-9):,.0f} tokens/s"
    )


class _Bar:
    """Progress of the SAEs that are trained together: the bar is the widest one's."""

    def __init__(self, text: str, *, shown: bool) -> None:
        self.bar = Bar(text, shown=shown)

    def __enter__(self) -> _Bar:
        self.bar.__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        self.bar.__exit__(*error)

    def say(self, progress: Progress) -> None:
        self.bar.update(
            max(0, progress.step - self.bar.n),
            total=max(self.bar.total or 0, progress.steps),
            note=f"width {progress.config.d_sae}: FVU {progress.fvu:.3f}, L0 {progress.l0:.1f}, {progress.dead:.0%} dead",
        )


def _three_layers(trace: Trace, hook: str) -> list[int]:
    site = ActivationSite.of_hook(hook)
    held = {f.path.rsplit("/", 1)[0] for f in trace.manifest.shards[0].files}
    layers = [item.layer for item in trace.layers if site.folder_of(item.layer) in held]
    if not layers:
        raise MoeProbeError(
            f"the trace at {trace.root} holds no activations ({hook})",
            "SAEs learn from them",
            f"collect again with --keep {site.keep}",
        )
    return sorted({layers[0], layers[len(layers) // 2], layers[-1]})


def _configs(trace: Trace, reader: ActivationReader, settings: SaeSettings, say: Say) -> list[SaeConfig]:
    from moe_probe.sae import SaeConfig

    shared: dict[str, Any] = {
        "architecture": settings.architecture,
        "d_in": reader.d_in,
        "k": settings.k,
        "sparsity": settings.sparsity,
        "hook": settings.hook,
        "layer": reader.layer,
        "seed": settings.seed,
        "model_id": trace.manifest.model.id,
        "model_fingerprint": trace.manifest.model.fingerprint,
    }
    out = []
    for experts in _experts(settings.experts, reader, min(settings.widths), say):
        out += [SaeConfig(d_sae=width, experts=experts, **shared) for width in settings.widths]
    return out


def _experts(text: str, reader: ActivationReader, width: int, say: Say) -> Sequence[tuple[int, ...] | None]:
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
                "an SAE needs as many as latents",
                "a narrower SAE, or more documents",
            )
        return [(e,) for e, n in enumerate(counts) if n >= width]
    try:
        groups = [tuple(sorted({int(e) for e in part.split("+")})) for part in text.split(",")]
    except ValueError as error:
        raise UsageError(f"--experts {text} cannot be read", "", "--experts all, --experts 3,5, or groups: 1+2,7") from error
    for group in groups:
        if group[0] < 0 or group[-1] >= len(counts):
            raise UsageError(
                f"--experts {text} names an expert that is not there",
                f"layer {reader.layer} has {len(counts)}",
                f"0 to {len(counts) - 1}",
            )
    return groups


def load_into(run: Path, trace: Trace, source: Path, settings: LoadSettings, *, say: Say = print) -> Path:
    """Bring an SAE trained elsewhere into a run, as a SAELens folder that knows its layer and hook.

    Nothing is trained, and no setting is guessed: `say` is given what a person should know of its configuration.

    Raises
    ------
    MoeProbeError
        As `load_sae`, or when the run has an SAE of this folder already.
    """
    from moe_probe.sae import ActivationReader, load_sae, save_sae

    reader = ActivationReader(trace, layer=settings.layer, hook=settings.hook)
    sae: Sae = load_sae(
        source,
        d_in=reader.d_in,
        hook=settings.hook,
        ignore_fields=settings.ignore_fields,
        say=lambda note: say(f"note: {note}"),
    )
    k_known = "k" in sae.config.model_fields_set
    model = trace.manifest.model
    sae.config = sae.config.model_copy(
        update={"layer": settings.layer, "hook": settings.hook, "model_id": model.id, "model_fingerprint": model.fingerprint}
    )
    folder = run / "sae" / (folder_name(sae.config) + ending(settings.name))
    if folder.exists():
        raise MoeProbeError(
            f"{folder} is there already", "nothing is overwritten unasked", "--name NAME to keep both, or remove that folder"
        )
    return save_sae(sae, folder, training={"loaded_from": source.resolve().name, "k_known": k_known})


def readers(trace: Trace, sae: Sae, held: np.ndarray) -> tuple[ActivationReader, ActivationReader]:
    """Readers of training and held-out activations for an SAE of a run.

    Raises
    ------
    MoeProbeError
        When the SAE was made from other weights than the trace.
    """
    from moe_probe.sae import ActivationReader

    config, made_by = sae.config, trace.manifest.model.fingerprint
    if config.model_fingerprint and made_by and config.model_fingerprint != made_by:
        raise MoeProbeError(
            f"the SAE of layer {config.layer} was trained on another model",
            "routers and experts had other weights",
            "an SAE of this model",
        )
    first, second = (
        ActivationReader(trace, layer=config.layer, hook=config.hook, documents=which, slots=config.experts is not None)
        for which in (~held, held)
    )
    return first, second
