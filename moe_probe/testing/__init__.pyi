from .activations import PlantedActivations, PlantedFeature, planted_activations
from .planted import PlantedExpert, PlantedRouting, planted_routing
from .results import planted_results
from .sources import collapsed_usage, source_usage
from .tiny_models import moe_families, tiny_moe
from .traces import null_trace, planted_trace, write_routing

__all__ = [
    "PlantedActivations",
    "PlantedExpert",
    "PlantedFeature",
    "PlantedRouting",
    "collapsed_usage",
    "moe_families",
    "null_trace",
    "planted_activations",
    "planted_results",
    "planted_routing",
    "planted_trace",
    "source_usage",
    "tiny_moe",
    "write_routing",
]
