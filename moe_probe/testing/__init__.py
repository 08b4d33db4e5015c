"""Models and traces whose answers are known: for the tests of this package, and for yours."""

from __future__ import annotations

import importlib
from typing import Any

#: Public names and the module that each is in; imported when first used.
_WHERE = {
    "tiny_moe": "tiny_models",
    "moe_families": "tiny_models",
    "planted_trace": "planted",
    "null_trace": "planted",
    "planted_routing": "planted",
    "write_routing": "planted",
    "PlantedExpert": "planted",
    "planted_activations": "activations",
    "PlantedFeature": "activations",
    "planted_results": "results",
}
__all__ = [
    "PlantedExpert",
    "PlantedFeature",
    "moe_families",
    "null_trace",
    "planted_activations",
    "planted_results",
    "planted_routing",
    "planted_trace",
    "tiny_moe",
    "write_routing",
]


def __getattr__(name: str) -> Any:
    if name not in _WHERE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_WHERE[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
