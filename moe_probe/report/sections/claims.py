"""Units that verdicts name for topics: their passages, and cards of groups."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from moe_probe.core.text import figure, listed
from moe_probe.core.units import UnitRef
from moe_probe.report.cells import lift_text
from moe_probe.report.content import Card, Passage, Passages, Rich
from moe_probe.report.links import expert_link, glued, joined, unit_key
from moe_probe.report.passages import HIGHEST, LENGTH, LOWEST, MEDIAN, TopicPassage, topic_passages
from moe_probe.report.plots.summary import by_answer
from moe_probe.report.sections.unit_names import experts_of, unit_link, where

if TYPE_CHECKING:
    from moe_probe.core.results import Result
    from moe_probe.recording.trace import Trace

#: Topics with a passage at the top of the page; of more, those with the clearest answers.
_TOPICS = 24


def claims(results: Mapping[str, Result]) -> list[tuple[str, UnitRef]]:
    """List the topics with the expert or group that their verdict names (the nearest one where none passes).

    Parameters
    ----------
    results : mapping of str to Result

    Returns
    -------
    list of (str, UnitRef)
        Clearest answers first; topics without such an expert are left out.
    """
    if "verdicts" not in results:
        return []
    rows = by_answer(results["verdicts"].table).to_dict("records")
    return [(str(row["topic"]), unit) for row in rows if (unit := experts_of(row)) is not None]


def opening_passages(trace: Trace, results: Mapping[str, Result]) -> tuple[Passages, ...]:
    """Show one passage of each topic, shaded by the gate weight of its best expert.

    Parameters
    ----------
    trace : Trace
    results : mapping of str to Result

    Returns
    -------
    tuple of Passages
        Empty where the record has no text.
    """
    claimed = claims(results)
    made = topic_passages(trace, claimed[:_TOPICS], label=_label(results))
    if not made:
        return ()
    shares = sorted(passage.share for passage in made)
    span = f"{shares[0]:.0%}" if f"{shares[0]:.0%}" == f"{shares[-1]:.0%}" else f"{shares[0]:.0%} to {shares[-1]:.0%}"
    which = f" The first {_TOPICS} of {len(claimed)} topics are shown." if len(claimed) > _TOPICS else ""
    return (
        Passages(
            "One passage per topic, shaded by its best expert",
            tuple(Passage(glued(f"{p.topic}: ", unit_link(p.unit), f", {p.share:.0%} of tokens"), p.pieces) for p in made),
            f"The expert is selected for {span} of the tokens of these documents. {_READ[bool(trace.manifest.has_weights)]} "
            f"Each document is the one of median use; of it, the {LENGTH} tokens with the highest sum are shown.{which}",
        ),
    )


#: How passages are read, with and without gate weights.
_READ = {
    True: "Darker: a higher gate weight of the expert, relative to the highest in the passage.",
    False: "Shaded: the token is routed to the expert; gate weights are unknown.",
}


def passages_of(trace: Trace, results: Mapping[str, Result], units: Sequence[UnitRef]) -> dict[UnitRef, tuple[Passage, ...]]:
    """Cut passages of the topics that units are claimed for: the documents of highest, median and lowest use.

    Parameters
    ----------
    trace : Trace
    results : mapping of str to Result
    units : sequence of UnitRef

    Returns
    -------
    dict
        Passages by unit; units that are claimed for no topic have none.
    """
    wanted = [(topic, unit) for topic, unit in claims(results) if unit in units]
    out: dict[UnitRef, tuple[Passage, ...]] = {}
    for p in topic_passages(trace, wanted, which=(HIGHEST, MEDIAN, LOWEST), label=_label(results)):
        out[p.unit] = (*out.get(p.unit, ()), Passage(_name(p), p.pieces))
    return out


def group_cards(trace: Trace, results: Mapping[str, Result]) -> tuple[Card, ...]:
    """Give a card to every group that a verdict names.

    Parameters
    ----------
    trace : Trace
    results : mapping of str to Result

    Returns
    -------
    tuple of Card
    """
    rows = [row for row in results["verdicts"].table.to_dict("records") if row["verdict"] == "group"]
    units = list(dict.fromkeys(unit for row in rows if (unit := experts_of(row)) is not None))
    passages = passages_of(trace, results, units)
    cards = []
    for unit in units:
        own = [row for row in rows if experts_of(row) == unit]
        topics = (f"{row['topic']} {lift_text(row)}, {figure(row['share'], '.1%')} of its selections" for row in own)
        facts: list[tuple[str, Rich]] = [
            ("topics", "; ".join(topics)),
            ("members", joined([expert_link(_layer(unit), member, f"expert {member}") for member in unit.members])),
        ]
        title = f"{where(own[0]).capitalize()}: a group for {listed([row['topic'] for row in own])}"
        cards.append(Card(title, tuple(facts), passages.get(unit, ()), unit_key(unit)))
    return tuple(cards)


def _layer(unit: UnitRef) -> int:
    assert unit.layer is not None
    return unit.layer


def _name(passage: TopicPassage) -> str:
    return f"{passage.topic}, document of {passage.which} ({passage.share:.0%} of tokens)"


def _label(results: Mapping[str, Result]) -> str:
    return str(results["expert_topics"].params.get("label", "topic")) if "expert_topics" in results else "topic"
