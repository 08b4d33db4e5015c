"""Settings of SAE training: which dictionaries are trained, on what, and how long."""

from __future__ import annotations

import re
from typing import Any, ClassVar

from pydantic import model_validator

from moe_probe.core.errors import UsageError, did_you_mean
from moe_probe.core.settings import Settings, setting
from moe_probe.core.sites import HOOKS, ActivationSite
from moe_probe.core.text import printable
from moe_probe.sae.config import SaeConfig, TrainOptions

#: Names of the architectures, as `sae.architectures.registry` has them.
ARCHITECTURES = ("topk", "batchtopk", "matryoshka", "jumprelu", "standard")
_EXPERTS = re.compile(r"all|\d{1,6}(?:\+\d{1,6})*(?:,\d{1,6}(?:\+\d{1,6})*)*")
#: Widths of `moe-probe sae train` where none are named.
DEFAULT_WIDTHS = (256, 1024, 4096)
_NAME = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._-]{0,38}[A-Za-z0-9])?")
_TRAINING = TrainOptions()


def _of_sae(name: str) -> Any:
    return SaeConfig.model_fields[name].default


class SaeSettings(Settings):
    """Which SAEs are trained, and how.

    Attributes
    ----------
    widths : tuple of int
        Latents. Empty: a run trains no SAEs, `sae train` those of `DEFAULT_WIDTHS`.
    layers : tuple of int
        MoE layers. Empty: the first, the middle and the last whose activations the trace has.
    experts : str
        "" for all tokens; ``all`` for one SAE per expert; else experts and groups: ``3,5,1+2``.
    hook, architecture, k, sparsity
        As `SaeConfig`.
    epochs, sae_batch_tokens, learning_rate, precision
        As `TrainOptions`.
    name : str
        Ending of the folders, so that SAEs that differ in nothing else lie side by side; "" for none.
    """

    panel: ClassVar[str] = "Sparse autoencoders"

    widths: tuple[int, ...] = setting((), "latents of the SAEs to train, as 256,1024,4096 (what sae train takes by default)")
    layers: tuple[int, ...] = setting(
        (), "MoE layers to train SAEs on, as 1,3,5 or 0-5; first, middle and last if none", flag="--sae-layers"
    )
    experts: str = setting("", "SAEs of some experts' tokens: all (one each), 3,5 or groups 1+2,7")
    hook: str = setting(_of_sae("hook"), f"activation site that SAEs read: {', '.join(HOOKS)}")
    architecture: str = setting(_of_sae("architecture"), f"architecture: {', '.join(ARCHITECTURES)}")
    k: int = setting(_of_sae("k"), "active latents per token", ge=1)
    sparsity: float = setting(_of_sae("sparsity"), "weight of the penalty (standard, jumprelu)", ge=0)
    epochs: int = setting(_TRAINING.epochs, "passes over the activations", ge=1)
    sae_batch_tokens: int = setting(_TRAINING.batch_tokens, "tokens of a training step", ge=1)
    learning_rate: float = setting(_TRAINING.learning_rate, "peak learning rate", gt=0)
    precision: str = setting(_TRAINING.precision, "of the encoder's product: auto, float32, bfloat16")
    name: str = setting("", "ending of the folders' names, so that two SAEs of one width can lie side by side")

    @model_validator(mode="after")
    def _check(self) -> SaeSettings:
        check_name(self.name)
        ActivationSite.of_hook(self.hook)
        if self.architecture not in ARCHITECTURES:
            raise UsageError(
                f"--architecture {self.architecture} is not known", did_you_mean(self.architecture, list(ARCHITECTURES))
            )
        if self.experts and not _EXPERTS.fullmatch(self.experts):
            raise UsageError(
                f"--experts {printable(self.experts)} cannot be read", "", "all, or experts and groups of one layer: 3,5,1+2"
            )
        if min(self.widths, default=1) < 1:
            raise UsageError(f"a width of {min(self.widths)} is invalid", "it must be 1 or more", "--widths 1024")
        if self.precision not in ("auto", "float32", "bfloat16"):
            raise UsageError(f"--precision {self.precision} is not known", "", "auto, float32 or bfloat16")
        return self


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
