"""Single outputs: which experts and features one call of the model used, beside what the run knows of them.

In come a run, its model and a text; out comes an `Inspection` (`view`). `inspector` does it all: `record` runs the model, `units`
makes tables of experts and features with what `run_tables` has on them, `topics` guesses the topic by comparison with pieces of
the run's documents (`reference`), `watched` and `alarms` tell whether watched units fire, `overhead` measures what watching
costs. `terminal` shows an inspection as lines of text.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from moe_probe.studies.inspect.view import Inspection
from moe_probe.studies.inspect.watched import Watched, shade_levels, unit_values

if TYPE_CHECKING:
    from moe_probe.studies.inspect.inspector import Inspector, Look, inspect_text

__all__ = ["Inspection", "Inspector", "Look", "Watched", "inspect_text", "shade_levels", "unit_values"]


def __getattr__(name: str) -> Any:
    if name not in ("Inspector", "Look", "inspect_text"):  # these need torch
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.inspector"), name)
