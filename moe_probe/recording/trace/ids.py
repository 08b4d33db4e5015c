"""Distinct token ids of a trace and their strings, collected shard by shard."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np

from moe_probe.core.schema import Manifest
from moe_probe.recording.trace.chunks import TokenChunk
from moe_probe.recording.trace.opened import TokenTable

#: Ids below this are marked in a table; larger ones (hashes) are kept sorted.
_TABLE = 1 << 22


class IdSet:
    """Distinct token ids (and -1), collected shard by shard."""

    def __init__(self) -> None:
        self._seen = np.zeros(1, dtype=bool)  # place 0 is that of -1
        self._large = np.zeros(0, dtype=np.int64)

    def add(self, ids: np.ndarray) -> np.ndarray:
        """Add ids of -1 and above; return the places of the first occurrences of those that are new, ascending."""
        if not len(ids):
            return np.zeros(0, dtype=np.int64)
        small = ids < _TABLE
        needed = int(ids[small].max(initial=-1)) + 2
        if needed > len(self._seen):
            self._seen = np.concatenate(
                [self._seen, np.zeros(max(needed, 2 * len(self._seen)) - len(self._seen), dtype=bool)]
            )
        unknown = np.flatnonzero(small)[~self._seen[ids[small] + 1]]
        if not small.all():
            large = np.flatnonzero(~small)
            unknown = np.sort(np.concatenate([unknown, large[~np.isin(ids[large], self._large)]]))
        if not len(unknown):
            return np.asarray(unknown)
        values, first = np.unique(ids[unknown], return_index=True)
        self._seen[values[values < _TABLE] + 1] = True
        self._large = np.union1d(self._large, values[values >= _TABLE])
        return np.asarray(np.sort(unknown[first]))

    def values(self) -> np.ndarray:
        """Return the ids, int64, ascending."""
        return np.concatenate([np.flatnonzero(self._seen) - 1, self._large])


def previous_ids(document: np.ndarray, ids: np.ndarray) -> np.ndarray:
    """Return the id before every token in its document, int64; -1 for a document's first token.

    Parameters
    ----------
    document, ids : ndarray of int, shape (n_tokens,)
        Whole documents one after the other.

    Returns
    -------
    ndarray of int64, shape (n_tokens,)
    """
    before = np.full(len(ids), -1, dtype=np.int64)
    follows = document[1:] == document[:-1]
    before[1:][follows] = ids[:-1][follows]
    return before


def distinct_ids(chunks: Iterable[TokenChunk], documents: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Collect the ids of some documents' text tokens, and of the tokens before these.

    Parameters
    ----------
    chunks : iterable of TokenChunk
        With the columns ``document, token_id, special``.
    documents : ndarray of bool, shape (n_documents,)

    Returns
    -------
    ids, before : ndarray of int64
        Distinct and ascending; -1 where no token comes before.
    """
    own, before = IdSet(), IdSet()
    for chunk in chunks:
        document, ids = chunk.columns["document"], chunk.columns["token_id"]
        text = ~chunk.columns["special"] & documents[document]
        own.add(ids[text])
        before.add(previous_ids(document, ids)[text])
    return own.values(), before.values()


def first_strings(root: Path, manifest: Manifest, as_text: Callable[[np.ndarray, np.ndarray], np.ndarray]) -> dict[int, str]:
    """Read the string of every token id where it occurs first.

    Parameters
    ----------
    root : Path
        Folder of the trace.
    manifest : Manifest
    as_text : callable
        Takes ids and stored strings, gives the strings as text.

    Returns
    -------
    dict of int to str
        In the order of first occurrences.
    """
    file, known = TokenTable(root, manifest), IdSet()
    strings: dict[int, str] = {}
    for shard in range(len(manifest.shards)):
        ids = file.shard(shard, ["token_id"])["token_id"].to_numpy()
        if len(new := known.add(ids)):  # strings are the larger part of the table: read only where there are new ones
            stored = file.shard(shard, ["token"]).take(new)["token"].to_numpy()
            strings |= zip(ids[new].tolist(), as_text(ids[new], stored), strict=True)
    return strings
