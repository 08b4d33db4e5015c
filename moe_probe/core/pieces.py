"""Tokens as text: characters split over several tokens are joined again, and every token keeps its characters.

A token is written as its text; bytes that are no character by themselves are marked, as ``⟨b2⟩``. The character ² in UTF-8 is the
bytes c2 b2, so the tokens ``x⟨c2⟩`` and ``⟨b2⟩`` are the text "x²", and both cover its second character.
"""

from __future__ import annotations

import itertools
import json
import re
import unicodedata
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np


#: A byte that is no character by itself; bytes below 80 always are one.
MARK = re.compile("⟨([89a-f][0-9a-f])⟩")
#: Spaces as vocabularies write them: byte-level ones (GPT-2), sentence-piece.
SPACE_MARKS = (" ", "Ġ", "▁")
_FALLBACK = re.compile("<0x([0-9A-Fa-f]{2})>")
_ESCAPED = re.compile("[\udc80-\udcff]")
#: Scripts that are written without spaces between words, by the first word of a character's name in Unicode.
_UNSPACED = frozenset(
    {
        "CJK",
        "HIRAGANA",
        "KATAKANA",
        "KATAKANA-HIRAGANA",
        "BOPOMOFO",
        "THAI",
        "LAO",
        "KHMER",
        "MYANMAR",
        "TIBETAN",
        "IDEOGRAPHIC",
        "FULLWIDTH",
    }
)
_CLOSING, _OPENING = frozenset(",.;:!?)]}%»”’"), frozenset("([{«“‘")


@lru_cache(maxsize=1)
def byte_alphabet() -> dict[str, int]:
    """Map the characters with which byte-level vocabularies write bytes to these bytes.

    GPT-2's encoder writes printable bytes as themselves, others as characters from U+0100 on.
    """
    printed = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [b for b in range(256) if b not in set(printed)]
    return {chr(b): b for b in printed} | {chr(0x100 + i): b for i, b in enumerate(others)}


def byte_level(piece: str) -> bytes | None:
    """Return the bytes of a byte-level piece; None for other pieces."""
    alphabet = byte_alphabet()
    return bytes(alphabet[c] for c in piece) if piece and all(c in alphabet for c in piece) else None


def byte_fallback(piece: str) -> bytes | None:
    """Return the byte of a sentence-piece token such as ``<0xE2>``; None for other pieces."""
    match = _FALLBACK.fullmatch(piece)
    return bytes([int(match[1], 16)]) if match else None


def marked(data: bytes) -> str:
    """Decode bytes; those that are no whole character are marked."""
    return _ESCAPED.sub(lambda m: f"⟨{ord(m[0]) - 0xDC00:02x}⟩", data.decode("utf-8", "surrogateescape"))


@lru_cache(maxsize=200_000)
def _raw(token: str) -> bytes:
    """Bytes of a token: the inverse of `marked`."""
    parts = MARK.split(token)
    return b"".join(bytes([int(p, 16)]) if i % 2 else p.encode("utf-8", "replace") for i, p in enumerate(parts))


@dataclass(frozen=True)
class Decoded:
    """The text of a row of tokens.

    Attributes
    ----------
    tokens : tuple of str
    text : str
        Bytes that make no character with their neighbours either stay marked.
    starts, ends : ndarray of int64, shape (n_tokens,)
        Characters of the text that each token covers; tokens of one character cover the same character, also one without
        text that stands between them. Both never fall from one token to the next.
    """

    tokens: tuple[str, ...]
    text: str
    starts: np.ndarray
    ends: np.ndarray

    def shares(self) -> list[str]:
        """Divide the text among the tokens: a character goes to the first of its tokens, its others get none."""
        taken, out = 0, []
        for start, end in zip(self.starts.tolist(), self.ends.tolist(), strict=True):
            out.append(self.text[max(start, taken) : end])
            taken = max(taken, end)
        return out

    def rows(self, start: int, end: int) -> slice:
        """Return the tokens that cover some characters.

        Parameters
        ----------
        start, end : int
            Characters of the text, `end` not included.

        Returns
        -------
        slice
        """
        import numpy as np

        return slice(
            int(np.searchsorted(self.ends, start, side="right")), int(np.searchsorted(self.starts, end, side="left"))
        )

    def segments(self) -> list[tuple[str, slice]]:
        """Cut the text wherever a token begins or ends, each part with the tokens that it belongs to."""
        import numpy as np

        cuts = np.unique(np.concatenate([self.starts, self.ends])).tolist()
        return [(self.text[a:b], self.rows(a, b)) for a, b in itertools.pairwise(cuts)]

    def shaded(self, strengths: Sequence[float] | np.ndarray) -> list[tuple[str, float]]:
        """Segments with the largest strength among their tokens."""
        return [(text, max(strengths[rows])) for text, rows in self.segments()]

    def name(self, row: int) -> str:
        """Name a single token in a list: a part of a character with the text that it belongs to, ``⟨b2⟩ (²)``."""
        token = self.tokens[row]
        bare = token.strip() or token
        if not MARK.search(token):
            return standing(bare)
        text = self.text[self.starts[row] : self.ends[row]].strip()
        return bare if text == bare else f"{bare} ({standing(text)})"


