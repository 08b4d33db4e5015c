"""Reports: a run's results in; one self-contained HTML page, the same in Markdown, figures, cards and notebooks out.

- `compose` the order of the report; `sections` writes its sections, as the objects of `content`, with values formatted by
  `cells`; `links` anchors, and text with links to them; `glossary` explains terms.
- `build` renders it as HTML and Markdown with ``templates`` (page, style, script, notebooks); `stage` is the stage
  ``report``.
- `passages` text of topics, shaded by the gate weights of their experts, from a trace.
- `plots` draws with matplotlib, `svg` inside the page.
- `unit_card` cards of single experts and features; `inspection` the page of inspected texts.
- `notebook` notebooks that compare runs.
- `references` published sources of the methods, from ``references.bib``, and what they were used for.

Needs no torch; matplotlib is imported where something is drawn.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from moe_probe.report.build import ReportOptions, write_report
    from moe_probe.report.inspection import write_inspections
    from moe_probe.report.unit_card import UnitCard, expert_card, feature_card

__all__ = ["ReportOptions", "UnitCard", "expert_card", "feature_card", "write_inspections", "write_report"]

_WHERE = {"ReportOptions": "build", "write_report": "build", "write_inspections": "inspection"}


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module '{__name__}' has no attribute '{name}'")
    return getattr(import_module(f"{__name__}.{_WHERE.get(name, 'unit_card')}"), name)
