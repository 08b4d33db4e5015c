from .measure import measure_cost
from .presets import PRESETS, Preset
from .project import Projection, SaePlan, break_even_nodes, growth, project
from .tables import save_cost

__all__ = [
    "PRESETS",
    "Preset",
    "Projection",
    "SaePlan",
    "break_even_nodes",
    "growth",
    "measure_cost",
    "project",
    "save_cost",
]
