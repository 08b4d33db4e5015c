"""One labelled document, and how a row of a file becomes one."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from moe_probe.core.errors import MoeProbeError, UsageError, did_you_mean
from moe_probe.core.schema import RESERVED_LABELS
from moe_probe.core.text import is_missing, label_text, some_of
from moe_probe.core.textfiles import is_unwritable

_NO_TEXT = "characters that are not text (NUL or half a surrogate pair)"
_SKIP = "--skip-bad to omit such rows"


@dataclass(frozen=True)
class Columns:
    """Which column of the file has what.

    Attributes
    ----------
    id, text, topic, subtopic, group, split : str
        Column names. ``id`` and the last three may be missing from the file, ``text`` and ``topic`` not.
    labels : tuple of str
        Further label columns to keep with each document (for example ``register``).
    spans : str
        Column with character-aligned labels: a list of ``[start, end, label]`` (see `LabelSpan`).

    Raises
    ------
    UsageError
        When a label column is named twice, or as a column that the trace's tables have anyway.
    """

    id: str = "id"
    text: str = "text"
    topic: str = "topic"
    subtopic: str = "subtopic"
    group: str = "group"
    split: str = "split"
    labels: tuple[str, ...] = ()
    spans: str = "spans"

    def __post_init__(self) -> None:
        """Refuse label columns that cannot be kept beside the others."""
        for name in self.labels:
            if name in RESERVED_LABELS:
                hint = f"rename the column '{name}' of the corpus"
                if name in ("topic", "subtopic", "group", "split"):
                    hint = f"omit --label {name}, it is kept anyway; --{name}-column names the column it is read from"
                why = f"its tables have a column '{name}' of their own"
                raise UsageError(f"--label {name} would replace a column of the trace", why, hint)
            if self.labels.count(name) > 1:
                raise UsageError(f"--label {name} is given twice", "", "name each label column once")


@dataclass(frozen=True)
class LabelSpan:
    """A label on characters ``start`` (included) to ``end`` (excluded) of a document's text."""

    start: int
    end: int
    label: str


@dataclass(frozen=True)
class Document:
    """A text with its labels.

    Attributes
    ----------
    id : str
        Unique within the corpus.
    topic, subtopic : str
        Topic and its finer division ("" where unknown).
    group : str
        Unit that may be exchanged in permutations (a source chapter, say); the document's own id
        where the corpus names none.
    split : str
        As given by the corpus, "" where it gives none.
    labels : dict of str to str
        Further label columns.
    spans : tuple of LabelSpan
        Labels of parts of the text.
    """

    id: str
    text: str
    topic: str
    subtopic: str = ""
    group: str = ""
    split: str = ""
    labels: Mapping[str, str] = field(default_factory=dict)
    spans: tuple[LabelSpan, ...] = ()

    @property
    def n_bytes(self) -> int:
        """Length of the text in UTF-8."""
        return len(self.text.encode("utf-8", "surrogatepass"))

    def digest(self) -> bytes:
        """SHA-256 of the canonical form: what the corpus hash is made of."""
        strings = [self.id, self.text, self.topic, self.subtopic, self.group, self.split]
        further = [sorted(self.labels.items()), [[s.start, s.end, s.label] for s in self.spans]]
        canonical = json.dumps([*strings, *further], ensure_ascii=False, separators=(",", ":"))
        return hashlib.sha256(canonical.encode("utf-8", "surrogatepass")).digest()


class BadRowError(MoeProbeError):
    """A row that cannot be a document; names the file and the line or row."""

    @classmethod
    def of(cls, error: MoeProbeError) -> BadRowError:
        """Make an error that ends the reading of a line into one that --skip-bad passes over."""
        return cls(error.what, error.why, f"{error.hint}, or {_SKIP}" if error.hint else _SKIP)


