"""Token strings as traces store them -> text with the parts of characters marked.

Traces that are written now contain that text and say so (``settings.token_text``). Earlier ones mix the text of whole tokens
with the vocabulary's own pieces for parts of characters. Imported ones contain whatever their program wrote: text, or pieces of
a byte-level or sentence-piece vocabulary. The whole vocabulary and the order of tokens show which: characters that a byte-level
vocabulary writes for bytes make valid UTF-8 with their neighbours, characters that are meant as such do not.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np

from moe_probe.core.pieces import MARK, byte_alphabet, byte_fallback, byte_level, decode, marked

if TYPE_CHECKING:
    import pandas as pd

#: Share of strings outside the alphabet of bytes that a byte-level vocabulary may have: tokens added to it.
_ADDED = 0.02
#: Share of non-ASCII bytes that must be part of valid UTF-8 for strings to be pieces of bytes.
_VALID = 0.9
#: Documents whose text is looked at for a string.
_DOCUMENTS = 20
#: Tokens on either side of one that are looked for in the text with it.
_AROUND = 6


def readable(table: pd.DataFrame, texts: Callable[[Sequence[int]], list[str]] | None) -> dict[tuple[int, str], str]:
    """Find the text of every token whose string is not its text.

    Parameters
    ----------
    table : pandas.DataFrame
        ``document, token_id, token, special`` of a whole trace, in order.
    texts : callable, optional
        Gives the texts of documents, by rows; None where the trace has none.

    Returns
    -------
    dict of (token_id, string) to str
        Empty where all strings are text.
    """
    plain = table[~table["special"].to_numpy()]
    pairs = plain[["token_id", "token"]].drop_duplicates()
    strings = list(dict.fromkeys(pairs["token"]))
    if all(s.isascii() and byte_fallback(s) is None for s in strings):
        return {}
    spaced = any(s.startswith(" ") and s.strip() for s in strings)
    if not spaced and _all_bytes(strings, plain):
        new = {s: marked(data) for s in strings if (data := byte_level(s)) is not None}
    elif not spaced and any(s.startswith("▁") for s in strings):
        new = {s: _sentence_piece(s) for s in strings}
    else:
        return _mixed(plain, pairs, strings, texts)
    return {(i, s): new[s] for i, s in zip(pairs["token_id"].tolist(), pairs["token"], strict=True) if new.get(s, s) != s}


def _sentence_piece(piece: str) -> str:
    data = byte_fallback(piece)
    return piece.replace("▁", " ") if data is None else marked(data)


def _all_bytes(strings: list[str], plain: pd.DataFrame) -> bool:
    """Whether all strings are pieces of a byte-level vocabulary."""
    alphabet = byte_alphabet()
    inside = [s for s in strings if s and all(c in alphabet for c in s)]
    if len(strings) - len(inside) > max(1, _ADDED * len(strings)):
        return False
    known = {s: byte_level(s) for s in inside}
    data = b"".join(known.get(t) or b"\n" for t in plain["token"].tolist())
    control = len(re.findall(rb"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]", data))  # characters such as ā, were they pieces
    non_ascii = len(re.findall(rb"[\x80-\xff]", data))
    wrong = control + len(re.findall("[\udc80-\udcff]", data.decode("utf-8", "surrogateescape")))
    return (non_ascii > 0 or any("Ġ" in s for s in inside)) and wrong <= (1 - _VALID) * (non_ascii + control)


def _mixed(
    plain: pd.DataFrame, pairs: pd.DataFrame, strings: list[str], texts: Callable[[Sequence[int]], list[str]] | None
) -> dict[tuple[int, str], str]:
    """Text beside pieces: only strings that can be a part of a character are asked about."""
    new = {s: marked(data) for s in strings if (data := byte_fallback(s)) is not None and data > b"\x7f"}
    parts = {s: data for s in strings if (data := byte_level(s)) is not None and _part_of_character(data)}
    keys = list(zip(pairs["token_id"].tolist(), pairs["token"], strict=True))
    result = {(i, s): new[s] for i, s in keys if s in new}
    raw = _votes(plain, parts, texts) if parts else {}
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


def _votes(
    plain: pd.DataFrame, parts: dict[str, bytes], texts: Callable[[Sequence[int]], list[str]] | None
) -> set[tuple[int, str]]:
    """Tokens whose strings stand for bytes: these make characters with their neighbours, and no text contains the strings."""
    rows = np.flatnonzero(plain["token"].isin(parts).to_numpy())
    tokens, ids = plain["token"].to_numpy(dtype=object)[rows], plain["token_id"].to_numpy()[rows]
    documents = plain["document"].to_numpy()[rows]
    apart = (np.diff(rows, prepend=-2) != 1) | (np.diff(documents, prepend=-1) != 0)
    # a line break between runs: a character does not continue over tokens that are text
    data = b"".join((b"\n" if new else b"") + parts[t] for t, new in zip(tokens, apart, strict=True))
    signs = data.decode("utf-8", "surrogateescape")
    sizes = np.fromiter((1 if "\udc80" <= c <= "\udcff" else len(c.encode()) for c in signs), np.int64, len(signs))
    wrong = np.zeros(len(data) + 1, dtype=np.int64)
    wrong[1:] = np.cumsum(np.repeat([("\udc80" <= c <= "\udcff") for c in signs], sizes))
    ends = np.cumsum([len(parts[t]) + int(new) for t, new in zip(tokens, apart, strict=True)])
    starts = ends - [len(parts[t]) for t in tokens]
    valid = wrong[ends] == wrong[starts]
    good: dict[tuple[int, str], list[bool]] = {}
    row_in: dict[tuple[int, str], dict[int, int]] = {}  # one row of each document
    for i, t, d, row, ok in zip(ids.tolist(), tokens, documents.tolist(), rows.tolist(), valid.tolist(), strict=True):
        good.setdefault((i, t), []).append(ok)
        row_in.setdefault((i, t), {})[d] = row
    chosen = {key for key, votes in good.items() if sum(votes) > len(votes) / 2}
    return chosen if texts is None else _confirmed(plain, {key: row_in[key] for key in chosen}, parts, texts)


def _confirmed(
    plain: pd.DataFrame,
    chosen: dict[tuple[int, str], dict[int, int]],
    parts: dict[str, bytes],
    texts: Callable[[Sequence[int]], list[str]],
) -> set[tuple[int, str]]:
    """Keep the chosen tokens that documents' own texts do not contradict: é may be written as Ã© in a text, wrongly.

    Where a text contains the string itself, it has to contain the tokens around one occurrence, read as bytes, too.
    """
    ids, strings = plain["token_id"].to_numpy(), plain["token"].to_numpy(dtype=object)
    documents = plain["document"].to_numpy()
    seen: dict[int, str] = {}

    def agrees(document: int, row: int) -> bool:
        if document not in seen:
            seen[document] = texts([document])[0]
        if strings[row] not in seen[document]:
            return True
        around = [r for r in range(max(0, row - _AROUND), min(len(strings), row + _AROUND + 1)) if documents[r] == document]
        read = [marked(parts[strings[r]]) if (int(ids[r]), strings[r]) in chosen else strings[r] for r in around]
        return MARK.sub("", decode(read).text).strip() in seen[document]

    out = set()
    for key, rows in chosen.items():
        votes = [agrees(d, row) for d, row in list(rows.items())[:_DOCUMENTS]]
        if sum(votes) > len(votes) / 2:
            out.add(key)
    return out
