"""Documents as token windows: long ones are cut into overlapping windows, never cut off."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from moe_probe.core.errors import MoeProbeError, UsageError
from moe_probe.core.pieces import carries_spaces, token_text

if TYPE_CHECKING:
    import pyarrow as pa

    from moe_probe.recording.corpus import Document
    from moe_probe.recording.settings import CollectOptions


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

    Attributes
    ----------
    document : Document
    ids : ndarray of int64, shape (n_tokens,)
        Recorded tokens, in document order.
    special : ndarray of bool, shape (n_tokens,)
        Tokens that are no content: those that the tokenizer adds, and those that the text itself spells out
        (``<|endoftext|>`` between joined documents, the second BOS and the role marks of a chat template).
    windows : tuple of Window
        Their recorded rows, in order, are exactly the recorded tokens.
    n_closing : int
        Tokens at the end that the tokenizer added.
    """

    document: Document
    ids: np.ndarray
    special: np.ndarray
    windows: tuple[Window, ...]
    n_closing: int = 0


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
            raise UsageError(
                f"windows of {max_length} tokens with an overlap of {overlap} cannot move forward",
                f"{specials} of the tokens are special ones",
                "a larger --max-length or smaller --overlap",
            )
        self.tokenizer, self.max_length, self.overlap = tokenizer, max_length, overlap
        self._strings: dict[int, str] = {}
        self.special_ids = special_ids(tokenizer)

    def __call__(self, document: Document) -> EncodedDocument:
        """Tokenize and window one document.

        Raises
        ------
        MoeProbeError
            When the tokenizer finds nothing in the text.
        """
        return self.encode([document])[0]

    def encode(self, documents: Sequence[Document]) -> list[EncodedDocument]:
        """Tokenize and window documents, all in one call of the tokenizer: a fast one uses every core, and no interpreter.

        Parameters
        ----------
        documents : sequence of Document

        Returns
        -------
        list of EncodedDocument

        Raises
        ------
        MoeProbeError
            When the tokenizer finds nothing in the text of a document; it names the first.
        """
        encoded = self.tokenizer(
            [document.text for document in documents],
            add_special_tokens=True,
            return_special_tokens_mask=True,
            return_attention_mask=False,
            return_token_type_ids=False,
            truncation=False,
            verbose=False,
        )
        # one look at all tokens: numpy costs as much for a document as for a hundred
        lengths = [len(ids) for ids in encoded["input_ids"]]
        all_ids = _flat(encoded["input_ids"], lengths, np.int64)
        all_added = _flat(encoded["special_tokens_mask"], lengths, np.bool_)
        # the mask knows nothing of special tokens in the text itself
        all_special = all_added | np.isin(all_ids, self.special_ids)
        out, start = [], 0
        for document, length in zip(documents, lengths, strict=True):
            rows = slice(start, start + length)
            out.append(self._encoded(document, all_ids[rows], all_added[rows], all_special[rows]))
            start += length
        return out

    def _encoded(self, document: Document, ids: np.ndarray, added: np.ndarray, special: np.ndarray) -> EncodedDocument:
        if special.all():
            raise MoeProbeError(
                f"document '{document.id}' has no tokens of text",
                "the tokenizer finds nothing in it but special tokens",
                "remove it from the corpus",
            )
        n_closing = 0 if not added[-1] else int(np.argmin(added[::-1]))
        return EncodedDocument(document, ids, special, self._windows(ids, added), n_closing)

    def _windows(self, ids: np.ndarray, added: np.ndarray) -> tuple[Window, ...]:
        n = len(ids)
        if n <= self.max_length:
            return (Window(ids, slice(0, n)),)
        # what the tokenizer adds goes in front of and behind every window; what the text spells out belongs to the text
        start = int(np.argmin(added))
        end = n - int(np.argmin(added[::-1]))
        prefix, suffix = ids[:start], ids[end:]
        room = self.max_length - len(prefix) - len(suffix)
        windows, done = [], start
        while done < end:
            left = done if done == start else done - self.overlap
            right = min(left + room, end)
            recorded_from = 0 if done == start else len(prefix) + done - left
            recorded_to = len(prefix) + right - left + (len(suffix) if right == end else 0)
            windows.append(Window(np.concatenate([prefix, ids[left:right], suffix]), slice(recorded_from, recorded_to)))
            done = right
        return tuple(windows)

    def string(self, token_id: int) -> str:
        """Return the text of a token, as `moe_probe.core.pieces.token_text` gives it: parts of characters are marked."""
        if token_id not in self._strings:
            self._strings[token_id] = token_text(self.tokenizer, token_id)
        return self._strings[token_id]

    def strings(self, ids: np.ndarray) -> pa.Array:
        """Return the texts of many tokens, each looked up once.

        Parameters
        ----------
        ids : ndarray of int, shape (n_tokens,)

        Returns
        -------
        pyarrow.StringArray, length n_tokens
        """
        import pyarrow as pa

        known, rows = np.unique(ids, return_inverse=True)
        return pa.array([self.string(int(i)) for i in known], pa.string()).take(pa.array(rows))

    @property
    def token_text(self) -> str:
        """What a trace's manifest says of its tokens' strings: whether they contain the spaces between words."""
        return "with spaces" if carries_spaces(self.tokenizer) else "words"


def make_encoder(tokenizer: Any, context: int, options: CollectOptions) -> Encoder:
    """Build the encoder that a collection's settings ask for.

    Parameters
    ----------
    tokenizer : PreTrainedTokenizerBase
    context : int
        Longest text that the model takes, in tokens.
    options : CollectOptions
        By default windows are as long as the context, 4096 tokens at most, and repeat an eighth.

    Returns
    -------
    Encoder

    Raises
    ------
    UsageError
        When windows of that length do not fit the context, or could not move forward.
    """
    length = options.max_length or min(context, 4096)
    if length > context:
        raise UsageError(
            f"--max-length {length} is more than the model's context of {context}",
            "",
            f"--max-length {context}; longer documents are windowed",
        )
    overlap = options.overlap if options.overlap >= 0 else length // 8
    return Encoder(tokenizer, max_length=length, overlap=overlap)


def _flat(rows: Sequence[Sequence[int]], lengths: Sequence[int], dtype: type) -> np.ndarray:
    """Join lists of numbers into one array."""
    return np.fromiter(itertools.chain.from_iterable(rows), dtype=dtype, count=sum(lengths))


def special_ids(tokenizer: Any) -> np.ndarray:
    """List the ids of the tokens that are no content wherever they stand, sorted; shape (n_special,).

    The named special tokens (BOS, EOS, padding, mask, separators) and every added token that the tokenizer
    declares special (role marks of chat templates). The unknown token is none of them, since it stands for a
    word of the text; unless it serves as BOS or EOS too, as in GPT-2.
    """
    named = {name: value for name, value in tokenizer.special_tokens_map.items() if name != "unk_token"}
    words = [word for value in named.values() for word in (value if isinstance(value, list | tuple) else [value])]
    ids = {tokenizer.convert_tokens_to_ids(str(word)) for word in words}
    ids |= {int(i) for i in tokenizer.all_special_ids}
    ids |= {
        int(i) for i, token in getattr(tokenizer, "added_tokens_decoder", {}).items() if getattr(token, "special", False)
    }
    unknown = getattr(tokenizer, "unk_token", None)
    if unknown is not None and str(unknown) not in {str(word) for word in words}:
        ids.discard(tokenizer.convert_tokens_to_ids(str(unknown)))
    return np.array(sorted(i for i in ids if isinstance(i, int)), dtype=np.int64)
