"""How much a corpus could have shown: groups that a verdict takes, and the smallest lift that would have been found."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from moe_probe.core.schema import Evidence
from moe_probe.core.text import some_of

if TYPE_CHECKING:
    from moe_probe.core.results import Result

#: Groups that each half of the corpus needs (`moe_probe.experts.topic_tests`).
_HALF = 4


def enough_groups(n: int, total: int, *, alpha: float = 0.05) -> bool:
    """Say whether half of a topic's groups can confirm at least a perfect expert.

    Its p in one half is one over the number of ways to deal the topic's labels there, and twice that counts
    (`moe_probe.core.stats.replicate`): with two topics it takes eight groups of each, with three six.

    Parameters
    ----------
    n, total : int
        Groups of the topic, and of all topics.
    alpha : float

    Returns
    -------
    bool
    """
    return n // 2 >= 2 and total // 2 >= _HALF and 2 / math.comb(total // 2, n // 2) <= alpha


def groups_needed(n_topics: int, *, alpha: float = 0.05) -> int:
    """Compute the smallest number of groups of every topic that can confirm an expert (`enough_groups`).

    Parameters
    ----------
    n_topics : int
        At least 2.
    alpha : float
        Above 0.

    Returns
    -------
    int
    """
    n = 4
    while not enough_groups(n, n * n_topics, alpha=alpha):
        n += 1
    return n


def power_sentences(verdicts: Result) -> str:
    """Say on how many units the verdicts of a run rest, and which lifts they could have found.

    Parameters
    ----------
    verdicts : Result
        From `moe_probe.studies.verdicts.topic_verdicts`, completed or not.

    Returns
    -------
    str
        "" for verdicts of an earlier version, and where the record has no documents.
    """
    table = verdicts.table
    if "n_groups" not in table or table["n_groups"].isna().any() or verdicts.params.get("evidence") == Evidence.COUNTS:
        return ""
    sizes = table["n_groups"].astype(int)
    few, many = int(sizes.min()), int(sizes.max())
    each = f"{few}" if few == many else f"{few} to {many}"
    parts = [f"Units: {int(sizes.sum()):,} independent groups of documents, {each} a topic."]
    known = table[table["detectable_log2_lift"].notna()].sort_values("detectable_log2_lift", kind="stable")
    if len(known):
        lifts = np.exp2(known["detectable_log2_lift"].to_numpy(dtype=float))
        least, most = known["topic"].iloc[0], known["topic"].iloc[-1]
        span = f"{lifts[0]:.2f} ({least})"
        span += f" to {lifts[-1]:.2f} ({most}), median {np.median(lifts):.2f}" if len(known) > 1 else ""
        parts.append(f"Smallest lift that these documents can show (power 0.8, typical expert): {span}.")
    unknown = table[table["detectable_log2_lift"].isna()]["topic"].tolist()
    if unknown:
        parts.append(f"No lift could be found for {some_of(unknown)}.")
    needed = verdicts.params.get("groups_needed")
    alpha, total = float(verdicts.params.get("alpha", 0.05)), int(sizes.sum())
    short = sum(not enough_groups(int(n), total, alpha=alpha) for n in sizes)
    if short and needed:
        parts.append(
            f"{short} of {len(table)} topics have too few groups to confirm an expert on half of them; "
            f"{needed} of every topic would be enough."
        )
    return " ".join(parts)
