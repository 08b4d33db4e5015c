"""The test of every unit (expert, or combination of experts) and topic: effect, interval, p-values and replication."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from moe_probe.core.errors import MoeProbeError
from moe_probe.core.stats import (
    Division,
    GroupUsage,
    LabelledShares,
    Lift,
    PermutationTest,
    auroc,
    benjamini_hochberg,
    log2_lift,
    permutation_test,
    replicate,
)
from moe_probe.core.text import some_of
from moe_probe.experts.topic_groups import pair_table

if TYPE_CHECKING:
    import pandas as pd

#: Warning where every topic is one group.
NO_TEST = "No test is possible: every topic is a single group (or sum) of documents. Lifts have neither intervals nor p."
#: Standard normal quantile of 0.8, for the smallest lift that is found with that power.
_Z_POWER = 0.8416212335729143


class TopicEffects(NamedTuple):
    """Effects of every (column, topic) of a `GroupUsage`.

    Attributes
    ----------
    table : pandas.DataFrame
        Columns as in `moe_probe.experts.topics.expert_topics`; rows by column, then topic.
    test : PermutationTest
    warnings : tuple of str
    """

    table: pd.DataFrame
    test: PermutationTest
    warnings: tuple[str, ...]


class _Replication(NamedTuple):
    """Outcome on halves of the groups, arrays of shape (n_topics, n_columns)."""

    p_value: np.ndarray
    log2_lift: np.ndarray
    warnings: tuple[str, ...] = ()


def topic_effects(
    groups: GroupUsage, divisions: Sequence[Division], *, permutations: int = 1000, seed: int = 0, alpha: float = 0.05
) -> TopicEffects:
    """Test every column of a `GroupUsage` (experts, or combinations of them) against every topic.

    Parameters
    ----------
    groups : GroupUsage
    divisions : sequence of Division
        Halves that discover and confirm, from `moe_probe.experts.topic_groups.draw_halves`.
    permutations : int
        Number of permutations of topics over groups.
    seed : int
        Seed of the permutations.
    alpha : float
        Error rate of ``significant`` and ``replicated``.

    Returns
    -------
    TopicEffects

    Raises
    ------
    MoeProbeError
        When no labels can be permuted.
    """
    n_topics = len(groups.topics)
    test = _permuted(groups, permutations=permutations, seed=seed) if groups.testable else _untested(groups)
    # the pooled tail cannot resolve a lone perfect expert among many topics; the family-wise p, which bounds the
    # chance of any false claim, can
    q_values = np.fmin(benjamini_hochberg(test.p_value), test.p_familywise)
    effect = _lift(groups)
    # the test compares with the rest's groups (within strata), the lift with the mean over topics: where topics differ in
    # size or in strata, one can be above and the other below, and neither claim would be meant
    agrees = np.sign(test.t) == np.sign(effect.log2_lift)
    second = _replicate(groups, divisions, permutations=permutations, seed=seed + 1)
    values = {
        "share": effect.share,
        "lift": effect.lift,
        "log2_lift": effect.log2_lift,
        "ci_low": effect.ci_low,
        "ci_high": effect.ci_high,
        "p_value": test.p_value,
        "q_value": q_values,
        "replicated": second.p_value <= alpha,
        "significant": (q_values <= alpha) & (test.layer_p <= alpha)[groups.layer_index] & agrees,
        "p_familywise": test.p_familywise,
        "auroc": auroc(groups.shares, groups.topic, n_topics=n_topics),
        "log2_lift_replication": second.log2_lift,
        "p_replication": second.p_value,
        "detectable_log2_lift": (test.critical_values(alpha)[:, None] + _Z_POWER) * effect.se,
        "n_groups": np.broadcast_to(groups.groups_per_topic[:, None], q_values.shape),
    }
    table = pair_table(groups, groups.topics, values)
    return TopicEffects(table, test, (*groups.warnings, *_size_warnings(groups), *second.warnings))


def _permuted(groups: GroupUsage, *, permutations: int, seed: int) -> PermutationTest:
    return permutation_test(
        groups.shares,
        groups.topic,
        n_topics=len(groups.topics),
        layer_index=groups.layer_index,
        permutations=permutations,
        seed=seed,
        strata=groups.strata,
    )


def _untested(groups: GroupUsage) -> PermutationTest:
    """Make the outcome where no topic has two groups: every p is unknown, and none is 1."""
    n_topics, n_columns = len(groups.topics), groups.shares.shape[1]
    unknown = np.full((n_topics, n_columns), np.nan)
    return PermutationTest(
        t=unknown,
        p_value=unknown,
        p_count=unknown,
        p_familywise=unknown,
        p_single_step=unknown,
        maxima=np.full(1, np.nan),
        topic_maxima=np.full((1, n_topics), np.nan, dtype=np.float32),
        layer_p=np.full(groups.n_layers, np.nan),
        model_p=np.nan,
    )


def _lift(groups: GroupUsage) -> Lift:
    return log2_lift(groups.shares, groups.topic, n_topics=len(groups.topics), pseudo=groups.half_selections())


def _replicate(groups: GroupUsage, divisions: Sequence[Division], *, permutations: int, seed: int) -> _Replication:
    """Confirm on one half of the groups what the other half proposes; NaN and a warning where that is impossible."""
    unknown = np.full((len(groups.topics), groups.shares.shape[1]), np.nan)
    if not groups.testable:  # the warning on single groups says so
        return _Replication(unknown, unknown)
    first = divisions[0]
    if min(first.discovery.sum(), first.confirmation.sum()) < 4:
        warning = "There are too few documents to test again on held-out ones: nothing can count as replicated."
        return _Replication(unknown, unknown, (warning,))
    sample = LabelledShares(groups.shares, groups.topic, len(groups.topics), groups.half_selections(), groups.strata)
    try:
        outcome = replicate(sample, divisions, permutations=permutations, seed=seed)
    except MoeProbeError as error:  # strata may leave a half without labels to permute
        warning = f"Nothing can count as replicated: in half of the documents, {error}"
        return _Replication(unknown, unknown, (warning,))
    never_chosen = np.isnan(outcome.log2_lift)
    confirmation = _lift(groups.select(first.confirmation)).log2_lift
    return _Replication(outcome.p_value, np.where(never_chosen, confirmation, outcome.log2_lift))


def _size_warnings(groups: GroupUsage) -> list[str]:
    """Name the topics that cannot be tested because they have a single group."""
    alone = [groups.topics[t] for t in np.flatnonzero(groups.groups_per_topic < 2)]
    if len(alone) == len(groups.topics):
        return [NO_TEST]
    if not groups.testable:
        return ["No test is possible: no topic has two groups of documents and two groups of other topics to compare with."]
    if not alone:
        return []
    return [f"Nothing can be claimed for {some_of(alone)}: the spread of a single group of documents is unknown."]
