"""Which traces belong together: the parts of one corpus, or traces of several corpora through one model."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

from moe_probe.core.errors import MoeProbeError, UsageError
from moe_probe.core.files import path_inside, sha256_text
from moe_probe.core.schema import BATCH_TOKENS_FROM, CorpusInfo, Manifest
from moe_probe.core.text import quoted, some_of
from moe_probe.core.untrusted import file_digest, file_size, open_tensors
from moe_probe.recording.trace.agreement import count_problems
from moe_probe.recording.trace.files import DOCUMENTS, USAGE, file_entries
from moe_probe.recording.trace.reader import Trace
from moe_probe.recording.trace.resume import IDENTITY, first_difference
from moe_probe.recording.trace.sampled import TRACE_ROWS
from moe_probe.recording.trace.tables import open_table

#: What traces of different corpora may differ in; the seed and all that decides what is recorded has to be the same.
_FREE = ("corpus.hash", "shard_of", "settings")
#: Settings that say what is in the files; the others (tokens of a batch or shard) may differ between corpora.
_READ_WITH = {"token_text": "way to write tokens", "hidden_layers": "choice of layers with hidden states"}


def check_apart(out: Path, traces: Sequence[Trace]) -> None:
    """Refuse to write into one of the traces, or around it.

    Parameters
    ----------
    out : Path
        Folder that is going to be written.
    traces : sequence of Trace

    Raises
    ------
    UsageError
        Naming the trace.
    """
    target = out.resolve()
    for trace in traces:
        root = trace.root.resolve()
        if target == root or target.is_relative_to(root):
            raise UsageError(f"--out {out} lies in {trace.root}", "traces that are merged stay as they are", "another --out")
        if root.is_relative_to(target):
            raise UsageError(
                f"{trace.root} lies in --out {out}", "the merged trace needs a folder of its own", "another --out"
            )


def in_order(traces: Sequence[Trace]) -> list[Trace]:
    """Bring traces into the order in which they are joined.

    Parameters
    ----------
    traces : sequence of Trace
        All parts of one corpus, in any order; or whole traces.

    Returns
    -------
    list of Trace
        Parts by number; whole traces as given.

    Raises
    ------
    MoeProbeError
        When a part is missing or there twice, or the traces differ in what has to be the same, or share a document.
    """
    if not traces:
        raise UsageError("no trace was given", "", "moe-probe merge A B --out C")
    parts = [trace for trace in traces if trace.manifest.shard_of is not None]
    if not parts:
        return _whole_traces(list(traces))
    if len(parts) < len(traces):
        whole = next(trace for trace in traces if trace.manifest.shard_of is None)
        raise MoeProbeError(
            f"{parts[0].root} is a part of a corpus, {whole.root} is a whole trace",
            "parts are merged with the other parts of their corpus",
            "merge the parts first, then the result with other traces",
        )
    return _parts_of_one_corpus(parts)


def joint_manifest(traces: Sequence[Trace]) -> Manifest:
    """Describe what traces make together, without shards and files.

    Parameters
    ----------
    traces : sequence of Trace
        From `in_order`.

    Returns
    -------
    Manifest
        Not sealed. That of the parts, or with a corpus made of the traces' corpora.
    """
    first = traces[0].manifest
    changes: dict[str, object] = {
        "status": "writing",
        "shard_of": None,
        "n_documents": sum(t.manifest.n_documents for t in traces),
        "n_tokens": sum(t.manifest.n_tokens for t in traces),
        "shards": (),
        "files": (),
    }
    if first.shard_of is not None:
        changes["settings"] = _settings_of_parts(traces)
    else:
        manifests = [trace.manifest for trace in traces]
        changes["settings"] = {
            name: value
            for name, value in first.settings.items()
            if not name.startswith(BATCH_TOKENS_FROM) and all(m.settings.get(name) == value for m in manifests)
        }  # blocks of one corpus have other numbers behind those of another
        changes["corpus"] = _joint_corpus([m.corpus for m in manifests])
    return first.model_copy(update=changes)


def differing_versions(traces: Sequence[Trace]) -> tuple[str, ...]:
    """Say which programs' versions differ between traces, one sentence at most."""
    known = [trace.manifest.versions for trace in traces]
    names = [name for name in known[0] if len({str(versions.get(name)) for versions in known}) > 1]
    if not names:
        return ()
    each = "; ".join(f"{name} {' and '.join(sorted({str(v.get(name)) for v in known}))}" for name in names)
    return (f"the traces were made with different versions ({each}): the result names those of {traces[0].root}",)


