"""Names of experts, groups and features in text, with links to their cards."""

from __future__ import annotations

import re
from typing import Any

from moe_probe.core.text import is_missing
from moe_probe.core.units import UnitRef, parse_members
from moe_probe.report.cells import Row, sae_name, spelled
from moe_probe.report.content import Link, Rich
from moe_probe.report.links import expert_link, glued, joined, unit_key


def unit_of(row: Row | Any) -> Rich:
    """Name the expert, group or feature of a row of verdicts, with a link to its card.

    Parameters
    ----------
    row : mapping

    Returns
    -------
    Rich
        An en dash where the row names none.
    """
    experts = experts_of(row)
    if row["verdict"] != "feature only":
        return "–" if experts is None else unit_link(experts)
    feature = feature_link(str(row["feature"]))
    return feature if experts is None else joined([feature, glued("nearest: ", unit_link(experts))], "; ")


def unit_link(unit: UnitRef) -> Link:
    """Link to the card of an expert or of a group of experts."""
    if len(unit.members) == 1 and unit.layer is not None:
        return expert_link(unit.layer, unit.members[0])
    return Link(f"layer {unit.layer}, experts {', '.join(map(str, unit.members))}", unit_key(unit))


def feature_link(text: str) -> Link:
    """Link to the card of a feature that is given as ``layer_03/width_01024:575``."""
    return Link(feature_name(text), unit_key(UnitRef.parse(text)))


def experts_of(row: Row | Any) -> UnitRef | None:
    """Return the expert or group of a row of verdicts, where no unit passes the nearest one; None where it names none."""
    if is_missing(row["layer"]):
        return None
    members = parse_members(row["experts"]) if row.get("experts") else (int(row["expert"]),)
    return UnitRef(tuple(sorted(members)), int(row["layer"]))


def where(row: Row | Any) -> str:
    """Name the expert or experts of a row of verdicts."""
    if is_missing(row["layer"]):
        return "–"
    if "+" in str(row.get("experts", "")):
        return f"layer {int(row['layer'])}, experts {spelled(row['experts'])}"
    return f"layer {int(row['layer'])}, expert {int(row['expert'])}"


def feature_name(text: str) -> str:
    """Write ``layer_03/width_01024:575`` and ``layer 5 experts 13+4`` as words; other text stays."""
    match = re.fullmatch(r"(layer_\d+/width_[^: ]+)(?::| feature )(\d+)", text)
    if match:
        return f"feature {match[2]} of the SAE of {sae_name(match[1])}"
    match = re.fullmatch(r"layer (\d+) (experts?) ([\d+]+)", text)
    return f"layer {match[1]}, {match[2]} {spelled(match[3])}" if match else text


def readable(text: str) -> str:
    """Write folders of SAEs in a sentence (``layer_03/width_01024``) as words."""
    reordered = re.sub(r"(layer_\d+/width_\S*\w) feature (\d+)", lambda m: f"feature {m[2]} of {m[1]}", text)
    return re.sub(r"\blayer_\d+/width_\S*\w", lambda m: f"the SAE of {sae_name(m[0])}", reordered)
