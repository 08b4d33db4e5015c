"""The collection itself: windows in, shards out, resumable at every shard."""

from __future__ import annotations

import itertools
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from moe_probe.core.errors import UsageError
from moe_probe.core.progress import Bar
from moe_probe.core.schema import CorpusInfo, Manifest, Windowing
from moe_probe.recording.collect.windows import EncodedDocument, Encoder
from moe_probe.recording.corpus import Corpus
from moe_probe.recording.settings import CollectOptions
from moe_probe.recording.trace import Trace, TraceWriter

if TYPE_CHECKING:
    from moe_probe.models import LoadedModel
    from moe_probe.recording.collect.batches import ShardArrays
    from moe_probe.recording.corpus import CorpusSummary


def collect_trace(
    loaded: LoadedModel,
    corpus: Corpus,
    path: str | Path,
    *,
    options: CollectOptions | None = None,
    mode: str = "new",
    progress: bool = True,
) -> Trace:
    """Run a corpus through a model and record its routing as a trace.

    Parameters
    ----------
    loaded : LoadedModel
        From :func:`moe_probe.models.load_model`.
    path : str or Path
        Folder of the trace.
    mode : {"new", "resume", "force"}
        What to do with a trace that is there: refuse, go on with it, start over.

    Returns
    -------
    Trace
        Sealed.

    Raises
    ------
    MoeProbeError
        When the corpus is bad, the folder is taken, the disk refuses, or (resuming) weights, corpus
        or settings are not those the trace was begun with. Whole shards are kept in every case.
    """
    options = options or CollectOptions()
    summary = corpus.summarize()
    encoder = _encoder(loaded, options)
    _check_layers(loaded, options)
    for document in summary.wordless:  # one without tokens is refused before hours of collecting, not in the middle of them
        encoder(document)
    manifest = _manifest(loaded, corpus, summary, encoder, options)
    root = Path(path)
    if mode == "force" and (root / "trace.json").exists():
        shutil.rmtree(root)
    writer = TraceWriter.resume(root, manifest) if mode == "resume" else TraceWriter.create(root, manifest)
    if writer.sealed:
        return writer.seal()
    documents = itertools.islice(iter(corpus), writer.n_documents, None)
    _append_shards(loaded, documents, encoder, writer, options, n_documents=summary.n_documents, progress=progress)
    return writer.seal()


def _append_shards(
    loaded: LoadedModel,
    documents: Iterator,
    encoder: Encoder,
    writer: TraceWriter,
    options: CollectOptions,
    *,
    n_documents: int,
    progress: bool,
) -> None:
    import torch

    from moe_probe.models import RoutingCapture
    from moe_probe.recording.collect.batches import ShardArrays, run_shard

    done, tokens = writer.n_documents, sum(s.n_tokens for s in writer.shards)
    with (
        Bar("collect", total=n_documents, initial=done, unit="documents", shown=progress) as bar,
        RoutingCapture(
            loaded.model, loaded.sites, keep=[site.part for site in options.sites], keep_layers=options.hidden_layers or None
        ) as capture,
    ):
        for shard in _shards((encoder(d) for d in documents), size=options.shard_tokens):
            n_tokens = sum(len(d.ids) for d in shard)
            sampled = _sample(options, index=len(writer.shards), n_tokens=n_tokens)
            arrays = ShardArrays(loaded, n_tokens, dtype=writer.manifest.expert_dtype, keep=options.sites, sampled=sampled)
            windows = sum(len(w.ids) for d in shard for w in d.windows)
            for batch in run_shard(loaded, capture, shard, arrays, batch_tokens=options.batch_tokens):
                bar.update(min(round(len(shard) * batch / windows), n_documents - bar.n))
            if sampled is not None:
                rows = np.flatnonzero(sampled >= 0) + tokens
                for named in arrays.extras.values():
                    if "values" in named:
                        named["rows"] = torch.from_numpy(rows)
            _write(writer, shard, encoder, arrays, text=options.text)
            done, tokens = done + len(shard), tokens + n_tokens
            bar.update(done - bar.n, note=f"{tokens:,} tokens")


def _check_layers(loaded: LoadedModel, options: CollectOptions) -> None:
    known = [site.info.layer for site in loaded.sites]
    for layer in options.hidden_layers:
        if layer not in known:
            raise UsageError(f"--hidden-layers {layer} is no MoE layer", f"the model has {known}", "one of those")


def _encoder(loaded: LoadedModel, options: CollectOptions) -> Encoder:
    length = options.max_length or min(loaded.max_length, 4096)
    if length > loaded.max_length:
        raise UsageError(
            f"--max-length {length} is more than the model's context of {loaded.max_length}",
            "",
            f"--max-length {loaded.max_length}; longer documents are windowed",
        )
    overlap = options.overlap if options.overlap >= 0 else length // 8
    return Encoder(loaded.tokenizer, max_length=length, overlap=overlap)


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


def _shards(documents: Iterator[EncodedDocument], *, size: int) -> Iterator[list[EncodedDocument]]:
    """Whole documents until a shard holds `size` tokens: the cut depends on the corpus alone."""
    shard: list[EncodedDocument] = []
    n = 0
    for document in documents:
        shard.append(document)
        n += len(document.ids)
        if n >= size:
            yield shard
            shard, n = [], 0
    if shard:
        yield shard


def _sample(options: CollectOptions, *, index: int, n_tokens: int) -> np.ndarray | None:
    if not options.samples_tokens:
        return None
    chosen = np.random.default_rng([options.seed, index]).random(n_tokens) < options.hidden_share
    if not chosen.any():
        chosen[0] = True  # an empty tensor has no place in a shard
    return np.where(chosen, np.cumsum(chosen) - 1, -1)


def _write(writer: TraceWriter, shard: list[EncodedDocument], encoder: Encoder, arrays: ShardArrays, *, text: bool) -> None:
    ids = np.concatenate([d.ids for d in shard])
    lengths = [len(d.ids) for d in shard]
    rows = [
        {
            "document": d.document.id,
            "topic": d.document.topic,
            "subtopic": d.document.subtopic,
            "group": d.document.group,
            "split": d.document.split,
            **d.document.labels,
            **({"text": d.document.text} if text else {}),
        }
        for d in shard
    ]
    tokens = {
        "document": np.repeat(np.arange(len(shard)), lengths),
        "position": np.concatenate([np.arange(n) for n in lengths]),
        "token_id": ids,
        "token": [encoder.string(int(i)) for i in ids],
        "special": np.concatenate([d.special for d in shard]),
    }
    writer.append(documents=rows, tokens=tokens, experts=arrays.experts, weights=arrays.weights, extras=arrays.extras)
