"""Passages of a topic, shaded by the gate weights of its experts: cut from the trace, where that has tokens and their text."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from moe_probe.core.pieces import decode, whole_characters
from moe_probe.core.schema import Evidence

if TYPE_CHECKING:
    from moe_probe.core.units import UnitRef
    from moe_probe.recording.trace import Trace

#: Tokens of a passage.
LENGTH = 48
#: Tokens of a document that are looked through, at most.
_LOOKED_AT = 4096
#: Tokens by which a passage may begin earlier, so that it does so with a whole word.
_WORD = 6
#: Documents of a topic that stand for it, by their place among all when ordered by the use of the unit.
MEDIAN, HIGHEST, LOWEST = "median use", "highest use", "lowest use"
_PLACES = {MEDIAN: 0.5, HIGHEST: 1.0, LOWEST: 0.0}


@dataclass(frozen=True)
class TopicPassage:
    """Text of a topic's document, shaded by the gate weights of the topic's experts.

    Attributes
    ----------
    topic : str
    unit : UnitRef
        An expert, or a group of experts of one layer, whose gate weights are added up.
    document : str
    which : str
        "median use", "highest use" or "lowest use": the document's place among those of its topic, by selections of the unit
        per token.
    share : float
        Share of the document's tokens that are routed to the unit: to any of its experts.
    pieces : tuple of (str, int)
        Text, and strength from 0 (not routed to the unit) to 4.
    """

    topic: str
    unit: UnitRef
    document: str
    which: str
    share: float
    pieces: tuple[tuple[str, int], ...]


def topic_passages(
    trace: Trace, claims: Sequence[tuple[str, UnitRef]], *, which: Sequence[str] = (MEDIAN,), label: str = "topic"
) -> list[TopicPassage]:
    """Cut passages from documents of topics.

    The document is chosen by its place among the topic's documents and not by what it shows; of its windows of some tokens the
    one with the highest sum of gate weights is taken.

    Parameters
    ----------
    trace : Trace
    claims : sequence of (str, UnitRef)
        Topics, with the experts that are claimed for each.
    which : sequence of str
        Documents to take, as `TopicPassage` names them; a document is shown once.
    label : str
        Label column of the topics.

    Returns
    -------
    list of TopicPassage
        In the order of `claims` and `which`; empty where the record has no tokens or no text of them.
    """
    if trace.manifest.evidence is not Evidence.WORDS or label not in trace.documents or not claims:
        return []
    uses, topics = _uses(trace, [unit for _, unit in claims]), trace.documents[label].astype(str).to_numpy()
    chosen: list[tuple[int, str, int]] = []
    for index, (topic, _) in enumerate(claims):
        own = np.flatnonzero((topics == topic) & np.isfinite(uses[index]))
        order = own[np.argsort(uses[index][own], kind="stable")]
        at = {order[round(_PLACES[name] * (len(order) - 1))]: name for name in reversed(which)} if len(order) else {}
        chosen += sorted(((index, name, int(row)) for row, name in at.items()), key=lambda item: which.index(item[1]))
    rows = _rows(trace, {row for *_, row in chosen})
    names = trace.documents["document"].astype(str).to_numpy()
    out = []
    for index, name, row in chosen:
        topic, unit = claims[index]
        pieces = _shaded(trace, unit, rows[row][:_LOOKED_AT]) if row in rows else ()
        if pieces:
            share = float(uses[index][row]) if len(unit.members) == 1 else _share(trace, unit, rows[row])
            out.append(TopicPassage(topic, unit, str(names[row]), name, share, pieces))
    return out


def _share(trace: Trace, unit: UnitRef, rows: np.ndarray) -> float:
    """Count the tokens that go to a group: one that goes to several of its experts counts once."""
    assert unit.layer is not None
    at = trace.layer_index(unit.layer)
    routing = trace.routing_at(rows, slice(at, at + 1))
    return float(np.isin(routing.experts[:, 0], unit.members).any(axis=1).mean())


def _uses(trace: Trace, units: Sequence[UnitRef]) -> np.ndarray:
    """Count selections of each unit per token of each document, shape (n_units, n_documents)."""
    usage = trace.usage()
    wanted: dict[int, list[int]] = {}
    for index, unit in enumerate(units):
        assert unit.layer is not None
        start = usage.columns[trace.layer_index(unit.layer)].start
        for member in unit.members:
            wanted.setdefault(start + member, []).append(index)
    counts, columns = np.zeros((len(units), len(trace.documents))), np.array(sorted(wanted))
    for document, column, value in usage.pieces("selections"):
        hit = np.flatnonzero(np.isin(column, columns))
        for c in np.unique(column[hit]).tolist():
            at = hit[column[hit] == c]
            for index in wanted[c]:
                np.add.at(counts[index], document[at], value[at].astype(np.float64))
    size = trace.documents["n_tokens"].to_numpy(dtype=float)
    return counts / np.where(size > 0, size, np.nan)


def _rows(trace: Trace, documents: set[int]) -> dict[int, np.ndarray]:
    """Find the rows of some documents' text tokens in the trace."""
    mask = np.zeros(len(trace.documents), dtype=bool)
    mask[list(documents)] = True
    parts: dict[int, list[np.ndarray]] = {}
    if documents:
        for _, chunk in trace.iter_tokens(["document", "special"], documents=mask):
            document = np.where(chunk.columns["special"], -1, chunk.columns["document"])
            for row in documents & set(np.unique(document).tolist()):
                parts.setdefault(row, []).append(chunk.first + np.flatnonzero(document == row))
    return {row: np.concatenate(found) for row, found in parts.items()}


