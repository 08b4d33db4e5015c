"""Which features and experts belong to a word, a phrase, or the difference between two texts?"""

from __future__ import annotations

import itertools
import re
import unicodedata
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from moe_probe.core.errors import UsageError
from moe_probe.core.pieces import decode, in_word, unspaced
from moe_probe.core.routing import dropped_id
from moe_probe.core.text import table_text

if TYPE_CHECKING:
    import pandas as pd

    from moe_probe.recording.trace import Trace


@dataclass(frozen=True)
class Found:
    """What fires on a query.

    Attributes
    ----------
    source : str
        Where the query was looked at, in a sentence.
    n_tokens : int
        Its tokens.
    features : pandas.DataFrame
        ``sae, feature, label, label_score, rate`` (share of the query's tokens on which it fires), ``base`` (share of
        other tokens), ``lift, f1``; sorted.
    experts : pandas.DataFrame
        ``layer, expert, rate`` (share of the query's selections that go to it), ``base, lift``; sorted.
    """

    source: str
    n_tokens: int
    features: pd.DataFrame
    experts: pd.DataFrame

    def text(self) -> str:
        """Both tables for a terminal."""
        parts = [self.source]
        for title, table in (("Features", self.features), ("Experts", self.experts)):
            shown = table_text(table.round(3), most=60) if len(table) else "none"
            parts.append(f"\n{title}\n{shown}")
        return "\n".join(parts)


def occurrences(trace: Trace, query: str, *, regex: bool = False) -> np.ndarray:
    """Tokens of a trace that a word, phrase or regular expression covers.

    Tokens are put together to text document by document, so a word is found however it was cut, and by every token of its
    characters. Words and phrases are looked for as whole words where their script has spaces between words, upper and lower case
    alike, characters with accents in either way of writing these. Where the tokenizer changes the text (x² to x2, Büchner to
    buchner), the query is changed alike.

    Parameters
    ----------
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
        raise UsageError(f"'{query}' is no regular expression", str(error), "the word itself, without --regex") from error


def _patterns(query: str, *, loose: bool, changed: Callable[[], bool]) -> Iterator[re.Pattern[str]]:
    """The query as it is written, with composed or decomposed accents; then, where the tokenizer changes texts, as it may have
    been changed: in compatible characters, without accents and joiners. Vocabularies without spaces (`loose`) belong to such
    tokenizers.
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
    """Whether a document's own text has the query; it is not in the tokens' text."""
    if not trace.manifest.has_text:
        return False
    low = query.lower()
    return any(low in text.lower() for text in trace.texts())


def _either(forms: list[str], *, loose: bool) -> re.Pattern[str]:
    return re.compile(
        "|".join(_loosely(f) if loose else re.escape(f) for f in dict.fromkeys(filter(None, forms))), re.IGNORECASE
    )


def _loosely(query: str) -> str:
    """A pattern that asks for spaces between words only: text put together from words has others where the original has none."""
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
    """Where a pattern is found: whole words only, if it stands for a query."""
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


def _cuts(text: str, place: int) -> bool:
    """Whether a word goes on over a place."""
    if not 0 < place < len(text):
        return False
    both = text[place - 1], text[place]
    return all((in_word(c) or c == "_") and not unspaced(c) for c in both)


def rank_features(features: pd.DataFrame, counts: np.ndarray, n_tokens: int, *, corpus_tokens: int) -> pd.DataFrame:
    """Rank the features of one SAE by how well their firing picks out the query's tokens.

    Parameters
    ----------
    features : pandas.DataFrame
        Rows of ``features`` of this SAE, in the order of its latents.
    counts : ndarray of int, shape (n_features,)
        The query's tokens on which each fires.
    n_tokens : int
        The query's tokens.
    corpus_tokens : int
        Tokens that densities speak of.
    """
    base = features["density"].to_numpy()
    rate = counts / max(n_tokens, 1)
    f1 = 2 * counts / np.maximum(n_tokens + np.maximum(base * corpus_tokens, counts), 1)
    half = 0.5 / max(n_tokens, 1)
    return (
        features[["sae", "feature", "label", "label_score", "topic"]]
        .assign(rate=rate, base=base, lift=rate / np.maximum(base, half), f1=f1)
        .query("rate > 0")
    )


def expert_shares(trace: Trace, rows: np.ndarray) -> list[np.ndarray]:
    """Share of selections that go to each expert, over some tokens; one array per layer."""
    totals = [np.zeros(item.num_experts) for item in trace.layers]
    first = 0
    for chunk in trace.iter_routing():
        mine = rows[(rows >= first) & (rows < first + len(chunk.experts))] - first
        first += len(chunk.experts)
        for place, total in enumerate(totals):
            ids = chunk.experts[mine, place]
            ids = ids[ids != dropped_id(ids.dtype)]
            total += np.bincount(ids.astype(np.int64), minlength=len(total))
    return [t / max(t.sum(), 1) for t in totals]


def rank_experts(trace: Trace, shares: list[np.ndarray], base: list[np.ndarray], n_tokens: int) -> pd.DataFrame:
    """Rank experts by how much more of the query's selections they take than of others."""
    import pandas as pd

    half = 0.5 / max(n_tokens, 1)
    parts = [
        pd.DataFrame(
            {
                "layer": item.layer,
                "expert": np.arange(item.num_experts),
                "rate": s,
                "base": b,
                "lift": (s + half) / (b + half),
            }
        )
        for item, s, b in zip(trace.layers, shares, base, strict=True)
    ]
    return pd.concat(parts, ignore_index=True).sort_values("lift", ascending=False, kind="stable")
