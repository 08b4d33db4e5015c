"""Feature splitting: how the features of a wider dictionary divide those of a narrower one."""

from __future__ import annotations

from moe_probe.tree.join import Level, Splitting, agreement, join, splitting

__all__ = ["Level", "Splitting", "agreement", "join", "splitting"]
