"""SAEs of rising width, or of two runs: what is left unexplained, recovered, named, and carried."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np

from moe_probe.core.errors import MoeProbeError
from moe_probe.core.results import Result
from moe_probe.studies.compare.intervals import (
    COLUMNS,
    SOURCES,
    Difference,
    from_error,
    from_intervals,
    no_difference,
    with_q,
)
from moe_probe.studies.compare.sides import Side

if TYPE_CHECKING:
    import pandas as pd

_WILSON = "Wilson 1927, interval of a share, DOI 10.1080/01621459.1927.10502953"
#: A feature carries a topic when it tells held-out documents of it with at least this AUROC.
CARRIES = 0.9
_ONE_OF = ("hook", "architecture", "k", "experts")


def sae_values(sides: Sequence[Side]) -> Result:
    """Collect what is known of every SAE of several runs.

    Parameters
    ----------
    sides : sequence of Side
        With result ``sae_quality``, and ``features`` where they were labelled.

    Returns
    -------
    Result
        ``comparison_saes``: ``side, sae, layer, width, hook, architecture, k, measure, value, ci_low, ci_high``; measures
        are ``fvu``, ``ce_recovered``, ``dead``, ``good_labels`` (share of living features whose label tells where they
        fire), ``topics_carried`` (topics one of whose features, chosen by its lift on training documents, tells held-out
        documents with an AUROC of 0.9 or more). Intervals: as stored, or Wilson's over features.

    Raises
    ------
    MoeProbeError
        When a side has no SAEs.
    """
    import pandas as pd

    rows: list[dict[str, Any]] = []
    warnings = []
    for side in sides:
        if "sae_quality" not in side.results:
            raise MoeProbeError(
                f"{side.name} has no SAEs to compare",
                "there is no result 'sae_quality'",
                "moe-probe sae train RUN, then moe-probe sae eval RUN",
            )
        features = side.results["features"].table if "features" in side.results else None
        if features is None:
            warnings.append(f"The features of {side.name} were not labelled: share of good labels and topics are not known.")
        for sae in side.results["sae_quality"].table.to_dict("records"):
            what = {
                "side": side.name,
                "sae": str(sae["sae"]),
                "layer": int(sae["layer"]),
                "width": int(sae["width"]),
                "hook": str(sae["hook"]),
                "architecture": str(sae["architecture"]),
                "k": sae["k"],
                "experts": str(sae.get("experts") or ""),
            }
            mine = None if features is None else features[features["sae"] == sae["sae"]]
            rows += [
                what | {"measure": name, "value": v, "ci_low": low, "ci_high": high}
                for name, (v, low, high) in _measures(sae, mine).items()
            ]
    return Result(
        "comparison_saes",
        pd.DataFrame(rows),
        warnings=tuple(warnings),
        citations=(_WILSON,),
        params={"carries": CARRIES},
        caption="Held-out documents. FVU: fraction of variance unexplained. Loss recovered: 1 where the model loses "
        "nothing with the reconstruction in the place of the activation. Good labels: share of living features; its "
        "interval takes features for independent. Topics carried: the feature is chosen on training documents.",
    )


def _measures(sae: dict[str, Any], features: pd.DataFrame | None) -> dict[str, tuple[float, float, float]]:
    nan = float("nan")
    out = {
        "fvu": (float(sae["fvu"]), nan, nan),
        "dead": (float(sae["dead"]), nan, nan),
        "ce_recovered": (
            float(sae.get("ce_recovered", nan)),
            float(sae.get("ce_recovered_low", nan)),
            float(sae.get("ce_recovered_high", nan)),
        ),
    }
    if features is not None and len(features):
        living = features[features["density"] > 0]
        out["good_labels"] = wilson(int(living["good"].sum()), len(living))
        chosen = living[living["topic"].astype(str) != ""].sort_values("topic_ci_low").groupby("topic").tail(1)
        out["topics_carried"] = (float((chosen["auroc_topic"] >= CARRIES).sum()), nan, nan)
    return out


def wilson(hits: int, n: int) -> tuple[float, float, float]:
    """Share and its 95 % interval (Wilson 1927, DOI 10.1080/01621459.1927.10502953); NaN where n is 0."""
    if n == 0:
        return float("nan"), float("nan"), float("nan")
    z, p = 1.959963984540054, hits / n
    middle = (p + z**2 / (2 * n)) / (1 + z**2 / n)
    half = z * np.sqrt(p * (1 - p) / n + z**2 / (4 * n**2)) / (1 + z**2 / n)
    return p, float(middle - half), float(middle + half)


def sae_differences(values: Result, *, alpha: float = 0.05) -> Result:
    """Differences between SAEs: of neighbouring widths within a run, of the same width between runs.

    Parameters
    ----------
    values : Result
        From `sae_values`.
    alpha : float

    Returns
    -------
    Result
        ``comparison_sae_differences``: ``side_a, side_b, layer, width_a, width_b, measure, value_a, value_b, difference,
        ci_low, ci_high, p_value, q_value, beyond, method``. Measures without interval have none here either.

    Raises
    ------
    MoeProbeError
        When no two SAEs read the same place in the same way.
    """
    import pandas as pd

    table = values.table
    rows = [_row(one, other) for one, other in _pairs(table)]
    if not rows:
        raise MoeProbeError(
            "no two SAEs can be compared",
            "they differ in layer, hook, architecture or sparsity",
            "SAEs of several widths on one layer",
        )
    found = pd.DataFrame(rows)
    q_values, beyond = with_q(found["p_value"].to_numpy(), alpha=alpha)
    found = found.assign(q_value=q_values, beyond=beyond)
    found = found[["side_a", "side_b", "layer", "width_a", "width_b", "measure", *COLUMNS, "q_value", "beyond", "method"]]
    return Result(
        "comparison_sae_differences",
        found,
        citations=SOURCES,
        warnings=values.warnings,
        params={"alpha": alpha},
        caption="Each SAE against the next wider one of its run, and against the one of the "
        "same width in the other run; of several that differ in seed or name only, the one with the shortest folder "
        "name. Intervals take the two for independent, though they were measured on the same "
        "documents, and are too wide if anything; features of one SAE are not independent of each other, so those of "
        "labels are too narrow if anything.",
    )


def _pairs(table: pd.DataFrame) -> list[tuple[pd.Series, pd.Series]]:
    """Rows to compare: neighbouring widths of a run, and equal widths of the first run and each other.

    Of several SAEs of one width that differ in seed or name only, the one with the shortest folder name is taken.
    """
    out = []
    place = ["layer", "measure", *_ONE_OF]
    plain = table.assign(_length=table["sae"].astype(str).str.len()).sort_values(["_length", "sae"], kind="stable")
    table = table.loc[sorted(plain.drop_duplicates(["side", "width", *place]).index)]
    for _, same in table.groupby(["side", *place], sort=False, dropna=False):
        ordered = list(same.sort_values("width").iterrows())
        out += [(one, other) for (_, one), (_, other) in pairwise(ordered)]
    for _, same in table.groupby([*place, "width"], sort=False, dropna=False):
        rows = [row for _, row in same.iterrows()]
        out += [(rows[0], row) for row in rows[1:] if row["side"] != rows[0]["side"]]
    return out


def _row(one: pd.Series, other: pd.Series) -> dict[str, Any]:
    found, method = _difference(one, other)
    return {
        "side_a": one["side"],
        "side_b": other["side"],
        "layer": one["layer"],
        "width_a": one["width"],
        "width_b": other["width"],
        "measure": one["measure"],
        "method": method,
    } | found._asdict()


def _difference(one: pd.Series, other: pd.Series) -> tuple[Difference, str]:
    a, b = ((float(x["value"]), float(x["ci_low"]), float(x["ci_high"])) for x in (one, other))
    if np.isnan([*a, *b]).any():
        return no_difference(a[0], b[0]), "no interval"
    if one["measure"] == "good_labels":  # Newcombe's way is for few features; these are hundreds
        return from_error(a[0], b[0], float(np.hypot(a[2] - a[1], b[2] - b[1]) / 3.92), 1e6), "Wilson, over features"
    return from_intervals(a, b), "stored intervals"
