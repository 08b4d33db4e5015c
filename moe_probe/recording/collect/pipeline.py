"""The stages of collecting, side by side: tokenize, run the model, store, write.

While the model runs a shard, the next one is tokenized and cut into batches in one thread, what batches left behind is
stored in a second, and the shard before is checked, turned into tables and written in a third. Each waits for the one
behind it, so that memory holds three shards' arrays at most, whichever is slow: one that the model runs, one that waits for the
writer, one being written. The model runs in the caller's thread.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from moe_probe.core.overlap import Ahead, Behind
from moe_probe.core.schema import BATCH_TOKENS_FROM
from moe_probe.recording.collect.arrays import ShardArrays
from moe_probe.recording.collect.batches import Batch, Batching
from moe_probe.recording.collect.passes import Passes
from moe_probe.recording.collect.tables import document_rows, token_columns

if TYPE_CHECKING:
    from moe_probe.core.progress import Bar, Say
    from moe_probe.recording.collect.blocks import Block
    from moe_probe.recording.collect.windows import EncodedDocument, Encoder
    from moe_probe.recording.corpus import Document
    from moe_probe.recording.settings import CollectOptions
    from moe_probe.recording.trace import TraceWriter


class Depths(NamedTuple):
    """How far stages run ahead of each other, or behind; 0 has a stage run in the caller's thread.

    Attributes
    ----------
    tokenize : int
        Shards that are ready for the model.
    store : int
        Batches whose numbers are on their way to the host: with one the model would wait for each.
    write : int
        Shards being written.
    """

    tokenize: int = 1
    store: int = 3
    write: int = 1


DEPTHS = Depths()
#: One after the other, in one thread.
IN_TURN = Depths(0, 0, 0)


class _Shard(NamedTuple):
    """A shard that is ready for the model: nothing behind the first stage needs the tokenizer, which one thread has."""

    block: Block
    documents: list[EncodedDocument]
    rows: list[dict[str, Any]]
    tokens: dict[str, Any]
    sampled: np.ndarray | None
    batching: Batching
    batches: list[Batch]


class Collection:
    """Runs blocks of documents through a model and appends each to a trace as a shard.

    Parameters
    ----------
    passes : Passes
    encoder : Encoder
    writer : TraceWriter
    batch_tokens : int
        Tokens of a batch at most; fewer from those blocks on from which the trace's settings say so.
    say : callable
        Takes a sentence for the person at the terminal.
    """

    def __init__(self, passes: Passes, encoder: Encoder, writer: TraceWriter, *, batch_tokens: int, say: Say) -> None:
        self.passes, self.encoder, self.writer, self.say = passes, encoder, writer, say
        self._batching = passes.batching(batch_tokens)
        self._smaller = {
            int(name.removeprefix(BATCH_TOKENS_FROM)): int(size or batch_tokens)
            for name, size in writer.manifest.settings.items()
            if name.startswith(BATCH_TOKENS_FROM)
        }

    def append(
        self, blocks: Iterable[tuple[Block, list[Document]]], bar: Bar, *, first_row: int = 0, depths: Depths | None = None
    ) -> None:
        """Collect blocks; whatever ends it, shards that were finished are written.

        Parameters
        ----------
        blocks : iterable of (Block, list of Document)
        bar : Bar
            Counts documents.
        first_row : int
            Tokens of the trace so far, for the bar.
        depths : Depths, optional
            How far stages overlap; `DEPTHS` by default. The trace does not depend on it.

        Raises
        ------
        MoeProbeError
            Of any stage: nothing more is begun then.
        """
        depths = DEPTHS if depths is None else depths
        writing = Behind(self._write, depth=depths.write, name="write")
        storing: Behind[Callable[[], object]] = Behind(_call, depth=depths.store, name="store")
        shards = Ahead(self._tokenized(blocks), depth=depths.tokenize, name="tokenize")
        n_tokens = first_row
        with writing, storing, shards as ready:
            for shard in ready:
                writing.check()
                arrays = self._run(shard, storing, bar)
                storing.put(partial(writing.put, (shard, arrays)))
                n_tokens += len(shard.tokens["token_id"])
                bar.update(0, note=f"{n_tokens:,} tokens")

    def _tokenized(self, blocks: Iterable[tuple[Block, list[Document]]]) -> Iterator[_Shard]:
        options = self.passes.options
        for block, documents in blocks:
            encoded = self.encoder.encode(documents)
            tokens = token_columns(encoded, self.encoder)
            sampled = _sample(options, index=block.number, n_tokens=len(tokens["token_id"]))
            batching = self._batching
            yield _Shard(
                block,
                encoded,
                document_rows(encoded, text=options.text),
                tokens,
                sampled,
                batching,
                list(batching.batches(encoded, sampled)),
            )

    def _run(self, shard: _Shard, storing: Behind[Callable[[], object]], bar: Bar) -> ShardArrays:
        """Run the batches of a shard, from its beginning with smaller ones where memory does not suffice.

        So every shard is made of batches of one size, whenever memory ran short, and can be made again.
        """
        window_tokens = sum(len(w.ids) for d in shard.documents for w in d.windows)
        begun, done, batches = bar.n, 0, shard.batches
        for size in (size for block, size in self._smaller.items() if block <= shard.block.number):
            self._batching = replace(self._batching, size=min(size, self._batching.size))
        if shard.batching != self._batching:  # cut before they became smaller
            batches = list(self._batching.batches(shard.documents, shard.sampled))
        while True:
            arrays = self.passes.arrays(len(shard.tokens["token_id"]), shard.sampled)
            for batch in batches:
                packed = self.passes.run(batch, arrays)
                if packed is None:
                    break
                storing.put(packed.store)
                done += batch.n_tokens
                reached = begun + min(len(shard.documents), len(shard.documents) * done // window_tokens)
                bar.update(max(0, reached - bar.n))
            else:
                return arrays
            self._halve(batch, shard.block)
            batches, done = list(self._batching.batches(shard.documents, shard.sampled)), 0

    def _halve(self, batch: Batch, block: Block) -> None:
        self._batching = self._batching.halved(batch)
        self.writer.note_settings({f"{BATCH_TOKENS_FROM}{block.number}": self._batching.size})
        self.say(
            f"note: a batch of {batch.ids.numel():,} tokens does not fit into memory; "
            f"going on with {self._batching.size:,} from the beginning of shard {block.number}"
        )

    def _write(self, finished: tuple[_Shard, ShardArrays]) -> None:
        shard, arrays = finished
        arrays.number_rows()
        self.writer.append(
            documents=shard.rows,
            tokens=shard.tokens,
            experts=arrays.experts,
            weights=arrays.weights,
            extras=arrays.extras,
        )


def _call(work: Callable[[], object]) -> None:
    work()


def _sample(options: CollectOptions, *, index: int, n_tokens: int) -> np.ndarray | None:
    if not options.samples_tokens:
        return None
    chosen = np.random.default_rng([options.seed, index]).random(n_tokens) < options.hidden_share
    if not chosen.any():
        chosen[0] = True  # a shard cannot store an empty tensor
    return np.where(chosen, np.cumsum(chosen) - 1, -1)
