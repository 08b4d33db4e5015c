"""A corpus through a serving engine: windows as token ids out, routing in, a trace that grows shard by shard."""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np

from moe_probe.core.errors import MoeProbeError, UsageError
from moe_probe.core.extras import need_corpus_extra, need_extra
from moe_probe.core.files import check_output_folder
from moe_probe.core.lock import writing
from moe_probe.core.progress import Bar, Say
from moe_probe.core.schema import CorpusInfo, Manifest, Windowing
from moe_probe.core.settings import flag_of
from moe_probe.models import tokenizer_hash
from moe_probe.models.outline import ModelOutline, outline_model
from moe_probe.models.settings import ModelSettings
from moe_probe.recording.collect.blocks import Block, block_bytes, blocks_of_part, cut_blocks, documents_of
from moe_probe.recording.collect.tables import document_rows, token_columns
from moe_probe.recording.collect.windows import EncodedDocument, Encoder, make_encoder
from moe_probe.recording.corpus import Corpus, Document
from moe_probe.recording.serving.asking import Answered, AskedServer
from moe_probe.recording.serving.client import ServerClient, UnansweredError
from moe_probe.recording.serving.engines import Served, ask_server
from moe_probe.recording.serving.layers import served_layers
from moe_probe.recording.serving.losses import Losses
from moe_probe.recording.serving.settings import ServerSettings
from moe_probe.recording.serving.workers import Workers
from moe_probe.recording.settings import CollectOptions, CorpusSettings
from moe_probe.recording.trace import Trace, TraceWriter

#: Label column that tells prompts from answers, where answers are kept.
PART = "part"
_ANSWER = "#answer"
#: Settings of a collection that mean the same with a server.
_OPTIONS = {"keep", "max_length", "overlap", "shard_tokens", "text", "seed"}


def collect_from_server(  # noqa: PLR0913 - public API: keyword-only options with defaults
    model: ModelSettings,
    corpus: CorpusSettings,
    path: str | Path,
    *,
    server: ServerSettings,
    options: CollectOptions | None = None,
    shard: tuple[int, int] | None = None,
    mode: str = "new",
    say: Say = print,
    progress: bool = True,
) -> Trace:
    """Send a corpus to a serving engine and record the routing that it returns as a trace.

    Texts are tokenized here and sent as token ids, in the windows of an ordinary collection, so that documents, tokens and
    labels are the same; experts come from the server, without gate weights.

    Parameters
    ----------
    model : ModelSettings
        Configuration and tokenizer of the served model; its weights are not needed.
    corpus : CorpusSettings
    path : str or Path
        Folder of the trace.
    server : ServerSettings
    options : CollectOptions, optional
        Windows, shards, whether texts are kept, and whether routing or usage alone.
    shard : (int, int), optional
        Collect one part of the corpus only: which one, counted from 0, and the number of parts.
    mode : {"new", "resume", "force"}
        What to do with a trace that exists: refuse, continue it, start over.
    say : callable
        Takes a sentence for the person at the terminal.
    progress : bool
        Show a progress bar.

    Returns
    -------
    Trace
        Sealed. `Trace.warnings` names documents for which the server returned no routing.

    Raises
    ------
    MoeProbeError
        When the server cannot be reached, returns no routing, changes prompts, or leaves more documents without routing than
        the settings allow; when model or corpus cannot be read; when another process writes to the folder. Whole shards are
        kept in every case.
    UsageError
        When an option makes no sense with a server.
    """
    options = options or CollectOptions()
    root = Path(path)
    need_extra("server", "collecting from a server")
    need_corpus_extra(corpus.source)
    _check_options(model, corpus, options, server)
    with writing(root), ServerClient(server) as client:
        check_output_folder(root, mode)
        opened = corpus.open()
        summary = opened.summarize()
        for note in summary.notes:
            say(f"note: {note}")
        served = ask_server(client, server)
        outline = outline_model(model.name, revision=model.revision, trust_remote_code=model.trust_remote_code)
        layers = served_layers(outline, server)
        encoder = _encoder(outline, served, server, options, say)
        for document in summary.wordless:
            encoder(document)
        asked = AskedServer(client, server, served, layers)
        asked.try_out(encoder(summary.opening[0]))
        say(f"checked: {served.model} at {client.address} returns the routing of {len(layers.layers)} MoE layers")
        n_bytes = block_bytes(encoder, summary.opening, options.shard_tokens)
        blocks = blocks_of_part(cut_blocks(summary.sizes, n_bytes), shard)
        manifest = _manifest(opened, outline, asked, encoder, options)
        manifest = manifest.model_copy(update={"shard_of": shard, "settings": {**manifest.settings, "block_bytes": n_bytes}})
        writer = TraceWriter.resume(root, manifest) if mode == "resume" else TraceWriter.create(root, manifest, mode=mode)
        for note in writer.notes:
            say(f"note: {note}")
        total = sum(block.n_documents for block in blocks)
        losses = Losses(total, server, client.address)
        if not writer.sealed:
            initial = sum(block.n_documents for block in blocks[: len(writer.shards)])
            with Bar("collect", total=total, initial=initial, unit="documents", shown=progress) as bar:
                todo = documents_of(blocks[len(writer.shards) :], opened)
                _Collection(asked, encoder, writer, options, losses).append(todo, bar)
        trace = writer.seal()
    answers = int((trace.documents[PART] == "answer").sum()) if server.keep_answer else 0
    trace.warnings += losses.warnings(len(trace.documents) - answers)
    return trace


