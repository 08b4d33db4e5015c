"""Token strings as traces store them -> text with the parts of characters marked.

Traces that are written now contain that text and say so (``settings.token_text``). Earlier ones mix the text of whole tokens
with the vocabulary's own pieces for parts of characters. Imported ones contain whatever their program wrote: text, or pieces of
a byte-level or sentence-piece vocabulary. The whole vocabulary and the order of tokens show which: characters that a byte-level
vocabulary writes for bytes make valid UTF-8 with their neighbours, characters that are meant as such do not.
"""

from __future__ import annotations

import codecs
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from moe_probe.core.pieces import MARK, byte_alphabet, byte_fallback, byte_level, decode, marked

#: Share of strings outside the alphabet of bytes that a byte-level vocabulary may have: tokens added to it.
_ADDED = 0.02
#: Share of non-ASCII bytes that must be part of valid UTF-8 for strings to be pieces of bytes.
_VALID = 0.9
#: Documents whose text is looked at for a string.
_DOCUMENTS = 20
#: Tokens on either side of one that are looked for in the text with it.
_AROUND = 6


class StoredTokens(NamedTuple):
    """Text tokens of some whole documents, in order.

    Attributes
    ----------
    document, token_id : ndarray of int, shape (n_tokens,)
    token : ndarray of object (str), shape (n_tokens,)
    """

    document: np.ndarray
    token_id: np.ndarray
    token: np.ndarray


#: Gives the tokens of a trace, shard by shard, anew whenever it is called.
Shards = Callable[[], Iterable[StoredTokens]]


def readable(shards: Shards, texts: Callable[[Sequence[int]], list[str]] | None) -> dict[tuple[int, str], str]:
    """Find the text of every token whose string is not its text.

    Parameters
    ----------
    shards : callable
        Yields the trace's `StoredTokens`, shard by shard; it is called up to three times.
    texts : callable, optional
        Gives the texts of documents, by rows; None where the trace has none.

    Returns
    -------
    dict of (token_id, string) to str
        Empty where all strings are text.
    """
    import pandas as pd

    keys: dict[tuple[int, str], None] = {}
    for shard in shards():
        pairs = pd.DataFrame({"token_id": shard.token_id, "token": shard.token}).drop_duplicates()
        keys.update(dict.fromkeys(zip(pairs["token_id"].tolist(), pairs["token"], strict=True)))
    strings = list(dict.fromkeys(string for _, string in keys))
    if all(s.isascii() and byte_fallback(s) is None for s in strings):
        return {}
    spaced = any(s.startswith(" ") and s.strip() for s in strings)
    if not spaced and _all_bytes(strings, shards):
        new = {s: marked(data) for s in strings if (data := byte_level(s)) is not None}
    elif not spaced and any(s.startswith("▁") for s in strings):
        new = {s: _sentence_piece(s) for s in strings}
    else:
        return _mixed(shards, list(keys), strings, texts)
    return {(i, s): new[s] for i, s in keys if new.get(s, s) != s}


def _sentence_piece(piece: str) -> str:
    data = byte_fallback(piece)
    return piece.replace("▁", " ") if data is None else marked(data)


def _all_bytes(strings: list[str], shards: Shards) -> bool:
    """Whether all strings are pieces of a byte-level vocabulary."""
    alphabet = byte_alphabet()
    inside = [s for s in strings if s and all(c in alphabet for c in s)]
    if len(strings) - len(inside) > max(1, _ADDED * len(strings)):
        return False
    known = {s: byte_level(s) for s in inside}
    # one text over all shards: a character may begin in one and end in the next
    decoder = codecs.getincrementaldecoder("utf-8")("surrogateescape")
    control = non_ascii = wrong = 0
    for shard in shards():
        data = b"".join(known.get(t) or b"\n" for t in shard.token)
        control += len(re.findall(rb"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]", data))  # characters such as ā, were they pieces
        non_ascii += len(re.findall(rb"[\x80-\xff]", data))
        wrong += len(re.findall("[\udc80-\udcff]", decoder.decode(data)))
    wrong += control + len(re.findall("[\udc80-\udcff]", decoder.decode(b"", final=True)))
    return (non_ascii > 0 or any("Ġ" in s for s in inside)) and wrong <= (1 - _VALID) * (non_ascii + control)


def _mixed(
    shards: Shards, keys: list[tuple[int, str]], strings: list[str], texts: Callable[[Sequence[int]], list[str]] | None
) -> dict[tuple[int, str], str]:
    """Text beside pieces: only strings that can be a part of a character are asked about."""
    new = {s: marked(data) for s in strings if (data := byte_fallback(s)) is not None and data > b"\x7f"}
    parts = {s: data for s in strings if (data := byte_level(s)) is not None and _part_of_character(data)}
    result = {(i, s): new[s] for i, s in keys if s in new}
    raw = _votes(shards, parts, texts) if parts else set()
    result |= {key: marked(parts[key[1]]) for key in raw}
    if not raw:  # a sentence-piece token of spaces alone has no text when it is decoded by itself
        result |= {(i, s): " " * len(s) for i, s in keys if s and not s.strip("▁")}
    return result


