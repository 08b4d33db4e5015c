"""The section on knock-outs: how the loss changes on each topic without the units that are claimed for it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from moe_probe.core.text import listed
from moe_probe.report.cells import ranged, table_of
from moe_probe.report.content import Picture, Section
from moe_probe.report.plots import units as plots_units
from moe_probe.report.sections.unit_names import readable
from moe_probe.studies.verdicts import confirmation

if TYPE_CHECKING:
    import pandas as pd

    from moe_probe.core.results import Result

_CONFIRMED = {"confirmed": "yes", "not confirmed": "no"}


def knockouts_section(results: Mapping[str, Result]) -> Section:
    """Show how the loss changes without each unit."""
    result = results["ablation"]
    own, params = result.table[result.table["held_to"]], result.params
    finding = _confirmed(own)
    picture = Picture(
        "ablation",
        plots_units.ablation_matrix(result.table),
        finding,
        "Rise of the loss on each topic (columns) without each unit (rows); blue: a fall; pale: the interval "
        "includes 0. A dot marks the topic that the unit is claimed for; a star marks a confirmed claim.",
    )
    shown = table_of(
        own.sort_values(["topic", "sae", "unit"]),
        {
            "topic": "topic",
            "without": ("unit", lambda value: readable(str(value))),
            "how": "how",
            "rise of the loss, nats [95 %]": ranged("delta_nats", "ci", "+.3f"),
            "without controls": ("control_nats", "+.3f"),
            "beyond controls [95 %]": ranged("beyond_control", "beyond_control", "+.3f"),
            "beyond other topics [95 %]": ranged("beyond_others", "beyond_others", "+.3f"),
            "confirmed": lambda row: _CONFIRMED.get(confirmation(row), confirmation(row)),
        },
        heading="Units and their own topics",
        note=f"{params['documents']} held-out documents, {params['tokens']:,} tokens; the loss of the unchanged model is "
        f"{params['loss_nats']:.3f} nats per token.",
    )
    return Section(
        title="What happens without them?",
        finding=finding,
        blocks=(picture, shown),
        how=result.caption,
        limits="Confirmed pairs are counted among many that were tried, at 95 % each, with no correction: about one in a "
        "hundred would pass by chance. A missing rise does not prove that the unit has no role: the next best expert may do the "
        "same.",
    )


def _confirmed(own: pd.DataFrame) -> str:
    """Count the claims that the ablation confirms, of experts and of features."""
    if len(own) and own["control_nats"].isna().all():
        return (
            "Units were ablated without control units, so nothing can be confirmed: a rise may be what any unit of "
            "the same load shows."
        )
    counts, named = [], []
    for kind, part in (("expert", own[own["sae"] == ""]), ("feature", own[own["sae"] != ""])):
        confirmed = part[part["confirmed"]]
        if kind == "expert" or len(part):
            counts.append(f"{len(confirmed)} of {len(part)} pairs of topic and {kind}")
        if len(confirmed):
            named.append(f" Confirmed by {kind}: {listed(sorted(confirmed['topic']), 8)}.")
    return (
        f"Ablation confirms {' and '.join(counts)}.{''.join(named)} It confirms a pair where, without the unit, the loss "
        "rises on its own topic, more than on other topics, and more than without units of the same load."
    )
