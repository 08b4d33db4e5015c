"""The clearest node of every kind, with excerpts, and the words that set its parts apart."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from moe_probe.core.progress import track
from moe_probe.features.labels.context import token_context
from moe_probe.features.labels.excerpts import Excerpt, Excerpts
from moe_probe.features.tree.kinds import BY_PARTS, NONE, ONE, SEVERAL, UNJUDGED

if TYPE_CHECKING:
    import pandas as pd

    from moe_probe.features.firing import Firings
    from moe_probe.features.tree.annotations import Annotations
    from moe_probe.features.tree.ladders import SaeLadder
    from moe_probe.recording.trace import Trace

#: Weight of all text as a prior, in tokens, when words are compared.
_PRIOR = 50.0
#: Children of an example that are shown, and excerpts of each feature.
_CHILDREN, _EXCERPTS = 4, 3


def distinctive_words(
    codes: Sequence[np.ndarray], n_words: int, background: np.ndarray, *, most: int = 6
) -> list[list[int]]:
    """Find the words that set each of several sets of tokens apart from the other sets.

    Log-odds with an informative Dirichlet prior, as z-scores (Monroe, Colaresi and Quinn 2008, DOI 10.1093/pan/mpn018,
    equations 16 and 22); all of the text is the prior.

    Parameters
    ----------
    codes : sequence of ndarray of int
        Word of every token of each set; -1 for none.
    n_words : int
        Number of different words.
    background : ndarray of float, shape (n_words,)
        Counts of words in all of the text.
    most : int
        Words of each set.

    Returns
    -------
    list of list of int
        For every set its words by falling z-score; z above 1.96 and two tokens or more.
    """
    counts = np.stack([np.bincount(c[c >= 0], minlength=n_words) for c in codes]).astype(float)
    prior = _PRIOR * background / max(background.sum(), 1) + 1e-6
    out = []
    for own in counts:
        a, b = own + prior, counts.sum(0) - own + prior
        odds = np.log(a / (a.sum() - a)) - np.log(b / (b.sum() - b))
        z = odds / np.sqrt(1 / a + 1 / b)
        order = np.argsort(-z, kind="stable")[: 4 * most]
        out.append([int(w) for w in order if z[w] > 1.96 and own[w] >= 2][:most])
    return out


def choose_examples(nodes: pd.DataFrame, edges: pd.DataFrame) -> list[tuple[str, int]]:
    """Choose the clearest node of every kind, by rules that look at no text.

    Of one subject: largest purity less the expected one, among nodes one of whose children is joined to it by direction as
    well as by firing, if there are any. Of several: most topics among the children, then most children with one, then least
    purity. Of none, and of those that could not be judged: most children.

    Parameters
    ----------
    nodes : pandas.DataFrame
        ``tree_nodes`` of one layer.
    edges : pandas.DataFrame
        ``tree``.

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
        of_kind = marks[marks["kind"] == kind].sort_values([*columns, "parent"], ascending=False, kind="stable")
        if len(of_kind):
            chosen.append((kind, int(of_kind.index[0])))
    return chosen


class _Unit(NamedTuple):
    """A feature of an example: its role, its edge to the parent (share, inside, cosine), and the children shown with it."""

    role: str
    sae: str
    feature: int
    edge: tuple[float, float, float] = (np.nan, np.nan, np.nan)
    siblings: tuple[int, ...] = ()


