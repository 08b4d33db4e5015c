"""What happens to the loss on each topic when an expert, a group of experts or an SAE feature is knocked out.

In come a run with its model and the units to knock out; out comes ``ablation``, one row per unit and topic. `units` says which
units, `controls` draws units of the same load to compare them with, `baseline` has the documents with their losses, `ablator`
measures losses without a unit (`feature_removal` for features), `rises` compares them, and `ablate_run` does all of it for a run.
"""

from __future__ import annotations

from moe_probe.studies.ablation.ablate_run import ablate_run, summary_lines
from moe_probe.studies.ablation.ablator import Ablator, knock_out
from moe_probe.studies.ablation.baseline import AblationBaseline, measure_baseline
from moe_probe.studies.ablation.controls import matched_controls
from moe_probe.studies.ablation.units import AblationSettings, Unit, parse_units, verdict_units

__all__ = [
    "AblationBaseline",
    "AblationSettings",
    "Ablator",
    "Unit",
    "ablate_run",
    "knock_out",
    "matched_controls",
    "measure_baseline",
    "parse_units",
    "summary_lines",
    "verdict_units",
]
