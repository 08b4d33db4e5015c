"""What the report opens with: question and answer, what experts are mostly about, a picture, a passage per topic, verdicts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

from moe_probe.report.content import Block, Facts, Picture, Section
from moe_probe.report.sections.answers import answers
from moe_probe.report.sections.claims import opening_passages
from moe_probe.report.sections.verdicts import verdicts_section

if TYPE_CHECKING:
    from moe_probe.core.results import Result
    from moe_probe.recording.trace import Trace


def opening_section(trace: Trace, results: Mapping[str, Result]) -> Section:
    """Answer the question, then show what the answer rests on.

    Parameters
    ----------
    trace : Trace
    results : mapping of str to Result
        With ``verdicts``.

    Returns
    -------
    Section
    """
    section = verdicts_section(results)
    first, *others = [answer for answer in answers(results) if answer.opens]
    lead: tuple[Block, ...] = (Facts(tuple((a.question, a.answer) for a in others), "lead"),) if others else ()
    blocks = list(section.blocks)
    after = next((i + 1 for i, block in enumerate(blocks) if isinstance(block, Picture)), 0)
    # the picture belongs to the first answer, the passages to it too; the table has every number
    blocks[after:after] = [*lead, *opening_passages(trace, results)]
    return replace(section, finding=first.answer, blocks=tuple(blocks))
