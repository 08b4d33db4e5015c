"""Which SAEs a run has: the names of their folders below RUN/sae, and the activations that each of them reads."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from moe_probe.core.errors import MoeProbeError
from moe_probe.core.schema import fingerprint_scheme
from moe_probe.core.text import quoted
from moe_probe.core.units import format_members
from moe_probe.sae.config import SaeConfig

if TYPE_CHECKING:
    import numpy as np

    from moe_probe.recording.trace import Trace
    from moe_probe.sae.activations import ActivationReader
    from moe_probe.sae.architectures.base import Sae


def folder_name(config: SaeConfig, name: str = "") -> str:
    """Name the folder of an SAE below RUN/sae: ``layer_NN/width_WWWWW``, and what differs from the defaults.

    Parameters
    ----------
    config : SaeConfig
    name : str
        Ending by which SAEs of one configuration differ; "" for none. No other part of a folder's name begins with ``_``.

    Returns
    -------
    str
        Such as ``layer_05/width_01024-residual-k8_NAME``.
    """
    plain = SaeConfig(d_in=1, d_sae=1)
    parts = [f"width_{config.d_sae:05d}"]
    if config.hook != plain.hook:
        parts.append(config.hook)
    if config.experts is not None:
        parts.append("e" + format_members(config.experts))
    if config.architecture != plain.architecture:
        parts.append(config.architecture)
    if config.k != plain.k:
        parts.append(f"k{config.k}")
    if config.sparsity != plain.sparsity and config.architecture in ("standard", "jumprelu"):
        parts.append(f"s{config.sparsity:g}")
    if config.seed != plain.seed:
        parts.append(f"seed{config.seed}")
    return f"layer_{config.layer:02d}/{'-'.join(parts)}{ending(name)}"


def ending(name: str) -> str:
    """Write the name of an SAE as the ending of its folder."""
    return f"_{name}" if name else ""


def saes_of(run: Path) -> list[Path]:
    """List the folders of all SAEs of a run, in order.

    Raises
    ------
    MoeProbeError
        When there are none.
    """
    folders = sorted(p.parent for p in (run / "sae").glob("layer_*/width_*/cfg.json"))
    if not folders:
        raise MoeProbeError(f"there are no SAEs in {run}", f"{run / 'sae'} has none", f"moe-probe sae train {quoted(run)}")
    return folders


def readers(trace: Trace, sae: Sae, held_out: np.ndarray) -> tuple[ActivationReader, ActivationReader]:
    """Open the activations that an SAE reads, of training documents and of held-out documents.

    Parameters
    ----------
    trace : Trace
    sae : Sae
        Of the layer, activation site and experts that its configuration names.
    held_out : ndarray of bool, shape (n_documents,)
        From `held_out_documents`.

    Returns
    -------
    tuple of ActivationReader
        Of the training documents, and of the held-out ones.

    Raises
    ------
    MoeProbeError
        When the SAE was trained on another model than the trace was recorded from.
    """
    from moe_probe.sae.activations import ActivationReader

    config, fingerprint = sae.config, trace.manifest.model.fingerprint
    if config.model_fingerprint and fingerprint and config.model_fingerprint != fingerprint:
        if fingerprint_scheme(config.model_fingerprint) != fingerprint_scheme(fingerprint):
            raise MoeProbeError(
                f"the SAE of layer {config.layer} cannot be compared with the model of this trace",
                "one of the two identifies its weights as earlier versions did",
                "train the SAE on this trace, or collect the trace again",
            )
        raise MoeProbeError(
            f"the SAE of layer {config.layer} was trained on another model",
            "its routers and experts have other weights than the model of this trace",
            "use an SAE that was trained on this model",
        )
    train, test = (
        ActivationReader(trace, layer=config.layer, hook=config.hook, documents=which, slots=config.experts is not None)
        for which in (~held_out, held_out)
    )
    return train, test
