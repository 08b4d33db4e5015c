"""One row per topic: does it have an expert of its own, and what speaks against it?"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from moe_probe.results import Result

if TYPE_CHECKING:
    import pandas as pd


def topic_verdicts(
    expert_topics: Result, *, alpha: float = 0.05, min_log2_lift: float = 1.0, min_lower_bound: float = 0.5,
    min_share: float = 0.02,
) -> Result:
    """Judge every topic by fixed rules.

    "expert": one expert has log2 lift of at least `min_log2_lift` with a lower bound above
    `min_lower_bound`, q at most `alpha` in a layer that passes its omnibus test, was found again on
    held-out documents, and takes at least `min_share` of the topic's selections. Else "none", with the
    reason and the lift that a typical expert would have needed to be found. "group" and "feature only"
    are not given yet: they need expert groups and SAE features.

    Parameters
    ----------
    expert_topics : Result
        From :func:`moe_probe.alignment.expert_topics`.

    Returns
    -------
    Result
        ``verdicts``: ``topic, verdict, layer, expert, log2_lift, ci_low, ci_high, q_value, auroc_expert,
        auroc_feature, ablation_delta_nats`` (the last two NaN: not measured), ``reason`` (a sentence),
        ``share, log2_lift_replication, detectable_log2_lift``.
    """
    import pandas as pd

    limits = {"alpha": alpha, "min_log2_lift": min_log2_lift, "min_lower_bound": min_lower_bound,
              "min_share": min_share}
    table = expert_topics.table
    rows = [_judge(topic, table[table["topic"] == topic], limits) for topic in sorted(table["topic"].unique())]
    out = pd.DataFrame(rows).astype({"layer": "Int64", "expert": "Int64"})
    return Result(
        "verdicts", out, params=limits, seed=expert_topics.seed,
        warnings=("Vocabulary was not ruled out: an expert counted here may answer to a topic's words rather than to "
                  "its subject.",),
        caption=f"\"expert\" needs all of: lift at least {2**min_log2_lift:g} with the lower end of its 95 % interval "
        f"above {2**min_lower_bound:.2f}, q at most {alpha:g} in a layer whose omnibus test passes, confirmed on "
        f"held-out documents, and at least {min_share:.0%} of the topic's selections. Shown is the expert that passes "
        "with the highest lower bound, or else the nearest candidate.",
        citations=expert_topics.citations)


def _judge(topic: str, table: pd.DataFrame, limits: dict[str, float]) -> dict[str, Any]:
    known = table[table["ci_low"].notna() & table["q_value"].notna()]
    typical = float(known["detectable_log2_lift"].median()) if len(known) else np.nan
    empty = {"layer": None, "expert": None, "log2_lift": np.nan, "ci_low": np.nan, "ci_high": np.nan,
             "q_value": np.nan, "auroc_expert": np.nan, "share": np.nan, "log2_lift_replication": np.nan}
    rest = {"auroc_feature": np.nan, "ablation_delta_nats": np.nan, "detectable_log2_lift": typical}
    if known.empty:
        return {"topic": topic, "verdict": "none", **empty, **rest,
                "reason": "Nothing can be said: too few independent documents of this topic."}
    passes = _passes(known, limits)
    candidates = known[passes] if passes.any() else known[known["significant"] & (known["log2_lift"] > 0)]
    best = (candidates if len(candidates) else known).sort_values(
        ["ci_low", "layer", "expert"], ascending=[False, True, True], kind="stable").iloc[0]
    found = {"layer": int(best["layer"]), "expert": int(best["expert"]), "auroc_expert": best["auroc"],
             **{k: best[k] for k in ("log2_lift", "ci_low", "ci_high", "q_value", "share", "log2_lift_replication")}}
    verdict = "expert" if passes.any() else "none"
    reason = _why(best, int(passes.sum())) if passes.any() else _why_not(best, limits, typical)
    order = ("layer", "expert", "log2_lift", "ci_low", "ci_high", "q_value", "auroc_expert")
    return {"topic": topic, "verdict": verdict, **{k: found[k] for k in order},
            "auroc_feature": np.nan, "ablation_delta_nats": np.nan, "reason": reason, "share": found["share"],
            "log2_lift_replication": found["log2_lift_replication"], "detectable_log2_lift": typical}


def _passes(table: pd.DataFrame, limits: dict[str, float]) -> pd.Series:
    return (table["significant"] & table["replicated"] & (table["q_value"] <= limits["alpha"])
            & (table["log2_lift"] >= limits["min_log2_lift"]) & (table["ci_low"] > limits["min_lower_bound"])
            & (table["share"] >= limits["min_share"]))


def _why(best: pd.Series, n_passing: int) -> str:
    more = "" if n_passing == 1 else f" {n_passing - 1} further expert{'s pass' if n_passing > 2 else ' passes'} too."
    return (f"All conditions hold; on the held-out half alone the lift is {2 ** best['log2_lift_replication']:.2f}.{more} "
            "Not yet ruled out: that it answers to the topic's words.")


def _why_not(best: pd.Series, limits: dict[str, float], typical: float) -> str:
    """Every condition that the nearest candidate fails, and what would have been found."""
    failed = []
    if not best["significant"]:
        failed.append(f"is not significant (q {best['q_value']:.2g})")
    if best["log2_lift"] < limits["min_log2_lift"]:
        failed.append(f"has a lift of {2 ** best['log2_lift']:.2f}, under {2 ** limits['min_log2_lift']:g}")
    elif best["ci_low"] <= limits["min_lower_bound"]:
        failed.append(f"has a lift that may be as low as {2 ** best['ci_low']:.2f}")
    if not best["replicated"]:
        failed.append("was not confirmed on held-out documents")
    if best["share"] < limits["min_share"]:
        failed.append(f"takes only {best['share']:.1%} of the topic's selections")
    return (f"The nearest candidate {', '.join(failed)}. A typical expert of lift {2**typical:.2f} or more would have "
            "been found with probability 0.8.")
