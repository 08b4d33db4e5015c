from .adapters import ADAPTERS
from .adapters.base import MoeSite, Observation
from .capture import KEEPABLE_PARTS, RoutingCapture, SiteRecord
from .check import CheckReport, SiteCheck, estimate, forward_inputs, self_check
from .discover import find_moe_layers, input_device
from .identity import fingerprint, tokenizer_hash
from .intervene import Intervention, intervened, mean_outputs
from .load import LoadedModel, load_model
from .prefix import PrefixCache
from .settings import HOW, ModelSettings
from .splice import spliced
from .suffix import SuffixCache

__all__ = [
    "ADAPTERS",
    "HOW",
    "KEEPABLE_PARTS",
    "CheckReport",
    "Intervention",
    "LoadedModel",
    "ModelSettings",
    "MoeSite",
    "Observation",
    "PrefixCache",
    "RoutingCapture",
    "SiteCheck",
    "SiteRecord",
    "SuffixCache",
    "estimate",
    "find_moe_layers",
    "fingerprint",
    "forward_inputs",
    "input_device",
    "intervened",
    "load_model",
    "mean_outputs",
    "self_check",
    "spliced",
    "tokenizer_hash",
]
