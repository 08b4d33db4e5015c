"""Recordings of engines, a file each, become a trace: by topic, by file, or by prompt where tokens are in them."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from moe_probe.core.errors import MoeProbeError, UsageError
from moe_probe.core.files import sha256_file, sha256_text
from moe_probe.core.text import some_of
from moe_probe.recording.importers.imatrix import read_imatrix
from moe_probe.recording.importers.options import ImportOptions, ImportSource
from moe_probe.recording.importers.recordings import TOKENS, Recording, find_recordings, labels_of_files
from moe_probe.recording.importers.records import import_records
from moe_probe.recording.importers.sglang_distribution import (
    ENDINGS,
    has_tokens,
    logical_experts,
    moved_note,
    read_dump,
    recording_of,
)
from moe_probe.recording.importers.sglang_tokens import LeftOut, layers_of, prompt_records
from moe_probe.recording.importers.token_record import TokenRecord
from moe_probe.recording.importers.usage_block import UsageBlock
from moe_probe.recording.importers.usage_records import import_usage_records
from moe_probe.recording.trace import Trace


def import_imatrix(  # noqa: PLR0913 - public API: keyword-only options with defaults
    source: str | Path,
    out: str | Path,
    *,
    documents: Any = None,
    topic: str | None = None,
    files_are_documents: bool = False,
    options: ImportOptions | None = None,
    mode: str = "new",
) -> Trace:
    """Import importance matrices of llama.cpp as a trace of counts.

    Parameters
    ----------
    source : str or Path
        A file of ``llama-imatrix``, a folder with ``.gguf`` files, or a glob.
    out : str or Path
        Folder of the trace.
    documents : path, DataFrame, mapping of columns, or sequence of mappings, optional
        Labels: the column ``file`` has the names of the files. Without it, ``documents.csv`` or ``documents.parquet`` beside
        them.
    topic : str, optional
        One topic for all files, in place of labels.
    files_are_documents : bool
        Each file of counts was made from a document of its own, or from a shard that was drawn independently: files are the
        documents of the trace. Otherwise files with the same labels are added up, and nothing can be tested.
    options : ImportOptions, optional
        Its `top_k` for counts that do not say it.
    mode : {"new", "resume", "force"}
        What to do with a trace that exists: refuse, continue it, start over.

    Returns
    -------
    Trace
        Sealed; `Trace.warnings` says what was omitted.

    Raises
    ------
    MoeProbeError
        When a file cannot be read, naming the entry; when files are of different models, copies of each other, or without a
        topic.
    """
    job = _Job(find_recordings(source, (".gguf",)), source, options, documents=documents, topic=topic)
    recordings = [read_imatrix(file) for file in job.files]
    return _import_counts(job, recordings, out, mode, files_are_documents=files_are_documents)


def import_sglang_distribution(  # noqa: PLR0913 - public API: keyword-only options with defaults
    source: str | Path,
    out: str | Path,
    *,
    documents: Any = None,
    topic: str | None = None,
    files_are_documents: bool = False,
    options: ImportOptions | None = None,
    mode: str = "new",
) -> Trace:
    """Import files of SGLang's expert-distribution recorder as a trace.

    Files of mode ``per_token`` give a trace of tokens, one document per prompt; all others give counts.

    Parameters
    ----------
    source : str or Path
        A file of the recorder, a folder with ``.pt``, ``.json`` or ``.csv`` files, or a glob.
    out : str or Path
        Folder of the trace.
    documents : path, DataFrame, mapping of columns, or sequence of mappings, optional
        Labels: the column ``file`` has the names of the files. Without it, ``documents.csv`` or ``documents.parquet`` beside
        them.
    topic : str, optional
        One topic for all files, in place of labels.
    files_are_documents : bool
        Each file of counts was made from a document of its own, or from a shard that was drawn independently: files are the
        documents of the trace. Otherwise files with the same labels are added up, and nothing can be tested.
    options : ImportOptions, optional
        Its `top_k` for counts that do not say it.
    mode : {"new", "resume", "force"}
        What to do with a trace that exists: refuse, continue it, start over.

    Returns
    -------
    Trace
        Sealed; `Trace.warnings` says what was omitted.

    Raises
    ------
    MoeProbeError
        When a file cannot be read, naming the record; when files are of different modes or models, copies of each other, or
        without a topic.
    """
    job = _Job(find_recordings(source, ENDINGS), source, options, documents=documents, topic=topic)
    kinds: dict[bool, Path] = {}
    recordings = []
    for file in job.files:
        data = read_dump(file)
        tokens = has_tokens(data)
        kinds.setdefault(tokens, file)
        if len(kinds) > 1:
            what = f"{kinds[True]} has tokens, {kinds[False]} has counts only"
            raise MoeProbeError(what, "a trace has one of them", "import the files of one mode at a time")
        if not tokens:
            recordings.append(recording_of(data, file, job.options.num_experts))
    if recordings:
        return _import_counts(job, recordings, out, mode, files_are_documents=files_are_documents)
    for given, name in ((files_are_documents, "--files-are-documents"), (job.options.top_k, "--top-k")):
        if given:
            raise UsageError(f"{name} cannot be used here", "the files have the experts of every token", f"omit {name}")
    return _import_tokens(job, out, mode)


class _Job:
    """Files, their labels and names, and what the user says about them."""

    def __init__(
        self, files: list[Path], source: str | Path, options: ImportOptions | None, *, documents: Any, topic: str | None
    ) -> None:
        self.options = options or ImportOptions()
        self.files = files
        matrices = all(file.suffix.lower() == ".gguf" for file in files)
        self.kind = (
            "importance matrices of llama.cpp (imatrix)"
            if matrices
            else "expert distributions of SGLang (sglang-distribution)"
        )
        self.name = Path(source).name or str(source)
        self.hash = sha256_text("".join(map(sha256_file, self.files)))
        labels = labels_of_files(self.files, documents, topic, self.options)
        stems = Counter(file.stem for file in self.files)
        self.labels = {
            file: {**labels[file], "document": file.stem if stems[file.stem] == 1 else str(file)} for file in self.files
        }


def _import_tokens(job: _Job, out: str | Path, mode: str) -> Trace:
    sizes: dict[Path, tuple[int, int]] = {}
    notes: dict[str, None] = {}
    for file in job.files:
        data = read_dump(file)
        sizes[file] = layers_of(data, file)
        notes |= dict.fromkeys(moved_note(logical_experts(data, file)))
    n_layers, n_experts = sizes[job.files[0]]
    for file, (layers, experts) in sizes.items():
        if (layers, experts) != (n_layers, n_experts):
            raise _other_model(file, job.files[0], f"({layers} layers, {experts} experts)")
    left_out = LeftOut()

    def records() -> Iterator[TokenRecord]:
        nonlocal left_out
        left_out = LeftOut()  # files are read twice, and what is left out is counted once
        copies = _Copies("tokens and experts")
        for file in job.files:
            digest = hashlib.sha256()
            n = 0
            for record in prompt_records(read_dump(file), file, job.labels[file], left_out):
                digest.update(record.token_id.tobytes() + record.experts.tobytes())
                n += 1
                yield record
            if n:
                copies.add(digest.digest(), file)

    source = ImportSource(
        range(n_layers), job.name, job.hash, dict.fromkeys(range(n_layers), n_experts), kind=f"{job.kind}, per token"
    )
    trace = import_records(records, out, source, options=job.options, mode=mode)
    trace.warnings = (*trace.warnings, *left_out.notes(), *notes)
    return trace


def _import_counts(
    job: _Job, recordings: Sequence[Recording], out: str | Path, mode: str, *, files_are_documents: bool
) -> Trace:
    if job.options.tokenizer is not None:
        raise UsageError("--tokenizer cannot be used here", "the files have counts and no tokens", "omit --tokenizer")
    top_k = _agreed_top_k(recordings, job.options.top_k)
    layers = _same_layers(recordings)
    counts = np.zeros((len(recordings), len(layers), max(layers.values())), dtype=np.int64)
    copies = _Copies("counts")
    for row, recording in enumerate(recordings):
        for column, (layer, n) in enumerate(layers.items()):
            counts[row, column, :n] = recording.selections[layer]
        copies.add(counts[row].tobytes(), recording.path)
    documents: list[dict[str, str]] = [job.labels[recording.path] for recording in recordings]
    known = all(TOKENS in document for document in documents)
    tokens = np.array([int(document[TOKENS]) for document in documents]) if known else None
    documents = [{name: value for name, value in document.items() if name != TOKENS} for document in documents]
    if not files_are_documents:
        documents, rows = _topics(documents)
        counts = np.stack([counts[row].sum(axis=0) for row in rows])
        tokens = None if tokens is None else np.array([tokens[row].sum() for row in rows])
    trace = import_usage_records(
        [UsageBlock(documents, counts, tokens)],
        out,
        ImportSource(list(layers), job.name, job.hash, layers, sums=not files_are_documents, kind=job.kind),
        options=replace(job.options, top_k=top_k),
        mode=mode,
    )
    trace.warnings = (*trace.warnings, *_notes(recordings), *_dense(recordings))
    return trace


def _topics(documents: Sequence[Mapping[str, str]]) -> tuple[list[dict[str, str]], list[list[int]]]:
    """Files that have the same labels are one row: its labels, and its files by their number."""
    rows: dict[tuple[tuple[str, str], ...], list[int]] = {}
    for row, document in enumerate(documents):
        key = tuple((name, value) for name, value in document.items() if name not in ("document", "group"))
        rows.setdefault(key, []).append(row)
    names = (" / ".join(dict.fromkeys(value for _, value in key if value)) for key in rows)
    return [{**dict(key), "document": name} for key, name in zip(rows, names, strict=True)], list(rows.values())


def _agreed_top_k(recordings: Sequence[Recording], top_k: int | None) -> int | None:
    for recording in recordings:
        if None not in (recording.top_k, top_k) and recording.top_k != top_k:
            raise MoeProbeError(
                f"{recording.path} has {recording.top_k} experts per token, not {top_k}",
                "its counts are so many times the tokens that its routers have seen",
                "omit --top-k, and import files of one model at a time",
            )
        top_k = top_k or recording.top_k
    return top_k


def _same_layers(recordings: Sequence[Recording]) -> dict[int, int]:
    """Experts of each layer, the same in all recordings."""
    layers = {layer: len(counts) for layer, counts in recordings[0].selections.items()}
    for recording in recordings[1:]:
        these = {layer: len(counts) for layer, counts in recording.selections.items()}
        if unlike := sorted(set(these.items()) ^ set(layers.items())):
            layer = unlike[0][0]
            raise _other_model(
                recording.path,
                recordings[0].path,
                f"(layer {layer}: {these.get(layer, 'no')} and {layers.get(layer, 'no')} experts)",
            )
    return layers


def _notes(recordings: Sequence[Recording]) -> tuple[str, ...]:
    """Return what is to be known of the files: each note once, with the names of its files."""
    files: dict[str, list[str]] = {}
    for recording in recordings:
        for note in recording.notes:
            files.setdefault(note, []).append(recording.path.name)
    return tuple(f"{some_of(names, 3)}: {note}" for note, names in files.items())


def _dense(recordings: Sequence[Recording]) -> tuple[str, ...]:
    empty = sorted({layer for recording in recordings for layer in recording.empty})
    return (f"left out as dense: layers without any selection ({some_of(empty)})",) if empty else ()


def _other_model(file: Path, first: Path, what: str) -> MoeProbeError:
    return MoeProbeError(
        f"{file} is of another model than {first}", f"their layers or experts differ {what}", "files of one model at a time"
    )


class _Copies:
    """Refuses the same record from two files: ranks that share their tokens write a copy each."""

    def __init__(self, noun: str) -> None:
        self.noun = noun
        self.seen: dict[bytes, Path] = {}

    def add(self, content: bytes, file: Path) -> None:
        first = self.seen.setdefault(hashlib.sha256(content).digest(), file)
        if first != file:
            raise MoeProbeError(
                f"{file} has the same {self.noun} as {first}",
                "tensor-parallel ranks see the same tokens, and each writes a file",
                "a glob with the files of one rank, such as '*_0.pt'",
            )
