"""What knock-outs say of verdicts: whether the rise of the loss without a unit is confirmed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from moe_probe.core.text import is_missing
from moe_probe.core.units import UnitRef, format_members, parse_members

if TYPE_CHECKING:
    import pandas as pd

CONFIRMED, NOT_CONFIRMED, NOT_TESTED = "confirmed", "not confirmed", "not tested"
#: Knocked out, but without what a confirmation is compared with.
UNCONFIRMABLE = "cannot be confirmed"


def cause_cells(row: Mapping[str, Any], ablation: pd.DataFrame) -> dict[str, Any]:
    """Cells of a verdict on the rise without its unit: its experts, or its feature where the verdict is that.

    Parameters
    ----------
    row : mapping
        Of the verdicts.
    ablation : pandas.DataFrame

    Returns
    -------
    dict
        Empty where the verdict names no unit, or it was not knocked out.
    """
    if row["verdict"] == "feature only":
        unit = UnitRef.parse(row["feature"])
        same = (ablation["sae"] == unit.sae) & (ablation["members"] == format_members(unit.members))
    elif not is_missing(row["layer"]):
        members = format_members(parse_members(row["experts"]))
        same = (ablation["sae"] == "") & (ablation["layer"] == int(row["layer"])) & (ablation["members"] == members)
    else:
        return {}
    rises = ablation[same & (ablation["topic"] == row["topic"])]
    if rises.empty:
        return {}
    rise = rises.iloc[0]
    return {
        "ablation_delta_nats": rise["delta_nats"],
        "ablation_low": rise["ci_low"],
        "ablation_high": rise["ci_high"],
        "ablation_unit": rise["unit"],
        "causal": confirmation(rise),
    }


def confirmation(row: Mapping[str, Any]) -> str:
    """Say whether a row of ``ablation`` is confirmed, and where it cannot be, why.

    Parameters
    ----------
    row : mapping
        ``confirmed, n_controls, ci_low, beyond_others_low``; of results without the second or the last nothing is said about
        controls or other topics.

    Returns
    -------
    str
        "confirmed", "not confirmed", or "cannot be confirmed (the reason)". Confirmed asks for a rise above that
        without control units, and for intervals, which take two groups of documents.
    """
    if row["confirmed"]:
        return CONFIRMED
    if np.isnan(row["ci_low"]):
        return f"{UNCONFIRMABLE} (one group of documents)"
    if row.get("n_controls") == 0:
        return f"{UNCONFIRMABLE} (no control units)"
    if is_missing(row.get("beyond_others_low", 0.0)):
        return f"{UNCONFIRMABLE} (every other topic has one group of documents)"
    return NOT_CONFIRMED


def rise_text(row: Mapping[str, Any], digits: int = 4) -> str:
    """Write a rise of the loss with its interval, in words where a topic of one group of documents has none.

    Parameters
    ----------
    row : mapping
        ``delta_nats, ci_low, ci_high``, nats a token.
    digits : int
        Decimals.

    Returns
    -------
    str
    """
    value = f"{row['delta_nats']:+.{digits}f} nats"
    if np.isnan(row["ci_low"]):
        return f"{value} (no interval: one group of documents)"
    return f"{value} [{row['ci_low']:+.{digits}f}, {row['ci_high']:+.{digits}f}]"
