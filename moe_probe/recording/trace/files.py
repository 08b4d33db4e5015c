"""Files that are either whole or absent, with checksums, and errors that say what to do."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath

from moe_probe.core.errors import MoeProbeError
from moe_probe.core.schema import FileEntry, Manifest

MANIFEST, CHECKSUM = "trace.json", "trace.json.sha256"
DOCUMENTS, TOKENS, USAGE = "documents.parquet", "tokens.parquet", "usage.parquet"
PARTS = "parts"


@contextlib.contextmanager
def disk_errors(path: Path, *, keeps: str = "what was already written is kept") -> Iterator[None]:
    """Turn a full disk, a read-only folder or a vanished one into one sentence.

    Raises
    ------
    MoeProbeError
        In place of any OSError.
    """
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise MoeProbeError(
                f"no space is left for {path}",
                f"the disk is full; {keeps}",
                "free some space, then run the same command with --resume",
            ) from error
        if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
            raise MoeProbeError(
                f"{path} cannot be written",
                f"{error.strerror}; {keeps}",
                "another folder, or change its permissions, then --resume",
            ) from error
        raise MoeProbeError(f"{path} cannot be written", f"{error}; {keeps}", "--resume once that is mended") from error


def check_place(root: Path, mode: str) -> None:
    """Refuse, before anything is computed, a folder that a trace cannot be written to.

    Parameters
    ----------
    mode : {"new", "resume", "force"}
        A new trace needs an empty folder, or none.

    Raises
    ------
    MoeProbeError
        When there is a file at the path or above it, or other files in the folder.
    """
    with disk_errors(root):
        there = next((place for place in (root, *root.parents) if place.exists()), root)
        if there.exists() and not there.is_dir():
            raise MoeProbeError(f"{root} cannot be written", f"{there} is a file; a trace is a folder", "another --out")
        if mode == "new" and there == root and any(root.iterdir()):
            what = "a trace" if (root / MANIFEST).exists() else "other files"
            raise MoeProbeError(
                f"{root} already holds {what}",
                "nothing is overwritten unasked",
                "--resume to go on with it, --force to start over, or another folder",
            )


def write_whole(path: Path, write: Callable[[Path], object]) -> None:
    """Let `write` fill a partial file, flush it to the disk, then give it its name in one step."""
    partial = path.with_name(path.name + ".partial")
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        write(partial)
        with partial.open("rb+") as file:
            os.fsync(file.fileno())
        os.replace(partial, path)
    except BaseException:
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)
        raise


def sha256_file(path: Path) -> str:
    """SHA-256 of a file's bytes, read in pieces."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def file_entry(root: Path, path: Path) -> FileEntry:
    """Describe a file of the trace for its manifest."""
    return FileEntry(path=path.relative_to(root).as_posix(), size=path.stat().st_size, sha256=sha256_file(path))


def inside(root: Path, relative: str) -> Path:
    """Path of a file named in a manifest.

    Raises
    ------
    MoeProbeError
        When the name would lead out of the directory: manifests come from other people.
    """
    pure = PurePosixPath(relative)
    if (
        pure.is_absolute()
        or ".." in pure.parts
        or "\\" in relative
        or not ((root / pure).resolve().is_relative_to(root.resolve()))
    ):
        raise MoeProbeError(
            f"{root / MANIFEST} names a file outside the trace",
            f"'{relative}'",
            "do not use this trace: it was tampered with",
        )
    return root / pure


def write_manifest(root: Path, manifest: Manifest) -> None:
    """Write ``trace.json`` and its checksum; the manifest last, since its status is what counts."""
    text = manifest.model_dump_json(indent=1) + "\n"
    digest = hashlib.sha256(text.encode()).hexdigest()
    write_whole(root / CHECKSUM, lambda p: p.write_text(digest + "\n", encoding="ascii"))
    write_whole(root / MANIFEST, lambda p: p.write_text(text, encoding="utf-8"))


def read_manifest(root: Path) -> Manifest:
    """Read ``trace.json``.

    Raises
    ------
    MoeProbeError
        When there is none, or it is damaged, or of a format this version does not know.
    """
    import json

    from pydantic import ValidationError

    path = root / MANIFEST
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise MoeProbeError(
            f"there is no trace at {root}", f"it holds no {MANIFEST}", "moe-probe collect or moe-probe import"
        ) from error
    except (ValueError, OSError) as error:
        raise MoeProbeError(f"{path} cannot be read", str(error), "moe-probe verify, or collect again") from error
    version = raw.get("version") if isinstance(raw, dict) else None
    if version != 1:
        raise MoeProbeError(f"{path} has format version {version}", "this moe_probe reads version 1", "a newer moe_probe")
    try:
        return Manifest.model_validate(raw)
    except ValidationError as error:
        first = error.errors()[0]
        raise MoeProbeError(
            f"{path} is not a manifest of version 1",
            f"{'.'.join(map(str, first['loc']))}: {first['msg']}",
            "moe-probe verify",
        ) from error
