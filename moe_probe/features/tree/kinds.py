"""Kinds of nodes: what a node's children have to do with the subjects of the corpus."""

from __future__ import annotations

from collections.abc import Sequence

#: Kinds of nodes, from the most human on.
BY_PARTS, ONE, SEVERAL, NONE = "one subject, by its parts", "one subject", "several subjects", "no subject"
KINDS = (BY_PARTS, ONE, SEVERAL, NONE)
#: For a node of one subject that the test could have missed: it is none of the kinds.
UNJUDGED = "could not be judged"


def kind_of_node(q_value: float, q_parts: float, topics: Sequence[str], *, alpha: float, judged: bool = True) -> str:
    """Name what a node's children have to do with subjects.

    Parameters
    ----------
    q_value : float
        Of the test whether siblings are about one topic more often than strangers.
    q_parts : float
        Of the test whether children divide the topic by its subtopics; NaN where that could not be tested.
    topics : sequence of str
        Topic that each child is enriched for, "" where none passes.
    alpha : float
        False discovery rate that both q-values are compared with.
    judged : bool
        Whether the test would have detected a node of one subject, from `node_power`; where it would not, the
        node stays unjudged.

    Returns
    -------
    str
        One of `KINDS`, or `UNJUDGED`.
    """
    if q_value <= alpha:
        return BY_PARTS if q_parts <= alpha else ONE
    if not judged:
        return UNJUDGED
    return SEVERAL if len({t for t in topics if t}) > 1 else NONE