def decode(tokens: Sequence[str] | np.ndarray) -> Decoded:
    """Put tokens together to text.

    Parameters
    ----------
    tokens : sequence of str
        In the order of the text, parts of characters marked as `marked` does.

    Returns
    -------
    Decoded

    Examples
    --------
    >>> decode(["x⟨c2⟩", "⟨b2⟩", " is"]).text
    'x² is'
    """
    import numpy as np

    tokens = tuple(tokens.tolist() if isinstance(tokens, np.ndarray) else tokens)
    text = "".join(tokens)
    if "⟨" not in text or not MARK.search(text):
        ends = np.cumsum([len(t) for t in tokens], dtype=np.int64)
        return Decoded(tokens, text, ends - np.fromiter(map(len, tokens), np.int64, len(tokens)), ends)
    pieces = [_raw(t) for t in tokens]
    text = b"".join(pieces).decode("utf-8", "surrogateescape")
    codes = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), dtype="<u4")
    escaped = (codes >= 0xDC80) & (codes <= 0xDCFF)
    n_bytes = np.where(escaped, 1, 1 + (codes >= 0x80) + (codes >= 0x800) + (codes >= 0x10000))
    last_byte, last_sign = np.cumsum(n_bytes), np.concatenate([[0], np.cumsum(np.where(escaped, 4, 1))])
    ends = np.cumsum([len(p) for p in pieces], dtype=np.int64)
    starts = ends - np.fromiter(map(len, pieces), np.int64, len(pieces))
    first = np.searchsorted(last_byte, starts, side="right")
    within = starts > np.concatenate([[0], last_byte])[first]  # of a character that began before
    last = np.where(ends > starts, np.searchsorted(last_byte, ends - 1, side="right") + 1, first + within)
    return Decoded(tokens, _ESCAPED.sub(lambda m: f"⟨{ord(m[0]) - 0xDC00:02x}⟩", text), last_sign[first], last_sign[last])


def whole_characters(tokens: Sequence[str] | np.ndarray, low: int, high: int, *, within: tuple[int, int]) -> tuple[int, int]:
    """Widen a span of tokens until it cuts no character in two.

    Parameters
    ----------
    tokens : sequence of str
    low, high : int
        First token of the span, and the one behind its last.
    within : tuple of int
        Where the document begins and ends.

    Returns
    -------
    low, high : int
    """
    while low > within[0] and _goes_on(tokens[low]):
        low -= 1
    while high < within[1] and _goes_on(tokens[high]):
        high += 1
    return low, high


def _goes_on(token: str) -> bool:
    """Whether a token begins within a character: with a byte from 80 to bf."""
    match = MARK.match(token)
    return match is not None and match[1] < "c0"