class _Routed(NamedTuple):
    """A document with the answers to its windows, in order; or why there are none."""

    document: EncodedDocument
    answers: list[Answered]
    why: str = ""


@dataclass(frozen=True)
class _Collection:
    """What collecting takes beside the documents."""

    asked: AskedServer
    encoder: Encoder
    writer: TraceWriter
    options: CollectOptions
    losses: Losses

    def append(self, blocks: Iterator[tuple[Block, list[Document]]], bar: Bar) -> None:
        """Send blocks of documents to the server and append each to the trace as a shard."""
        numbered = ((block.number, self.encoder(document)) for block, documents in blocks for document in documents)
        for number, routed in itertools.groupby(self._routed(numbered), key=lambda pair: pair[0]):
            shard: list[_Routed] = []
            for _, one in routed:
                if self.losses.counts(one.document.document.id, one.why):
                    shard.append(one)
                bar.update(1)
            if not shard:
                raise MoeProbeError(
                    f"block {number} of the corpus has no document with routing",
                    "a shard cannot be empty",
                    "the same command with --resume, once the server returns routing",
                )
            self._write(shard)
            bar.update(0, note=f"{sum(s.n_tokens for s in self.writer.shards):,} tokens")

    def _routed(self, documents: Iterator[tuple[int, EncodedDocument]]) -> Iterator[tuple[int, _Routed]]:
        """Ask for documents, many at a time, and yield them in their order: memory is bounded by what is under way."""
        settings, under_way = self.asked.settings, 0
        waiting: deque[tuple[int, EncodedDocument, list[Future[Answered]]]] = deque()

        def first() -> tuple[int, _Routed]:
            nonlocal under_way
            number, document, futures = waiting.popleft()
            under_way -= len(futures)
            try:
                return number, _Routed(document, [future.result() for future in futures])
            except UnansweredError as failure:
                for future in futures:
                    future.cancel()
                return number, _Routed(document, [], failure.why)

        with Workers(settings.concurrency) as workers:
            try:
                for number, document in documents:
                    last = len(document.windows) - 1
                    new = [settings.max_new_tokens if i == last else 1 for i in range(last + 1)]
                    calls = (partial(self.asked.ask, window, n) for window, n in zip(document.windows, new, strict=True))
                    waiting.append((number, document, [workers.submit(call) for call in calls]))
                    under_way += last + 1
                    while under_way > 2 * settings.concurrency:  # as many again: the slowest does not leave the others idle
                        yield first()
                while waiting:
                    yield first()
            finally:
                self.asked.client.stop()  # first, so that nobody sleeps before another attempt while the threads are joined

    def _write(self, shard: list[_Routed]) -> None:
        documents = [one.document for one in shard]
        experts = [np.concatenate([answer.experts for answer in one.answers]) for one in shard]
        starts = [0] * len(shard)
        if self.asked.settings.keep_answer:
            for one in shard:
                answered = self._answer(one)
                if answered is not None:
                    documents.append(answered)
                    experts.append(one.answers[-1].answer_experts)
                    starts.append(len(one.document.ids))
        tokens = token_columns(documents, self.encoder)
        tokens["position"] = tokens["position"] + np.repeat(starts, [len(d.ids) for d in documents])
        rows = document_rows(documents, text=self.options.text)
        if self.asked.settings.keep_answer:
            rows = [row | {PART: "answer" if start else "prompt"} for row, start in zip(rows, starts, strict=True)]
        self.writer.append(documents=rows, tokens=tokens, experts=np.concatenate(experts))

    def _answer(self, one: _Routed) -> EncodedDocument | None:
        """Make what was generated behind a document one of its own, in the same group; None where there is nothing."""
        ids = one.answers[-1].answer
        special = np.isin(ids, self.encoder.special_ids)
        if special.all():
            return None
        source = one.document.document
        text = self.encoder.tokenizer.decode(ids.tolist(), skip_special_tokens=True)
        named = replace(source, id=f"{source.id}{_ANSWER}", text=text, group=source.group or source.id, spans=())
        return EncodedDocument(named, ids, special, ())


