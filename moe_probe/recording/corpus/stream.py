"""A corpus as something to iterate over, twice: once to check and hash it, once to collect it."""

from __future__ import annotations

import hashlib
import re
import unicodedata
from array import array
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from moe_probe.core.errors import MoeProbeError, UsageError
from moe_probe.core.progress import track
from moe_probe.recording.corpus.document import BadRowError, Columns, Document, document_from_row
from moe_probe.recording.corpus.sources import open_source


@dataclass(frozen=True)
class CorpusSummary:
    """What is in a corpus, by one pass over it.

    Attributes
    ----------
    hash : str
        SHA-256 over the documents' digests, in order.
    topics : dict of str to int
        Documents per topic, in order of first appearance.
    skipped : tuple of str
        One sentence for each omitted row (only with ``skip_bad``).
    notes : tuple of str
        What a person should know: files left out, topics that differ in case or blanks only.
    wordless : tuple of Document
        Documents without a letter or digit, marks such as ``<|endoftext|>`` aside (the first 1000):
        a tokenizer may find nothing in them.
    opening : tuple of Document
        The first documents, up to the one that brings their text to 256 KiB: what tokenizers make of the corpus.
    sizes : array of int, length n_documents
        UTF-8 bytes of each document's text.
    """

    hash: str
    n_documents: int
    n_characters: int
    topics: dict[str, int]
    n_groups: int
    skipped: tuple[str, ...]
    notes: tuple[str, ...] = ()
    wordless: tuple[Document, ...] = ()
    opening: tuple[Document, ...] = field(default=(), repr=False)
    sizes: array[int] = field(default_factory=lambda: array("Q"), repr=False)


#: What special tokens look like where a text spells them out.
_MARK = re.compile(r"<[^<>\s]*>|\[[A-Z0-9_]+\]")
_MAX_WORDLESS = 1000
#: Bytes of text that the opening of a corpus has at least, if the corpus does.
_OPENING_BYTES = 256 * 1024
#: Values of a label column that are remembered, to find those that differ in case or blanks only.
_MAX_VALUES = 10_000


