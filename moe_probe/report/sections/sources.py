"""Methods in formulas, and where they come from: sources as sentences and as BibTeX."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

from moe_probe.report.content import Block, Facts, Section, Verbatim

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
        """(1 + number of permutations with a statistic as large) / (1 + permutations); the statistic is Welch's t of
        document means, topic against rest; topics are exchanged between documents""",
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
        "bits of topic",
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
        """loss on the topic without the unit − loss of the unchanged model, nats per token; confirmed: above controls of the
        same load, and above other topics, by the intervals of both differences""",
    ),
)


def methods_section(results: Mapping[str, Result]) -> Section:
    """Give the formulas of what was measured, and the sources of the methods with BibTeX."""
    used = tuple((name, " ".join(formula.split())) for needs, name, formula in _FORMULAS if needs in results)
    citations = all_citations(results)
    blocks: list[Block] = [Facts(used, kind="formulas")] if used else []
    if citations:
        blocks += [
            Facts(tuple((str(i), text) for i, text in enumerate(citations, 1)), kind="sources"),
            Verbatim("BibTeX of the methods used", bibtex(citations), "moe_probe_methods.bib"),
        ]
    return Section(
        title="Methods, formulas, sources",
        finding=f"The methods used here rest on {len(citations)} published sources.",
        blocks=tuple(blocks),
        limits="The BibTeX has what the results name (authors, year, identifier). Reference managers fill in the rest from "
        "the DOI or arXiv number.",
    )


def all_citations(results: Mapping[str, Result]) -> tuple[str, ...]:
    """List the sources of all results, each once; several in one string are separated."""
    texts = {part.strip(): None for result in results.values() for text in result.citations for part in text.split("; ")}
    named: dict[str, str] = {}
    for text in sorted(texts, key=len, reverse=True):  # the fullest wording of a source stands for it
        named.setdefault(_identity(text), text)
    return tuple(sorted(named.values()))


def _identity(text: str) -> str:
    match = _DOI.search(text) or _ARXIV.search(text) or _URL.search(text)
    return match.group(1) if match else text.partition(",")[0]


_DOI = re.compile(r"DOI\s+(10\.\S+?)(?=[,;]?(?:\s|$))")
_ARXIV = re.compile(r"arXiv:(\d{4}\.\d{4,5})")
_URL = re.compile(r"(https?://\S+)")
_HEAD = re.compile(r"^(?P<authors>[^,(]*?)\s+(?P<year>(?:19|20)\d\d)(?:\s*\((?P<name>[^)]*)\))?,?\s*(?P<rest>.*)$")


def bibtex(citations: Iterable[str]) -> str:
    """Write entries for sources given as "Authors year (name), what for, DOI or arXiv or address".

    Parameters
    ----------
    citations : iterable of str

    Returns
    -------
    str
        One ``@misc`` entry per source. ``note`` says what the method is used for; a title is given only where the
        source has a name of its own, never made up.
    """
    seen: dict[str, int] = {}
    return "\n\n".join(_entry(" ".join(text.split()), seen) for text in citations) + "\n"


def _entry(text: str, seen: dict[str, int]) -> str:
    head = _HEAD.match(text)
    authors, year, name, rest = head.group("authors", "year", "name", "rest") if head else ("", "", None, text)
    fields = {"author": _authors(authors), "year": year, "title": name or ""}
    for kind, pattern in (("doi", _DOI), ("eprint", _ARXIV), ("url", _URL)):
        if hit := pattern.search(rest):
            fields[kind] = hit.group(1)
            rest = rest.replace(hit.group(0), "")
    if "eprint" in fields:
        fields["archiveprefix"] = "arXiv"
    fields["note"] = re.sub(r"\s+", " ", rest).strip(" ,;")
    key = _key(authors or text, year)
    seen[key] = seen.get(key, 0) + 1
    key += chr(ord("a") + seen[key] - 1) if seen[key] > 1 else ""
    body = ",\n".join(f"  {name} = {{{_braced(value)}}}" for name, value in fields.items() if value)
    return f"@misc{{{key},\n{body}\n}}"


def _authors(text: str) -> str:
    people = re.split(r",\s*|\s+and\s+", text.replace(" et al.", " and others"))
    return " and ".join(p for p in people if p)


def _key(text: str, year: str) -> str:
    first = re.split(r"[\s,]", unicodedata.normalize("NFKD", text))[0]
    return f"{re.sub(r'[^A-Za-z0-9]', '', first).lower() or 'source'}{year}"


def _braced(text: str) -> str:
    if text.startswith(("http", "10.")):
        return text
    return re.sub(r"([&%#_$])", r"\\\1", text.replace("{", "").replace("}", ""))
