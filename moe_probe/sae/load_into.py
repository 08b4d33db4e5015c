"""Bring an SAE that was trained elsewhere into a run."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from moe_probe.core.errors import MoeProbeError
from moe_probe.core.lock import locked
from moe_probe.core.progress import Say
from moe_probe.recording.rundir import RunDirectory
from moe_probe.sae.activations import ActivationReader
from moe_probe.sae.config import SaeConfig
from moe_probe.sae.formats.io import load_sae, save_sae
from moe_probe.sae.settings import check_name
from moe_probe.sae.store import folder_name


@dataclass(frozen=True)
class LoadSettings:
    """How an SAE that was trained elsewhere is brought into a run.

    Attributes
    ----------
    layer : int
        MoE layer whose activations it reads.
    hook : str
        Name of the activation site that it reads.
    name : str
        Ending of its folder, so that SAEs of one width and layer lie side by side; "" for none.
    ignore_fields : tuple of str
        As `load_sae`.
    """

    layer: int
    hook: str = SaeConfig.model_fields["hook"].default
    name: str = ""
    ignore_fields: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Refuse a name that no folder can have."""
        check_name(self.name)


@locked(lambda run, *_, **__: run.path)
def load_into(run: RunDirectory, source: Path, settings: LoadSettings, *, say: Say = print) -> Path:
    """Bring an SAE trained elsewhere into a run, as a SAELens folder that names its layer and activation site.

    Nothing is trained, and no setting is guessed.

    Parameters
    ----------
    run : RunDirectory
    source : Path
        Folder of the SAE.
    settings : LoadSettings
    say : callable
        Called with each sentence that a person should read about the SAE's configuration.

    Returns
    -------
    Path
        Its folder in the run.

    Raises
    ------
    MoeProbeError
        As `load_sae`, or when the run has an SAE of this folder already, or another process writes to it.
    """
    reader = ActivationReader(run, layer=settings.layer, hook=settings.hook)
    sae = load_sae(
        source,
        d_in=reader.d_in,
        hook=settings.hook,
        ignore_fields=settings.ignore_fields,
        say=lambda note: say(f"note: {note}"),
    )
    k_known = "k" in sae.config.model_fields_set
    model = run.manifest.model
    sae.config = sae.config.model_copy(
        update={"layer": settings.layer, "hook": settings.hook, "model_id": model.id, "model_fingerprint": model.fingerprint}
    )
    folder = run.sae_folder / folder_name(sae.config, settings.name)
    if folder.exists():
        raise MoeProbeError(
            f"{folder} exists already", "refusing to overwrite it", "pass --name NAME to keep both, or remove that folder"
        )
    return save_sae(sae, folder, training={"loaded_from": source.resolve().name, "k_known": k_known})
