"""Single outputs: which experts and features one call of the model used, beside what the run knows of them.

In come a run, its model and a text; out comes an `Inspection`.

- `inspector` does all of it; `record` runs the model, continues the text, and encodes its activations with the SAEs;
  `same_weights` refuses a model with other weights than the run's.
- `units` tables of the call's experts and features, with what `run_tables` looks up in the run's results.
- `topics` guesses the topic, and how often such a guess is right; `reference` pieces of the run's documents, as long as the
  text.
- `watched` the units to watch or shade, read from options, and their values; `alarms` whether they are above the threshold.
- `overhead` what watching costs beside the call; `view` the `Inspection`; `terminal` its lines for a terminal.
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
