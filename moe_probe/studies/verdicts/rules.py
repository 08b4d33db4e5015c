"""What it takes to be called a topic's expert, and how sure and how large an answer is."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import pandas as pd

#: How sure, and how large, in the column ``grade``; the last two go with the verdict "none".
CLEAR, LIKELY, NEAR, WEAK, NOTHING, UNTESTED = "clear", "likely", "near the threshold", "weak", "none", "untested"


@dataclass(frozen=True)
class Rules:
    """What it takes to be called a topic's expert. All must hold.

    Attributes
    ----------
    alpha : float
        Largest q of the lift, and of usage beyond what words, previous tokens and pairs of tokens predict.
    min_log2_lift : float
        The threshold of the log2 lift. The interval must reach it. Among T topics a lift cannot exceed T: for two and three
        topics the threshold is what an expert has that is used three times as much for one as for the others
        (`for_topics`); from four topics on that is 2 or more.
    tolerance : float
        A measured log2 lift may lie this far below the threshold; within it on either side the grade is "near the
        threshold", so that no answer turns on the last digit. The grade is the same where usage is less than this above what
        `min_log2_beyond` asks for.
    min_lower_bound : float
        Smallest lower end of the 95 % interval of the log2 lift.
    min_share : float
        Smallest share of the topic's selections.
    min_log2_beyond : float
        Smallest log2 ratio of the usage to what each rival predicts; half of it for the grade "weak".
    min_coverage : float
        A rival is judged where at least this share of the topic's tokens have a context that other documents know.
    min_group_gain : float
        By how much the lower end of a group's interval must surpass that of its best member; or else
    min_group_share : float
        How many times the share of its largest member a group must take, of the topic's selections, with a lower end no
        further than `tolerance` below the best member's, and every member's own above `min_lower_bound`.
    """

    alpha: float = 0.05
    min_log2_lift: float = 1.0
    tolerance: float = 0.15
    min_lower_bound: float = 0.5
    min_share: float = 0.02
    min_log2_beyond: float = 0.25
    min_coverage: float = 0.2
    min_group_gain: float = 0.1
    min_group_share: float = 1.5

    def for_topics(self, n_topics: int) -> Rules:
        """Lower the threshold to what can be reached, at most 3 T / (T + 2) for T topics, and the lower bound in proportion."""
        reachable = float(np.log2(3 * n_topics / (n_topics + 2)))
        if self.min_log2_lift <= reachable:
            return self
        return replace(self, min_log2_lift=reachable, min_lower_bound=self.min_lower_bound * reachable / self.min_log2_lift)


def verdict_caption(rules: Rules, *, rivals_tested: bool) -> str:
    """Say under the table what a verdict needs.

    Parameters
    ----------
    rules : Rules
    rivals_tested : bool
        Whether words and other contexts were tested.

    Returns
    -------
    str
    """
    words = (
        f" It is used at least {2**rules.min_log2_beyond:.2f} times as much as the topic's words, previous tokens and pairs of "
        f"tokens predict, each with q at most {rules.alpha:g}. A rival is judged where it covers at least "
        f"{rules.min_coverage:.0%} of the topic's tokens."
        if rivals_tested
        else ""
    )
    required, lowest = 2**rules.min_log2_lift, 2 ** (rules.min_log2_lift - rules.tolerance)
    return (
        f'"expert" needs all that follows. Its q is at most {rules.alpha:g}, in a layer whose omnibus test passes. It is '
        f"replicated on held-out documents. It takes at least {rules.min_share:.0%} of the topic's selections.{words} Its lift "
        f"is at least {lowest:.2f}, with a 95 % interval above {2**rules.min_lower_bound:.2f} that reaches {required:g}. "
        f"Grades: clear, the whole interval is above {required:g}; near the threshold, measured between {lowest:.2f} and "
        f"{2 ** (rules.min_log2_lift + rules.tolerance):.2f}; likely, above that. Weak is real by every test but smaller. "
        '"group" is the same for some experts of one layer together, chosen on half of the documents and measured on the '
        "other. The lower end of its interval is at least "
        f"{2**rules.min_group_gain:.2f} times that of the best member. Or it takes {rules.min_group_share:g} times as much of "
        "the topic as its largest member, and each member is used more on its own. Shown is the expert that passes and sets the "
        "topic most apart (share times lower end, in bits), or else the nearest candidate."
    )


def grades(verdicts: pd.DataFrame) -> pd.Series:
    """Grade of every row, also of verdicts that an earlier version wrote without."""
    import pandas as pd

    if "grade" in verdicts:
        return verdicts["grade"]
    known = verdicts["log2_lift"].notna()
    grade = np.where(
        verdicts["verdict"].isin(["expert", "group", "feature only"]), LIKELY, np.where(known, NOTHING, UNTESTED)
    )
    return pd.Series(grade, index=verdicts.index)
