"""For which models is it true that no expert has a topic of its own? The finding of the Mixtral paper, asked of every record."""

from __future__ import annotations

from collections.abc import Sequence
from enum import StrEnum

from moe_probe.core.schema import Evidence
from moe_probe.core.text import listed
from moe_probe.studies.models_table.cells import lift_cell, one_line, titles, unit_cell
from moe_probe.studies.models_table.row import ModelRow, TopicRow
from moe_probe.studies.verdicts import NEAR

#: Where the finding is from.
PAPER = "Jiang et al. 2024, section 5, arXiv:2401.04088"


class Finding(StrEnum):
    """What a record says of "no expert has a topic of its own"."""

    #: Some topic has an expert.
    FALSE = "false"
    #: The same, where words cannot be ruled out: they may be experts of the topics' words.
    WORDS = "false, unless words explain it"
    #: Some topic has an expert, but every one lies near the threshold of a verdict.
    NEAR = "a matter of the threshold"
    #: No topic has an expert, but some have a group of experts.
    GROUPS = "true of single experts only"
    #: No tested topic has an expert, and a typical one at the threshold of the verdict would have been significant.
    TRUE = "true as far as tested"
    #: No expert was found, and only larger effects could have been.
    OPEN = "open"
    #: Nothing could be tested.
    UNTESTABLE = "not testable"


def finding(row: ModelRow) -> Finding:
    """Say whether the finding holds for a model, by its verdicts and by their power.

    Parameters
    ----------
    row : ModelRow

    Returns
    -------
    Finding
        `Finding.TRUE` only where a typical expert with a lift at the verdict's threshold would have been significant with
        probability 0.8 in the median tested topic.
    """
    if not row.tested:
        return Finding.UNTESTABLE
    if row.with_expert:
        if all(topic.grade == NEAR for topic in row.with_expert):
            return Finding.NEAR
        ruled_out = any(topic.words == "ruled out" for topic in row.with_expert)
        return Finding.FALSE if ruled_out else Finding.WORDS
    if row.with_group:
        return Finding.GROUPS
    detectable = row.detectable_lift
    return Finding.TRUE if detectable is not None and detectable <= row.lift_threshold else Finding.OPEN


def answer_sentences(rows: Sequence[ModelRow]) -> list[str]:
    """Answer for which models the finding is true.

    Parameters
    ----------
    rows : sequence of ModelRow

    Returns
    -------
    list of str
        One sentence over all rows, then one or two for every row.
    """
    return [_summary(rows), *(f"{title}: {_reason(row)}" for title, row in zip(titles(rows), rows, strict=True))]


def chemistry_sentences(rows: Sequence[ModelRow]) -> list[str]:
    """Say for every row whether chemistry has an expert, and where.

    Parameters
    ----------
    rows : sequence of ModelRow

    Returns
    -------
    list of str
        One for each topic with "chemistry" in its name; a row without such a topic says so.
    """
    out = []
    for title, row in zip(titles(rows), rows, strict=True):
        topics = [topic for topic in row.topics if "chemistry" in topic.topic.lower()]
        out += [f"{title}, {one_line(topic.topic)}: {_chemistry(topic)}" for topic in topics]
        if not topics:
            out.append(f"{title}: its corpus has no topic of this name.")
    return out


def _summary(rows: Sequence[ModelRow]) -> str:
    by: dict[Finding, list[str]] = {}
    for title, row in zip(titles(rows), rows, strict=True):
        by.setdefault(finding(row), []).append(title)
    parts = [f"{kind.value} for {listed(by[kind])}" for kind in Finding if kind in by]
    if not parts:
        return "There are no records."
    return " ".join(
        f"{'It' if i else 'The finding that no expert has a topic of its own'} is {p}." for i, p in enumerate(parts)
    )


def _reason(row: ModelRow) -> str:
    kind, tested = finding(row), len(row.tested)
    among = f"{tested} tested topic{'' if tested == 1 else 's'}"
    least = "unknown" if row.detectable_lift is None else f"{row.detectable_lift:.2f}"
    if kind is Finding.UNTESTABLE:
        counts = row.evidence is Evidence.COUNTS
        return "not testable, " + (
            "only summed counts are known." if counts else "too few groups of documents in every topic."
        )
    if kind in (Finding.FALSE, Finding.WORDS, Finding.NEAR):
        n, near = len(row.with_expert), sum(topic.grade == NEAR for topic in row.with_expert)
        group = f" {_count(len(row.with_group), 'more has', 'more have')} a group of experts." if row.with_group else ""
        lie = f"{near} of these {'lies' if near == 1 else 'lie'}"
        sure = f" {lie} near the threshold." if 0 < near < n else ""
        return f"{kind.value}. {n} of {among} {'has' if n == 1 else 'have'} an expert.{sure}{group} {_words(row)}"
    if kind is Finding.GROUPS:
        n = len(row.with_group)
        return f"{kind.value}. {n} of {among} {'has' if n == 1 else 'have'} a group of experts. {_words(row)}"
    if kind is Finding.TRUE:
        untested = len(row.topics) - tested
        rest = f" {untested} further topics could not be tested." if untested else ""
        return (
            f"{kind.value}. None of {among} has an expert; a typical expert of lift {least} would have been significant with "
            f"probability 0.8.{rest}"
        )
    return f"open. None of {among} has an expert, but only lifts from {least} on would be significant with probability 0.8."


def _words(row: ModelRow) -> str:
    if row.evidence is not Evidence.WORDS:
        return "Words cannot be ruled out at this level of evidence."
    named = (*row.with_expert, *row.with_group)
    n = sum(topic.words == "ruled out" for topic in named)
    return f"Words are ruled out for {n} of {len(named)} topics."


def _chemistry(topic: TopicRow) -> str:
    where = f"{unit_cell(topic)}, lift {lift_cell(topic)}" if topic.lift is not None else ""
    if not topic.tested:
        return "not testable" + (f"; the largest effect is {where}." if where else ".")
    if topic.verdict != "none":
        words = "" if topic.words == "ruled out" else f"; words {topic.words}"
        return f"yes ({topic.grade}): {where}{words}."
    least = f"a lift of {topic.detectable_lift:.2f} would have been found" if topic.detectable_lift else "power unknown"
    weak = "hardly, real but small" if topic.grade == "weak" else "no"
    return f"{weak}; {least}" + (f"; the nearest is {where}." if where else ".")


def _count(n: int, one: str, several: str) -> str:
    return f"{n} {one if n == 1 else several}"