def _check_options(model: ModelSettings, corpus: CorpusSettings, options: CollectOptions, server: ServerSettings) -> None:
    """Refuse options that say how a model runs here, or that ask for what servers do not return."""
    for settings, kept in ((model, {"name", "revision", "trust_remote_code"}), (options, _OPTIONS)):
        for name, field in type(settings).model_fields.items():
            if name not in kept and getattr(settings, name) != field.default:
                raise UsageError(
                    f"{flag_of(type(settings), name) or name} cannot be used with --server",
                    "the server runs the model, and returns nothing but expert ids",
                    "omit it",
                )
    if options.sites:
        raise UsageError(
            f"--keep {options.sites[0].keep} cannot be used with --server",
            "servers return expert ids only",
            "omit it; it takes a model that runs here",
        )
    if server.keep_answer and PART in corpus.label:
        raise UsageError(
            f"--label {PART} cannot be used with --keep-answer", "it tells prompts from answers", "rename the column"
        )


def _encoder(outline: ModelOutline, served: Served, server: ServerSettings, options: CollectOptions, say: Say) -> Encoder:
    """Windows as an ordinary collection has them, unless the server's context is shorter."""
    context = outline.max_length
    room = context if served.max_length is None else served.max_length - server.max_new_tokens
    if room < min(options.max_length or 4096, context):
        if options.max_length or room < 1:
            raise UsageError(
                f"--max-length {options.max_length or context} does not fit the server's context of {served.max_length}",
                f"{server.max_new_tokens} of them are for what is generated",
                f"--max-length {max(room, 1)}, or a server with a longer one (vLLM --max-model-len, SGLang --context-length)",
            )
        say(f"note: windows have {room:,} tokens, since the server's context has {served.max_length:,}")
        context = room
    return make_encoder(outline.tokenizer, context, options)


def _manifest(
    corpus: Corpus, outline: ModelOutline, asked: AskedServer, encoder: Encoder, options: CollectOptions
) -> Manifest:
    from importlib.metadata import version

    summary, settings, engine = corpus.summarize(), asked.settings, asked.endpoint.engine
    labels = corpus.columns.labels + ((PART,) if settings.keep_answer else ())
    return Manifest(
        model=outline.info,
        tokenizer_hash=tokenizer_hash(outline.tokenizer),
        corpus=CorpusInfo(
            name=corpus.name,
            hash=summary.hash,
            n_documents=summary.n_documents,
            label_columns=labels,
            skipped_rows=len(summary.skipped),
        ),
        layers=asked.layers.layers,
        expert_dtype=asked.dtype,
        has_weights=False,
        has_text=options.text,
        kept=options.parts(),
        windowing=Windowing(max_length=encoder.max_length, overlap=encoder.overlap),
        seed=options.seed,
        versions={
            **{name: version(name) for name in ("transformers", "numpy")},
            **({engine: asked.served.version} if asked.served.version else {}),
        },
        settings={
            "shard_tokens": options.shard_tokens,
            "token_text": encoder.token_text,
            "served_model": asked.served.model,
            "engine": engine,
            **({"answers_of": settings.max_new_tokens} if settings.keep_answer else {}),
        },
    )
