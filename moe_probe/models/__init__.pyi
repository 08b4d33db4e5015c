from .adapters import ADAPTERS
from .adapters.base import MoeSite, Observation
from .capture import KEEPABLE_PARTS, RoutingCapture, SiteRecord
from .check import CheckReport, SiteCheck, estimate, forward_inputs, input_device, self_check
from .discover import find_moe_layers
from .identity import fingerprint, tokenizer_hash
from .load import LoadedModel, load_model
from .settings import ModelSettings

__all__ = [
    "ADAPTERS",
    "KEEPABLE_PARTS",
    "CheckReport",
    "LoadedModel",
    "ModelSettings",
    "MoeSite",
    "Observation",
    "RoutingCapture",
    "SiteCheck",
    "SiteRecord",
    "estimate",
    "find_moe_layers",
    "fingerprint",
    "forward_inputs",
    "input_device",
    "load_model",
    "self_check",
    "tokenizer_hash",
]
