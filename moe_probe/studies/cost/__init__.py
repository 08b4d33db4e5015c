"""What collecting, training SAEs, labelling and matching cost, compared with what training the model cost.

In come a run's folders and the sizes of its model; out come operations, seconds and bytes per step.

- `measure` what the stages of a run took; `project` the same steps for any model, and how the fraction moves with its size.
- `presets` sizes of published models, with sources; `tables` writes ``cost.json``, ``costs`` and ``cost_projected``.
- `stage` the stage ``cost``.
"""

from __future__ import annotations

from moe_probe.core.flops import ModelShape, sae_encode_flops, sae_train_flops, shape_of, training_flops
from moe_probe.studies.cost.measure import measure_cost
from moe_probe.studies.cost.presets import PRESETS, Preset
from moe_probe.studies.cost.project import Projection, SaePlan, break_even_nodes, growth, project
from moe_probe.studies.cost.tables import save_cost

__all__ = [
    "PRESETS",
    "ModelShape",
    "Preset",
    "Projection",
    "SaePlan",
    "break_even_nodes",
    "growth",
    "measure_cost",
    "project",
    "sae_encode_flops",
    "sae_train_flops",
    "save_cost",
    "shape_of",
    "training_flops",
]
