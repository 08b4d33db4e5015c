"""The corpus cut into blocks of whole documents: what one shard of a trace holds, and what several processes share out.

A block ends with the document that brings its text to a number of bytes (UTF-8). Bytes are known without a tokenizer, so
that a process that collects a part of the corpus knows where its part begins without tokenizing what comes before it, and
the cut is the same however many parts there are. How many bytes make about ``shard_tokens`` tokens is measured on the
first documents of the corpus.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, NamedTuple

from moe_probe.core.errors import UsageError

if TYPE_CHECKING:
    from moe_probe.recording.collect.windows import Encoder
    from moe_probe.recording.corpus import Document


class Block(NamedTuple):
    """Documents that are collected together and make one shard of a trace.

    Attributes
    ----------
    number : int
        Number of the block in the corpus, whatever part of it is collected: it seeds the sample of tokens with vectors.
    first : int
        Ordinal of its first document in the corpus.
    n_documents : int
    """

    number: int
    first: int
    n_documents: int


def block_bytes(encoder: Encoder, opening: Iterable[Document], shard_tokens: int) -> int:
    """Translate tokens of a shard into bytes of text, by the tokens of a corpus's first documents.

    Parameters
    ----------
    encoder : Encoder
    opening : iterable of Document
        First documents of the corpus (`CorpusSummary.opening`), at least one.
    shard_tokens : int
        Tokens that a shard should have.

    Returns
    -------
    int
        UTF-8 bytes of text after which a block ends, at least 1.

    Raises
    ------
    MoeProbeError
        When a document has no tokens.
    """
    documents = list(opening)
    n_bytes = sum(document.n_bytes for document in documents)
    n_tokens = sum(len(encoded.ids) for encoded in encoder.encode(documents))  # all in one call: faster than one by one
    return max(1, shard_tokens * n_bytes // n_tokens)  # whole numbers: the same on every machine


def cut_blocks(sizes: Iterable[int], n_bytes: int) -> list[Block]:
    """Cut a corpus into blocks.

    Parameters
    ----------
    sizes : iterable of int
        UTF-8 bytes of each document's text, in order.
    n_bytes : int
        Bytes after which a block ends.

    Returns
    -------
    list of Block
        In order; every document is in one of them, and only the last one may have fewer bytes than `n_bytes`.
    """
    blocks: list[Block] = []
    first = size = n_documents = 0
    for n_documents, more in enumerate(sizes, 1):
        size += more
        if size >= n_bytes:
            blocks.append(Block(len(blocks), first, n_documents - first))
            first, size = n_documents, 0
    if first < n_documents:
        blocks.append(Block(len(blocks), first, n_documents - first))
    return blocks


def blocks_of_part(blocks: Sequence[Block], part: tuple[int, int] | None) -> Sequence[Block]:
    """Choose the blocks that one of several processes collects.

    Parameters
    ----------
    blocks : sequence of Block
        Of the whole corpus.
    part : (int, int) or None
        Which part, counted from 0, and the number of parts; None for the whole corpus.

    Returns
    -------
    sequence of Block
        Contiguous. Parts differ by one block at most.

    Raises
    ------
    UsageError
        When there is no such part, or there are fewer blocks than parts.
    """
    if part is None:
        return blocks
    i, n = part
    check_part(i, n)
    if n > len(blocks):
        raise UsageError(
            f"the corpus cannot be shared out among {n} parts",
            f"it has only {len(blocks)} {'block' if len(blocks) == 1 else 'blocks'} of documents",
            f"at most {len(blocks)} parts, or a smaller --shard-tokens",
        )
    return blocks[i * len(blocks) // n : (i + 1) * len(blocks) // n]


def check_part(i: int, n: int) -> None:
    """Refuse a part that does not exist.

    Parameters
    ----------
    i : int
        Part, counted from 0.
    n : int
        Number of parts.

    Raises
    ------
    UsageError
        When `i` is not between 0 and ``n - 1``.
    """
    if not 0 <= i < n:
        why = f"{n} parts are counted from 0 to {n - 1}" if n > 0 else "there is at least one part"
        raise UsageError(f"--shard {i}/{n} is no part of the corpus", why, "--shard 0/4 to --shard 3/4 for four parts")


def read_part(text: str) -> tuple[int, int]:
    """Read ``--shard i/n``.

    Parameters
    ----------
    text : str

    Returns
    -------
    (int, int)
        Part, counted from 0, and number of parts.

    Raises
    ------
    UsageError
        When it is not of that form, or there is no such part.
    """
    match = re.fullmatch(r"\s*(\d{1,9})\s*/\s*(\d{1,9})\s*", text, re.ASCII)
    if not match:
        why = "a part is written i/n, i from 0 to n - 1"
        raise UsageError(f"--shard {text} cannot be read", why, "--shard 0/4 for the first of four parts")
    part = int(match[1]), int(match[2])
    check_part(*part)
    return part


def documents_of(blocks: Sequence[Block], corpus: Iterable[Document]) -> Iterator[tuple[Block, list[Document]]]:
    """Read the documents of some blocks.

    Parameters
    ----------
    blocks : sequence of Block
        Contiguous.
    corpus : iterable of Document
        The whole corpus; what comes before the blocks is read and passed over, what comes after is not read.

    Yields
    ------
    (Block, list of Document)
    """
    if not blocks:
        return
    documents = itertools.islice(iter(corpus), blocks[0].first, None)
    for block in blocks:
        yield block, list(itertools.islice(documents, block.n_documents))
