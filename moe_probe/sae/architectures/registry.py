"""Architectures by name. A new one is a file, and a line here."""

from __future__ import annotations

from moe_probe.core.errors import MoeProbeError, did_you_mean
from moe_probe.sae.architectures.base import Sae
from moe_probe.sae.architectures.batchtopk import BatchTopK
from moe_probe.sae.architectures.jumprelu import JumpReLU
from moe_probe.sae.architectures.matryoshka import Matryoshka
from moe_probe.sae.architectures.standard import Standard
from moe_probe.sae.architectures.topk import TopK
from moe_probe.sae.config import SaeConfig

ARCHITECTURES: dict[str, type[Sae]] = {
    "topk": TopK,
    "batchtopk": BatchTopK,
    "jumprelu": JumpReLU,
    "standard": Standard,
    "matryoshka": Matryoshka,
}


def make_sae(config: SaeConfig) -> Sae:
    """Build an untrained SAE.

    Raises
    ------
    MoeProbeError
        When the architecture is not known.
    """
    if config.architecture not in ARCHITECTURES:
        raise MoeProbeError(
            f"unknown SAE architecture '{config.architecture}'",
            did_you_mean(config.architecture, list(ARCHITECTURES)),
            f"use one of {', '.join(ARCHITECTURES)}",
        )
    return ARCHITECTURES[config.architecture](config)
