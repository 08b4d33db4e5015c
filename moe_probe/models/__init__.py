"""Models: find the places that route, watch them, and prove that what was seen is what ran."""

from __future__ import annotations

from moe_probe.models.adapters import ADAPTERS
from moe_probe.models.adapters.base import MoeSite, Observation
from moe_probe.models.capture import KEEPABLE_PARTS, RoutingCapture, SiteRecord
from moe_probe.models.check import CheckReport, SiteCheck, estimate, forward_inputs, input_device, self_check
from moe_probe.models.discover import find_moe_layers
from moe_probe.models.identity import fingerprint, tokenizer_hash
from moe_probe.models.load import LoadedModel, load_model

__all__ = [
    "ADAPTERS",
    "KEEPABLE_PARTS",
    "CheckReport",
    "LoadedModel",
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
