"""Collecting: a corpus and a model in, a trace out, resumable at every shard."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from moe_probe.core.errors import UsageError
from moe_probe.core.files import check_output_folder
from moe_probe.core.lock import writing
from moe_probe.core.progress import Bar, Say, silent
from moe_probe.core.schema import BATCH_TOKENS_FROM, MANIFEST, CorpusInfo, Manifest, Windowing
from moe_probe.core.text import some_of
from moe_probe.recording.collect.blocks import block_bytes, blocks_of_part, cut_blocks, documents_of
from moe_probe.recording.collect.windows import Encoder, make_encoder
from moe_probe.recording.corpus import Corpus
from moe_probe.recording.settings import CollectOptions
from moe_probe.recording.trace import Trace, TraceWriter
from moe_probe.recording.trace.files import read_manifest

if TYPE_CHECKING:
    from moe_probe.models import LoadedModel
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
    say: Say = silent,
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
    say : callable, optional
        Takes a sentence for the person at the terminal: that batches were made smaller, since memory did not suffice.

    Returns
    -------
    Trace
        Sealed.

    Raises
    ------
    MoeProbeError
        When the corpus is bad, the folder is taken or written to by another process, the disk refuses, or (resuming)
        weights, corpus or settings are not those the trace was begun with. Whole shards are kept in every case.
    UsageError
        When there is no such part, or the corpus is too small for so many.
    """
    given: dict[str, Any] = {"options": options, "shard": shard, "mode": mode, "progress": progress, "say": say}
    with writing(path):
        return collect_under_lock(loaded, corpus, path, **given)


def collect_under_lock(  # noqa: PLR0913 - as `collect_trace`
    loaded: LoadedModel,
    corpus: Corpus,
    path: str | Path,
    *,
    options: CollectOptions | None = None,
    shard: tuple[int, int] | None = None,
    mode: str = "new",
    progress: bool | None = None,
    say: Say = silent,
) -> Trace:
    """Collect as `collect_trace` does, where the caller has the lock of the trace, or of the one that this is a part of.

    Parameters
    ----------
    loaded, corpus, path, options, shard, mode, progress, say
        As `collect_trace`.

    Returns
    -------
    Trace

    Raises
    ------
    MoeProbeError, UsageError
        As `collect_trace`.
    """
    check_output_folder(Path(path), mode)
    from moe_probe.models import RoutingCapture
    from moe_probe.recording.collect.passes import Passes
    from moe_probe.recording.collect.pipeline import Collection

    options = options or CollectOptions()
    summary = corpus.summarize()
    encoder = make_encoder(loaded.tokenizer, loaded.max_length, options)
    _check_layers(loaded, options)
    for document in summary.wordless:  # one without tokens is refused before hours of collecting, not in the middle of them
        encoder(document)
    n_bytes = block_bytes(encoder, summary.opening, options.shard_tokens)
    blocks = blocks_of_part(cut_blocks(summary.sizes, n_bytes), shard)
    root = Path(path)
    before = read_manifest(root) if mode == "resume" and (root / MANIFEST).exists() else None
    begun = before.settings if before is not None else {}
    if before is not None:  # a trace of an earlier version identifies its weights as that one did
        loaded = loaded.like(before.model)
    parts, layers = [site.part for site in options.sites], options.hidden_layers or None
    with RoutingCapture(loaded.model, loaded.sites, keep=parts, keep_layers=layers) as capture:
        passes = Passes(loaded, capture, options, expert_dtype=_expert_dtype(loaded))
        size = options.batch_tokens or int(begun.get("batch_tokens") or 0)
        size = size or passes.automatic_batch_tokens(encoder, summary.opening)
        smaller = {name: value for name, value in begun.items() if name.startswith(BATCH_TOKENS_FROM)}
        manifest = _manifest(loaded, corpus, summary, encoder, options)
        settings = {"batch_tokens": size, **manifest.settings, "block_bytes": n_bytes, **smaller}
        manifest = manifest.model_copy(update={"shard_of": shard, "settings": settings})
        writer = TraceWriter.resume(root, manifest) if mode == "resume" else TraceWriter.create(root, manifest, mode=mode)
        for note in writer.notes:
            say(f"note: {note}")
        if not writer.sealed:
            collection = Collection(passes, encoder, writer, batch_tokens=size, say=say)
            total = sum(block.n_documents for block in blocks)
            with Bar("collect", total=total, initial=writer.n_documents, unit="documents", shown=progress) as bar:
                collection.append(documents_of(blocks[len(writer.shards) :], corpus), bar)
    return writer.seal()


class Cut(NamedTuple):
    """How `collect_trace` cuts a corpus: into blocks, of which parts are made, and batches."""

    n_blocks: int
    batch_tokens: int


def cut_of(loaded: LoadedModel, corpus: Corpus, options: CollectOptions) -> Cut:
    """Find out how a corpus is cut, without collecting it: processes that share it out have to agree.

    Parameters
    ----------
    loaded : LoadedModel
    corpus : Corpus
    options : CollectOptions

    Returns
    -------
    Cut

    Raises
    ------
    MoeProbeError
        When the corpus is bad.
    """
    from moe_probe.models import RoutingCapture
    from moe_probe.recording.collect.passes import Passes

    summary = corpus.summarize()
    encoder = make_encoder(loaded.tokenizer, loaded.max_length, options)
    _check_layers(loaded, options)
    n_blocks = len(cut_blocks(summary.sizes, block_bytes(encoder, summary.opening, options.shard_tokens)))
    parts, layers = [site.part for site in options.sites], options.hidden_layers or None
    with RoutingCapture(loaded.model, loaded.sites, keep=parts, keep_layers=layers) as capture:
        passes = Passes(loaded, capture, options, expert_dtype=_expert_dtype(loaded))
        return Cut(n_blocks, options.batch_tokens or passes.automatic_batch_tokens(encoder, summary.opening))


def _check_layers(loaded: LoadedModel, options: CollectOptions) -> None:
    known = [site.info.layer for site in loaded.sites]
    for layer in options.hidden_layers:
        if layer not in known:
            raise UsageError(
                f"layer {layer} is no MoE layer",
                f"the model has {some_of(known, 12)}",
                "--hidden-layers or --sae-layers with these",
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
        expert_dtype=_expert_dtype(loaded),
        has_weights=True,
        has_text=options.text,
        kept=options.parts(),
        hidden_share=options.hidden_share if options.samples_tokens else 1.0,
        windowing=Windowing(max_length=encoder.max_length, overlap=encoder.overlap),
        seed=options.seed,
        versions={name: version(name) for name in ("torch", "transformers", "numpy")},
        settings={
            "shard_tokens": options.shard_tokens,
            "token_text": encoder.token_text,
            **({"hidden_layers": ",".join(map(str, options.hidden_layers))} if options.hidden_layers else {}),
        },
    )


def _expert_dtype(loaded: LoadedModel) -> Literal["uint8", "uint16"]:
    return "uint8" if max(site.info.num_experts for site in loaded.sites) < 256 else "uint16"
