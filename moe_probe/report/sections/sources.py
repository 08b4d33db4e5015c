"""Methods in formulas, and where they come from: sources as sentences and as BibTeX."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from moe_probe.report.content import Block, Facts, Section, Verbatim
from moe_probe.report.references import CitedSource, bibtex, cited_sources

if TYPE_CHECKING:
    from moe_probe.core.results import Result

#: What is measured, by the result that needs it: name and formula in plain signs.
_FORMULAS: tuple[tuple[str, str, str], ...] = (
    (
        "expert_topics",
        "share s(e, t)",
        "mean over the documents of topic t of: selections of expert e / all selections of its layer",
    ),
    ("expert_topics", "lift", "s(e, t) / mean over topics t′ of s(e, t′); log2 lift adds half a selection to both"),
    (
        "expert_topics",
        "p",
        """(1 + number of permutations with a statistic as large) / (1 + permutations). The statistic is Welch's t of
        document means, topic against rest. Topics are exchanged between documents.""",
    ),
    (
        "expert_topics",
        "q",
        "Benjamini and Hochberg: the smallest false-discovery rate at which a pair counts, over all pairs",
    ),
    ("expert_topics", "AUROC", "P(a document of the topic uses the unit more than another document does) + ½ P(as much)"),
    (
        "beyond_vocabulary",
        "beyond words",
        "s(e, t) / mean over the topic's tokens of P(e | token, position), learnt on other documents",
    ),
    ("layers", "effective experts", "2^H, H = −Σ p(e) log2 p(e), p(e) = load"),
    ("layers", "load CV", "standard deviation of loads / their mean"),
    (
        "layers",
        "topic information",
        "H(mean over topics of s(·, t)) − mean over topics of H(s(·, t)), minus its mean under permutation",
    ),
    (
        "explained",
        "bits saved",
        """Σ log2 P(selected expert | what is known) − log2 P(selected expert), over selections of held-out documents, per
        selection""",
    ),
    ("coactivation", "times expected", "P(e and e′ selected for a token) / (P(e) P(e′))"),
    ("cluster_agreement", "AMI", "(I(A; B) − E I) / (mean(H(A), H(B)) − E I): mutual information minus what chance gives"),
    ("sae_quality", "FVU", "Σ‖x − x̂‖² / Σ‖x − mean‖², held-out documents"),
    ("sae_quality", "loss recovered", "(loss with zero − loss with x̂) / (loss with zero − loss with x)"),
    ("features", "label score", "balanced accuracy: mean of P(rule says yes | fires) and P(rule says no | silent)"),
    ("matches", "score", "AUROC of “the feature fires” for “the expert is selected”, over held-out tokens"),
    (
        "ablation",
        "rise",
        """loss on the topic without the unit − loss of the unchanged model, nats per token. Confirmed: above controls of the
        same load, and above other topics, by the intervals of both differences.""",
    ),
)


def methods_section(results: Mapping[str, Result]) -> Section:
    """Give the formulas of what was measured, and the sources of the methods with BibTeX."""
    used = tuple((name, " ".join(formula.split())) for needs, name, formula in _FORMULAS if needs in results)
    sources = cited_sources(results)
    blocks: list[Block] = [Facts(used, kind="formulas")] if used else []
    if sources:
        blocks += [
            Facts(tuple((str(i), _described(source)) for i, source in enumerate(sources, 1)), kind="sources"),
            Verbatim("BibTeX of the methods used", bibtex(sources), "moe_probe_methods.bib"),
        ]
    return Section(
        title="Methods, formulas, sources",
        finding=f"The methods used here rest on {len(sources)} published source{'' if len(sources) == 1 else 's'}.",
        blocks=tuple(blocks),
        limits="A source is listed where a result of this run names it. Long lists of authors end in others."
        if sources
        else "",
    )


def _described(source: CitedSource) -> str:
    """Describe a source in a sentence, and what it was used for."""
    return f"{source.text} (used for: {'; '.join(source.purposes)})" if source.purposes else source.text
