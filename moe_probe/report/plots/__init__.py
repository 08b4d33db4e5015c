"""Figures: result tables in, matplotlib Axes (or an array of them) out; comparisons and runs give Figures; none saves.

- `summary` the answer of every topic; `of_run` all figures of a run by name, as Figures.
- `routing` experts and layers; `saes` SAEs; `maps` units in the plane and topic by topic; `units` experts beside features, and
  knock-outs.
- `tree` feature splitting; `compare` runs beside each other; `model_table` models beside each other.
- `panels` what a heat map or scatter shows, for these figures and for the SVG of the report alike; the colour scales.
- `drawing` the parts that figures share: Axes, colour bars, layer ticks, files; `style` colours, on light and on dark
  backgrounds; `fonts` fonts that have all characters.

Every function but `maps.maps` (its module has the name) can be had from here; matplotlib is imported at the first use.

Examples
--------
>>> from moe_probe.report import plots
>>> plots.topic_heatmap(run.results["expert_topics"].table, layers=[5])
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

_PUBLIC = {
    "routing": (
        "load_heatmap",
        "layer_profile",
        "topic_heatmap",
        "coactivation_heatmap",
        "explained_bars",
        "token_class_heatmap",
    ),
    "saes": ("sae_pareto",),
    "summary": ("verdict_lifts",),
    "of_run": ("RunPlots",),
    "maps": ("topic_panels",),
    "units": ("prediction_bars", "carriers", "ablation_matrix"),
    "tree": ("purity_bars",),
    "model_table": ("topic_information",),
    "compare": ("topic_differences", "forest", "layer_lines", "alignment", "label_scatter", "sae_lines"),
}
_WHERE = {name: module for module, names in _PUBLIC.items() for name in names}
__all__ = sorted(_WHERE)


def __getattr__(name: str) -> Any:
    if name not in _WHERE:
        raise AttributeError(f"module '{__name__}' has no attribute '{name}'")
    return getattr(import_module(f"{__name__}.{_WHERE[name]}"), name)
