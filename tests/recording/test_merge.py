"""Parts that separate processes collect and merge are the trace of one process, byte for byte."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.corpora import write_corpus

from moe_probe.core.errors import MoeProbeError, UsageError
from moe_probe.core.schema import MANIFEST, Manifest
from moe_probe.models import LoadedModel, load_model
from moe_probe.models.settings import ModelSettings
from moe_probe.recording.collect import CollectOptions, collect_trace
from moe_probe.recording.collect.blocks import Block, blocks_of_part, cut_blocks, documents_of, read_part
from moe_probe.recording.collect.stage import CollectStage
from moe_probe.recording.corpus import Corpus, Document
from moe_probe.recording.settings import CorpusSettings
from moe_probe.recording.trace import Trace, TraceWriter, merge, merge_traces, verify
from moe_probe.recording.trace.files import file_entry, write_manifest
from moe_probe.sae.activations import ActivationReader
from moe_probe.testing import null_trace

VECTORS = CollectOptions(shard_tokens=100, keep=("routing", "logits", "hidden"), hidden_share=0.3)
PLAIN = CollectOptions(shard_tokens=100)


@pytest.fixture(scope="module")
def loaded(checkpoint: Path) -> LoadedModel:
    return load_model(checkpoint, progress=False)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    return Corpus(write_corpus(tmp_path_factory.mktemp("corpus") / "corpus.jsonl"))


def parts_of(loaded: LoadedModel, corpus: Corpus, folder: Path, n: int, options: CollectOptions = PLAIN) -> list[Path]:
    return [
        collect_trace(loaded, corpus, folder / f"part-{i}", options=options, shard=(i, n), progress=False).root
        for i in range(n)
    ]


@pytest.fixture(scope="module")
def parts(loaded: LoadedModel, corpus: Corpus, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Three parts with routing alone; tests read them, or copies of them."""
    return parts_of(loaded, corpus, tmp_path_factory.mktemp("parts"), 3)


