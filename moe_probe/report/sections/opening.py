"""What the report opens with: the question, the answer, what experts are mostly about, the picture, and the table of verdicts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

from moe_probe.report.content import Block, Facts, Section
from moe_probe.report.sections.answers import answers
from moe_probe.report.sections.verdicts import verdicts_section

if TYPE_CHECKING:
    from moe_probe.core.results import Result


def opening_section(results: Mapping[str, Result]) -> Section:
    """Answer the question, then show what the answer rests on.

    Parameters
    ----------
    results : mapping of str to Result
        With ``verdicts``.

    Returns
    -------
    Section
    """
    section = verdicts_section(results)
    first, *others = [answer for answer in answers(results) if answer.opens]
    lead: tuple[Block, ...] = (Facts(tuple((a.question, a.answer) for a in others), "lead"),) if others else ()
    return replace(section, finding=first.answer, blocks=(*lead, *section.blocks))
