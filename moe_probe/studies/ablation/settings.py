"""Settings of knock-outs in a run."""

from __future__ import annotations

from typing import ClassVar

from pydantic import model_validator

from moe_probe.core.errors import UsageError
from moe_probe.core.settings import Settings, setting

#: What is done to an expert.
HOW = ("mask", "zero", "mean", "steer")
#: Tokens of held-out documents on which losses are measured.
TOKENS = 24_576


class AblationStageSettings(Settings):
    """Whether a run knocks out the units that its verdicts rest on, and how."""

    panel: ClassVar[str] = "Causes"

    ablate: str = setting("", "knock out the experts and features that verdicts rest on: mask, zero or mean; none if empty")
    ablate_tokens: int = setting(TOKENS, "tokens of held-out documents that losses are measured on", ge=256)

    @model_validator(mode="after")
    def _check(self) -> AblationStageSettings:
        if self.ablate and self.ablate not in HOW[:-1]:
            raise UsageError(f"--ablate {self.ablate} is not known", "", f"one of {', '.join(HOW[:-1])}")
        return self
