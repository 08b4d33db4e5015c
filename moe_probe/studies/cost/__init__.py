"""What collecting, training SAEs, labelling and matching cost: counted, measured on a run, and projected for any model."""

from __future__ import annotations

from moe_probe.core.flops import ModelShape, sae_encode_flops, sae_train_flops, shape_of, training_flops
from moe_probe.studies.cost.presets import PRESETS, Preset
from moe_probe.studies.cost.project import Projection, growth, project

__all__ = [
    "PRESETS",
    "ModelShape",
    "Preset",
    "Projection",
    "growth",
    "project",
    "sae_encode_flops",
    "sae_train_flops",
    "shape_of",
    "training_flops",
]