def check_files(trace: Trace) -> None:
    """Refuse a trace that lacks a file, or has one that is not what its manifest says.

    Checksums of arrays are not computed: they are taken over, and `verify` finds what differs from them. Those of tables are,
    since what is joined of them gets new ones; and their counts have to agree with those of the shards.

    Raises
    ------
    MoeProbeError
        Naming the file. Also for vectors whose rows count from the beginning of the trace, as earlier versions wrote them.
    """
    for entry in file_entries(trace.manifest):
        file = path_inside(trace.root, entry.path)
        size = file_size(file) if file.is_file() else None
        if size != entry.size:
            why = "it is missing" if size is None else f"it has {size:,} bytes instead of {entry.size:,}"
            raise MoeProbeError(f"{file} is damaged", why, f"moe-probe verify {quoted(trace.root)}, and collect it again")
    for entry in trace.manifest.files:
        if file_digest(path_inside(trace.root, entry.path)) != entry.sha256:
            why = "its checksum differs"
            raise MoeProbeError(
                f"{trace.root / entry.path} is damaged", why, f"moe-probe verify {quoted(trace.root)}, and collect it again"
            )
    for problem in count_problems(trace.root, trace.manifest):
        raise MoeProbeError(f"{trace.root} is damaged", problem, "collect it again with --force")
    for entry in (entry for shard in trace.manifest.shards[:1] for entry in shard.files):
        with open_tensors(path_inside(trace.root, entry.path)) as arrays:
            if TRACE_ROWS in arrays.names:
                raise MoeProbeError(
                    f"{trace.root} cannot be merged",
                    "an earlier version wrote its vectors, whose rows count from the beginning of the trace",
                    "collect it again with --force",
                )


def _parts_of_one_corpus(parts: list[Trace]) -> list[Trace]:
    first = parts[0]
    n = _part(first)[1]
    by_number: dict[int, Trace] = {}
    for trace in parts:
        i, of = _part(trace)
        _check_same(first, trace, [name for name in IDENTITY if name != "shard_of"])
        if of != n:
            raise MoeProbeError(
                f"{first.root} is one of {n} parts, {trace.root} one of {of}",
                "the corpus was cut differently",
                "parts that were collected with the same n of --shard i/n",
            )
        if i in by_number:
            twice = f"{by_number[i].root} and {trace.root}"
            raise MoeProbeError(f"part {i}/{n} is there twice: {twice}", "", "each part once")
        by_number[i] = trace
    missing = [i for i in range(n) if i not in by_number]
    if missing:
        what = f"part {missing[0]}/{n} is missing" if len(missing) == 1 else f"{len(missing)} of {n} parts are missing"
        why = "" if len(missing) == 1 else f"there is none of {some_of([f'{i}/{n}' for i in missing])}"
        raise MoeProbeError(what, why, f"moe-probe collect ... --shard {missing[0]}/{n}, or add its folder")
    ordered = [by_number[i] for i in range(n)]
    _check_complete(ordered)
    return ordered


def _check_complete(parts: Sequence[Trace]) -> None:
    """Count shards, which are the corpus's blocks: how many a part has follows from how many there are."""
    n, n_blocks = len(parts), sum(len(trace.manifest.shards) for trace in parts)
    for i, trace in enumerate(parts):
        due = (i + 1) * n_blocks // n - i * n_blocks // n
        if len(trace.manifest.shards) != due:
            raise MoeProbeError(
                f"{trace.root} is not part {i}/{n} of the corpus",
                f"it has {len(trace.manifest.shards)} shards instead of {due}",
                f"collect it again with --shard {i}/{n} --force",
            )
    n_documents, whole = sum(trace.manifest.n_documents for trace in parts), parts[0].manifest.corpus.n_documents
    # a server may leave documents out, and add answers
    if n_documents != whole and "served_model" not in parts[0].manifest.settings:
        why = f"the corpus has {whole:,} documents"
        raise MoeProbeError(f"the parts have {n_documents:,} documents together", why, "collect the parts again")