def _part_of_character(data: bytes) -> bool:
    """Whether bytes are a piece cut out of valid UTF-8, at a border that cuts a character."""
    inner = re.sub(rb"\A[\x80-\xbf]{1,3}", b"", data)
    inner = re.sub(rb"([\xc2-\xdf]|[\xe0-\xef][\x80-\xbf]?|[\xf0-\xf4][\x80-\xbf]{0,2})\Z", b"", inner)
    try:
        inner.decode("utf-8")
    except UnicodeDecodeError:
        return False
    return inner != data


@dataclass
class _Votes:
    """Occurrences of one token.

    Attributes
    ----------
    valid, total : int
        Occurrences that make characters with their neighbours, and all.
    places : dict of int to StoredTokens
        Tokens around its last occurrence in each of the first documents.
    """

    valid: int = 0
    total: int = 0
    places: dict[int, StoredTokens] = field(default_factory=dict)


def _votes(
    shards: Shards, parts: dict[str, bytes], texts: Callable[[Sequence[int]], list[str]] | None
) -> set[tuple[int, str]]:
    """Tokens whose strings stand for bytes: these make characters with their neighbours, and no text contains the strings."""
    votes: dict[tuple[int, str], _Votes] = {}
    for shard in shards():
        rows = np.flatnonzero([t in parts for t in shard.token])
        if not len(rows):
            continue
        valid = _valid(shard, rows, parts)
        last: dict[tuple[tuple[int, str], int], int] = {}
        for row, ok in zip(rows.tolist(), valid.tolist(), strict=True):
            key = int(shard.token_id[row]), shard.token[row]
            vote = votes.setdefault(key, _Votes())
            vote.valid, vote.total = vote.valid + ok, vote.total + 1
            last[key, int(shard.document[row])] = row
        for (key, document), row in last.items():
            if len(votes[key].places) < _DOCUMENTS:
                votes[key].places[document] = _around(shard, row)
    chosen = {key: vote.places for key, vote in votes.items() if vote.valid > vote.total / 2}
    return set(chosen) if texts is None else _confirmed(chosen, parts, texts)


def _valid(shard: StoredTokens, rows: np.ndarray, parts: dict[str, bytes]) -> np.ndarray:
    """Mark the rows whose bytes make characters with those of their neighbours, shape (n_rows,)."""
    tokens = shard.token[rows]
    apart = (np.diff(rows, prepend=-2) != 1) | (np.diff(shard.document[rows], prepend=-1) != 0)
    # a line break between runs: a character does not continue over tokens that are text
    data = b"".join((b"\n" if new else b"") + parts[t] for t, new in zip(tokens, apart, strict=True))
    signs = data.decode("utf-8", "surrogateescape")
    sizes = np.fromiter((1 if "\udc80" <= c <= "\udcff" else len(c.encode()) for c in signs), np.int64, len(signs))
    wrong = np.zeros(len(data) + 1, dtype=np.int64)
    wrong[1:] = np.cumsum(np.repeat([("\udc80" <= c <= "\udcff") for c in signs], sizes))
    ends = np.cumsum([len(parts[t]) + int(new) for t, new in zip(tokens, apart, strict=True)], dtype=np.int64)
    starts = ends - np.array([len(parts[t]) for t in tokens], dtype=np.int64)
    return np.asarray(wrong[ends] == wrong[starts])


def _around(shard: StoredTokens, row: int) -> StoredTokens:
    """Cut out the tokens around one, as far as they are of its document."""
    near = np.arange(max(0, row - _AROUND), min(len(shard.token), row + _AROUND + 1))
    near = near[shard.document[near] == shard.document[row]]
    return StoredTokens(shard.document[near], shard.token_id[near], shard.token[near])


def _confirmed(
    chosen: dict[tuple[int, str], dict[int, StoredTokens]],
    parts: dict[str, bytes],
    texts: Callable[[Sequence[int]], list[str]],
) -> set[tuple[int, str]]:
    """Keep the chosen tokens that documents' own texts do not contradict: é may be written as Ã© in a text, wrongly.

    Where a text contains the string itself, it has to contain the tokens around one occurrence, read as bytes, too.
    """
    seen: dict[int, str] = {}

    def agrees(string: str, document: int, around: StoredTokens) -> bool:
        if document not in seen:
            seen[document] = texts([document])[0]
        if string not in seen[document]:
            return True
        pairs = zip(around.token_id.tolist(), around.token, strict=True)
        read = [marked(parts[t]) if (i, t) in chosen else t for i, t in pairs]
        return MARK.sub("", decode(read).text).strip() in seen[document]

    out = set()
    for key, places in chosen.items():
        votes = [agrees(key[1], document, around) for document, around in places.items()]
        if sum(votes) > len(votes) / 2:
            out.add(key)
    return out
