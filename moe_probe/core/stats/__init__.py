"""Statistics on plain arrays: usage shares and labels in; tests, intervals and effect sizes out.

The unit is the group of documents, never the token. docs/statistics.md says what is computed and which error rates were
measured.

- `groups` one row per group: usage shares, labels, strata; a document without a group is its own; `shares` shares of many
  groups, computed block by block.
- `permutation` the permutation test of every column and topic; `welch` its statistic, Welch's t; `labels` permuted topic
  labels, within strata.
- `multiplicity` p-values of permutations, Westfall-Young step-down, Holm, Benjamini-Hochberg; `tail` p-values smaller than
  the permutations of one test can resolve, from the pooled tail of the topic.
- `replication` discovery on one half of the groups, confirmation on the other.
- `effects` share, log2 lift and log2 ratio with intervals, half a selection added; `auroc` AUROC, its intervals and
  differences.
- `bootstrap` resampled groups: intervals of ratios and of whatever is measured on documents.
- `information` mutual information of expert and topic less its null; entropy and effective numbers (of experts, of topics).
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
