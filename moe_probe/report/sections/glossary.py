"""The glossary: the same explanations as those shown beside the terms, to read through."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from moe_probe.report.content import Facts, Section
from moe_probe.report.glossary import TERMS

if TYPE_CHECKING:
    from moe_probe.core.results import Result


def glossary_section(_results: Mapping[str, Result]) -> Section:
    """List the terms of the report with their explanations."""
    return Section(
        title="What do the terms mean?",
        finding=f"{len(TERMS)} terms are explained here, and wherever they are underlined or marked with a question mark.",
        blocks=(Facts(tuple((term.name, term.meaning) for term in TERMS), kind="glossary"),),
    )
