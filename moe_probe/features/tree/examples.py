"""Nodes to show, of every kind: dividing a subject, mixing several, about none; and the words that tell parts apart."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import pandas as pd

#: What kinds of nodes there are, from the most human on.
BY_PARTS, ONE, SEVERAL, NONE = "one subject, by its parts", "one subject", "several subjects", "no subject"
KINDS = (BY_PARTS, ONE, SEVERAL, NONE)
#: Of a node that the test could not have found: it is none of the kinds.
UNJUDGED = "could not be judged"
#: Weight of all text as a prior, in tokens, when words are compared.
_PRIOR = 50.0


def telling_words(codes: Sequence[np.ndarray], n_words: int, background: np.ndarray, *, most: int = 6) -> list[list[int]]:
    """Words that tell each of several sets of tokens from the other sets.

    Log-odds with an informative Dirichlet prior, as z-scores (Monroe, Colaresi and Quinn 2008, DOI 10.1093/pan/mpn018,
    equations 16 and 22); all of the text is the prior.

    Parameters
    ----------
    codes : sequence of ndarray of int
        Word of every token of each set; -1 for none.
    n_words : int
    background : ndarray of float, shape (n_words,)
        Counts of words in all of the text.
    most : int

    Returns
    -------
    list of list of int
        For every set its words, the most telling first; z above 1.96 and two tokens or more.
    """
    counts = np.stack([np.bincount(c[c >= 0], minlength=n_words) for c in codes]).astype(float)
    prior = _PRIOR * background / max(background.sum(), 1) + 1e-6
    found = []
    for mine, others in ((counts[i], counts.sum(0) - counts[i]) for i in range(len(counts))):
        a, b = mine + prior, others + prior
        odds = np.log(a / (a.sum() - a)) - np.log(b / (b.sum() - b))
        z = odds / np.sqrt(1 / a + 1 / b)
        order = np.argsort(-z, kind="stable")[: 4 * most]
        found.append([int(w) for w in order if z[w] > 1.96 and mine[w] >= 2][:most])
    return found


def kind_of_node(q_value: float, q_parts: float, topics: Sequence[str], *, alpha: float, judged: bool = True) -> str:
    """Name what a node's children have to do with subjects.

    Parameters
    ----------
    q_value : float
        Siblings are about one topic more often than strangers.
    q_parts : float
        Children divide the topic by its subtopics; NaN where that could not be tested.
    topics : sequence of str
        Topic that each child is enriched for, "" where none passes.
    judged : bool
        Whether the test would have found a node of one subject, from `node_power`: where it would not, that it
        found none says nothing.
    """
    if q_value <= alpha:
        return BY_PARTS if q_parts <= alpha else ONE
    if not judged:
        return UNJUDGED
    return SEVERAL if len({t for t in topics if t}) > 1 else NONE


def choose_examples(nodes: pd.DataFrame, edges: pd.DataFrame) -> list[tuple[str, int]]:
    """The clearest node of every kind, by rules that look at no text.

    Of one subject: most purity beyond what is expected, among nodes one of whose children is joined to it by direction as
    well as by firing, if there are any. Of several: most topics among the children, then most children with one, then least
    purity. Of none, and of those that could not be judged: most children.

    Returns
    -------
    list of (kind, row of `nodes`)
    """
    joined = edges[(edges["joined_by"] == "both") & (edges["relation"] == "part")]
    firm = set(zip(joined["parent_sae"], joined["child_sae"], joined["parent"], strict=True))
    marks = nodes.assign(
        firm=[key in firm for key in zip(nodes["parent_sae"], nodes["child_sae"], nodes["parent"], strict=True)],
        rise=nodes["purity"] - nodes["expected"],
        impure=-nodes["purity"],
        topical=nodes["topical_children"],
        several=nodes["topics_of_children"],
    )
    order = {
        BY_PARTS: ["firm", "rise"],
        ONE: ["firm", "rise"],
        SEVERAL: ["several", "topical", "impure"],
        NONE: ["children"],
        UNJUDGED: ["children"],
    }
    chosen = []
    for kind, columns in order.items():
        mine = marks[marks["kind"] == kind].sort_values([*columns, "parent"], ascending=False, kind="stable")
        if len(mine):
            chosen.append((kind, int(mine.index[0])))
    return chosen