class Corpus:
    """Labelled documents, streamed from where they lie.

    Parameters
    ----------
    source : str or Path
        See :func:`moe_probe.recording.corpus.sources.open_source`.
    columns : Columns
        Which column has what.
    skip_bad : bool
        Omit rows that cannot be documents (and count them) instead of stopping at the first.
    limit : int, optional
        Stop after this many documents.
    name, split : str, optional
        Configuration and split of a `datasets` data set.

    Examples
    --------
    >>> corpus = Corpus("data/probe_corpus.jsonl", columns=Columns(labels=("register",)))
    >>> topics = {document.topic for document in corpus}
    """

    def __init__(  # noqa: PLR0913 - public API: keyword-only options with defaults
        self,
        source: str | Path,
        *,
        columns: Columns | None = None,
        skip_bad: bool = False,
        limit: int | None = None,
        name: str | None = None,
        split: str | None = None,
    ) -> None:
        if limit is not None and limit < 1:
            raise UsageError(f"--limit {limit} leaves no document", "", "--limit 1 or more")
        self.source = source
        self.columns = columns or Columns()
        self.skip_bad = skip_bad
        self.limit = limit
        self._name, self._split = name, split
        self._skipped: list[str] = []
        self._notes: tuple[str, ...] = ()
        self._summary: CorpusSummary | None = None

    @property
    def name(self) -> str:
        """Last part of the source's name, for captions (never the full path)."""
        return Path(str(self.source)).name

    def __iter__(self) -> Iterator[Document]:
        """Yield documents in file order.

        Raises
        ------
        BadRowError
            At the first row that cannot be a document, naming file and line (unless `skip_bad`).
        MoeProbeError
            When two documents share an id, or there is no document at all.
        """
        source = open_source(self.source, name=self._name, split=self._split)
        self._skipped, self._notes = [], source.notes
        seen: set[bytes] = set()  # 8-byte digests: a corpus of 10^7 documents stays under a gigabyte
        n_documents = 0
        for ordinal, (where, row) in enumerate(source.rows()):
            if self.limit is not None and n_documents >= self.limit:
                break
            try:
                if isinstance(row, BadRowError):
                    raise row
                document = document_from_row(row, self.columns, where=where, ordinal=ordinal)
                key = hashlib.blake2b(document.id.encode(), digest_size=8).digest()
                if key in seen:
                    raise BadRowError(
                        f"{where} repeats the id '{document.id}'",
                        "ids must be unique",
                        "fix the row, --skip-bad to leave it out, or --id-column '' to number the documents",
                    )
            except BadRowError as error:
                if not self.skip_bad:
                    raise
                self._skipped.append(str(error))
                continue
            seen.add(key)
            n_documents += 1
            yield document
        if n_documents == 0:
            why, hint = "it is empty", "check the file"
            if self._skipped:
                why, hint = f"{len(self._skipped)} rows were left out", "omit --skip-bad to see the first bad row"
            raise MoeProbeError(f"the corpus {self.source} has no document", why, hint)

    def summarize(self) -> CorpusSummary:
        """Read everything once: hash, counts, omitted rows. The result is kept for the next call.

        Raises
        ------
        MoeProbeError
            As when iterating; and when a group spans several topics, since labels are permuted
            over groups.
        """
        if self._summary is not None:
            return self._summary
        digest = hashlib.sha256()
        values: dict[str, dict[str, None]] = {"topic": {}, "subtopic": {}, **{name: {} for name in self.columns.labels}}
        topics: Counter[str] = Counter()
        topic_of: dict[str, str] = {}
        wordless: list[Document] = []
        opening: list[Document] = []
        sizes = array("Q")  # 8 bytes a document, a tenth of what `seen` takes of memory
        n_characters = n_bytes = 0
        for document in track(self, "read corpus", unit="documents"):
            digest.update(document.digest())
            topics[document.topic] += 1
            n_characters += len(document.text)
            if n_bytes < _OPENING_BYTES:
                opening.append(document)
            sizes.append(document.n_bytes)
            n_bytes += sizes[-1]
            if len(wordless) < _MAX_WORDLESS and not _has_words(document.text):
                wordless.append(document)
            for name, known in values.items():
                if len(known) < _MAX_VALUES:
                    known[document.labels[name] if name in document.labels else getattr(document, name)] = None
            first = topic_of.setdefault(document.group, document.topic)
            if first != document.topic:
                raise MoeProbeError(
                    f"group '{document.group}' has documents of two topics ('{first}' and '{document.topic}')",
                    "topic labels are permuted over groups, so a group must lie inside one topic",
                    "a finer group column, or --group-column with a column that is unique per document",
                )
        notes = (*self._notes, *(note for name, known in values.items() for note in _nearly_equal(name, known)))
        self._summary = CorpusSummary(
            digest.hexdigest(),
            sum(topics.values()),
            n_characters,
            dict(topics),
            len(topic_of),
            tuple(self._skipped),
            notes,
            tuple(wordless),
            tuple(opening),
            sizes,
        )
        return self._summary


def _has_words(text: str) -> bool:
    """Whether a text has a letter or digit, marks aside."""
    head = text[:64]
    if not re.search(r"[<\[]", head) and any(map(str.isalnum, head)):
        return True  # no mark begins there: most texts need no closer look
    return any(map(str.isalnum, _MARK.sub("", text)))


def _nearly_equal(column: str, values: Iterable[str]) -> list[str]:
    """Say which values of a label differ in case, blanks or the way letters are composed, and in nothing else."""
    alike: dict[str, list[str]] = {}
    for value in values:
        alike.setdefault(" ".join(unicodedata.normalize("NFKC", value).casefold().split()), []).append(value)
    several = [same for same in alike.values() if len(same) > 1]
    shown = "; ".join(
        ", ".join(f"'{value}'" for value in same[:5]) + (", ..." if len(same) > 5 else "") for same in several[:5]
    ) + ("; ..." if len(several) > 5 else "")
    counted = sum(map(len, several))
    return (
        [f"{counted} values of '{column}' differ in case or blanks only and count as different labels: {shown}"]
        if several
        else []
    )