def _whole_traces(traces: list[Trace]) -> list[Trace]:
    first = traces[0]
    if len(traces) == 1:
        what, why = f"{first.root} is a whole trace", "there is nothing to merge it with"
        raise UsageError(what, why, f"moe-probe analyze {quoted(first.root)}")
    fields = [name for name in IDENTITY if name not in _FREE]
    if not all(trace.manifest.model.fingerprint for trace in traces):  # imported ones do not know the weights
        fields.append("model.id")
    for trace in traces[1:]:
        _check_same(first, trace, fields)
        for name, noun in _READ_WITH.items():
            values = [str(t.manifest.settings.get(name)) for t in (first, trace)]
            if values[0] != values[1]:
                raise _unlike(first, trace, noun, f"{values[0]} and {values[1]}")
        if first.manifest.evidence != trace.manifest.evidence:
            raise _unlike(first, trace, "level of evidence", f"{first.manifest.evidence}; {trace.manifest.evidence}")
        measures = [open_table(t.root, USAGE).names for t in (first, trace)]
        if measures[0] != measures[1]:
            raise _unlike(first, trace, "choice of measures", f"{some_of(measures[0])}; {some_of(measures[1])}")
        columns = [open_table(t.root, DOCUMENTS).names for t in (first, trace)]
        if columns[0] != columns[1]:
            raise _unlike(first, trace, "choice of label columns", f"{some_of(columns[0], 12)}; {some_of(columns[1], 12)}")
    _check_disjoint(traces)
    return traces


def _settings_of_parts(parts: Sequence[Trace]) -> dict[str, str | int | float | bool | None]:
    """Say from which block on batches had which size, where memory made them differ between parts or within one."""
    settings = dict(parts[0].manifest.settings)
    size, block = settings.get("batch_tokens"), 0
    for trace in parts:
        own = trace.manifest.settings
        if own.get("batch_tokens") != size:
            settings[f"{BATCH_TOKENS_FROM}{block}"] = own.get("batch_tokens")
        changed = {name: value for name, value in own.items() if name.startswith(BATCH_TOKENS_FROM)}
        settings |= changed
        last = max(changed, key=lambda name: int(name.removeprefix(BATCH_TOKENS_FROM)), default="batch_tokens")
        size, block = own.get(last), block + len(trace.manifest.shards)
    return settings


def _without_batches(manifest: Manifest) -> Manifest:
    kept = {name: value for name, value in manifest.settings.items() if not name.startswith("batch_tokens")}
    return manifest.model_copy(update={"settings": kept})


def _check_same(first: Trace, other: Trace, fields: Sequence[str]) -> None:
    difference = first_difference(_without_batches(first.manifest), _without_batches(other.manifest), fields)
    if difference is not None:
        raise _unlike(first, other, *difference)


def _unlike(first: Trace, other: Trace, noun: str, how: str) -> MoeProbeError:
    return MoeProbeError(
        f"{other.root} has another {noun} than {first.root}",
        how or "only traces of one model that record the same are merged",
        "traces collected with the same options; or analyze them apart, and join the runs with moe-probe compare",
    )


def _check_disjoint(traces: Sequence[Trace]) -> None:
    """Refuse two traces with a document of the same name; within one imported trace a name may repeat."""
    owner: dict[bytes, int] = {}  # 8-byte digests, as a corpus remembers its own ids
    for number, trace in enumerate(traces):
        file = open_table(trace.root, DOCUMENTS)
        for group in range(len(file.group_rows)):
            for name in file.group(group, ["document"])["document"].to_pylist():
                before = owner.setdefault(hashlib.blake2b(name.encode(), digest_size=8).digest(), number)
                if before != number:
                    raise MoeProbeError(
                        f"{traces[before].root} and {trace.root} both have a document '{name}'",
                        "a document is identified by its name",
                        "traces of different documents, or other names for them (--id-column)",
                    )


def _joint_corpus(parts: Sequence[CorpusInfo]) -> CorpusInfo:
    hashes = [part.hash for part in parts]
    return CorpusInfo(
        name=" + ".join(part.name for part in parts),
        hash=sha256_text("".join(hashes)) if all(hashes) else "",
        n_documents=sum(part.n_documents for part in parts),
        label_columns=parts[0].label_columns,
        skipped_rows=sum(part.skipped_rows for part in parts),
    )


def _part(trace: Trace) -> tuple[int, int]:
    return trace.manifest.shard_of or (0, 1)
