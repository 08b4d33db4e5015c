"""Statistics on plain arrays: group means, permutation tests, multiplicity, effects.

The unit is the group of documents, never the token. docs/statistics.md says what is computed and
which error rates were measured.
"""

from __future__ import annotations

from moe_probe.core.stats.auroc import auroc, auroc_difference, auroc_interval
from moe_probe.core.stats.bootstrap import (
    Interval,
    Resamples,
    ratio_interval,
    student_interval,
)
from moe_probe.core.stats.effects import Lift, LogRatio, half_selection, log2_lift, log2_ratio, topic_moments
from moe_probe.core.stats.groups import (
    GroupUsage,
    group_names,
    group_usage,
    labelled_documents,
    one_value_per_group,
    strata_of_groups,
)
from moe_probe.core.stats.information import MutualInformation, macro_mutual_information
from moe_probe.core.stats.labels import LabelPermuter
from moe_probe.core.stats.multiplicity import StepDownMax, benjamini_hochberg, holm, permutation_p
from moe_probe.core.stats.permutation import PermutationTest, permutation_p_values, permutation_test
from moe_probe.core.stats.replication import Division, LabelledShares, Replication, draw_divisions, replicate
from moe_probe.core.stats.tail import PooledTail
from moe_probe.core.stats.welch import welch_t

__all__ = [
    "Division",
    "GroupUsage",
    "Interval",
    "LabelPermuter",
    "LabelledShares",
    "Lift",
    "LogRatio",
    "MutualInformation",
    "PermutationTest",
    "PooledTail",
    "Replication",
    "Resamples",
    "StepDownMax",
    "auroc",
    "auroc_difference",
    "auroc_interval",
    "benjamini_hochberg",
    "draw_divisions",
    "group_names",
    "group_usage",
    "half_selection",
    "holm",
    "labelled_documents",
    "log2_lift",
    "log2_ratio",
    "macro_mutual_information",
    "one_value_per_group",
    "permutation_p",
    "permutation_p_values",
    "permutation_test",
    "ratio_interval",
    "replicate",
    "strata_of_groups",
    "student_interval",
    "topic_moments",
    "welch_t",
]
