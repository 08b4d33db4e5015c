"""Settings of knock-outs: by themselves, and as a stage of a run."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from pydantic import model_validator

from moe_probe.core.errors import UsageError
from moe_probe.core.settings import Settings, setting
from moe_probe.models.settings import HOW

#: Tokens of held-out documents on which losses are measured.
TOKENS = 24_576


@dataclass(frozen=True)
class AblationSettings:
    """How units are knocked out.

    Attributes
    ----------
    by : str
        Label column whose values losses are compared over.
    how : {"mask", "zero", "mean", "steer"}
        For experts. A feature's share of the activation is always removed.
    boost : float
        Added to the experts' logits when steering.
    tokens : int
        Tokens of held-out documents that losses are measured on.
    controls : int
        Units of the same load that each one is compared with. Without any, nothing can be confirmed.
    resamples : int
        Bootstrap resamples of groups of documents, within topics.
    seed : int
    """

    by: str = "topic"
    how: str = "mask"
    boost: float = 0.0
    tokens: int = TOKENS
    controls: int = 2
    resamples: int = 1000
    seed: int = 0


class AblationStageSettings(Settings):
    """Whether a run knocks out the units that its verdicts rest on, and how."""

    panel: ClassVar[str] = "Causes"

    ablate: str = setting("", "knock out the experts and features that verdicts rest on: mask, zero or mean; none if empty")
    ablate_tokens: int = setting(
        AblationSettings.tokens, "tokens of held-out documents that losses are measured on", flag="--loss-tokens", ge=256
    )

    @model_validator(mode="after")
    def _check(self) -> AblationStageSettings:
        if self.ablate and self.ablate not in HOW[:-1]:
            raise UsageError(f"--ablate {self.ablate} is not known", "", f"one of {', '.join(HOW[:-1])}")
        return self
