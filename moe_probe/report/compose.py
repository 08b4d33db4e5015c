"""Results -> a report. A further analysis adds a section here, in the place where readers look for it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

from moe_probe.report.content import Report, Section
from moe_probe.report.sections.alerts import alerts_section
from moe_probe.report.sections.answers import answers
from moe_probe.report.sections.costs import costs_section
from moe_probe.report.sections.experts import experts_section
from moe_probe.report.sections.features import features_section, sae_section
from moe_probe.report.sections.layers import coactivation_section, layers_section
from moe_probe.report.sections.maps import clusters_section
from moe_probe.report.sections.model_card import card_section, files_section, short_name
from moe_probe.report.sections.rivals import classes_section, explained_section, labels_section
from moe_probe.report.sections.sources import methods_section
from moe_probe.report.sections.splitting import splitting_section
from moe_probe.report.sections.together import combinations_section, published_section
from moe_probe.report.sections.topics import topics_section
from moe_probe.report.sections.units import carriers_section, causes_section, matches_section, predicted_section
from moe_probe.report.sections.verdicts import verdicts_section

if TYPE_CHECKING:
    from moe_probe.core.results import Result
    from moe_probe.recording.trace import Trace


class _Place(NamedTuple):
    """A section of the page: its anchor, its name in the contents, the result that it needs ("" for none), its maker."""

    key: str
    short: str
    needs: str
    maker: Callable[[Mapping[str, Result]], Section | None]


def compose(trace: Trace, results: Mapping[str, Result]) -> Report:
    """Arrange what was found: the answers first, then the verdicts, then what they rest on."""
    places = (
        _Place("verdicts", "Verdicts", "verdicts", verdicts_section),
        _Place("alerts", "Alerts", "", partial(alerts_section, trace)),
        _Place("card", "Run card", "", partial(card_section, trace.manifest)),
        # what explains routing
        _Place("explained", "What explains routing", "explained", explained_section),
        _Place("kinds", "Kinds of tokens", "expert_token_classes", classes_section),
        _Place("labels", "Other labels", "expert_labels", labels_section),
        # experts
        _Place("topics", "Experts and topics", "expert_topics", topics_section),
        _Place("layers", "Layers", "layers", layers_section),
        _Place("experts", "Experts one by one", "experts", experts_section),
        _Place("pairs", "Pairs of experts", "coactivation", coactivation_section),
        _Place("combinations", "Combinations", "combinations", combinations_section),
        _Place("maps", "Maps and clusters", "clusters", partial(clusters_section, trace)),
        # features
        _Place("saes", "SAEs", "sae_quality", sae_section),
        _Place("features", "Features", "features", features_section),
        _Place("carriers", "Who carries a topic", "carriers", carriers_section),
        _Place("matches", "Experts and features", "matches", matches_section),
        _Place("predicted", "Routing predicted", "routing_predicted", predicted_section),
        _Place("tree", "Feature splitting", "tree", splitting_section),
        # causes
        _Place("causes", "Causes", "ablation", causes_section),
        _Place("cost", "Cost", "costs", costs_section),
        # for reference
        _Place("published", "Published metrics", "published", published_section),
        _Place("methods", "Methods and sources", "", methods_section),
        _Place("data", "Data files", "", files_section),
    )
    made = ((place, place.maker(results)) for place in places if not place.needs or place.needs in results)
    sections = tuple(replace(section, key=place.key, short=place.short) for place, section in made if section is not None)
    return Report(
        title=f"What the experts of {short_name(trace.manifest.model.id)} specialise in",
        summary=_summary(trace, sections),
        sections=sections,
        answers=answers(results),
    )


def _summary(trace: Trace, sections: tuple[Section, ...]) -> tuple[str, ...]:
    m = trace.manifest
    layers = f"{len(m.layers)} mixture-of-experts layer{'s' if len(m.layers) > 1 else ''}"
    notes = next(s.finding for s in sections if s.key == "alerts")
    return (
        f"{m.n_documents:,} documents ({m.n_tokens:,} tokens, {trace.documents['topic'].nunique()} topics) were run "
        f"through {layers}; every choice of the routers was recorded. {notes}",
    )
