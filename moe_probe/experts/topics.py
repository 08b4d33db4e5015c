"""Topic effects of experts: size, interval, error-controlled p-values and held-out replication of every pair."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from moe_probe.core.errors import MoeProbeError
from moe_probe.core.results import Result
from moe_probe.experts.topic_groups import draw_halves, topic_groups
from moe_probe.experts.topic_tests import topic_effects

if TYPE_CHECKING:
    from moe_probe.core.routing import Usage
    from moe_probe.recording.trace import Trace

_CITATIONS = (
    "Welch 1947, the studentised difference of means, DOI 10.1093/biomet/34.1-2.28",
    "Westfall and Young 1993, step-down max-T",
    "Phipson and Smyth 2010, permutation p-values are never zero, DOI 10.2202/1544-6115.1585",
    "Benjamini and Hochberg 1995, false discovery rate, DOI 10.1111/j.2517-6161.1995.tb02031.x",
    "Meinshausen, Meier and Buehlmann 2009, p-values of many divisions combined, DOI 10.1198/jasa.2009.tm08647",
    "Westfall and Krishen 2001, candidates tested in a fixed order, DOI 10.1016/S0378-3758(01)00077-5",
    "Satterthwaite 1946, degrees of freedom of the intervals, DOI 10.2307/3002019",
    "Mann and Whitney 1947, guessing power (AUROC), DOI 10.1214/aoms/1177730491",
)
#: Columns of a table of labels of which none could be tested.
_LABEL_COLUMNS = [
    *("label", "layer", "expert", "value", "share", "lift", "log2_lift", "ci_low", "ci_high"),
    *("p_value", "q_value", "replicated", "significant"),
]


def expert_topics(  # noqa: PLR0913 (public analysis: keyword options with defaults)
    trace: Trace | Usage,
    *,
    label: str = "topic",
    permutations: int = 1000,
    seed: int = 0,
    alpha: float = 0.05,
    strata: str | None = None,
    measure: str = "selections",
) -> Result:
    """Measure how much more each expert is used for each topic, and test which effects exceed chance.

    The unit is the group of documents. ``share`` is the mean over the topic's groups of the share of
    their selections that go to the expert; ``lift`` divides it by the mean of that over topics;
    ``log2_lift`` adds half a selection to both. The test is Welch's t of group means, topic against
    rest, under permutation of topics over groups (within strata if given); q-values control the
    false discovery rate over all layers, experts and topics.

    Parameters
    ----------
    trace : Trace or Usage
    label : str
        Label column of the topics.
    permutations : int
        Number of permutations of topics over groups.
    seed : int
        Seed of permutations and halves.
    alpha : float
        Error rate of ``significant`` and ``replicated``.
    strata : str, optional
        Label column within whose values topics are permuted.
    measure : {"selections", "gate_mass"}
        Shares of selections, or of gate weights (result ``expert_topics_gate_mass``).

    Returns
    -------
    Result
        ``expert_topics``: ``layer, expert, topic, share, lift, log2_lift, ci_low, ci_high`` (95 %, of
        log2_lift), ``p_value, q_value`` (false discovery rate, or the family-wise p where that is smaller);
        ``significant`` (q at most alpha, in a layer whose omnibus test passes; test and lift have one direction);
        ``replicated`` (proposed by half of the groups and confirmed by the other half, over several divisions:
        ``p_replication`` at most alpha, see `moe_probe.core.stats.replicate`); ``p_familywise``, ``auroc``,
        ``log2_lift_replication`` (on the halves that did not choose the pair: free of the winner's curse),
        ``detectable_log2_lift`` (found with power 0.8 at a family-wise alpha within the topic, given this
        pair's standard error), ``n_groups`` (of the topic). ``params`` holds ``model_p`` and ``layer_p``
        (None where nothing can be tested), and the level of ``evidence``.
        Where no topic has two groups, and for counts that are sums by topic, only lifts and shares are known: intervals,
        p and q are NaN, and nothing is significant.

    Raises
    ------
    MoeProbeError
        When documents have no such label, only one topic, or a group lies in two topics.
    """
    usage = trace.usage()
    groups = topic_groups(usage, label=label, strata=strata, measure=measure)
    divisions, halves_from = draw_halves(usage, groups, seed=seed) if groups.testable else ([], "none: too few groups")
    effects = topic_effects(groups, divisions, permutations=permutations, seed=seed, alpha=alpha)
    params = {
        "label": label,
        "measure": measure,
        "strata": strata,
        "permutations": permutations,
        "alpha": alpha,
        "groups": len(groups.groups),
        "topics": len(groups.topics),
        "halves": halves_from,
        "model_p": _known(effects.test.model_p),
        "layer_p": [_known(p) for p in effects.test.layer_p],
        "evidence": str(usage.evidence),
    }
    return Result(
        "expert_topics" if measure == "selections" else f"expert_topics_{measure}",
        effects.table,
        params,
        seed,
        _caption(params),
        effects.warnings,
        _CITATIONS,
    )


def expert_labels(  # noqa: PLR0913 (public analysis: keyword options with defaults)
    trace: Trace | Usage,
    labels: Sequence[str],
    *,
    permutations: int = 1000,
    seed: int = 0,
    alpha: float = 0.05,
    strata: str | None = None,
) -> Result:
    """Test other label columns (subtopic, register, language ...) as `expert_topics` tests topics.

    Every label is a family of its own: q-values control the false discovery rate within it.

    Parameters
    ----------
    trace : Trace or Usage
    labels : sequence of str
        Label columns. One that cannot be tested (a single value, groups that lie in two values)
        is left out, and a warning says why.
    permutations : int
        Number of permutations of labels over groups.
    seed : int
        Seed of permutations and halves.
    alpha : float
        Error rate of ``significant`` and ``replicated``.
    strata : str, optional
        Label column within whose values labels are permuted; it is itself tested without strata, if it is among the labels.

    Returns
    -------
    Result
        ``expert_labels``: ``label, layer, expert, value`` and the columns of `expert_topics`.
    """
    import pandas as pd

    usage = trace.usage()
    options: dict[str, Any] = {"permutations": permutations, "seed": seed, "alpha": alpha}
    parts, warnings, params = [], [], {}
    for label in labels:
        try:
            result = expert_topics(usage, label=label, strata=None if label == strata else strata, **options)
        except MoeProbeError as error:
            warnings.append(f"{label} was left out: {error}")
            continue
        parts.append(result.table.rename(columns={"topic": "value"}))
        parts[-1].insert(0, "label", label)
        params[label] = {
            "model_p": result.params["model_p"],
            "groups": result.params["groups"],
            "values": result.params["topics"],
        }
        warnings += [f"{label}: {warning}" for warning in result.warnings]
    return Result(
        "expert_labels",
        pd.concat(parts, ignore_index=True) if parts else pd.DataFrame(columns=_LABEL_COLUMNS),
        seed=seed,
        warnings=tuple(warnings),
        citations=_CITATIONS,
        params={"labels": params, "permutations": permutations, "alpha": alpha, "strata": strata},
        caption="Usage of every expert for every value of the other label columns. Columns read as in expert_topics; each label "
        "column is a family of tests of its own.",
    )


def _known(value: float) -> float | None:
    """Return a number as JSON can hold it: None in place of NaN."""
    return None if math.isnan(value) else float(value)


def _caption(params: dict[str, Any]) -> str:
    label, measure = params["label"], "selections" if params["measure"] == "selections" else "gate weight"
    within = f" within {params['strata']}" if params["strata"] else ""
    shares = f"Share of each {label}'s {measure} that goes to each expert, and its lift over the mean share across {label}s."
    if params["model_p"] is None:
        return f"{shares} Effects only: nothing can be tested, so there are no intervals, p or q."
    return (
        f"{shares} Significant: q at most {params['alpha']:g} in a layer whose omnibus test passes. Replicated: proposed by half "
        f"of the groups of documents and confirmed one-sided by the other half, over several divisions (twice the median p). "
        f"p: Welch's t of the means of {params['groups']:,} groups, {label} against rest, {params['permutations']:,} "
        f"permutations of {label}s over groups{within}, tail pooled over the {label}'s tests. q: Benjamini-Hochberg over all "
        f"layers, experts and {label}s, at most the family-wise p (Westfall-Young). Intervals: 95 %, jackknife over groups."
    )
