"""The documents and tokens of a trace: tables that are read as far as they are asked for."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa

from moe_probe.core.errors import MoeProbeError
from moe_probe.core.evidence import missing_evidence
from moe_probe.core.pieces import SPACE_MARKS, with_spaces
from moe_probe.core.schema import Evidence, Manifest, ShardEntry
from moe_probe.recording.trace.chunks import TokenChunk
from moe_probe.recording.trace.ids import distinct_ids, first_strings
from moe_probe.recording.trace.opened import TokenTable, documents_of, open_documents
from moe_probe.recording.trace.rows import read_token_rows
from moe_probe.recording.trace.stored import StoredTokens, readable

if TYPE_CHECKING:
    import pandas as pd


class TraceTokens:
    """What a trace knows of its documents and tokens, routing apart; `Trace` adds that.

    Parameters
    ----------
    root : Path
        Folder of the trace.
    manifest : Manifest
    """

    def __init__(self, root: Path, manifest: Manifest) -> None:
        self.root, self.manifest = root, manifest

    @cached_property
    def documents(self) -> pd.DataFrame:
        """Documents with their labels and token counts, without text; one row per document."""
        return documents_of(self.root, self.manifest).to_pandas()

    def texts(self, rows: Sequence[int] | None = None) -> list[str]:
        """Return the texts of documents (all, or those of the rows given).

        Raises
        ------
        MoeProbeError
            When the trace was made with ``--no-text``.
        """
        if not self.manifest.has_text:
            raise MoeProbeError(
                f"the trace at {self.root} has no text", "it was made with --no-text", "collect again without --no-text"
            )
        texts = open_documents(self.root, self.manifest).whole(["text"])["text"]
        # typed, because pyarrow takes an empty list for one of nulls, which it cannot index with
        chosen = texts if rows is None else texts.take(pa.array(rows, type=pa.int64()))
        return list(chosen.to_pylist())

    def tokens(self, columns: Sequence[str] | None = None) -> pd.DataFrame:
        """Return the token table, or some of its columns: ``document, position, token_id, token, special``.

        ``token`` is text as `core.pieces` writes it, whatever the trace stores: parts of characters are marked (``⟨b2⟩``).
        """
        self.need_routing()
        wanted = ["document", "position", "token_id", "token", "special"] if columns is None else list(columns)
        more = ["token_id"] if "token" in wanted and "token_id" not in wanted and self._texts_of_tokens else []
        table = self._all_tokens(wanted + more).to_pandas()
        if more or ("token" in wanted and self._texts_of_tokens):
            table["token"] = self._as_text(table["token_id"].to_numpy(), table["token"].to_numpy(dtype=object))
        return table[wanted]

    def _all_tokens(self, columns: list[str]) -> pa.Table:
        file = TokenTable(self.root, self.manifest)
        return pa.concat_tables([file.shard(shard.index, columns) for shard in self.manifest.shards])

    @cached_property
    def _texts_of_tokens(self) -> dict[tuple[int, str], str]:
        """Text of the tokens that are stored otherwise; empty for traces that store text."""
        if "token_text" in self.manifest.settings:
            return {}
        return readable(self._stored, self.texts if self.manifest.has_text else None)

    def _stored(self) -> Iterator[StoredTokens]:
        """Yield the strings of text tokens as they are stored, shard by shard."""
        file, names = TokenTable(self.root, self.manifest), ["document", "token_id", "token"]
        for shard in self.manifest.shards:
            table = file.shard(shard.index, [*names, "special"])
            text = ~table["special"].to_numpy()
            yield StoredTokens(*(table[name].to_numpy()[text] for name in names))

    def _as_text(self, ids: np.ndarray, strings: np.ndarray) -> np.ndarray:
        if not (known := self._texts_of_tokens):
            return strings
        return np.array([known.get(key, key[1]) for key in zip(ids.tolist(), strings, strict=True)], dtype=object)

    def spaced(self, tokens: np.ndarray, *, whole: bool = True) -> np.ndarray:
        """Return token strings with the spaces between words, where the trace's vocabulary leaves these out (WordPiece, words).

        Parameters
        ----------
        tokens : ndarray of str
            From the column ``token`` of `tokens`, all that are to be read together.
        whole : bool
            Whether these tell the kind of vocabulary; else all strings of the trace do.

        Returns
        -------
        ndarray of object (str), same shape
        """
        if self._carries_spaces:
            return tokens
        return with_spaces(tokens, vocabulary=None if whole else self._strings.values())

    @cached_property
    def _carries_spaces(self) -> bool:
        known = self.manifest.settings.get("token_text")
        if known is not None:
            return known == "with spaces"
        return any(t.startswith(SPACE_MARKS) for t in self.token_strings().values())

    def iter_tokens(
        self, columns: Sequence[str], *, documents: np.ndarray | None = None
    ) -> Iterator[tuple[ShardEntry, TokenChunk]]:
        """Yield every shard with columns of its part of the token table.

        Parameters
        ----------
        columns : sequence of str
        documents : ndarray of bool, shape (n_documents,), optional
            Pass over the shards that have none of these documents.

        Yields
        ------
        shard : ShardEntry
        chunk : TokenChunk

        Raises
        ------
        MoeProbeError
            When only usage was kept.
        """
        self.need_routing()
        file, first, before = TokenTable(self.root, self.manifest), 0, 0
        not_text = "token" in columns and bool(self._texts_of_tokens)
        for shard in self.manifest.shards:
            if documents is None or documents[before : before + shard.n_documents].any():
                wanted = dict.fromkeys([*columns, "token_id"] if not_text else columns)
                table = file.shard(shard.index, list(wanted))
                arrays = {name: table[name].to_numpy() for name in columns}
                if not_text:
                    arrays["token"] = self._as_text(table["token_id"].to_numpy(), arrays["token"])
                yield shard, TokenChunk(first, arrays)
            first, before = first + shard.n_tokens, before + shard.n_documents

    def tokens_at(self, rows: np.ndarray, columns: Sequence[str]) -> dict[str, np.ndarray]:
        """Return columns of the token table at some rows of the trace.

        Parameters
        ----------
        rows : ndarray of int, shape (n_rows,)
            In any order.
        columns : sequence of str
            As `tokens` takes them.

        Returns
        -------
        dict of str to ndarray, shape (n_rows,)
        """
        self.need_routing()
        not_text = "token" in columns and bool(self._texts_of_tokens)
        found = read_token_rows(self.root, self.manifest, rows, list(dict.fromkeys([*columns, *["token_id"] * not_text])))
        if not_text:
            found["token"] = self._as_text(found["token_id"], found["token"])
        return {name: found[name] for name in columns}

    def whereabouts(self, row: int) -> tuple[str, int]:
        """Return document name and position of a token, by its row in the trace."""
        found = self.tokens_at(np.array([row]), ["document", "position"])
        return str(self.documents["document"].iloc[int(found["document"][0])]), int(found["position"][0])

    def token_strings(self) -> dict[int, str]:
        """Return the text of every token id that occurs, in the order of first occurrences."""
        return dict(self._strings)

    @cached_property
    def _strings(self) -> dict[int, str]:
        self.need_routing()
        return first_strings(self.root, self.manifest, self._as_text)

    def ids_of(self, documents: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the distinct ids of some documents' text tokens, and of the tokens before these; see `distinct_ids`.

        Read once for a choice of documents (boolean mask, shape (n_documents,)).
        """
        key = hashlib.sha256(documents.tobytes()).digest()
        if key not in self._ids:
            chunks = self.iter_tokens(["document", "token_id", "special"], documents=documents)
            self._ids[key] = distinct_ids((chunk for _, chunk in chunks), documents)
        return self._ids[key]

    @cached_property
    def _ids(self) -> dict[bytes, tuple[np.ndarray, np.ndarray]]:
        return {}

    def need_routing(self) -> None:
        """Refuse a trace of counts alone.

        Raises
        ------
        MoeProbeError
            When only usage was kept.
        """
        self._need(Evidence.TOKENS)

    def need_words(self) -> None:
        """Refuse a trace that does not say which tokens were routed.

        Raises
        ------
        MoeProbeError
            When only usage was kept, or token ids are unknown.
        """
        self._need(Evidence.WORDS)

    def _need(self, level: Evidence) -> None:
        lacking = missing_evidence(self.manifest.evidence, level)
        if lacking:
            made = "collect again with --keep routing" if self.manifest.model.fingerprint else "a record that has them"
            raise MoeProbeError(f"the trace at {self.root} does not have what this needs", lacking, made)
