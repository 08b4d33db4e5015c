"""Settings of the model: which weights, and how they are loaded."""

from __future__ import annotations

from typing import Any, ClassVar

from pydantic import Field, model_validator

from moe_probe.core.settings import Settings, setting

#: Interventions on experts. ``mask``: the router cannot choose them; the next best replace them, and the model renormalises
#: gate weights as usual. ``zero``: they are chosen, and add nothing. ``mean``: they add their mean output. ``steer``: a
#: number is added to their logits.
HOW = ("mask", "zero", "mean", "steer")


class LoadOptions(Settings):
    """How a model is loaded; keyword arguments of `load_model`."""

    panel: ClassVar[str] = "Model"

    revision: str | None = setting(None, "branch, tag or commit of a hub repository")
    dtype: str = setting("auto", "type of the weights: auto, float32, bfloat16, float16")
    device: str = setting("auto", "device: cpu, cuda, cuda:1 ...; auto takes the first GPU")
    experts_implementation: str | None = setting(None, "how transformers computes experts: eager, grouped_mm, batched_mm")
    trust_remote_code: bool = setting(False, "run Python code that comes with the checkpoint")


class ModelSettings(LoadOptions):
    """Which model is loaded, and how; a bare string stands for ``name``."""

    name: str = Field(description="folder of a checkpoint, or its name on a hub", json_schema_extra={"flag": "-"})

    @model_validator(mode="before")
    @classmethod
    def _accept_a_name(cls, given: Any) -> Any:
        return {"name": given} if isinstance(given, str) else given

    def load_options(self) -> dict[str, Any]:
        """Keyword arguments of `load_model`."""
        return self.model_dump(exclude={"name"})
