"""Several traces become one: files of arrays are linked, tables are joined one shard at a time.

The manifest of the result, with all shards but without tables, is written first (status "writing"), the files of arrays
and the tables follow, the sealed manifest comes last. Whatever moment the process is killed at, merging the same traces again
with ``mode="resume"`` goes on behind it. The traces that are merged are only read.
"""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from moe_probe.core.errors import MoeProbeError, error_text
from moe_probe.core.files import check_output_folder, disk_errors, is_left_over, path_inside, sha256_file, write_whole
from moe_probe.core.lock import writing
from moe_probe.core.own_files import TRACE_FILES
from moe_probe.core.progress import track
from moe_probe.core.schema import MANIFEST, FileEntry, Manifest, ShardEntry
from moe_probe.recording.trace.files import (
    CHECKSUM,
    DOCUMENTS,
    TOKENS,
    USAGE,
    file_entry,
    read_manifest,
    tidy_checksum,
    write_manifest,
)
from moe_probe.recording.trace.mergeable import check_apart, check_files, differing_versions, in_order, joint_manifest
from moe_probe.recording.trace.reader import Trace
from moe_probe.recording.trace.tables import open_table

#: Errors of a link that another way of copying can do without: other device, no links there, too many of them.
_NO_LINK = {errno.EXDEV, errno.EPERM, errno.EACCES, errno.EMLINK, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP}


def merge_traces(paths: Sequence[str | Path], out: str | Path, *, mode: str = "new", link: bool = True) -> Trace:
    """Join the parts of one corpus, or traces of several corpora through one model.

    Parameters
    ----------
    paths : sequence of str or Path
        Sealed traces, or run directories with one. Either all parts of a corpus (``collect --shard i/n``), in any order: the
        result equals the trace of one process, byte for byte. Or whole traces of different documents, in the order in which
        they are to follow each other.
    out : str or Path
        Folder of the merged trace.
    mode : {"new", "resume", "force"}
        What to do with a trace that is there: refuse, go on with a merge that was interrupted, start over.
    link : bool
        Share the files of arrays with the parts by hard links, where the file system has them. Parts can be removed
        afterwards either way.

    Returns
    -------
    Trace
        Sealed. Its ``warnings`` say what was copied, and which versions of programs differ.

    Raises
    ------
    MoeProbeError
        When a trace is unsealed or lacks a file, a part is missing or there twice, traces differ in weights, tokenizer, settings
        or corpus, two of them share a document, the folder is taken or written to by another process, or the disk refuses.
    UsageError
        When `out` lies in one of the traces, or one of them in `out`.
    """
    root, given = Path(out), [Trace.open(path) for path in paths]
    check_apart(root, given)
    with writing(root):
        traces = in_order(given)
        for trace in traces:
            check_files(trace)
        merge = _Merge(root, tuple(traces), link)
        with disk_errors(root, keeps="the traces that are merged are unchanged"):
            notes = merge.run(mode)
    merged = Trace.open(root)
    merged.warnings = (*differing_versions(traces), *notes)
    return merged


