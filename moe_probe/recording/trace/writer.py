"""Writing a trace: shard by shard, each either wholly there or not at all.

While it is being written a trace has ``trace.json`` (status "writing"), the shards' arrays under
``routing/`` and their tables under ``parts/``. A shard counts once ``parts/NNNNN.json`` is there, which
is written last. Sealing joins the tables and removes ``parts/``. Whatever moment the process is killed
at, what counts is whole, and `TraceWriter.resume` continues behind it. It believes nothing: what was damaged
meanwhile is found, and written again.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from moe_probe.core.errors import MoeProbeError
from moe_probe.core.files import check_output_folder, disk_errors, write_text, write_whole
from moe_probe.core.own_files import TRACE_FILES
from moe_probe.core.schema import MANIFEST, Manifest, ShardEntry
from moe_probe.recording.trace.checks import check_layers
from moe_probe.recording.trace.files import (
    CHECKSUM,
    DOCUMENTS,
    PARTS,
    TOKENS,
    USAGE,
    file_entry,
    fits_checksum,
    read_manifest,
    tidy_checksum,
    write_manifest,
)
from moe_probe.recording.trace.part_files import PartEntry, table_names
from moe_probe.recording.trace.reader import Trace
from moe_probe.recording.trace.resume import check_same_input, remove_unfinished, sealed_shards, sound_shards
from moe_probe.recording.trace.sealing import check_arrays, join_tables
from moe_probe.recording.trace.shard import Shard, UsageShard


class TraceWriter:
    """Appends shards to a trace and seals it. Use `create` or `resume`.

    Attributes
    ----------
    root : Path
    manifest : Manifest
    shards : list of PartEntry
        Those that count.
    notes : tuple of str
        What the person at the terminal should know: a shard that was damaged, and is going to be written again.
    """

    def __init__(self, root: Path, manifest: Manifest, shards: list[PartEntry], notes: tuple[str, ...] = ()) -> None:
        self.root, self.manifest, self.shards, self.notes = root, manifest, shards, notes

    @classmethod
    def create(cls, path: str | Path, manifest: Manifest, *, mode: str = "new") -> TraceWriter:
        """Begin a trace in an empty or new folder, or in place of another one.

        Parameters
        ----------
        path : str or Path
            Folder of the trace.
        manifest : Manifest
            What is going to be written.
        mode : {"new", "force"}
            Refuse a folder that has any file; or remove the files of the trace in it, and nothing else.

        Returns
        -------
        TraceWriter

        Raises
        ------
        MoeProbeError
            When the folder has any file (with "force": when it is no trace), or cannot be written, or a layer is named twice.
        """
        root = Path(path)
        check_layers([layer.layer for layer in manifest.layers])
        check_output_folder(root, mode)
        return cls._begun(root, manifest)

    @classmethod
    def _begun(cls, root: Path, manifest: Manifest) -> TraceWriter:
        """Remove what an earlier process wrote, and write the first manifest."""
        with disk_errors(root):
            root.mkdir(parents=True, exist_ok=True)
            TRACE_FILES.remove(root)
            manifest = manifest.model_copy(update={"status": "writing"})
            write_manifest(root, manifest)
        return cls(root, manifest, [])

    @classmethod
    def resume(cls, path: str | Path, manifest: Manifest) -> TraceWriter:
        """Continue a trace behind its last whole shard.

        Every shard that counts is checked: sizes and checksums of all files, counts against arrays and tables. One that is
        damaged, and those after it, are removed and have to be appended again; `notes` names it.

        Parameters
        ----------
        path : str or Path
            Folder of the trace.
        manifest : Manifest
            What the continued run would write; must agree with what the trace was begun with.

        Returns
        -------
        TraceWriter

        Raises
        ------
        MoeProbeError
            When weights, corpus, tokenizer or settings are not those the trace was begun with; when it is an unfinished
            merge; or when a sealed trace, or the manifest of an unfinished one, is damaged.
        """
        root = Path(path)
        if not (root / MANIFEST).exists():  # killed while the very first files were written, at most: nothing is in them yet
            check_layers([layer.layer for layer in manifest.layers])
            check_output_folder(root, "resume")
            return cls._begun(root, manifest)
        before = read_manifest(root)
        with disk_errors(root):
            if not (root / CHECKSUM).exists() or not fits_checksum(root):
                raise MoeProbeError(
                    f"{root / MANIFEST} was changed",
                    f"it does not fit {CHECKSUM}",
                    "--force to start over, or another folder",
                )
        check_same_input(root, before, manifest)
        if before.status == "sealed":
            return cls(root, before, sealed_shards(root, before))
        if before.shards:  # only a merge names its shards before it is sealed
            raise MoeProbeError(
                f"{root} is a merge that was interrupted",
                "collecting would remove what was joined, and begin at the first document",
                "the same moe-probe merge with --resume, or --force to start over",
            )
        with disk_errors(root):
            shards, notes = sound_shards(root, before)
            remove_unfinished(root, shards)
        return cls(root, before, shards, notes)

    @property
    def sealed(self) -> bool:
        """Whether there is nothing left to write."""
        return self.manifest.status == "sealed"

    @property
    def n_documents(self) -> int:
        """Documents in whole shards."""
        return sum(s.n_documents for s in self.shards)

    def note_settings(self, more: Mapping[str, str | int | float | bool | None]) -> None:
        """Add settings that changed while the trace is being written, before what they change is appended.

        Parameters
        ----------
        more : mapping
            By name, as in ``Manifest.settings``.

        Raises
        ------
        MoeProbeError
            When the disk refuses.
        """
        settings = {**self.manifest.settings, **more}
        self.manifest = self.manifest.model_copy(update={"settings": settings})
        with disk_errors(self.root, keeps="whole shards are kept"):
            write_manifest(self.root, self.manifest)

    def append(
        self,
        *,
        documents: Sequence[Mapping[str, Any]],
        tokens: Mapping[str, Any],
        experts: np.ndarray,
        weights: np.ndarray | None = None,
        extras: Mapping[str, Mapping[str, Any]] | None = None,
    ) -> ShardEntry:
        """Write one shard of whole documents.

        Parameters
        ----------
        documents : sequence of mappings
            ``document, topic, subtopic, group, split`` and further labels and ``text``, one per document.
        tokens : mapping of arrays, length n_tokens
            ``document`` (row in `documents`, not decreasing), ``position``, ``token_id``, ``token`` (str),
            ``special`` (bool). Padding is never handed over.
        experts : ndarray of the manifest's ``expert_dtype``, shape (n_tokens, n_layers, n_slots)
        weights : ndarray of float16, same shape, optional
        extras : mapping of folder (``logits``, ``hidden/layer_07`` ...) to named arrays or tensors

        Returns
        -------
        ShardEntry

        Raises
        ------
        MoeProbeError
            When arrays disagree in shape, an id is not of the layer's experts, a token selects an expert twice, a gate
            weight is negative, not finite or too large for float16, positions do not increase within a document, a
            document has no topic, or the disk refuses.
        """
        shard = Shard(documents, tokens, experts, weights, extras or {})
        shard.check(self.manifest)
        offset = self.n_documents
        arrays = dict(sorted(shard.extras.items()))
        tables = {DOCUMENTS: shard.documents_table(), USAGE: shard.usage_table(self.manifest, offset)}
        if "routing" in self.manifest.kept:
            routing = {"experts": experts} | ({} if weights is None else {"weights": weights.astype(np.float16)})
            arrays = {"routing": routing} | arrays
            tables[TOKENS] = shard.tokens_table(offset)
        return self._write(len(documents), len(experts), arrays, tables)

    def append_usage(
        self,
        *,
        documents: Sequence[Mapping[str, Any]],
        n_tokens: np.ndarray,
        selections: np.ndarray,
        gate_mass: np.ndarray | None = None,
        saliency: np.ndarray | None = None,
    ) -> ShardEntry:
        """Write one shard of documents of which only counts are known.

        Parameters
        ----------
        documents : sequence of mappings
            As `append` takes them.
        n_tokens : ndarray of int, shape (n_documents,)
            Tokens of each document.
        selections : ndarray of int, shape (n_documents, n_layers, max_experts)
            Zero past a layer's own experts.
        gate_mass, saliency : ndarray of float, same shape, optional
            Sums of gate weights, and of gate weights times norms of the experts' outputs. Every shard of a trace has the same
            of them; gate mass exactly where the manifest has weights.

        Returns
        -------
        ShardEntry

        Raises
        ------
        MoeProbeError
            When arrays disagree in shape, a count is negative, more than the tokens allow, or no number, a document has no
            topic, the trace keeps routing, or the disk refuses.
        """
        shard = UsageShard(documents, n_tokens, selections, gate_mass, saliency)
        shard.check(self.manifest)
        tables = {DOCUMENTS: shard.documents_table(), USAGE: shard.usage_table(self.manifest, self.n_documents)}
        return self._write(len(documents), int(n_tokens.sum()), {}, tables)

    def _write(
        self, n_documents: int, n_tokens: int, arrays: Mapping[str, Mapping[str, Any]], tables: Mapping[str, pa.Table]
    ) -> ShardEntry:
        index = len(self.shards)
        with disk_errors(self.root, keeps=f"{index} whole shards are kept"):
            part = self.root / PARTS / f"{index:05d}"
            files = [self._save_arrays(folder, index, named) for folder, named in arrays.items()]
            for name, table in tables.items():
                _write_table(part / name, table)
            entry = PartEntry(
                index=index,
                n_documents=n_documents,
                n_tokens=n_tokens,
                files=tuple(file_entry(self.root, f) for f in files),
                tables=tuple(file_entry(self.root, part / name) for name in tables),
            ).signed()
            write_text(part.with_suffix(".json"), entry.model_dump_json(indent=1))
        self.shards.append(entry)
        return entry

    def seal(self) -> Trace:
        """Join the shards' tables, write the final manifest, and open the trace.

        Raises
        ------
        MoeProbeError
            When no document was written, a shard is not as it was written any more, or the disk refuses; sealing can then be
            repeated.
        """
        if not self.sealed:
            if not self.shards:
                raise MoeProbeError(f"{self.root} has no document", "nothing was collected", "check the corpus")
            with disk_errors(self.root, keeps=f"{len(self.shards)} whole shards are kept"):
                names = table_names(self.manifest)
                check_arrays(self.root, self.shards)
                for name in names:
                    write_whole(self.root / name, partial(join_tables, self.root, self.shards, name))
                self.manifest = self.manifest.model_copy(
                    update={
                        "status": "sealed",
                        "shards": tuple(entry.sealed() for entry in self.shards),
                        "n_documents": self.n_documents,
                        "n_tokens": sum(s.n_tokens for s in self.shards),
                        "files": tuple(file_entry(self.root, self.root / name) for name in names),
                    }
                )
                write_manifest(self.root, self.manifest)
        with disk_errors(self.root):
            tidy_checksum(self.root)
            TRACE_FILES.remove(self.root, below=PARTS)
        return Trace.open(self.root)

    def _save_arrays(self, folder: str, index: int, arrays: Mapping[str, Any]) -> Path:
        path = self.root / folder / f"{index:05d}.safetensors"
        if all(isinstance(a, np.ndarray) for a in arrays.values()):
            from safetensors.numpy import save_file

            named: dict[str, Any] = {k: np.ascontiguousarray(a) for k, a in arrays.items()}
        else:  # bfloat16 hidden states: numpy has no such type
            from safetensors.torch import save_file  # type: ignore[assignment]

            named = {k: a.contiguous() for k, a in arrays.items()}
        write_whole(path, lambda p: save_file(named, p))
        return path


def _write_table(path: Path, table: pa.Table) -> None:
    write_whole(path, lambda p: pq.write_table(table, p, compression="zstd"))
