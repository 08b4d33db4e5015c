"""The context of tokens that labels can refer to: word, token, word before, kind, position, topic; one code each per token."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np

from moe_probe.core.pieces import SPACE_MARKS, decode, in_word, is_mark, unspaced
from moe_probe.core.progress import count_up, track
from moe_probe.core.stats import group_names
from moe_probe.experts.explain.classes import token_class

if TYPE_CHECKING:
    import pandas as pd
    from scipy import sparse

    from moe_probe.recording.trace import Trace

#: Words up to a token that count as near, the token's own among them.
WINDOW = 12
#: A word on more than this share of tokens carries no information about its surroundings.
_TOO_COMMON = 0.01
_MIN_DOCUMENTS = 3
_PLACES = ("start of a document", "start of a line", "start of a sentence", "after a comma or bracket", "")


@dataclass(frozen=True)
class Factor:
    """A division of tokens by one property.

    Attributes
    ----------
    name : str
        ``word``, ``token``, ``word before``, ``words`` (a pair), ``kind``, ``place`` or a label column.
    codes : ndarray of int, shape (n_tokens,)
        Over all tokens of the trace; -1 where the factor has no value.
    values : tuple of str
        What each code stands for.
    """

    name: str
    codes: np.ndarray
    values: tuple[str, ...]


@dataclass(frozen=True)
class TokenContext:
    """The text of a trace as labels describe it.

    Attributes
    ----------
    factors : tuple of Factor
    near : csr_array of float32, shape (n_tokens, n_words)
        1 where a word is among the last `WINDOW` words; words that are too common or too rare left out.
    words : tuple of str
        The words of `near`'s columns.
    document : ndarray of int, shape (n_tokens,)
    group, topic : ndarray of str, shape (n_documents,)
        Unit of independence and topic of every document; where the trace has neither, each document is its own group.
    """

    factors: tuple[Factor, ...]
    near: sparse.csr_array
    words: tuple[str, ...]
    document: np.ndarray
    group: np.ndarray
    topic: np.ndarray

    def factor(self, name: str) -> Factor:
        """Return the factor of a name."""
        return next(f for f in self.factors if f.name == name)


def token_context(trace: Trace, *, labels: tuple[str, ...] = ("topic",)) -> TokenContext:
    """Read the token table of a trace and divide its tokens in every way that a label can refer to.

    Parameters
    ----------
    trace : Trace
    labels : tuple of str
        Label columns of the documents.

    Returns
    -------
    TokenContext
    """
    table = trace.tokens(["document", "position", "token"])
    tokens = table["token"].to_numpy(dtype=object)
    document = table["document"].to_numpy().astype(np.int64)
    first = np.diff(document, prepend=-1) != 0
    shares = _characters(trace.spaced(tokens), first)
    word_number, words = _words(shares, first)
    names, word = np.unique(np.array(words, dtype=object).astype(str), return_inverse=True)
    code = word[word_number]
    previous_word = np.where(first[_starts(word_number)], -1, np.roll(word, 1))
    before = previous_word[word_number]
    factors = [
        Factor("word", np.where(names[code] == "", -1, code), tuple(names)),
        _coded("token", tokens),
        Factor("word before", before, tuple(names)),
        _pairs(before, code, names),
        _coded("kind", np.array([_kind(t) for t in tokens], dtype=object)),
        _coded("place", _places(shares, first), absent=""),
    ]
    for label in labels:
        values = trace.documents[label].fillna("").astype(str).to_numpy(dtype=object)[document]
        factors.append(_coded(label, values, absent=""))
    near, kept = _near(word_number, word, document, names)
    group, topic = _groups(trace.documents)
    return TokenContext(tuple(factors), near, tuple(str(w) for w in names[kept]), document, group, topic)


def _groups(documents: pd.DataFrame) -> tuple[np.ndarray, np.ndarray]:
    """Group and topic of every document, as text."""
    import pandas as pd

    if "document" not in documents:
        documents = documents.assign(document=documents.index.astype(str))
    topic = documents["topic"].fillna("").astype(str) if "topic" in documents else pd.Series("", index=documents.index)
    return group_names(documents), topic.to_numpy(dtype=object)


def _characters(tokens: np.ndarray, first: np.ndarray) -> np.ndarray:
    """Deal out the text of every document to its tokens: a character of several tokens goes to the first of them."""
    starts = [*np.flatnonzero(first).tolist(), len(tokens)]
    out = np.empty(len(tokens), dtype=object)
    for low, high in track(list(itertools.pairwise(starts)), "decode", unit="documents"):
        out[low:high] = decode(tokens[low:high]).shares()
    return out


@lru_cache(maxsize=100_000)
def _kind(token: str) -> str:
    return token_class(token)


def _starts(number: np.ndarray) -> np.ndarray:
    """Index of the first token of every word."""
    return np.flatnonzero(np.diff(number, prepend=-1))


def _words(tokens: np.ndarray, first: np.ndarray) -> tuple[np.ndarray, list[str]]:
    """Join pieces into words: a number per token, and the lower-cased words; "" for what is no word.

    A token without a character of its own belongs to the character before it. In scripts without spaces every token is a word.
    """
    number = np.empty(len(tokens), dtype=np.int64)
    words: list[str] = []
    open_word = False
    for i in count_up(len(tokens), "find words", unit="tokens"):
        token = tokens[i]
        if not token and not first[i]:
            number[i] = len(words) - 1
            continue
        bare = token.lstrip("".join(SPACE_MARKS))
        wordlike = bool(bare) and (in_word(bare[0]) or (bare[0] in "'’-" and any(c.isalpha() for c in bare)))
        goes_on = open_word and wordlike and bare == token and not first[i]
        goes_on = goes_on and not unspaced(bare[0]) and not unspaced(words[-1][-1])
        open_word = wordlike and in_word(bare[-1])
        if wordlike and is_mark(bare[0]):  # tokenizers put accents and vowel signs together with the full stop behind them
            bare = "".join(itertools.takewhile(in_word, bare))
        if goes_on:
            words[-1] += bare
        else:
            words.append(bare if wordlike else "")
        number[i] = len(words) - 1
    return number, [w.lower().strip() for w in words]


def _coded(name: str, values: np.ndarray, *, absent: str | None = None) -> Factor:
    import pandas as pd

    codes, names = pd.factorize(values, sort=True)
    if absent is not None and absent in names:
        codes = np.where(codes == list(names).index(absent), -1, codes)
    return Factor(name, np.asarray(codes, dtype=np.int64), tuple(str(n) for n in names))


def _pairs(before: np.ndarray, code: np.ndarray, names: np.ndarray) -> Factor:
    both = np.where(
        (before >= 0) & (names[np.maximum(before, 0)] != "") & (names[code] != ""), before * len(names) + code, -1
    )
    pairs, codes = np.unique(both, return_inverse=True)
    if len(pairs) and pairs[0] < 0:
        pairs, codes = pairs[1:], codes - 1
    return Factor("words", codes, tuple(f"{names[p // len(names)]} {names[p % len(names)]}" for p in pairs))


def _places(tokens: np.ndarray, first: np.ndarray) -> np.ndarray:
    """Where in its document, line or sentence a token stands."""
    out = np.full(len(tokens), "", dtype=object)
    for i in count_up(len(tokens), "find places", unit="tokens"):
        if not first[i] and not tokens[i]:
            continue  # within a character
        last = i - 1
        while last > 0 and not tokens[last] and not first[last]:
            last -= 1
        before = "" if first[i] else tokens[last].strip(" Ġ▁")
        if first[i] or (i > 0 and first[i - 1] and before.startswith("<")):
            out[i] = _PLACES[0]
        elif before == "" or before[-1] in "\nĊ":
            out[i] = _PLACES[1]
        elif before[-1] in ".!?":
            out[i] = _PLACES[2]
        elif before[-1] in ",;:([":
            out[i] = _PLACES[3]
    return out


def _near(
    number: np.ndarray,
    word: np.ndarray,
    document: np.ndarray,
    names: np.ndarray,
) -> tuple[sparse.csr_array, np.ndarray]:
    from scipy import sparse

    document_of_word = document[_starts(number)]
    counts = np.bincount(word, minlength=len(names))
    spread = np.bincount(np.unique(np.stack([word, document_of_word]), axis=1)[0], minlength=len(names))
    fit = (counts <= _TOO_COMMON * len(word)) & (spread >= min(_MIN_DOCUMENTS, document.max() + 1))
    fit &= np.array([(len(n) > 2 or unspaced(n[:1])) and n[:1].isalpha() for n in names])
    kept = np.flatnonzero(fit)
    column = np.full(len(names), -1)
    column[kept] = np.arange(len(kept))
    rows, columns = [], []
    for back in range(WINDOW):
        earlier = np.arange(len(word)) - back
        inside = (earlier >= 0) & (document_of_word[np.maximum(earlier, 0)] == document_of_word)
        what = np.where(inside, column[word[np.maximum(earlier, 0)]], -1)
        rows.append(np.flatnonzero(what >= 0))
        columns.append(what[what >= 0])
    by_word = sparse.csr_array(
        (np.ones(sum(map(len, rows)), dtype=np.float32), (np.concatenate(rows), np.concatenate(columns))),
        shape=(len(word), len(kept)),
    )
    by_word.sum_duplicates()
    by_word.data[:] = 1
    return by_word[number], kept
