"""Results -> a report. A further analysis adds a section here, in the place where readers look for it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

from moe_probe.core.schema import Evidence
from moe_probe.recording.trace.facts import unknowns
from moe_probe.report.content import Report, Section
from moe_probe.report.links import resolved
from moe_probe.report.sections.alerts import alerts_section
from moe_probe.report.sections.answers import answers
from moe_probe.report.sections.costs import costs_section
from moe_probe.report.sections.experts import experts_section
from moe_probe.report.sections.features import features_section, sae_section
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


class _Entry(NamedTuple):
    """A section of the page: its anchor, its name in the contents, the result that it needs ("" for none), its maker."""

    key: str
    short: str
    needs: str
    maker: Callable[[Mapping[str, Result]], Section | None]


def compose(trace: Trace, results: Mapping[str, Result]) -> Report:
    """Arrange the results as a report: the answers first, then the verdicts, then what they rest on.

    Parameters
    ----------
    trace : Trace
    results : mapping of str to Result
        By name; a section is made where its result is there.

    Returns
    -------
    Report
    """
    entries = (
        _Entry("verdicts", "Verdicts", "verdicts", partial(opening_section, trace)),
        _Entry("alerts", "Alerts", "", partial(alerts_section, trace)),
        _Entry("card", "Run card", "", partial(card_section, trace.manifest)),
        # what explains routing
        _Entry("explained", "What explains routing", "explained", explained_section),
        _Entry("kinds", "Kinds of tokens", "expert_token_classes", classes_section),
        _Entry("labels", "Other labels", "expert_labels", labels_section),
        # experts
        _Entry("topics", "Experts and topics", "expert_topics", topics_section),
        _Entry("layers", "Layers", "layers", layers_section),
        _Entry("experts", "Experts one by one", "experts", partial(experts_section, trace)),
        _Entry("pairs", "Pairs of experts", "coactivation", coactivation_section),
        _Entry("combinations", "Combinations", "combinations", combinations_section),
        _Entry("maps", "Maps and clusters", "clusters", partial(clusters_section, trace)),
        # features
        _Entry("saes", "SAEs", "sae_quality", sae_section),
        _Entry("features", "Features", "features", features_section),
        _Entry("carriers", "Topics and their carriers", "carriers", carriers_section),
        _Entry("matches", "Experts and features", "matches", matches_section),
        _Entry("predicted", "Routing predicted", "routing_predicted", predicted_section),
        _Entry("tree", "Feature splitting", "tree", splitting_section),
        # causes
        _Entry("causes", "Causes", "ablation", knockouts_section),
        _Entry("cost", "Cost", "costs", costs_section),
        # for reference
        _Entry("published", "Published metrics", "published", published_section),
        _Entry("methods", "Methods and sources", "", methods_section),
        _Entry("data", "Data files", "", files_section),
    )
    made = ((entry, entry.maker(results)) for entry in entries if not entry.needs or entry.needs in results)
    sections = tuple(replace(section, key=entry.key, short=entry.short) for entry, section in made if section is not None)
    names = {section.key: section.short for section in sections}
    said = tuple(replace(a, section=names.get(a.key, "")) for a in answers(results))
    report = Report(
        title=f"What the experts of {short_name(trace.manifest.model.id)} specialise in",
        summary=_summary(trace, sections, results),
        sections=sections,
        answers=said,
    )
    return resolved(report)


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


def _summary(trace: Trace, sections: tuple[Section, ...], results: Mapping[str, Result]) -> tuple[str, ...]:
    m = trace.manifest
    label = str(results["expert_topics"].params.get("label", "topic")) if "expert_topics" in results else "topic"
    layers = f"{len(m.layers)} mixture-of-experts layer{'s' if len(m.layers) > 1 else ''}"
    alerts = next(s.finding for s in sections if s.key == "alerts")
    text = f"{_size(trace)} were run through {layers}; {_RECORDED[m.evidence]}."
    limits = " ".join(unknowns(m, trace.documents, label=label))
    return (f"{text} {alerts}", *([limits] if limits else []))
