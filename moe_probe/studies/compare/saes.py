"""SAEs of rising width, or of two runs: variance unexplained, loss recovered, labels, and topics carried."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np

from moe_probe.core.errors import MoeProbeError
from moe_probe.core.results import Result
from moe_probe.studies.compare.compared_run import ComparedRun
from moe_probe.studies.compare.differences import SOURCES, Difference, difference_table, from_intervals, no_difference

if TYPE_CHECKING:
    import pandas as pd

_WILSON = "Wilson 1927, interval of a share, DOI 10.1080/01621459.1927.10502953"
#: A feature carries a topic when it detects held-out documents of it with at least this AUROC.
CARRIES = 0.9
#: SAEs are compared where these are equal.
_SAME = ("layer", "measure", "hook", "architecture", "k", "experts")


def sae_values(runs: Sequence[ComparedRun]) -> Result:
    """Collect what is known of every SAE of several runs.

    Parameters
    ----------
    runs : sequence of ComparedRun
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
        When a run has no SAEs.
    """
    import pandas as pd

    rows: list[dict[str, Any]] = []
    warnings = []
    for run in runs:
        if "sae_quality" not in run.results:
            raise MoeProbeError(
                f"{run.name} has no SAEs to compare",
                "there is no result 'sae_quality'",
                "moe-probe sae train RUN, then moe-probe sae eval RUN",
            )
        features = run.results["features"].table if "features" in run.results else None
        if features is None:
            warnings.append(f"The features of {run.name} were not labelled: share of good labels and topics are not known.")
        for sae in run.results["sae_quality"].table.to_dict("records"):
            described = {
                "side": run.name,
                "sae": str(sae["sae"]),
                "layer": int(sae["layer"]),
                "width": int(sae["width"]),
                "hook": str(sae["hook"]),
                "architecture": str(sae["architecture"]),
                "k": sae["k"],
                "experts": str(sae.get("experts") or ""),
            }
            own = None if features is None else features[features["sae"] == sae["sae"]]
            rows += [
                described | {"measure": name, "value": value, "ci_low": low, "ci_high": high}
                for name, (value, low, high) in _measures(sae, own).items()
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
    def stored(name: str) -> float:
        return float(sae.get(name, np.nan))

    out = {
        "fvu": (float(sae["fvu"]), np.nan, np.nan),
        "dead": (float(sae["dead"]), np.nan, np.nan),
        "ce_recovered": (stored("ce_recovered"), stored("ce_recovered_low"), stored("ce_recovered_high")),
    }
    if features is not None and len(features):
        living = features[features["density"] > 0]
        out["good_labels"] = wilson(int(living["good"].sum()), len(living))
        chosen = living[living["topic"].astype(str) != ""].sort_values("topic_ci_low").groupby("topic").tail(1)
        out["topics_carried"] = (float((chosen["auroc_topic"] >= CARRIES).sum()), np.nan, np.nan)
    return out


def wilson(hits: int, n: int) -> tuple[float, float, float]:
    """Share and the ends of its 95 % interval (Wilson 1927, DOI 10.1080/01621459.1927.10502953); NaN where n is 0.

    Parameters
    ----------
    hits, n : int

    Returns
    -------
    tuple of three float
    """
    if n == 0:
        return np.nan, np.nan, np.nan
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
        False discovery rate of ``beyond``.

    Returns
    -------
    Result
        ``comparison_sae_differences``: ``side_a, side_b, layer, width_a, width_b, measure, value_a, value_b, difference,
        ci_low, ci_high, p_value, q_value, beyond, method``. Measures without interval have none here either.

    Raises
    ------
    MoeProbeError
        When no two SAEs read the same activations in the same way.
    """
    rows = [_row(one, other) for one, other in _pairs(values.table)]
    if not rows:
        raise MoeProbeError(
            "no two SAEs can be compared",
            "they differ in layer, activation site, architecture or sparsity",
            "SAEs of several widths on one layer",
        )
    return Result(
        "comparison_sae_differences",
        difference_table(rows, alpha=alpha),
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
    same = list(_SAME)
    plain = table.assign(_length=table["sae"].astype(str).str.len()).sort_values(["_length", "sae"], kind="stable")
    table = table.loc[sorted(plain.drop_duplicates(["side", "width", *same]).index)]
    for _, part in table.groupby(["side", *same], sort=False, dropna=False):
        out += list(pairwise(row for _, row in part.sort_values("width").iterrows()))
    for _, part in table.groupby([*same, "width"], sort=False, dropna=False):
        rows = [row for _, row in part.iterrows()]
        out += [(rows[0], row) for row in rows[1:] if row["side"] != rows[0]["side"]]
    return out


def _row(one: pd.Series, other: pd.Series) -> dict[str, Any]:
    difference, method = _difference(one, other)
    what = {"side_a": one["side"], "side_b": other["side"], "layer": one["layer"]}
    what |= {"width_a": one["width"], "width_b": other["width"], "measure": one["measure"]}
    return what | difference._asdict() | {"method": method}


def _difference(one: pd.Series, other: pd.Series) -> tuple[Difference, str]:
    a, b = ([float(row[name]) for name in ("value", "ci_low", "ci_high")] for row in (one, other))
    if np.isnan([*a, *b]).any():
        return no_difference(a[0], b[0]), "no interval"
    if one["measure"] == "good_labels":  # Newcombe's way is for few features; these are hundreds
        return from_intervals(a, b, z=1.96), "Wilson, over features"
    return from_intervals(a, b), "stored intervals"
