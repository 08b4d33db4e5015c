"""Settings of the model: which weights, how they are loaded, and where they go."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from pydantic import Field, field_validator, model_validator

from moe_probe.core.settings import Settings, setting

#: Interventions on experts. ``mask``: the router cannot choose them; the next best replace them, and the model renormalises
#: gate weights as usual. ``zero``: they are chosen, and add nothing. ``mean``: they add their mean output. ``steer``: a
#: number is added to their logits.
HOW = ("mask", "zero", "mean", "steer")


class Placement(Settings):
    """Where the weights of a model go."""

    panel: ClassVar[str] = "Model"

    device: str = setting("auto", "device: cpu, cuda, cuda:1 ...; auto takes the first GPU")
    device_map: str | None = setting(
        None, "several devices: auto, balanced, balanced_low_0, sequential, or a JSON file of modules and devices"
    )
    max_memory: str | None = setting(None, "most that goes on each device of --device-map, such as 0=70GiB,cpu=100GiB")
    offload_folder: str | None = setting(None, "folder for weights that fit on no device of --device-map")

    @field_validator("max_memory", mode="before")
    @classmethod
    def _accept_a_mapping(cls, given: Any) -> Any:
        return ",".join(f"{device}={size}" for device, size in given.items()) if isinstance(given, Mapping) else given


class LoadOptions(Placement):
    """How a model is loaded; keyword arguments of `load_model`."""

    revision: str | None = setting(None, "branch, tag or commit of a hub repository")
    dtype: str = setting("auto", "type of the weights: auto, float32, bfloat16, float16")
    experts_implementation: str | None = setting(None, "how transformers computes experts: eager, grouped_mm, batched_mm")
    trust_remote_code: bool = setting(False, "run Python code that comes with the checkpoint")
    tp_plan: str | None = setting(
        None, "with torchrun: auto splits every layer over the processes, experts gives each process whole experts"
    )


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

    def content(self) -> dict[str, Any]:
        """Return what decides the numbers that are recorded: not on how many devices the weights lie."""
        settings = self.model_dump(exclude={"device_map", "max_memory", "offload_folder"})
        if self.tp_plan is None:  # as before there was such a setting: what was done by then is still done
            del settings["tp_plan"]
        return settings