def example_table(
    trace: Trace, ladders: Sequence[SaeLadder], nodes: pd.DataFrame, edges: pd.DataFrame, annotations: Annotations
) -> pd.DataFrame:
    """Draw excerpts of the clearest node of every kind in every layer: of the parent, and of its largest children.

    Parameters
    ----------
    trace : Trace
    ladders : sequence of SaeLadder
        Whose dictionaries the nodes are of.
    nodes, edges : pandas.DataFrame
        ``tree_nodes`` and ``tree``.
    annotations : Annotations
        Topics and labels of the features.

    Returns
    -------
    pandas.DataFrame
        One row per excerpt: ``layer, kind, node`` (number of the example), ``role`` (parent | child), ``sae, feature, label,
        topic, share, inside, cosine, words, part, document, tokens, activations``.
    """
    import pandas as pd

    chosen = [(kind, nodes.loc[i]) for _, rows in nodes.groupby("layer") for kind, i in choose_examples(rows, edges)]
    units = [list(_units(node, edges)) for _, node in chosen]
    drawn = _draw(trace, ladders, [unit for of_node in units for unit in of_node])
    names = trace.documents["document"].to_numpy()
    rows: list[dict[str, Any]] = []
    for number, ((kind, node), of_node) in enumerate(zip(chosen, units, strict=True)):
        for unit in of_node:
            topic, label = annotations[unit.sae, unit.feature]
            words, excerpts = drawn[unit]
            row = {
                "layer": int(node["layer"]),
                "kind": kind,
                "node": number,
                "role": unit.role,
                "sae": unit.sae,
                "feature": unit.feature,
                "label": label,
                "topic": topic,
                **dict(zip(("share", "inside", "cosine"), unit.edge, strict=True)),
                "words": words,
            }
            rows += [
                row
                | {
                    "part": excerpt.part,
                    "document": str(names[excerpt.document]),
                    "tokens": list(excerpt.tokens),
                    "activations": list(excerpt.activations),
                }
                for excerpt in excerpts
            ]
    return pd.DataFrame(rows)


def _draw(trace: Trace, ladders: Sequence[SaeLadder], units: Sequence[_Unit]) -> dict[_Unit, tuple[str, list[Excerpt]]]:
    """Draw words and excerpts of all units, with the firings of one SAE at a time."""
    dictionaries = {dictionary.name: dictionary for ladder in ladders for dictionary in ladder.dictionaries}
    words = _Words(trace)
    drawn: dict[_Unit, tuple[str, list[Excerpt]]] = {}
    for sae in track(dict.fromkeys(unit.sae for unit in units), "examples", unit="SAEs", name=str):
        firings = dictionaries[sae].firings_of_sae(1)
        excerpts, own = Excerpts(trace, firings), [unit for unit in units if unit.sae == sae]
        texts = dict.fromkeys(own, "")
        for siblings in dict.fromkeys(unit.siblings for unit in own if unit.siblings):
            by_feature = dict(zip(siblings, words.distinctive(firings, siblings), strict=True))
            texts |= {unit: by_feature[unit.feature] for unit in own if unit.siblings == siblings}
        for unit, text in texts.items():
            drawn[unit] = text, excerpts.draw(unit.feature, top=_EXCERPTS, per_fifth=0, silent=0)
        del firings, excerpts  # before those of the next SAE are encoded
    return drawn


class _Words:
    """The words of a trace, and those that set features apart."""

    def __init__(self, trace: Trace) -> None:
        self._word = token_context(trace, labels=()).factor("word")
        codes = self._word.codes
        self._background = np.bincount(codes[codes >= 0], minlength=len(self._word.values))

    def distinctive(self, firings: Firings, features: Sequence[int]) -> list[str]:
        """List the words of every feature's firings that those of the others have less of, as one text per feature."""
        fired = (firings.rows[firings.matrix[:, [feature]].tocoo().coords[0]] for feature in features)
        codes = [self._word.codes[rows] for rows in fired]
        chosen = distinctive_words(codes, len(self._word.values), self._background)
        return [", ".join(self._word.values[w] for w in words) for words in chosen]


def _units(node: pd.Series, edges: pd.DataFrame) -> Iterator[_Unit]:
    """Yield the parent of a node and its largest children."""
    sae, child_sae = str(node["parent_sae"]), str(node["child_sae"])
    yield _Unit("parent", sae, int(node["parent"]))
    of_node = (edges["parent_sae"] == sae) & (edges["child_sae"] == child_sae) & (edges["parent"] == node["parent"])
    parts = edges[of_node & (edges["relation"] == "part")].sort_values("share", ascending=False).head(_CHILDREN)
    siblings = tuple(parts["child"].tolist())
    for edge in parts.itertuples():
        yield _Unit("child", child_sae, int(edge.child), (edge.share, edge.inside, edge.cosine), siblings)
