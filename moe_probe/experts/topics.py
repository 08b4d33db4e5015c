"""Do experts line up with topics? Effect, interval, error-controlled p and held-out replication of every pair."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from moe_probe.core.errors import MoeProbeError
from moe_probe.core.results import Result
from moe_probe.core.stats import (
    Division,
    GroupUsage,
    LabelledShares,
    Lift,
    PermutationTest,
    auroc,
    benjamini_hochberg,
    draw_divisions,
    group_names,
    group_usage,
    log2_lift,
    one_value_per_group,
    permutation_test,
    replicate,
)
from moe_probe.core.text import some_of
from moe_probe.recording.corpus.splits import DISCOVERY, REPLICATION, assign_halves

if TYPE_CHECKING:
    import pandas as pd

    from moe_probe.core.routing import Usage
    from moe_probe.recording.trace import Trace

#: Standard normal quantile of 0.8, for the smallest lift found with that power.
_Z_POWER = 0.8416212335729143
_CITATIONS = (
    "Welch 1947, the studentised difference of means, DOI 10.1093/biomet/34.1-2.28",
    "Westfall and Young 1993, Resampling-based multiple testing (step-down max-T)",
    "Phipson and Smyth 2010, permutation p-values are never zero, DOI 10.2202/1544-6115.1585",
    "Benjamini and Hochberg 1995, false discovery rate, DOI 10.1111/j.2517-6161.1995.tb02031.x",
    "Meinshausen, Meier and Buehlmann 2009, p-values of many divisions combined, DOI 10.1198/jasa.2009.tm08647",
    "Westfall and Krishen 2001, candidates tested in a fixed order, DOI 10.1016/S0378-3758(01)00077-5",
    "Satterthwaite 1946, degrees of freedom of the intervals, DOI 10.2307/3002019",
    "Mann and Whitney 1947, guessing power (AUROC), DOI 10.1214/aoms/1177730491",
)


def expert_topics(
    trace: Trace | Usage,
    *,
    label: str = "topic",
    permutations: int = 1000,
    seed: int = 0,
    alpha: float = 0.05,
    strata: str | None = None,
    measure: str = "selections",
) -> Result:
    """Measure how much more each expert is used for each topic, and which of it is more than chance.

    The unit is the group of documents. ``share`` is the mean over the topic's groups of the share of
    their selections that go to the expert; ``lift`` divides it by the mean of that over topics;
    ``log2_lift`` adds half a selection to both. The test is Welch's t of group means, topic against
    rest, under permutation of topics over groups (within strata where named); q-values control the
    false discovery rate over all layers, experts and topics.

    Parameters
    ----------
    trace : Trace or Usage
    label : str
        Column of labels.
    permutations, seed : int
    alpha : float
        Error rate for ``significant`` and ``replicated``.
    strata : str, optional
        Column within whose values labels are exchanged.
    measure : {"selections", "gate_mass"}
        What shares are formed of: selections, or their gate weights (result ``expert_topics_gate_mass``).

    Returns
    -------
    Result
        ``expert_topics``: ``layer, expert, topic, share, lift, log2_lift, ci_low, ci_high`` (95 %, of
        log2_lift), ``p_value, q_value`` (false discovery rate, or the family-wise p where that is smaller);
        ``significant`` (q at most alpha, lying in a layer whose omnibus test passes; test and lift of one direction);
        ``replicated`` (proposed by half of the groups and confirmed by the other half, over several divisions:
        ``p_replication`` at most alpha, see `moe_probe.core.stats.replicate`); ``p_familywise``, ``auroc``,
        ``log2_lift_replication`` (on the halves that did not choose the pair: free of the winner's curse),
        ``detectable_log2_lift`` (found with power 0.8 at a family-wise alpha within the topic, given this
        pair's standard error), ``n_groups`` (of the topic). ``params`` holds ``model_p`` and ``layer_p``.

    Raises
    ------
    MoeProbeError
        When documents have no such label, only one topic, or a group lies in two topics.
    """
    usage = trace.usage()
    groups = group_usage(usage, label=label, strata=strata, measure=measure)
    if len(groups.topics) < 2:
        raise MoeProbeError(
            f"all documents have the {label} '{groups.topics[0]}'",
            "experts are compared between topics",
            "a corpus of two topics or more, or another --by",
        )
    divisions, halves_from = divide(usage, groups, seed=seed)
    found = align(groups, divisions, permutations=permutations, seed=seed, alpha=alpha)
    return Result(
        "expert_topics" if measure == "selections" else f"expert_topics_{measure}",
        found.table,
        seed=seed,
        warnings=found.warnings,
        citations=_CITATIONS,
        params={
            "label": label,
            "measure": measure,
            "strata": strata,
            "permutations": permutations,
            "alpha": alpha,
            "groups": len(groups.groups),
            "topics": len(groups.topics),
            "halves": halves_from,
            "model_p": found.test.model_p,
            "layer_p": [float(p) for p in found.test.layer_p],
        },
        caption=_caption(groups, label, strata, permutations, alpha, measure),
    )


class Alignment(NamedTuple):
    """Every (column, topic) of a `GroupUsage`: the table of `expert_topics`, the test behind it, warnings."""

    table: pd.DataFrame
    test: PermutationTest
    warnings: tuple[str, ...]


def align(
    groups: GroupUsage, divisions: Sequence[Division], *, permutations: int = 1000, seed: int = 0, alpha: float = 0.05
) -> Alignment:
    """Test every column of a `GroupUsage` (experts, or combinations of them) against every topic.

    Parameters
    ----------
    groups : GroupUsage
    divisions : sequence of Division
        Halves that discover and confirm; see `divide`.
    permutations, seed, alpha
        As `expert_topics`.

    Raises
    ------
    MoeProbeError
        When no labels can be exchanged.
    """
    test = _test(groups, permutations=permutations, seed=seed)
    # the pooled tail cannot resolve a lone perfect expert among many topics; the family-wise p, which bounds the
    # chance of any false claim, can
    q_values = np.fmin(benjamini_hochberg(test.p_value), test.p_familywise)
    effect = _effects(groups)
    # the test compares with the rest's groups (within strata), the lift with the mean over topics: where topics differ in
    # size or in strata one can be above and the other below, and neither claim would be meant
    agrees = np.sign(test.t) == np.sign(effect.log2_lift)
    significant = (q_values <= alpha) & (test.layer_p <= alpha)[groups.layer_index] & agrees
    second = _replicate(groups, divisions, permutations=permutations, seed=seed, alpha=alpha)
    table = _table(groups, test, effect, q_values, significant, second, alpha=alpha)
    return Alignment(table, test, (*groups.warnings, *_size_warnings(groups), *second.warnings))


def expert_labels(
    trace: Trace | Usage,
    labels: Sequence[str],
    *,
    permutations: int = 1000,
    seed: int = 0,
    alpha: float = 0.05,
    strata: str | None = None,
) -> Result:
    """Do for other label columns (subtopic, register, language ...) what `expert_topics` does for topics.

    Every label is a family of its own: q-values control the false discovery rate within it.

    Parameters
    ----------
    trace : Trace or Usage
    labels : sequence of str
        Columns of the documents. One that cannot be tested (a single value, groups that lie in two values)
        is left out, and a warning says why.
    permutations, seed, alpha
        As `expert_topics`.
    strata : str, optional
        Column within whose values labels are exchanged; the column itself, when it is among the labels, is tested
        without strata.

    Returns
    -------
    Result
        ``expert_labels``: ``label, layer, expert, value`` and the columns of `expert_topics`.
    """
    import pandas as pd

    usage = trace.usage()
    parts, warnings, params = [], [], {}
    for label in labels:
        try:
            result = expert_topics(
                usage,
                label=label,
                permutations=permutations,
                seed=seed,
                alpha=alpha,
                strata=None if label == strata else strata,
            )
        except MoeProbeError as error:
            warnings.append(f"{label} was left out: {error}")
            continue
        parts.append(result.table.rename(columns={"topic": "value"}).assign(label=label))
        params[label] = {
            "model_p": result.params["model_p"],
            "groups": result.params["groups"],
            "values": result.params["topics"],
        }
        warnings += [f"{label}: {warning}" for warning in result.warnings]
    table = (
        pd.concat(parts, ignore_index=True)
        if parts
        else pd.DataFrame(
            columns=[
                "label",
                "layer",
                "expert",
                "value",
                "share",
                "lift",
                "log2_lift",
                "ci_low",
                "ci_high",
                "p_value",
                "q_value",
                "replicated",
                "significant",
            ]
        )
    )
    table = table[["label", *(c for c in table.columns if c != "label")]]
    return Result(
        "expert_labels",
        table,
        seed=seed,
        warnings=tuple(warnings),
        citations=_CITATIONS,
        params={"labels": params, "permutations": permutations, "alpha": alpha, "strata": strata},
        caption="As for topics, for every other label of the documents; each label is a family of its own.",
    )


def other_labels(usage: Usage, *, label: str = "topic") -> list[str]:
    """Label columns of the documents other than `label` that hold at least two values."""
    administrative = {"document", "group", "split", "n_tokens", label}
    documents = usage.documents
    return [
        column
        for column in documents.columns
        if column not in administrative and documents[column].dropna().astype(str).replace("", None).nunique() > 1
    ]


class _Replication(NamedTuple):
    """Outcome on halves, arrays [topic, column]."""

    p_value: np.ndarray
    log2_lift: np.ndarray
    warnings: tuple[str, ...] = ()


def _test(groups: GroupUsage, *, permutations: int, seed: int, sign: np.ndarray | None = None) -> PermutationTest:
    return permutation_test(
        groups.shares,
        groups.topic,
        n_topics=len(groups.topics),
        layer_index=groups.layer_index,
        permutations=permutations,
        seed=seed,
        strata=groups.strata,
        sign=sign,
    )


def split_halves(usage: Usage, groups: GroupUsage, *, seed: int) -> tuple[np.ndarray, str]:
    """Say which half each group belongs to, and where that comes from.

    The corpus's own ``split`` where it names both halves, else drawn by seed, each topic evenly.
    """
    documents = usage.documents
    if "split" in documents and set(documents["split"]) == {DISCOVERY, REPLICATION}:
        half_of = one_value_per_group(documents["split"].to_numpy(), group_names(documents), what="split")
        return np.array([half_of[name] for name in groups.groups]), "the corpus's own split"
    topics = [groups.topics[t] for t in groups.topic]
    if groups.strata is not None:  # halves without one of the strata would leave nothing to exchange
        topics = [f"{topic}\x00{stratum}" for topic, stratum in zip(topics, groups.strata, strict=True)]
    return assign_halves(topics, list(groups.groups), seed=seed), "drawn by seed"


def divide(usage: Usage, groups: GroupUsage, *, seed: int) -> tuple[list[Division], str]:
    """Give the halves that discover and confirm, and say where they come from.

    The corpus's own ``split`` where it names both halves, used as it is; else several divisions drawn by seed, each used
    both ways.
    """
    halves, source = split_halves(usage, groups, seed=seed)
    if source != "drawn by seed":
        return [Division(halves == DISCOVERY, halves == REPLICATION)], source
    divisions = draw_divisions(groups.topic, groups.strata, seed=seed)
    return divisions, f"{len(divisions) // 2} divisions drawn by seed, each used both ways"


def _replicate(
    groups: GroupUsage, divisions: Sequence[Division], *, permutations: int, seed: int, alpha: float
) -> _Replication:
    shape = (len(groups.topics), groups.shares.shape[1])
    first = divisions[0]
    if min(first.discovery.sum(), first.confirmation.sum()) < 4:
        return _Replication(
            np.full(shape, np.nan),
            np.full(shape, np.nan),
            ("Too few documents to look again on held-out ones: nothing can count as replicated.",),
        )
    sample = LabelledShares(groups.shares, groups.topic, len(groups.topics), groups.half_selections(), groups.strata)
    try:
        again = replicate(sample, divisions, permutations=permutations, seed=seed + 1)
    except MoeProbeError as error:  # strata may leave a half without labels to exchange
        return _Replication(
            np.full(shape, np.nan),
            np.full(shape, np.nan),
            (f"Nothing can count as replicated: in half of the documents, {error}",),
        )
    never_chosen = np.isnan(again.log2_lift)
    return _Replication(
        again.p_value, np.where(never_chosen, _effects(groups.select(first.confirmation)).log2_lift, again.log2_lift)
    )


def _effects(groups: GroupUsage) -> Lift:
    return log2_lift(groups.shares, groups.topic, n_topics=len(groups.topics), pseudo=groups.half_selections())


def _table(
    groups: GroupUsage,
    test: PermutationTest,
    effect: Lift,
    q_values: np.ndarray,
    significant: np.ndarray,
    second: _Replication,
    *,
    alpha: float,
) -> pd.DataFrame:
    import pandas as pd

    n_topics, n_columns = q_values.shape
    area = auroc(groups.shares, groups.topic, n_topics=n_topics)
    critical = test.critical_values(alpha)[:, None]

    def flat(values: np.ndarray) -> np.ndarray:
        return np.asarray(values).T.ravel()  # [topic, column] -> rows by column, then topic

    return pd.DataFrame(
        {
            "layer": np.repeat(groups.layer, n_topics),
            "expert": np.repeat(groups.expert, n_topics),
            "topic": np.tile(np.array(groups.topics, dtype=object), n_columns),
            "share": flat(effect.share),
            "lift": flat(effect.lift),
            "log2_lift": flat(effect.log2_lift),
            "ci_low": flat(effect.ci_low),
            "ci_high": flat(effect.ci_high),
            "p_value": flat(test.p_value),
            "q_value": flat(q_values),
            "replicated": flat(second.p_value <= alpha),
            "significant": flat(significant),
            "p_familywise": flat(test.p_familywise),
            "auroc": flat(area),
            "log2_lift_replication": flat(second.log2_lift),
            "p_replication": flat(second.p_value),
            "detectable_log2_lift": flat((critical + _Z_POWER) * effect.se),
            "n_groups": np.tile(groups.groups_per_topic, n_columns),
        }
    )


def _size_warnings(groups: GroupUsage) -> list[str]:
    alone = [groups.topics[t] for t in np.flatnonzero(groups.groups_per_topic < 2)]
    if not alone:
        return []
    return [
        f"Nothing can be claimed for {some_of(alone)}: a single independent group of documents has no spread to "
        "compare with."
    ]


def _caption(groups: GroupUsage, label: str, strata: str | None, permutations: int, alpha: float, measure: str) -> str:
    what = "selections that go" if measure == "selections" else "gate weight that goes"
    within, n_groups = f" within {strata}" if strata else "", len(groups.groups)
    return (
        f"Share of each {label}'s {what} to an expert, over the mean of that share across {label}s. The unit "
        f"is the group of documents ({n_groups:,} groups). p: Welch's t of group means, {label} against rest, "
        f"under {permutations:,} permutations of {label}s over groups{within}, its tail pooled over the {label}'s tests; "
        f"q: Benjamini-Hochberg over all layers, experts and {label}s, at most the family-wise p (Westfall-Young). "
        f"Significant: q at most {alpha:g} in a layer whose omnibus test passes. Replicated: proposed by half of the groups "
        "and confirmed one-sided by the other half, over several divisions (twice the median p). Intervals: 95 %, "
        "jackknife over groups."
    )
