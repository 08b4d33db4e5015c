"""Published sources of the methods: the entries of ``references.bib``, and which of them the results of a run name.

A result names its sources in sentences of the form "Welch 1947, what for, DOI 10.1093/...". An entry is recognised by DOI,
arXiv number or address, else by the first author and the year, which make up its key.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cache
from importlib.resources import files
from typing import TYPE_CHECKING

from moe_probe.core.text import listed

if TYPE_CHECKING:
    from moe_probe.core.results import Result

_ENTRY = re.compile(r"^@(\w+)\{(\w+),\n(.*?)\n\}$", re.MULTILINE | re.DOTALL)
_FIELD = re.compile(r"^  (\w+) = \{(.*)\},?$", re.MULTILINE)
_DOI = re.compile(r"DOI\s+(10\.\S+?)(?=[,;]?(?:\s|$))")
_ARXIV = re.compile(r"arXiv:(\d{4}\.\d{4,5})")
_URL = re.compile(r"(https?://\S+)")
_AUTHOR_YEAR = re.compile(
    r"^(?P<authors>[^,(]*?(?:, [^,(]*? and [^,(]*?)?)\s+(?P<year>(?:18|19|20)\d\d)(?:\s*\([^)]*\))?,?\s*"
)
#: Accents of TeX as combining marks.
_ACCENTS = {'"': "\u0308", "'": "\u0301", "c": "\u0327", "v": "\u030c"}


@dataclass(frozen=True)
class Reference:
    """One published source.

    Attributes
    ----------
    key, kind : str
        Of its BibTeX entry: ``welch1947``, ``article``.
    fields : dict of str to str
        Of its BibTeX entry, accents and braces as TeX has them.
    entry : str
        Its BibTeX entry.
    """

    key: str
    kind: str
    fields: Mapping[str, str]
    entry: str

    @property
    def where(self) -> str:
        """DOI, arXiv number or address, in words; "" where a source has none."""
        names = (("doi", "DOI {}"), ("eprint", "arXiv:{}"), ("url", "{}"), ("isbn", "ISBN {}"))
        return next((text.format(self.fields[name]) for name, text in names if name in self.fields), "")

    @property
    def names(self) -> str:
        """Last names of the authors, the year behind them: ``Mann and Whitney 1947``."""
        people = [plain_text(name.partition(",")[0]) for name in self.fields["author"].split(" and ")]
        shown = f"{people[0]} et al." if len(people) > 3 or people[-1] == "others" else listed(people)
        return f"{shown} {self.fields['year']}"

    @property
    def sentence(self) -> str:
        """Authors, year, title, where it appeared, and its DOI or arXiv number."""
        venue = next((self.fields[n] for n in ("journal", "booktitle", "publisher", "howpublished") if n in self.fields), "")
        if "volume" in self.fields:
            number = f"({self.fields['number']})" if "number" in self.fields else ""
            pages = f":{self.fields['pages']}" if "pages" in self.fields else ""
            venue = f"{venue} {self.fields['volume']}{number}{pages}"
        ends = [plain_text(part) for part in (self.fields["title"], venue) if part] + ([self.where] if self.where else [])
        return f"{self.names}. {'. '.join(ends)}"


@dataclass
class CitedSource:
    """A source that results name.

    Attributes
    ----------
    text : str
        As a sentence: of its entry, or as the results name it where ``references.bib`` does not have it.
    reference : Reference or None
        Its entry.
    purposes : list of str
        What it was used for, in words.
    results : list of str
        Names of the results that rest on it.
    """

    text: str
    reference: Reference | None
    purposes: list[str] = field(default_factory=list)
    results: list[str] = field(default_factory=list)

    @property
    def bibtex(self) -> str:
        """The entry; for a source that is not in ``references.bib``, one with what the results say and nothing made up."""
        if self.reference is not None:
            return self.reference.entry
        head = _AUTHOR_YEAR.match(self.text)
        authors, year = head.group("authors", "year") if head else ("", "")
        people = " and ".join(re.split(r",\s*|\s+and\s+", authors.replace(" et al.", " and others")))
        fields = {"author": people, "year": year, "note": self.text}
        body = ",\n".join(f"  {name} = {{{_braced(value)}}}" for name, value in fields.items() if value)
        return f"@misc{{{_key(self.text) or 'source'},\n{body}\n}}"


@cache
def references() -> Mapping[str, Reference]:
    """Read all entries of ``references.bib``, by key."""
    text = files("moe_probe.report").joinpath("references.bib").read_text("utf-8")
    return {
        match[2]: Reference(match[2], match[1], dict(_FIELD.findall(match[3])), match[0]) for match in _ENTRY.finditer(text)
    }


def cited_sources(results: Mapping[str, Result]) -> tuple[CitedSource, ...]:
    """Gather the sources of results, each once, with what it was used for; in the order of their keys.

    Parameters
    ----------
    results : mapping of str to Result

    Returns
    -------
    tuple of CitedSource
    """
    found: dict[str, CitedSource] = {}
    for name, result in results.items():
        for text in (part.strip() for whole in result.citations for part in whole.split("; ")):
            reference = find_reference(text)
            key = reference.key if reference is not None else text
            source = found.setdefault(key, CitedSource(text if reference is None else reference.sentence, reference))
            _add(source.purposes, _purpose(text))
            _add(source.results, name)
    return tuple(found[key] for key in sorted(found))


def find_reference(text: str) -> Reference | None:
    """Look up the entry of a source that a result names; None where there is none.

    Parameters
    ----------
    text : str
        Such as "Welch 1947, the studentised difference of means, DOI 10.1093/biomet/34.1-2.28".
    """
    for pattern, name in ((_DOI, "doi"), (_ARXIV, "eprint"), (_URL, "url")):
        if hit := pattern.search(text):
            same = (r for r in references().values() if r.fields.get(name, "").lower() == hit.group(1).lower())
            if (known := next(same, None)) is not None:
                return known
    return references().get(_key(text))


def bibtex(sources: Iterable[CitedSource]) -> str:
    """Join the entries of sources to a file; keys that would be the same get letters.

    Parameters
    ----------
    sources : iterable of CitedSource

    Returns
    -------
    str
    """
    seen: dict[str, int] = {}
    entries = []
    for entry in (source.bibtex for source in sources):
        head, _, rest = entry.partition(",")
        seen[head] = seen.get(head, 0) + 1
        entries.append(f"{head}{chr(ord('a') + seen[head] - 1) if seen[head] > 1 else ''},{rest}")
    return "\n\n".join(entries) + "\n"


def plain_text(tex: str) -> str:
    """Text of a BibTeX field without its braces, accents as letters.

    Parameters
    ----------
    tex : str

    Returns
    -------
    str
    """
    accented = re.sub(r"\{\\([\"'cv]) ?(\w)\}", lambda m: unicodedata.normalize("NFC", m[2] + _ACCENTS[m[1]]), tex)
    return accented.replace("{", "").replace("}", "").replace("--", "–")


def _purpose(text: str) -> str:
    """Say what a source is named for: what is left of the text without authors, year and identifiers."""
    rest = _AUTHOR_YEAR.sub("", text)
    for pattern in (_DOI, _ARXIV, _URL):
        rest = pattern.sub("", rest)
    parts = [part.strip(" ,;.") for part in rest.split(",")]
    return ", ".join(part for part in parts if part)


def _key(text: str) -> str:
    head = _AUTHOR_YEAR.match(text)
    if head is None:
        return ""
    first = re.split(r"[\s,]", unicodedata.normalize("NFKD", head["authors"]))[0]
    return f"{re.sub(r'[^A-Za-z0-9]', '', first).lower()}{head['year']}"


def _add(items: list[str], item: str) -> None:
    if item and item not in items:
        items.append(item)


def _braced(text: str) -> str:
    return re.sub(r"([&%#_$])", r"\\\1", text.replace("{", "").replace("}", ""))
