"""The tokens of a trace that a word, a phrase or a regular expression covers."""

from __future__ import annotations

import itertools
import re
import unicodedata
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import numpy as np

from moe_probe.core.errors import UsageError
from moe_probe.core.pieces import decode, in_word, unspaced

if TYPE_CHECKING:
    from moe_probe.recording.trace import Trace


def occurrences(trace: Trace, query: str, *, regex: bool = False) -> np.ndarray:
    """Find the tokens of a trace that a word, phrase or regular expression covers.

    Tokens are joined to text document by document: a word is found however it was cut, with every token of its characters.
    Words and phrases match whole words where their script has spaces between words, in upper and lower case, with composed or
    decomposed accents. Where the tokenizer changes the text (x² to x2, Büchner to buchner), the query is changed alike.

    Parameters
    ----------
    trace : Trace
    query : str
    regex : bool
        The query is a regular expression.

    Returns
    -------
    ndarray of int64
        Rows of the trace, increasing.

    Raises
    ------
    UsageError
        When the regular expression cannot be read.
    """
    table = trace.tokens(["document", "token", "special"])
    special = table["special"].to_numpy()
    tokens = np.full(len(table), "", dtype=object)
    plain = table["token"].to_numpy(dtype=object)[~special]
    tokens[~special] = trace.spaced(plain)
    loose = not np.array_equal(tokens[~special], plain)
    starts = np.append(np.flatnonzero(np.diff(table["document"].to_numpy(), prepend=-1)), len(tokens))
    documents = [(first, decode(tokens[first:last])) for first, last in itertools.pairwise(starts)]
    query = query if regex else query.strip()
    patterns = iter([_compiled(query)]) if regex else _patterns(query, loose=loose, changed=lambda: _in_texts(trace, query))
    for pattern in patterns if query else ():
        rows = [
            first + np.r_[text.rows(*hit)]
            for first, text in documents
            for hit in _hits(pattern, text.text, query=None if regex else query)
        ]
        if rows:
            return np.setdiff1d(np.concatenate(rows), np.flatnonzero(special))
    return np.zeros(0, dtype=np.int64)


def _compiled(query: str) -> re.Pattern[str]:
    try:
        return re.compile(query, re.IGNORECASE)
    except re.error as error:
        raise UsageError(f"'{query}' is not a regular expression", str(error), "the word itself, without --regex") from error


def _patterns(query: str, *, loose: bool, changed: Callable[[], bool]) -> Iterator[re.Pattern[str]]:
    """Yield patterns of the query: as written, with composed or decomposed accents; then as a tokenizer may have changed it.

    Such tokenizers, to which vocabularies without spaces (`loose`) belong, use compatible characters and drop accents and
    joiners.
    """
    forms = [query, *(unicodedata.normalize(form, query) for form in ("NFC", "NFD"))]
    yield _either(forms, loose=loose)
    if loose or changed():
        bare = "".join(
            c
            for c in unicodedata.normalize("NFKD", query)
            if not unicodedata.combining(c) and unicodedata.category(c) != "Cf"
        )
        yield _either([unicodedata.normalize("NFKC", query), unicodedata.normalize("NFC", bare)], loose=loose)


def _in_texts(trace: Trace, query: str) -> bool:
    """Tell whether a document's own text has the query, which the tokens' text lacks."""
    if not trace.manifest.has_text:
        return False
    low = query.lower()
    return any(low in text.lower() for text in trace.texts())


def _either(forms: list[str], *, loose: bool) -> re.Pattern[str]:
    return re.compile(
        "|".join(_loosely(f) if loose else re.escape(f) for f in dict.fromkeys(filter(None, forms))), re.IGNORECASE
    )


def _loosely(query: str) -> str:
    """Require spaces between words only: text joined from words has others where the original has none."""
    parts = re.findall(r"\s+|\w+|[^\w\s]", query)
    parts = [c for part in parts for c in (part if any(map(unspaced, part)) else [part])]
    out = ""
    for before, part, behind in zip(["", *parts], parts, [*parts[1:], ""], strict=False):
        if part.isspace():
            words = in_word(before[-1]) and in_word(behind[0]) and not unspaced(before[-1]) and not unspaced(behind[0])
            out += r"\s+" if words else r"\s*"
        else:
            out += (r"\s*" if before and not before.isspace() else "") + re.escape(part)
    return out


def _hits(pattern: re.Pattern[str], text: str, *, query: str | None) -> Iterator[tuple[int, int]]:
    """Yield where a pattern matches: whole words only, if it stands for a query."""
    start = 0
    while (hit := pattern.search(text, start)) is not None:
        low, high = hit.span()
        if high > low and (query is None or not (_cuts(text, low) or _cuts(text, high))):
            yield low, high
            start = high
        else:
            start = low + 1
        if start > len(text):
            return


def _cuts(text: str, position: int) -> bool:
    """Tell whether a word goes on over a position."""
    return 0 < position < len(text) and all(
        (in_word(c) or c == "_") and not unspaced(c) for c in text[position - 1 : position + 1]
    )