def _as_text(row: Mapping[str, Any], name: str, where: str) -> str:
    """Value of a column as a string: missing values (None, NaN) become "", 3 and 3.0 are one label."""
    value = row.get(name)
    text = label_text(value)
    if text is None:
        what = f"{where}: '{name}' is a {type(value).__name__}"
        raise BadRowError(what, "a label is a text or a number", "name another column, or write one value per row")
    if is_unwritable(text):
        raise BadRowError(f"{where}: '{name}' has {_NO_TEXT}", "", f"clean the file, or {_SKIP}")
    return text


def document_from_row(row: Mapping[str, Any], columns: Columns, *, where: str, ordinal: int) -> Document:
    """Turn a row of a file into a document.

    Parameters
    ----------
    row : mapping of str to object
    columns : Columns
        Which column has what.
    where : str
        File and line, for messages.
    ordinal : int
        Number of the row in the corpus; names the document where the file has no id column.

    Returns
    -------
    Document

    Raises
    ------
    BadRowError
        When text or topic is missing or empty, a column that was named is missing, or a span does not lie inside the text.
    """
    wanted = {columns.text: "--text-column", columns.topic: "--topic-column"}
    named = _named(columns)
    for name in dict.fromkeys([*wanted, *named, *columns.labels]):
        if name not in row:
            options = wanted | named
            what = f"{where} has no {'' if name in options else 'label '}column '{name}'"
            hint = f"{options.get(name, '--label')} NAME; {did_you_mean(name, [str(k) for k in row])}"
            raise BadRowError(what, f"its columns are {some_of(row, 12)}", hint)
        if name in wanted:
            if name == columns.text and not isinstance(row[name], str) and not is_missing(row[name]):
                raise BadRowError(f"{where}: '{name}' is a {type(row[name]).__name__}, not text", "", "--text-column NAME")
            if not _as_text(row, name, where).strip():
                why = "every document needs a text and a topic"
                raise BadRowError(f"{where} has an empty '{name}'", why, f"fix the row, or {_SKIP}")
    text = row[columns.text]
    id_ = _as_text(row, columns.id, where) or f"{ordinal:07d}"
    return Document(
        id=id_,
        text=text,
        topic=_as_text(row, columns.topic, where),
        subtopic=_as_text(row, columns.subtopic, where),
        group=_as_text(row, columns.group, where) or id_,
        split=_as_text(row, columns.split, where),
        labels={name: _as_text(row, name, where) for name in columns.labels},
        spans=_read_spans(row.get(columns.spans), text, where=where),
    )


def _named(columns: Columns) -> dict[str, str]:
    """Options of columns that a corpus need not have, where another name was given: who names a column expects it.

    A misspelt group column would otherwise make every document a group of its own, and p-values too small.
    """
    usual = Columns()
    return {
        getattr(columns, name): f"--{name}-column"
        for name in ("subtopic", "group", "split")
        if getattr(columns, name) not in ("", getattr(usual, name))
    }


def _read_spans(value: Any, text: str, *, where: str) -> tuple[LabelSpan, ...]:
    if value is None or isinstance(value, float) or (isinstance(value, str) and not value.strip()):
        return ()
    try:
        items = json.loads(value) if isinstance(value, str) else list(value)
        spans = tuple(LabelSpan(_offset(start), _offset(end), str(label)) for start, end, label in items)
    except (TypeError, ValueError, OverflowError, RecursionError) as error:
        raise BadRowError(f"{where} has spans that cannot be read", str(error), "a list of [start, end, label]") from error
    for span in spans:
        if is_unwritable(span.label):
            raise BadRowError(f"{where} has a span whose label has {_NO_TEXT}", "", "clean the file")
        if not 0 <= span.start < span.end <= len(text):
            what = f"{where} has a span {span.start}-{span.end} outside its text of {len(text)} characters"
            raise BadRowError(what, "", "character offsets, end excluded")
    return spans


def _offset(value: Any) -> int:
    if isinstance(value, float) and not value.is_integer():
        raise ValueError(f"{value} is no character offset")
    return int(value)
