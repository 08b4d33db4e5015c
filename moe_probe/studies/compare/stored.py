"""Stored results that a comparison starts from: columns and their types are checked, since runs come from others as well."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from moe_probe.core.errors import MoeProbeError
from moe_probe.core.results import Result

if TYPE_CHECKING:
    import pandas as pd

_NUMBERS = ("log2_lift", "ci_low", "ci_high", "q_value")
_VERDICTS = {"topic": "name", "verdict": "text", "layer": "number", "experts": "text", "reason": "text"}
_VERDICTS |= dict.fromkeys(_NUMBERS, "number")
#: Columns that are needed, by result, and their kinds.
_NEEDED: dict[str, dict[str, str]] = {
    "verdicts": _VERDICTS,
    "usage_verdicts": _VERDICTS,
    "layers": {"layer": "number"}
    | dict.fromkeys(("entropy_bits", "effective_experts", "load_cv", "mi_topic_bits"), "number"),
    "sae_quality": dict.fromkeys(("sae", "hook", "architecture"), "text")
    | dict.fromkeys(("layer", "width"), "whole")
    | dict.fromkeys(("k", "fvu", "dead"), "number"),
    "features": dict.fromkeys(("sae", "topic"), "text")
    | dict.fromkeys(("density", "topic_ci_low", "auroc_topic"), "number")
    | {"good": "yes or no"},
}
#: Columns that may be there.
_OPTIONAL: dict[str, dict[str, str]] = {
    "verdicts": {"grade": "text", "auroc_feature": "number"},
    "usage_verdicts": {"grade": "text", "auroc_feature": "number"},
    "sae_quality": dict.fromkeys(("ce_recovered", "ce_recovered_low", "ce_recovered_high"), "number") | {"experts": "text"},
}


def check_stored(root: Path, results: Mapping[str, Result]) -> None:
    """Refuse results that a comparison cannot be computed from.

    Parameters
    ----------
    root : Path
        The run, for messages.
    results : mapping of str to Result

    Raises
    ------
    MoeProbeError
        When a column is missing or of another type, or a topic or layer is there twice.
    """
    for name, kinds in _NEEDED.items():
        if name not in results:
            continue
        table = results[name].table
        for column, kind in {**kinds, **_OPTIONAL.get(name, {})}.items():
            wrong = "is missing" if column in kinds else ""
            if column in table.columns:
                wrong = _problem(table[column], kind)
            if wrong:
                raise MoeProbeError(
                    f"the result '{name}' of {root} cannot be compared",
                    f"its column '{column}' {wrong}",
                    _command(name, root),
                )
        if name == "layers" and table["layer"].duplicated().any():
            raise MoeProbeError(
                f"the result '{name}' of {root} cannot be compared", "it has a layer twice", _command(name, root)
            )


def _command(name: str, root: Path) -> str:
    from moe_probe.core.results import command_for

    return command_for(name, root / "results")


def _problem(column: pd.Series, kind: str) -> str:
    """Say what is wrong with a column; "" where nothing is."""
    import pandas as pd

    if column.empty:  # no row says what its type is
        return ""
    if kind == "yes or no":
        return "" if pd.api.types.is_bool_dtype(column) else "is not of yes and no"
    if kind in ("text", "name"):
        known = column.dropna()
        if not all(isinstance(value, str) for value in known):
            return "has other values than text"
        if kind == "name" and (len(known) < len(column) or column.duplicated().any()):
            return "lacks a name or has one twice"
        return ""
    if kind == "number" and column.isna().all():
        return ""
    if not pd.api.types.is_numeric_dtype(column) or pd.api.types.is_bool_dtype(column):
        return "has other values than numbers"
    if pd.api.types.is_complex_dtype(column):
        return "has complex numbers"
    values = column.to_numpy(dtype=float, na_value=np.nan)
    if kind == "whole" and not (np.isfinite(values).all() and (values == np.floor(values)).all()):
        return "has other values than whole numbers"
    return ""
