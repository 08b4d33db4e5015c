from .ablate_run import ablate_run, summary_lines
from .ablator import Ablator, knock_out
from .baseline import AblationBaseline, measure_baseline
from .controls import matched_controls
from .settings import AblationSettings
from .units import Unit, parse_units, verdict_units

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
