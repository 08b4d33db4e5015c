"""Documents as token windows: long ones are cut into overlapping windows, never cut off."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from moe_probe.errors import MoeProbeError, UsageError
from moe_probe.pieces import carries_spaces, token_text

if TYPE_CHECKING:
    from moe_probe.corpus import Document


@dataclass(frozen=True)
class Window:
    """What one forward pass sees of a document, and which of it is recorded.

    Attributes
    ----------
    ids : ndarray of int64, shape (length,)
        Token ids with the special tokens the model expects, no padding.
    record : slice
        The rows recorded; the others (repeated special tokens, the overlap that gives later windows
        their left context) were recorded in an earlier window.
    """

    ids: np.ndarray
    record: slice


@dataclass(frozen=True)
class EncodedDocument:
    """A document's tokens and the windows that run over them.

    ``ids`` and ``special`` have one entry per recorded token, in document order; the recorded rows of
    the windows, in order, are exactly these tokens.
    """

    document: Document
    ids: np.ndarray
    special: np.ndarray
    windows: tuple[Window, ...]


class Encoder:
    """Turns documents into windows of at most `max_length` tokens.

    Parameters
    ----------
    tokenizer : PreTrainedTokenizerBase
    max_length : int
        Longest window, special tokens included.
    overlap : int
        Tokens of left context that a later window repeats from the one before; they are not
        recorded twice.

    Raises
    ------
    UsageError
        When windows of that length could not move forward.
    """

    def __init__(self, tokenizer: Any, *, max_length: int, overlap: int) -> None:
        specials = tokenizer.num_special_tokens_to_add(pair=False)
        if overlap < 0 or max_length - specials - overlap < 1:
            raise UsageError(f"windows of {max_length} tokens with an overlap of {overlap} cannot move forward",
                             f"{specials} of the tokens are special ones", "a larger --max-length or smaller --overlap")
        self.tokenizer, self.max_length, self.overlap = tokenizer, max_length, overlap
        self._strings: dict[int, str] = {}

    def __call__(self, document: Document) -> EncodedDocument:
        """Tokenize and window one document.

        Raises
        ------
        MoeProbeError
            When the tokenizer finds nothing in the text.
        """
        encoded = self.tokenizer(document.text, add_special_tokens=True, return_special_tokens_mask=True,
                                 truncation=False, verbose=False)
        ids = np.asarray(encoded["input_ids"], dtype=np.int64)
        special = np.asarray(encoded["special_tokens_mask"], dtype=bool)
        if special.all():
            raise MoeProbeError(f"document '{document.id}' has no tokens", "the tokenizer finds nothing in its text",
                                "take it out of the corpus")
        return EncodedDocument(document, ids, special, self._windows(ids, special))

    def _windows(self, ids: np.ndarray, special: np.ndarray) -> tuple[Window, ...]:
        n = len(ids)
        if n <= self.max_length:
            return (Window(ids, slice(0, n)),)
        start = int(np.argmin(special))            # leading special tokens go in front of every window
        end = n - int(np.argmin(special[::-1]))    # trailing ones behind every window
        prefix, suffix = ids[:start], ids[end:]
        room = self.max_length - len(prefix) - len(suffix)
        windows, done = [], start
        while done < end:
            left = done if done == start else done - self.overlap
            right = min(left + room, end)
            recorded_from = 0 if done == start else len(prefix) + done - left
            recorded_to = len(prefix) + right - left + (len(suffix) if right == end else 0)
            windows.append(Window(np.concatenate([prefix, ids[left:right], suffix]),
                                  slice(recorded_from, recorded_to)))
            done = right
        return tuple(windows)

    def string(self, token_id: int) -> str:
        """Text of a token, as `moe_probe.pieces.token_text` gives it: parts of characters are marked."""
        if token_id not in self._strings:
            self._strings[token_id] = token_text(self.tokenizer, token_id)
        return self._strings[token_id]

    @property
    def token_text(self) -> str:
        """What a trace's manifest says of its tokens' strings: whether they hold the spaces between words."""
        return "with spaces" if carries_spaces(self.tokenizer) else "words"
