"""Adapters: how to read the routing of each kind of mixture-of-experts block."""

from __future__ import annotations

from moe_probe.models.adapters.experts_module import ADAPTERS

__all__ = ["ADAPTERS"]