@dataclass(frozen=True)
class _Merge:
    """Traces, in their order, and the folder that they are joined in."""

    root: Path
    traces: tuple[Trace, ...]
    link: bool

    def run(self, mode: str) -> tuple[str, ...]:
        """Write the merged trace, or what is missing of it, and return what there is to say of it."""
        planned = joint_manifest(self.traces).model_copy(update={"shards": tuple(self._shards())})
        check_output_folder(self.root, mode)
        if mode == "resume" and (self.root / MANIFEST).exists():
            TRACE_FILES.listed(self.root)  # refuses links: what is joined lies in the folder itself
            if self._is_sealed(planned):
                if (self.root / CHECKSUM).exists():
                    tidy_checksum(self.root)
                return ()
        else:
            TRACE_FILES.remove(self.root)
        self.root.mkdir(parents=True, exist_ok=True)
        write_manifest(self.root, planned)
        files = list(self._files())
        copied = 0
        for source, entry in track(files, "merge", unit="files", name=lambda pair: pair[1].path):
            copied += self._place(source, entry)
        names = (DOCUMENTS, USAGE) + ((TOKENS,) if "routing" in planned.kept else ())
        for name in names:
            write_whole(self.root / name, partial(self._join, name))
        for path in TRACE_FILES.listed(self.root):
            if is_left_over(path.name):  # of a merge that was killed
                path.unlink()
        tables = tuple(file_entry(self.root, self.root / name) for name in names)
        write_manifest(self.root, planned.model_copy(update={"status": "sealed", "files": tables}))
        if not copied:
            return ()
        why = ", since the file system does not link them" if self.link else ""
        return (f"{copied:,} of {len(files):,} files of arrays were copied{why}",)

    def _is_sealed(self, planned: Manifest) -> bool:
        """Whether an earlier merge of these traces ended; refuses a folder that is no merge of them."""
        before = read_manifest(self.root)
        if before.model_copy(update={"status": "writing", "files": ()}) != planned:
            raise MoeProbeError(
                f"{self.root} cannot be resumed",
                "it was not made of these traces",
                "the traces it was begun with, --force to start over, or another --out",
            )
        return before.status == "sealed"

    def _shards(self) -> Iterator[ShardEntry]:
        """List the traces' shards under their new numbers."""
        for index, (_, shard) in enumerate(self._all_shards()):
            files = tuple(entry.model_copy(update={"path": _renumbered(entry.path, index)}) for entry in shard.files)
            yield shard.model_copy(update={"index": index, "files": files})

    def _files(self) -> Iterator[tuple[Path, FileEntry]]:
        """Each file of arrays, and what it is called in the merged trace."""
        for index, (trace, shard) in enumerate(self._all_shards()):
            for entry in shard.files:
                renumbered = entry.model_copy(update={"path": _renumbered(entry.path, index)})
                yield path_inside(trace.root, entry.path).resolve(), renumbered

    def _all_shards(self) -> Iterator[tuple[Trace, ShardEntry]]:
        for trace in self.traces:
            for shard in trace.manifest.shards:
                yield trace, shard

    def _place(self, source: Path, entry: FileEntry) -> bool:
        """Link a file, or copy it where that cannot be; whether it was copied."""
        target = self.root / entry.path
        if target.exists():  # an earlier merge of the same traces got this far
            same = target.stat().st_size == entry.size
            if same and (target.samefile(source) or sha256_file(target) == entry.sha256):
                return False
            target.unlink()
        target.parent.mkdir(parents=True, exist_ok=True)
        if self.link:
            try:
                os.link(source, target)
            except OSError as error:
                if error.errno not in _NO_LINK:
                    raise
            else:
                return False
        write_whole(target, partial(shutil.copyfile, source))
        return True

    def _join(self, name: str, path: Path) -> None:
        """Join the traces' tables, one row group (a shard) at a time: memory stays that of one shard."""
        first = 0
        schema = open_table(self.traces[0].root, name).schema
        with pq.ParquetWriter(path, schema, compression="zstd") as writer:
            for trace in self.traces:
                file = open_table(trace.root, name)
                if set(file.names) != set(schema.names):
                    raise file.damaged(f"it has other columns than that of {self.traces[0].root}")
                for group in range(len(file.group_rows)):
                    table = file.group(group, schema.names)
                    if name != DOCUMENTS:  # rows of the table of documents
                        shifted = pc.add(table["document"], pa.scalar(first, pa.int32()))
                        table = table.set_column(table.column_names.index("document"), "document", shifted)
                    try:
                        table = table.cast(schema)
                    except (pa.ArrowException, ValueError) as error:  # a number that does not fit the type
                        raise file.damaged(error_text(error)) from error
                    writer.write_table(table, row_group_size=max(1, table.num_rows))
                first += trace.manifest.n_documents


def _renumbered(path: str, index: int) -> str:
    return f"{path.rsplit('/', 1)[0]}/{index:05d}.safetensors"
