"""Results -> a report. A further analysis adds a section here, in the place where readers look for it."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, NamedTuple

from moe_probe.core.errors import UsageError, did_you_mean
from moe_probe.core.results import command_for
from moe_probe.core.schema import Evidence
from moe_probe.recording.trace.facts import unknowns
from moe_probe.report.content import Report, Section
from moe_probe.report.links import resolved
from moe_probe.report.sections.alerts import alerts_section
from moe_probe.report.sections.answers import answers
from moe_probe.report.sections.costs import costs_section
from moe_probe.report.sections.experts import experts_section
from moe_probe.report.sections.features import features_section, sae_section
from moe_probe.report.sections.glossary import glossary_section
from moe_probe.report.sections.knockouts import knockouts_section
from moe_probe.report.sections.layers import coactivation_section, layers_section
from moe_probe.report.sections.maps import clusters_section
from moe_probe.report.sections.model_card import card_section, files_section, short_name
from moe_probe.report.sections.opening import opening_section
from moe_probe.report.sections.rivals import classes_section, explained_section, labels_section
from moe_probe.report.sections.sources import methods_section
from moe_probe.report.sections.splitting import splitting_section
from moe_probe.report.sections.together import combinations_section, published_section
from moe_probe.report.sections.topics import topics_section
from moe_probe.report.sections.units import carriers_section, matches_section, predicted_section

if TYPE_CHECKING:
    from moe_probe.core.results import Result
    from moe_probe.recording.trace import Trace


#: Always made: terms link to it.
GLOSSARY = "glossary"
#: All blocks of a section are seen.
_ALL = 99
#: Parts of the report, in their order.
_ANSWERS, _EXPERTS, _FEATURES, _CAUSES, _ABOUT = "Answers", "Experts", "Features", "Causes", "About"


class _Entry(NamedTuple):
    """A section of the page.

    Its part of the report, its anchor, its name in the contents, how many of its blocks are seen at once, the result that it
    needs ("" for none), its maker, and whether that takes the
    trace as well as the results.
    """

    group: str
    key: str
    short: str
    shown: int
    needs: str
    maker: Callable[..., Section | None]
    of_trace: bool = False


_ENTRIES: tuple[_Entry, ...] = (
    _Entry(_ANSWERS, "verdicts", "Verdicts", _ALL, "verdicts", opening_section, of_trace=True),
    _Entry(_ANSWERS, "alerts", "Alerts", 1, "", alerts_section, of_trace=True),
    _Entry(_EXPERTS, "topics", "Experts and topics", 1, "expert_topics", topics_section),
    _Entry(_EXPERTS, "explained", "What explains routing", 1, "explained", explained_section),
    _Entry(_EXPERTS, "experts", "Experts one by one", 0, "experts", experts_section, of_trace=True),
    _Entry(_EXPERTS, "layers", "Layers", 0, "layers", layers_section),
    _Entry(_EXPERTS, "kinds", "Kinds of tokens", 0, "expert_token_classes", classes_section),
    _Entry(_EXPERTS, "labels", "Other labels", 0, "expert_labels", labels_section),
    _Entry(_EXPERTS, "pairs", "Pairs of experts", 0, "coactivation", coactivation_section),
    _Entry(_EXPERTS, "combinations", "Combinations", 0, "combinations", combinations_section),
    _Entry(_EXPERTS, "maps", "Maps and clusters", 0, "clusters", clusters_section, of_trace=True),
    _Entry(_FEATURES, "carriers", "Experts or features", 0, "carriers", carriers_section),
    _Entry(_FEATURES, "features", "Features one by one", 0, "features", features_section),
    _Entry(_FEATURES, "matches", "Features of experts", 0, "matches", matches_section),
    _Entry(_FEATURES, "predicted", "Routing predicted", 0, "routing_predicted", predicted_section),
    _Entry(_FEATURES, "tree", "Feature splitting", 0, "tree", splitting_section),
    _Entry(_FEATURES, "saes", "Fidelity of SAEs", 0, "sae_quality", sae_section),
    _Entry(_CAUSES, "causes", "Ablations", 0, "ablation", knockouts_section),
    _Entry(_ABOUT, "card", "Run card", 0, "", lambda t, results: card_section(t.manifest, results), of_trace=True),
    _Entry(_ABOUT, "cost", "Cost", 0, "costs", costs_section),
    _Entry(_ABOUT, "published", "Published metrics", 0, "published", published_section),
    _Entry(_ABOUT, "methods", "Methods and sources", 0, "", methods_section),
    _Entry(_ABOUT, "data", "Data files", 0, "", files_section),
    _Entry(_ABOUT, GLOSSARY, "Glossary", 0, "", glossary_section),
)
#: Sections that a report can have, by name, in the order of the page.
SECTIONS: tuple[str, ...] = tuple(entry.key for entry in _ENTRIES)


def compose(trace: Trace, results: Mapping[str, Result], *, only: Collection[str] = (), title: str | None = None) -> Report:
    """Arrange the results as a report: the answers first, then the verdicts, then what they rest on.

    Parameters
    ----------
    trace : Trace
    results : mapping of str to Result
        By name; a section is made where its result is there.
    only : collection of str
        Sections to make, by name; empty: all. The glossary is always made.
    title : str, optional
        In place of the one that names the model.

    Returns
    -------
    Report

    Raises
    ------
    UsageError
        When there is no such section, or the run lacks its result.
    """
    wanted = _wanted(only, results)
    alerts = alerts_section(trace, results)

    def made(entry: _Entry) -> Section | None:
        if entry.key == "alerts":
            return alerts
        return entry.maker(trace, results) if entry.of_trace else entry.maker(results)

    pairs = ((entry, made(entry)) for entry in wanted)
    sections = tuple(
        replace(section, key=entry.key, short=entry.short, group=entry.group, shown=entry.shown)
        for entry, section in pairs
        if section is not None
    )
    names = {section.key: section.short for section in sections}
    opened = "verdicts" in names  # otherwise no section says at the top what these answers say
    said = tuple(
        replace(answer, section=names[answer.key], opens=answer.opens and opened)
        for answer in answers(results)
        if answer.key in names
    )
    report = Report(
        title=title or f"What the experts of {short_name(trace.manifest.model.id)} specialise in",
        summary=_summary(trace, alerts.finding, results),
        sections=sections,
        answers=said,
    )
    return resolved(report)


def _wanted(only: Collection[str], results: Mapping[str, Result]) -> list[_Entry]:
    """Choose the sections to make; each that is asked for must exist."""
    for name in only:
        if name not in SECTIONS:
            raise UsageError(
                f"there is no section '{name}'", did_you_mean(name, SECTIONS), f"--sections {','.join(SECTIONS)}"
            )
    present = [entry for entry in _ENTRIES if not entry.needs or entry.needs in results]
    for entry in _ENTRIES:
        if entry.key in only and entry not in present:
            raise UsageError(
                f"this run has no section '{entry.key}'",
                f"the result {entry.needs} is missing",
                command_for(entry.needs, "RUN/results"),
            )
    return [entry for entry in present if not only or entry.key in only or entry.key == GLOSSARY]


def _size(trace: Trace) -> str:
    """Say how much was run; sums by topic do not say how many documents they come from."""
    m = trace.manifest
    topics = f"{trace.documents['topic'].nunique()} topics"
    tokens = f"{m.n_tokens:,} tokens, " if m.n_tokens else ""
    if m.evidence is Evidence.COUNTS:
        return f"Documents of {topics}{f' ({m.n_tokens:,} tokens)' if m.n_tokens else ''}"
    return f"{m.n_documents:,} documents ({tokens}{topics})"


#: What was recorded, by level of evidence; ends the first sentence of the report.
_RECORDED = {
    Evidence.WORDS: "every routing decision was recorded",
    Evidence.TOKENS: "every routing decision was recorded, without token ids",
    Evidence.DOCUMENTS: "the selections of each document were recorded, without tokens",
    Evidence.COUNTS: "selections were recorded as sums by topic",
}


def _summary(trace: Trace, alerts: str, results: Mapping[str, Result]) -> tuple[str, ...]:
    m = trace.manifest
    label = str(results["expert_topics"].params.get("label", "topic")) if "expert_topics" in results else "topic"
    layers = f"{len(m.layers)} mixture-of-experts layer{'s' if len(m.layers) > 1 else ''}"
    text = f"{_size(trace)} were run through {layers}; {_RECORDED[m.evidence]}."
    limits = " ".join(unknowns(m, trace.documents, label=label))
    return (f"{text} {alerts}", *([limits] if limits else []))
