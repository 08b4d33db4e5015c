"""Collecting: a corpus and a model in, a trace out, resumable at every shard."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from moe_probe.core.errors import UsageError
from moe_probe.core.progress import Bar
from moe_probe.core.schema import MANIFEST, CorpusInfo, Manifest, Windowing
from moe_probe.core.text import some_of
from moe_probe.recording.collect.blocks import Block, block_bytes, blocks_of_part, cut_blocks, documents_of
from moe_probe.recording.collect.tables import document_rows, token_columns
from moe_probe.recording.collect.windows import EncodedDocument, Encoder, make_encoder
from moe_probe.recording.corpus import Corpus, Document
from moe_probe.recording.settings import CollectOptions
from moe_probe.recording.trace import Trace, TraceWriter

if TYPE_CHECKING:
    from moe_probe.models import LoadedModel
    from moe_probe.recording.collect.batches import ShardArrays
    from moe_probe.recording.corpus import CorpusSummary


def collect_trace(  # noqa: PLR0913 - public API: keyword-only options with defaults
    loaded: LoadedModel,
    corpus: Corpus,
    path: str | Path,
    *,
    options: CollectOptions | None = None,
    shard: tuple[int, int] | None = None,
    mode: str = "new",
    progress: bool | None = None,
) -> Trace:
    """Run a corpus through a model and record its routing as a trace.

    Parameters
    ----------
    loaded : LoadedModel
        From :func:`moe_probe.models.load_model`.
    corpus : Corpus
    path : str or Path
        Folder of the trace.
    options : CollectOptions, optional
        What is kept, and in what pieces.
    shard : (int, int), optional
        Collect one part of the corpus only: which one, counted from 0, and the number of parts. Parts are traces of
        their own that `moe_probe.recording.trace.merge_traces` joins; the result equals a trace of the whole corpus.
    mode : {"new", "resume", "force"}
        What to do with a trace that exists: refuse, continue it, start over.
    progress : bool, optional
        Show a progress bar, or none; as `moe_probe.core.progress.showing` says when omitted.

    Returns
    -------
    Trace
        Sealed.

    Raises
    ------
    MoeProbeError
        When the corpus is bad, the folder is taken, the disk refuses, or (resuming) weights, corpus
        or settings are not those the trace was begun with. Whole shards are kept in every case.
    UsageError
        When there is no such part, or the corpus is too small for so many.
    """
    options = options or CollectOptions()
    summary = corpus.summarize()
    encoder = make_encoder(loaded.tokenizer, loaded.max_length, options)
    _check_layers(loaded, options)
    for document in summary.wordless:  # one without tokens is refused before hours of collecting, not in the middle of them
        encoder(document)
    n_bytes = block_bytes(encoder, summary.opening, options.shard_tokens)
    blocks = blocks_of_part(cut_blocks(summary.sizes, n_bytes), shard)
    manifest = _manifest(loaded, corpus, summary, encoder, options)
    manifest = manifest.model_copy(update={"shard_of": shard, "settings": {**manifest.settings, "block_bytes": n_bytes}})
    root = Path(path)
    if mode == "force" and (root / MANIFEST).exists():
        shutil.rmtree(root)
    writer = TraceWriter.resume(root, manifest) if mode == "resume" else TraceWriter.create(root, manifest)
    if not writer.sealed:
        total = sum(block.n_documents for block in blocks)
        with Bar("collect", total=total, initial=writer.n_documents, unit="documents", shown=progress) as bar:
            todo = documents_of(blocks[len(writer.shards) :], corpus)
            _Collection(loaded, encoder, writer, options).append(todo, bar)
    return writer.seal()


@dataclass(frozen=True)
class _Collection:
    """What collecting takes beside the documents."""

    loaded: LoadedModel
    encoder: Encoder
    writer: TraceWriter
    options: CollectOptions

    def append(self, blocks: Iterator[tuple[Block, list[Document]]], bar: Bar) -> None:
        """Run blocks of documents through the model and append each to the trace as a shard."""
        from moe_probe.models import RoutingCapture
        from moe_probe.recording.collect.batches import ShardArrays, run_shard

        loaded, writer, options = self.loaded, self.writer, self.options
        parts = [site.part for site in options.sites]
        with RoutingCapture(loaded.model, loaded.sites, keep=parts, keep_layers=options.hidden_layers or None) as capture:
            for block, documents in blocks:
                shard = [self.encoder(document) for document in documents]
                n_tokens = sum(len(d.ids) for d in shard)
                sampled = _sample(options, index=block.number, n_tokens=n_tokens)
                dtype = writer.manifest.expert_dtype
                arrays = ShardArrays(loaded, n_tokens, dtype=dtype, keep=options.sites, sampled=sampled)
                window_tokens = sum(len(w.ids) for d in shard for w in d.windows)
                for batch in run_shard(loaded, capture, shard, arrays, batch_tokens=options.batch_tokens):
                    bar.update(min(round(len(shard) * batch / window_tokens), (bar.total or 0) - bar.n))
                arrays.number_rows()
                self._write(shard, arrays)
                bar.update(writer.n_documents - bar.n, note=f"{sum(s.n_tokens for s in writer.shards):,} tokens")

    def _write(self, shard: list[EncodedDocument], arrays: ShardArrays) -> None:
        rows, tokens = document_rows(shard, text=self.options.text), token_columns(shard, self.encoder)
        experts, weights, extras = arrays.experts, arrays.weights, arrays.extras
        self.writer.append(documents=rows, tokens=tokens, experts=experts, weights=weights, extras=extras)


def _check_layers(loaded: LoadedModel, options: CollectOptions) -> None:
    known = [site.info.layer for site in loaded.sites]
    for layer in options.hidden_layers:
        if layer not in known:
            raise UsageError(
                f"layer {layer} is no MoE layer",
                f"the model has {some_of(known, 12)}",
                "--layers or --hidden-layers with these",
            )


def _manifest(
    loaded: LoadedModel, corpus: Corpus, summary: CorpusSummary, encoder: Encoder, options: CollectOptions
) -> Manifest:
    from importlib.metadata import version

    from moe_probe.models import tokenizer_hash

    sites = [site.info for site in loaded.sites]
    return Manifest(
        model=loaded.info,
        tokenizer_hash=tokenizer_hash(loaded.tokenizer),
        corpus=CorpusInfo(
            name=corpus.name,
            hash=summary.hash,
            n_documents=summary.n_documents,
            label_columns=corpus.columns.labels,
            skipped_rows=len(summary.skipped),
        ),
        layers=tuple(sites),
        expert_dtype="uint8" if max(s.num_experts for s in sites) < 256 else "uint16",
        has_weights=True,
        has_text=options.text,
        kept=options.parts(),
        hidden_share=options.hidden_share if options.samples_tokens else 1.0,
        windowing=Windowing(max_length=encoder.max_length, overlap=encoder.overlap),
        seed=options.seed,
        versions={name: version(name) for name in ("torch", "transformers", "numpy")},
        settings={
            "batch_tokens": options.batch_tokens,
            "shard_tokens": options.shard_tokens,
            "token_text": encoder.token_text,
            **({"hidden_layers": ",".join(map(str, options.hidden_layers))} if options.hidden_layers else {}),
        },
    )


def _sample(options: CollectOptions, *, index: int, n_tokens: int) -> np.ndarray | None:
    if not options.samples_tokens:
        return None
    chosen = np.random.default_rng([options.seed, index]).random(n_tokens) < options.hidden_share
    if not chosen.any():
        chosen[0] = True  # a shard cannot store an empty tensor
    return np.where(chosen, np.cumsum(chosen) - 1, -1)
