"""Files that are either whole or absent, with checksums, and disk errors that say what to do."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import re
import stat
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

from moe_probe.core.errors import MoeProbeError
from moe_probe.core.own_files import TRACE_FILES, OwnFiles, is_empty_folder
from moe_probe.core.schema import MANIFEST


class OutputKind(NamedTuple):
    """What a command writes into a folder of its own: a trace, a run, a comparison."""

    noun: str
    #: A file that only this kind of folder has.
    marker: str
    #: What the user can do about a folder that has one already.
    hint: str = "--resume to continue it, --force to start over, or another folder"
    #: Its files, where they are known by name; else the marker alone shows what the folder is.
    own: OwnFiles | None = None
    #: Whether nothing can be continued without the marker.
    needs_marker: bool = False
    #: Names in it that must be no links: what is written there must not come to lie elsewhere.
    inside: tuple[str, ...] = ()

    def made(self, root: Path) -> bool:
        """Check whether a folder is one of this kind, or what is left of one."""
        return (root / self.marker).exists() or (self.own is not None and self.own.made(root))


TRACE_FOLDER = OutputKind("a trace", MANIFEST, own=TRACE_FILES, needs_marker=True)
RUN_FOLDER = OutputKind("a run", "run.yaml", inside=("results", "results/asked", "sae", "figures", "logs"))
#: Ending of a file while it is written.
PARTIAL = ".partial"
#: Files that safetensors fills before it renames them.
_SAFETENSORS = re.compile(r"\.tmp[A-Za-z0-9]{6}")
#: How errors of libraries in Rust end when the system refused something: ``No space left on device (os error 28)``.
_NATIVE = re.compile(r"\(os error (\d+)\)")
_AGAIN = "run the same command again (with --resume where it has that option)"


def disk_error(error: OSError, path: object, *, verb: str = "written", keeps: str = "") -> MoeProbeError | None:
    """Describe a full disk, a missing permission or an impossible path.

    Parameters
    ----------
    error : OSError
    path : object
        File or folder concerned.
    verb : str
        What cannot be done with it, as a participle.
    keeps : str
        What is still there.

    Returns
    -------
    MoeProbeError or None
        None for an error of another kind.
    """
    kept = f"; {keeps}" if keeps else ""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return MoeProbeError(f"no space is left for {path}", f"the disk is full{kept}", f"free some space, then {_AGAIN}")
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        hint = "another folder, or change its permissions"
        return MoeProbeError(f"{path} cannot be {verb}", f"{error.strerror}{kept}", hint)
    if error.errno in (errno.ENAMETOOLONG, errno.ENOTDIR, errno.EISDIR, errno.ELOOP):
        return MoeProbeError(f"{str(path)[:200]} cannot be {verb}", f"{error.strerror}{kept}", "check the path")
    return None


@contextlib.contextmanager
def disk_errors(path: Path, *, keeps: str = "what was already written is kept") -> Iterator[None]:
    """Turn a full disk, a read-only folder or a vanished one into one sentence.

    Parameters
    ----------
    path : Path
        What is written inside the ``with`` block.
    keeps : str
        What is still there after an error.

    Yields
    ------
    None

    Raises
    ------
    MoeProbeError
        In place of any OSError.
    """
    try:
        yield
    except OSError as error:
        told = disk_error(error, path, keeps=keeps)
        raise told or MoeProbeError(f"{path} cannot be written", f"{error}; {keeps}", f"mend that, then {_AGAIN}") from error


def check_folder_path(root: Path, kind: OutputKind = TRACE_FOLDER) -> None:
    """Refuse a path at which there can be no folder.

    Parameters
    ----------
    root : Path
    kind : OutputKind
        What is going to be written.

    Raises
    ------
    MoeProbeError
        When there is a file at the path or above it.
    OSError
        When the path is impossible, or may not be looked at.
    """
    existing = next((path for path in (root, *root.parents) if path.exists()), root)
    if existing.exists() and not existing.is_dir():
        raise MoeProbeError(f"{root} cannot be written", f"{existing} is a file; {kind.noun} is a folder", "another --out")


def check_output_folder(root: Path, mode: str, kind: OutputKind = TRACE_FOLDER) -> None:
    """Refuse, before anything is computed, a folder that cannot be written to.

    Parameters
    ----------
    root : Path
    mode : {"new", "resume", "force"}
        A new trace, run or comparison needs an empty folder, or none. The other two need one that this program made; files
        of other people may lie beside its own.
    kind : OutputKind
        What is going to be written.

    Raises
    ------
    MoeProbeError
        When there is a file at the path or above it; when the folder has files and was not made by this program, or `mode`
        is "new"; when what is to be continued lacks the file that describes it; when the folder of a trace, or what is to
        be removed, is a link.
    """
    with disk_errors(root, keeps="nothing was changed"):
        check_folder_path(root, kind)
        if root.is_symlink() and kind.needs_marker:  # TraceWriter would refuse it, but hours later
            raise MoeProbeError(
                f"{root} is a link to {root.readlink()}",
                f"{kind.noun} is written into the folder itself; nothing was changed",
                "the folder that it leads to, or remove the link",
            )
        if not root.exists() or is_empty_folder(root):
            return
        marked, made = (root / kind.marker).exists(), kind.made(root)
        if not made:
            raise MoeProbeError(f"{root} already contains other files", "refusing to overwrite", "another --out")
        if mode == "new" and marked:
            raise MoeProbeError(f"{root} already contains {kind.noun}", "refusing to overwrite", kind.hint)
        if mode != "force" and not marked and kind.needs_marker and not _only_begun(root, kind):
            raise MoeProbeError(
                f"{root} has no {kind.marker}",
                f"what is left there of {kind.noun} cannot be continued without it",
                "--force to start over, or another --out",
            )
        if mode == "new":
            raise MoeProbeError(f"{root} already contains parts of {kind.noun}", "refusing to overwrite", kind.hint)
        if mode == "force" and kind.own is not None:
            kind.own.listed(root)


def _only_begun(root: Path, kind: OutputKind) -> bool:
    """Whether the process was killed while it wrote the marker: nothing else is there yet."""
    return kind.own is None or all(path.name.startswith(kind.marker) for path in kind.own.listed(root))


def write_whole(path: Path, write: Callable[[Path], object]) -> None:
    """Write a file so that it is whole or absent.

    Parameters
    ----------
    path : Path
        Its folder is made where it is missing.
    write : callable
        Fills a partial file beside it, which is then flushed to the disk and renamed in one step. Whatever it makes of the
        file, its permissions are those of any new file: they follow the umask.

    Raises
    ------
    OSError
        When the disk refuses, also where a native library says so with an exception of its own.
    """
    partial = path.with_name(f"{path.name}{PARTIAL}")
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        partial.unlink(missing_ok=True)  # of a process that was killed; or a link, which would lead elsewhere
        with partial.open("xb") as file:  # its mode is that of any new file here: the umask's, or what the folder says
            mode = stat.S_IMODE(os.fstat(file.fileno()).st_mode)
        with _native_errors(path):
            write(partial)
        with partial.open("rb+") as file:
            os.fsync(file.fileno())
        if stat.S_IMODE(partial.stat().st_mode) != mode:  # safetensors renames a file of mode 0600 to the name it is given
            partial.chmod(mode)
        os.replace(partial, path)
    except BaseException:
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)
        raise


@contextlib.contextmanager
def _native_errors(path: Path) -> Iterator[None]:
    """Raise what the system refused to a native library, whose errors have its number as text alone, as OSError."""
    try:
        yield
    except Exception as error:
        number = None if isinstance(error, OSError) else _NATIVE.search(str(error))
        if number is None:
            raise
        code = int(number[1])
        raise OSError(code, os.strerror(code), str(path)) from error


def is_left_over(name: str) -> bool:
    """Whether a file of this name is one that a killed process left half written.

    Parameters
    ----------
    name : str
        Name of the file, without its folder.

    Returns
    -------
    bool
        True for the partial files of `write_whole`, and for those that safetensors fills before it renames them.
    """
    return name.endswith(PARTIAL) or _SAFETENSORS.fullmatch(name) is not None


def write_text(path: Path, text: str) -> None:
    """Write text as UTF-8, as `write_whole` does.

    Parameters
    ----------
    path : Path
    text : str
    """
    write_whole(path, lambda partial: partial.write_text(text, encoding="utf-8"))


def write_json(path: Path, value: Any) -> None:
    """Write a value as JSON with sorted keys, as `write_whole` does.

    Parameters
    ----------
    path : Path
    value : object
        Of JSON's types.
    """
    write_text(path, json.dumps(value, indent=1, sort_keys=True) + "\n")


def sha256_text(text: str) -> str:
    """SHA-256 of a text's UTF-8 bytes, as hexadecimal digits."""
    return hashlib.sha256(text.encode()).hexdigest()


