"""One output at a time: which experts and features a single call of the model used, beside what the run knows of them."""

from __future__ import annotations

from moe_probe.studies.inspect.inspection import Inspection

__all__ = ["Inspection"]