@pytest.fixture(scope="module")
def whole(loaded: LoadedModel, corpus: Corpus, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same, collected by one process."""
    return collect_trace(loaded, corpus, tmp_path_factory.mktemp("whole") / "t", options=PLAIN, progress=False).root


def files(root: Path) -> dict[str, bytes]:
    return {p.relative_to(root).as_posix(): p.read_bytes() for p in sorted(root.rglob("*")) if p.is_file()}


# ---- the cut ----


@given(
    sizes=st.lists(st.integers(1, 400), min_size=1, max_size=60),
    n_bytes=st.integers(1, 500),
    n=st.integers(1, 12),
)
def test_every_document_is_in_one_block_and_one_part(sizes: list[int], n_bytes: int, n: int) -> None:
    blocks = cut_blocks(sizes, n_bytes)
    assert [i for b in blocks for i in range(b.first, b.first + b.n_documents)] == list(range(len(sizes)))
    assert [b.number for b in blocks] == list(range(len(blocks)))
    size_of = [sum(sizes[b.first : b.first + b.n_documents]) for b in blocks]
    assert all(size >= n_bytes for size in size_of[:-1])
    assert all(size - sizes[b.first + b.n_documents - 1] < n_bytes for size, b in zip(size_of, blocks, strict=True))
    if n <= len(blocks):
        shared = [blocks_of_part(blocks, (i, n)) for i in range(n)]
        assert [b for part in shared for b in part] == blocks  # contiguous, in order, nothing twice
        assert max(map(len, shared)) - min(map(len, shared)) <= 1
    else:
        with pytest.raises(UsageError, match=f"only {len(blocks)} block"):
            blocks_of_part(blocks, (0, n))


def test_documents_before_a_part_are_passed_over() -> None:
    documents = [Document(id=str(i), text="x", topic="t") for i in range(7)]
    blocks = [Block(1, 2, 3), Block(2, 5, 2)]
    assert [(b.number, [d.id for d in some]) for b, some in documents_of(blocks, documents)] == [
        (1, ["2", "3", "4"]),
        (2, ["5", "6"]),
    ]


@pytest.mark.parametrize(
    ("text", "words"),
    [("1", "cannot be read"), ("a/b", "cannot be read"), ("4/4", "counted from 0 to 3"), ("0/0", "at least one part")],
)
def test_parts_that_cannot_be(text: str, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        read_part(text)


def test_too_many_parts(loaded: LoadedModel, corpus: Corpus, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"only 1 block of documents\. Try: at most 1 parts, or a smaller --shard-tokens"):
        collect_trace(loaded, corpus, tmp_path / "t", shard=(0, 2), progress=False)
    assert not (tmp_path / "t").exists()


# ---- equality with one process ----


@pytest.mark.parametrize("n", [1, 2, 5])
@pytest.mark.parametrize("options", [VECTORS, PLAIN.model_copy(update={"keep": ("usage",)})], ids=["vectors", "usage"])
def test_merged_parts_equal_one_process(
    loaded: LoadedModel, corpus: Corpus, tmp_path: Path, n: int, options: CollectOptions
) -> None:
    one = collect_trace(loaded, corpus, tmp_path / "one", options=options, progress=False)
    merged = merge_traces(parts_of(loaded, corpus, tmp_path, n, options)[::-1], tmp_path / "merged")
    assert len(one.manifest.shards) == 10
    assert files(merged.root) == files(one.root)  # manifest, tables and arrays
    assert verify(merged.root) == [] and merged.warnings == ()
    if options is VECTORS:
        rows = [ActivationReader(trace, layer=1).rows for trace in (one, merged)]
        assert np.array_equal(rows[0], rows[1]) and len(rows[0]) > 0.2 * one.n_tokens
        stored = np.concatenate([part["rows"].numpy() for part in merged.iter_extras("hidden/layer_01")])
        assert set(rows[0]) <= set(stored.tolist()) and (np.diff(stored) > 0).all()


def test_files_are_shared_not_copied(parts: list[Path], whole: Path, tmp_path: Path) -> None:
    merged = merge_traces(parts, tmp_path / "merged")
    assert files(merged.root) == files(whole)
    first = parts[0] / "routing" / "00000.safetensors"
    assert (merged.root / "routing" / "00000.safetensors").samefile(first)


@pytest.mark.parametrize("link", [True, False])
def test_copies_where_links_cannot_be(
    parts: list[Path], whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, link: bool
) -> None:
    def other_device(*_: object) -> None:
        raise OSError(errno.EXDEV, "Invalid cross-device link")

    monkeypatch.setattr(os, "link", other_device)
    merged = merge_traces(parts, tmp_path / "merged", link=link)
    assert files(merged.root) == files(whole)
    expected = "10 of 10 files of arrays were copied" + (", since the file system does not link them" if link else "")
    assert merged.warnings == (expected,)


def test_disk_that_is_full(parts: list[Path], whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "link", full)
        with pytest.raises(MoeProbeError, match=r"no space is left .*the traces that are merged are unchanged"):
            merge_traces(parts, tmp_path / "merged")
    assert files(merge_traces(parts, tmp_path / "merged", mode="resume").root) == files(whole)


def test_versions_that_differ_are_said(parts: list[Path], tmp_path: Path) -> None:
    other = edited(parts[1], tmp_path / "other", versions={"torch": "0.0", "transformers": "5", "numpy": "2"})
    warnings = merge_traces([parts[0], other, parts[2]], tmp_path / "merged").warnings
    assert len(warnings) == 1 and "torch 0.0 and" in warnings[0]


def test_parts_whose_batches_differ_say_where(parts: list[Path], tmp_path: Path) -> None:
    """Memory may have made batches smaller in one part; the other parts are as good as before."""
    plain = Trace.open(parts[1]).manifest.settings
    smaller = {**plain, "batch_tokens": 2048, "batch_tokens_from_block_5": 1024}
    middle = edited(parts[1], tmp_path / "middle", settings=smaller)
    settings = merge_traces([parts[0], middle, parts[2]], tmp_path / "merged").manifest.settings
    sizes = {name: value for name, value in settings.items() if name.startswith("batch_tokens_from_block_")}
    assert sizes == {f"batch_tokens_from_block_{block}": size for block, size in ((3, 2048), (5, 1024), (6, 4096))}
    assert settings["batch_tokens"] == plain["batch_tokens"] == 4096


# ---- interruptions ----


def test_interrupted_part_resumes(
    loaded: LoadedModel, corpus: Corpus, parts: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`test_collect` kills processes at any moment; here a part goes on, and no other one does."""
    root, append = tmp_path / "part", TraceWriter.append

    def interrupted(writer: TraceWriter, **shard: Any) -> Any:
        if writer.shards:
            raise KeyboardInterrupt
        return append(writer, **shard)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(TraceWriter, "append", interrupted)
        collect_trace(loaded, corpus, root, options=PLAIN, shard=(1, 3), progress=False)
    assert (root / MANIFEST).exists() and len(list((root / "parts").glob("*.json"))) == 1
    with pytest.raises(MoeProbeError, match="another part of the corpus: was part 1/3, is part 2/3"):
        collect_trace(loaded, corpus, root, options=PLAIN, shard=(2, 3), mode="resume", progress=False)
    collect_trace(loaded, corpus, root, options=PLAIN, shard=(1, 3), mode="resume", progress=False)
    assert files(root) == files(parts[1])


@pytest.mark.parametrize("after", [0, 4, 9])
def test_merge_that_is_killed_goes_on(
    parts: list[Path], whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, after: int
) -> None:
    done: list[Path] = []
    link = os.link

    def dying(source: Path, target: Path) -> None:
        if len(done) == after:
            raise KeyboardInterrupt
        done.append(target)
        link(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(os, "link", dying)
        with pytest.raises(KeyboardInterrupt):
            merge_traces(parts, tmp_path / "merged")
    with pytest.raises(MoeProbeError, match="unfinished"):
        Trace.open(tmp_path / "merged")
    (tmp_path / "merged" / "tokens.parquet.partial").write_bytes(b"half a table")
    with pytest.raises(MoeProbeError, match="already contains a trace"):
        merge_traces(parts, tmp_path / "merged")
    with pytest.raises(MoeProbeError, match=r"is a merge that was interrupted.*moe-probe merge with --resume"):
        TraceWriter.resume(tmp_path / "merged", Trace.open(whole).manifest)
    with pytest.raises(MoeProbeError, match="was not made of these traces"):
        merge_traces(parts_renamed(parts, tmp_path), tmp_path / "merged", mode="resume")
    assert files(merge_traces(parts, tmp_path / "merged", mode="resume").root) == files(whole)


@pytest.mark.parametrize("sealing", [False, True])
def test_merge_that_is_killed_among_the_tables_or_before_it_is_sealed(
    parts: list[Path], whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sealing: bool
) -> None:
    def dying(root: Path, subject: Manifest | Path) -> None:
        if not isinstance(subject, Manifest) or subject.status == "sealed":
            raise KeyboardInterrupt
        write_manifest(root, subject)

    with monkeypatch.context() as patch:
        patch.setattr(merge, "write_manifest" if sealing else "file_entry", dying)
        with pytest.raises(KeyboardInterrupt):
            merge_traces(parts, tmp_path / "merged")
    assert (tmp_path / "merged" / "tokens.parquet").exists()
    with pytest.raises(MoeProbeError, match="unfinished"):
        Trace.open(tmp_path / "merged")
    assert files(merge_traces(parts, tmp_path / "merged", mode="resume").root) == files(whole)


def parts_renamed(parts: Sequence[Path], folder: Path) -> list[Path]:
    """The same parts of a corpus of another name."""
    out = []
    for i, part in enumerate(parts):
        corpus = Trace.open(part).manifest.corpus.model_copy(update={"name": "another"})
        out.append(edited(part, folder / f"renamed-{i}", corpus=corpus))
    return out


def test_merging_again(parts: list[Path], whole: Path, tmp_path: Path) -> None:
    root = merge_traces(parts, tmp_path / "merged").root
    before = (root / "tokens.parquet").stat().st_mtime_ns
    assert files(merge_traces(parts, root, mode="resume").root) == files(whole)
    assert (root / "tokens.parquet").stat().st_mtime_ns == before  # nothing was left to do
    assert files(merge_traces(parts, root, mode="force").root) == files(whole)
    fresh = merge_traces(parts, tmp_path / "fresh", mode="resume")
    assert files(fresh.root) == files(whole)


def test_a_run_takes_a_merged_trace_for_its_own(checkpoint: Path, corpus: Corpus, parts: list[Path], tmp_path: Path) -> None:
    """``merge ... --out RUN/trace``, then ``run --resume``: the stage finds its work done."""
    merged = merge_traces(parts, tmp_path / "run" / "trace")
    before = (merged.root / MANIFEST).stat().st_mtime_ns
    stage = CollectStage(ModelSettings(name=str(checkpoint)), CorpusSettings(source=str(corpus.source)), PLAIN)
    assert stage.run(tmp_path / "run", lambda _: None) == [merged.root / MANIFEST]
    assert (merged.root / MANIFEST).stat().st_mtime_ns == before


# ---- refusals ----


def edited(part: Path, folder: Path, **changes: object) -> Path:
    """A copy of a trace whose manifest says something else."""
    shutil.copytree(part, folder)
    write_manifest(folder, Trace.open(part).manifest.model_copy(update=changes))
    return folder


def test_parts_that_do_not_belong_together(loaded: LoadedModel, corpus: Corpus, parts: list[Path], tmp_path: Path) -> None:
    def refused(paths: Sequence[Path], words: str) -> None:
        with pytest.raises(MoeProbeError, match=words):
            merge_traces(paths, tmp_path / "out")
        assert not (tmp_path / "out").exists()

    first, second, third = parts
    model = Trace.open(second).manifest.model
    other_corpus = Trace.open(second).manifest.corpus.model_copy(update={"hash": "00"})
    refused([], "no trace was given")
    refused([first, third], r"part 1/3 is missing\. Try: moe-probe collect \.\.\. --shard 1/3")
    refused([third], "2 of 3 parts are missing: .*0/3, 1/3")
    refused([first, second, second, third], "part 1/3 is there twice")
    weights = edited(second, tmp_path / "weights", model=model.model_copy(update={"fingerprint": "00"}))
    refused([first, weights, third], "another weights than")
    refused([first, edited(second, tmp_path / "tok", tokenizer_hash="00"), third], "another tokenizer than")
    refused([first, edited(second, tmp_path / "corpus", corpus=other_corpus), third], "another corpus than")
    refused([first, edited(second, tmp_path / "seed", seed=5), third], "another seed than .*: was 0, is 5")
    refused([first, edited(second, tmp_path / "set", settings={"batch_tokens": 1}), third], "another settings than")
    refused([first, edited(second, tmp_path / "four", shard_of=(1, 4)), third], "one of 3 parts, .* one of 4")
    refused([edited(third, tmp_path / "wrong", shard_of=(0, 3)), second, third], "is not part 0/3 of the corpus")
    refused([first, edited(third, tmp_path / "long", shard_of=(1, 3)), third], "26 documents together: the corpus has 24")
    refused([first, edited(second, tmp_path / "all", shard_of=None), third], "is a part of a corpus, .* is a whole trace")
    refused([first, edited(second, tmp_path / "writing", status="writing"), third], "unfinished")
    refused([first, tmp_path / "nowhere"], "there is no trace at")


def test_damaged_parts(parts: list[Path], tmp_path: Path) -> None:
    short = edited(parts[1], tmp_path / "short")
    with (short / "routing" / "00000.safetensors").open("ab") as file:
        file.write(b"x")
    with pytest.raises(MoeProbeError, match=r"routing/00000\.safetensors is damaged: it has .* bytes instead of"):
        merge_traces([parts[0], short, parts[2]], tmp_path / "out")
    (short / "usage.parquet").unlink()
    with pytest.raises(MoeProbeError, match=r"usage\.parquet is damaged: it is missing"):
        merge_traces([parts[0], short, parts[2]], tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_where_a_merged_trace_cannot_be(parts: list[Path], tmp_path: Path) -> None:
    for mode in ("new", "force"):
        with pytest.raises(UsageError, match="lies in"):
            merge_traces(parts, parts[0] / "merged", mode=mode)
        with pytest.raises(UsageError, match="lies in"):
            merge_traces(parts, parts[0], mode=mode)
        with pytest.raises(UsageError, match="lies in"):
            merge_traces(parts, parts[0].parent, mode=mode)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "notes.txt").write_text("mine")
    for mode in ("new", "resume", "force"):
        with pytest.raises(MoeProbeError, match="already contains other files"):
            merge_traces(parts, tmp_path / "out", mode=mode)
    assert (tmp_path / "out" / "notes.txt").read_text() == "mine"


# ---- several corpora ----


def test_traces_of_several_corpora(loaded: LoadedModel, whole: Path, tmp_path: Path) -> None:
    path = write_corpus(tmp_path / "second.jsonl", documents=7, seed=3)
    path.write_text(path.read_text().replace('"id": "d', '"id": "e'))
    options = CollectOptions(shard_tokens=60, batch_tokens=500)
    second = collect_trace(loaded, Corpus(path), tmp_path / "second", options=options, progress=False)
    first = Trace.open(whole)
    merged = merge_traces([whole, second.root], tmp_path / "merged")
    assert verify(merged.root) == []
    assert merged.documents["document"].tolist() == [*first.documents["document"], *second.documents["document"]]
    tokens = [trace.tokens() for trace in (first, second)]
    tokens[1]["document"] += len(first.documents)
    assert merged.tokens().equals(pd.concat(tokens, ignore_index=True))
    chunks = [*first.iter_routing(), *second.iter_routing()]
    for chunk, expected in zip(merged.iter_routing(), chunks, strict=True):
        assert np.array_equal(chunk.experts, expected.experts) and chunk.weights is not None
        assert expected.weights is not None and np.array_equal(chunk.weights, expected.weights)
    assert np.array_equal(merged.usage().selections, np.concatenate([first.usage().selections, second.usage().selections]))
    m = merged.manifest
    assert m.corpus.name == "corpus.jsonl + second.jsonl" and m.corpus.n_documents == m.n_documents == 31
    assert len(m.corpus.hash) == 64 and m.corpus.hash not in (first.manifest.corpus.hash, second.manifest.corpus.hash)
    assert "batch_tokens" not in m.settings and m.settings["token_text"] == first.manifest.settings["token_text"]
    back = merge_traces([second.root, whole], tmp_path / "back")
    assert back.manifest.corpus.hash != m.corpus.hash  # the order counts


def test_whole_traces_that_do_not_belong_together(loaded: LoadedModel, whole: Path, corpus: Corpus, tmp_path: Path) -> None:
    def refused(words: str, *paths: Path) -> None:
        with pytest.raises(MoeProbeError, match=words):
            merge_traces([whole, *paths], tmp_path / "out")
        assert not (tmp_path / "out").exists()

    m = Trace.open(whole).manifest
    refused("nothing to merge it with")
    refused("both have a document 'd0'", whole)
    refused("another weights than", edited(whole, tmp_path / "w", model=m.model.model_copy(update={"fingerprint": "00"})))
    refused("another choice of what to keep", edited(whole, tmp_path / "k", kept=("usage",)))
    refused("another windowing", edited(whole, tmp_path / "c", windowing=None))
    refused("another way to write tokens", edited(whole, tmp_path / "x", settings={"token_text": "other"}))
    labelled = Corpus(corpus.source, columns=type(corpus.columns)(labels=("register",)))
    more = collect_trace(loaded, labelled, tmp_path / "labels", options=PLAIN, progress=False)
    refused("another choice of label columns .*register", more.root)
    imported = null_trace(tmp_path / "null")
    renamed = edited(imported.root, tmp_path / "other", model=imported.manifest.model.model_copy(update={"id": "b"}))
    with pytest.raises(MoeProbeError, match="another model than"):
        merge_traces([imported.root, renamed], tmp_path / "out")


def test_vectors_of_earlier_versions(loaded: LoadedModel, corpus: Corpus, tmp_path: Path) -> None:
    """Their rows count from the beginning of the trace: they are read, and not merged."""
    from safetensors.torch import load_file, save_file

    trace = collect_trace(loaded, corpus, tmp_path / "t", options=VECTORS, progress=False)
    rows, values = ActivationReader(trace, layer=1).rows, [p["rows"] for p in trace.iter_extras("hidden/layer_01")]
    first = 0
    for shard in trace.manifest.shards:
        for path in (trace.root / f.path for f in shard.files if f.path.startswith("hidden")):
            tensors = load_file(path)
            tensors["rows"] = tensors.pop("rows_in_shard") + first
            save_file(tensors, path)
        first += shard.n_tokens
    shards = [
        s.model_copy(update={"files": tuple(file_entry(trace.root, trace.root / f.path) for f in s.files)})
        for s in trace.manifest.shards
    ]
    write_manifest(trace.root, trace.manifest.model_copy(update={"shards": tuple(shards), "shard_of": (0, 1)}))
    old = Trace.open(trace.root)
    assert np.array_equal(ActivationReader(old, layer=1).rows, rows)
    assert all((a["rows"] == b).all() for a, b in zip(old.iter_extras("hidden/layer_01"), values, strict=True))
    with pytest.raises(MoeProbeError, match="an earlier version wrote its vectors"):
        merge_traces([old.root], tmp_path / "out")