def sha256_bytes(data: bytes) -> str:
    """SHA-256 of bytes, as hexadecimal digits."""
    return hashlib.sha256(data).hexdigest()


def sha256_json(value: Any) -> str:
    """SHA-256 of a value as JSON with sorted keys; other types (paths) count as their text."""
    return sha256_text(json.dumps(value, sort_keys=True, default=str))


def sha256_file(path: Path) -> str:
    """SHA-256 of a file's bytes, read in pieces, as hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sha256_files(paths: Sequence[Path]) -> str:
    """SHA-256 of one file, or of the digests of several in their order."""
    digests = [sha256_file(path) for path in paths]
    return digests[0] if len(digests) == 1 else sha256_text("".join(digests))


def path_inside(root: Path, relative: str) -> Path:
    """Path of a file named in a manifest.

    Parameters
    ----------
    root : Path
        Folder of the manifest.
    relative : str
        Name of the file, with forward slashes.

    Returns
    -------
    Path

    Raises
    ------
    MoeProbeError
        When the name would lead out of the folder: manifests come from other people.
    """
    pure = PurePosixPath(relative)
    try:
        inside = (root / pure).resolve().is_relative_to(root.resolve())
    except (OSError, RuntimeError, ValueError):  # links in a circle, a name too long or with NUL
        inside = False
    if pure.is_absolute() or ".." in pure.parts or "\\" in relative or not inside:
        raise MoeProbeError(
            f"{root / MANIFEST} names a file outside the trace",
            f"'{relative}'",
            "do not use this trace: it was tampered with",
        )
    return root / pure


def run_folder_of(path: Path) -> Path:
    """Find the run that a path belongs to: itself, the folder above its ``trace``, or one made beside the trace.

    Parameters
    ----------
    path : Path
        Run directory or trace.

    Returns
    -------
    Path
        It need not exist.
    """
    if (path / "trace" / "trace.json").exists():
        return path
    if path.name in ("", ".."):  # "." and ".." have no name of their own
        path = path.resolve()
    return path.parent if path.name == "trace" else path.with_name(path.name + "-run")