def _shaded(trace: Trace, unit: UnitRef, rows: np.ndarray) -> tuple[tuple[str, int], ...]:
    """Cut out the window with the highest sum of gate weights; nothing where ids have no text."""
    assert unit.layer is not None
    at = trace.layer_index(unit.layer)
    found = trace.tokens_at(rows, ["token", "token_id"])
    if all(str(token).strip() in ("", str(number)) for token, number in zip(*found.values(), strict=True)):
        return ()  # ids whose text is unknown are stored as numbers
    routing = trace.routing_at(rows, slice(at, at + 1), weights=True)
    chosen = np.isin(routing.experts[:, 0], unit.members)
    weights = chosen if routing.weights is None else np.where(chosen, routing.weights[:, 0].astype(float), 0.0)
    weight = weights.sum(1).astype(float)
    sums = np.convolve(weight, np.ones(min(LENGTH, len(weight))), mode="valid")
    text = trace.spaced(found["token"], whole=False)
    start = int(sums.argmax())
    low, high = whole_characters(text, start, min(start + LENGTH, len(text)), within=(0, len(text)))
    for _ in range(_WORD):  # not in the middle of a word
        if low and text[low][:1].isalnum() and text[low - 1][-1:].isalnum():
            low -= 1
    window = [str(text[low]).lstrip(), *text[low + 1 : high].tolist()]
    return shaded(window, weight[low:high])


def shaded(
    tokens: Sequence[str], strengths: Sequence[float] | np.ndarray, *, largest: float | None = None
) -> tuple[tuple[str, int], ...]:
    """Put tokens together to text, as far as it is not shaded.

    Parameters
    ----------
    tokens : sequence of str
    strengths : sequence of float
        Of each token.
    largest : float, optional
        Strength with the darkest shade; by default the largest of these.

    Returns
    -------
    tuple of (str, int)
        Text, and strength from 0 (none) to 4.
    """
    if largest is None:
        largest = max(map(float, strengths), default=0.0) or 1.0
    joined: list[tuple[str, int]] = []
    for part, value in decode(list(map(str, tokens))).shaded(strengths):
        strength = 0 if value <= 0 else min(4, 1 + int(4 * value / largest))
        piece = part.replace("\n", "⏎")
        if joined and joined[-1][1] == strength == 0:
            joined[-1] = (joined[-1][0] + piece, 0)
        else:
            joined.append((piece, strength))
    return tuple(joined)