def token_text(tokenizer: Any, token_id: int) -> str:
    """Return the text of a single token, its parts of characters marked.

    Parameters
    ----------
    tokenizer : PreTrainedTokenizerBase
        With a byte-level, sentence-piece or WordPiece vocabulary, or any other; word pieces keep their ``##``.
    token_id : int

    Returns
    -------
    str
    """
    piece = tokenizer.convert_ids_to_tokens(token_id)
    if isinstance(piece, bytes):
        return marked(piece)
    text = str(tokenizer.decode([token_id], skip_special_tokens=False, clean_up_tokenization_spaces=False))
    if piece is None or token_id in tokenizer.all_special_ids:
        return text or str(piece)
    bytes_of = byte_level if _decoder(tokenizer) == "ByteLevel" else byte_fallback
    if not text or "\ufffd" in text:
        data = bytes_of(piece)
        if data is not None:
            return marked(data)
    if piece.startswith("▁") and bytes_of is byte_fallback:
        return str(piece.replace("▁", " "))  # sentence-piece tokenizers drop the space of a token that is decoded alone
    return text or str(piece)


def _decoder(tokenizer: Any) -> str:
    """``ByteLevel`` for vocabularies of bytes; "" for others."""
    if hasattr(tokenizer, "byte_decoder"):  # written in Python
        return "ByteLevel"
    core = getattr(tokenizer, "backend_tokenizer", None)
    state = (
        getattr(core.decoder, "__getstate__", lambda: b"{}")() if core is not None and core.decoder is not None else b"{}"
    )
    return _decoder_of(state)


@lru_cache(maxsize=16)
def _decoder_of(state: bytes) -> str:
    """Read what `_decoder` returns from a fast tokenizer's decoder, as JSON."""
    parts = json.loads(state)
    return "ByteLevel" if any(p.get("type") == "ByteLevel" for p in (parts, *parts.get("decoders", ()))) else ""


def carries_spaces(tokenizer: Any) -> bool:
    """Whether tokens hold the spaces between words; WordPiece and word vocabularies leave them out."""
    if _decoder(tokenizer) == "ByteLevel":
        return True
    ids = tokenizer("a b", add_special_tokens=False, verbose=False)["input_ids"]
    return " " in "".join(token_text(tokenizer, i) for i in ids).strip()


def in_word(character: str) -> bool:
    """Whether a sign is a part of words: characters, digits, accents and vowel signs, joiners."""
    return character.isalnum() or character in "\u200c\u200d" or is_mark(character)


def is_mark(character: str) -> bool:
    """Whether a sign stands on the character before it: an accent, a vowel sign."""
    return unicodedata.category(character).startswith("M")


def standing(text: str) -> str:
    """Text as it is shown by itself: an accent at its beginning stands on a dotted circle, not on the sign before it."""
    return f"◌{text}" if text and is_mark(text[0]) else text


@lru_cache(maxsize=50_000)
def unspaced(character: str) -> bool:
    """Whether a character is of a script that is written without spaces between words (Chinese, Japanese, Thai ...)."""
    return "\u3000" <= character <= "\u303f" or (
        character > "\u0dff" and unicodedata.name(character, "").split(" ")[0] in _UNSPACED
    )


def with_spaces(tokens: np.ndarray, *, vocabulary: Collection[str] | None = None) -> np.ndarray:
    """Token texts with the spaces between words, for vocabularies that do not carry them.

    Byte-pair and sentence-piece tokens start with the space before them, and vocabularies of bytes have one for spaces. Where
    there is neither, every token is a word by itself, but for word pieces that go on with ``##`` and characters of scripts
    without spaces. In texts of word pieces, punctuation stands as it does in print.

    Parameters
    ----------
    tokens : ndarray of str
    vocabulary : collection of str, optional
        Tokens by which the kind of vocabulary is told; `tokens` themselves when left out.

    Returns
    -------
    ndarray of object (str), same shape
    """
    import numpy as np

    known = tokens if vocabulary is None else vocabulary
    if any(t.startswith(SPACE_MARKS) or MARK.search(t) for t in known):
        return tokens
    pieces = any(t.startswith("##") and len(t) > 2 for t in known)
    out: list[str] = []
    before = ""
    for token in tokens:
        goes_on = token.startswith("##") and len(token) > 2
        text = token[2:] if goes_on else token
        joined = goes_on or (before != "" and unspaced(before)) or (text != "" and unspaced(text[0]))
        if pieces and before and text:
            joined |= before in _OPENING or text[0] in _CLOSING
        out.append(text if joined else f" {text}")
        before = text[-1:]
    return np.array(out, dtype=object)
