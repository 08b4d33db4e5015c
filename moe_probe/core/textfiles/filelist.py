"""Files that a path, a folder or a glob stands for."""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from moe_probe.core.errors import MoeProbeError

#: Endings that say how a file is compressed, not what is in it.
COMPRESSED = (".gz", ".gzip", ".zst", ".zstd")
#: Folders and files that programs write beside people's data.
_HIDDEN = (".", "__MACOSX")
_OPEN_FILE = re.compile(r"/dev/(fd/\d+|stdin)$|/proc/(self|\d+)/fd/")
_GLOB = re.compile(r"[*?\[]")


@dataclass(frozen=True)
class FileList:
    """Files that a path, a folder or a glob stands for.

    Attributes
    ----------
    files : tuple of Path
        Files to read, sorted by path.
    left_out : tuple of Path
        Visible files beside them whose format was not asked for, sorted by path.
    hidden : tuple of Path
        Files that are hidden, or lie in a hidden folder (:func:`is_hidden`).
    """

    files: tuple[Path, ...]
    left_out: tuple[Path, ...] = ()
    hidden: tuple[Path, ...] = ()


def format_of(path: str | Path) -> str:
    """Return the ending of a file's name in lower case, without the ending of its compression.

    Examples
    --------
    >>> format_of("shards/TRAIN-00.JSONL.GZ")
    '.jsonl'
    """
    name = Path(path).name.lower()
    for ending in COMPRESSED:
        name = name.removesuffix(ending)
    return Path(name).suffix


def from_shell(path: str | Path) -> bool:
    """Whether a path is an open file of the process, as the shell hands them over: ``<(command)``, ``/dev/stdin``."""
    return bool(_OPEN_FILE.match(str(path)))


def is_hidden(path: str | Path) -> bool:
    """Whether a file or folder was written by a program rather than by a person.

    True for a name that begins with a dot (``.ipynb_checkpoints``, ``._text.txt``) and for ``__MACOSX``.
    """
    return Path(path).name.startswith(_HIDDEN)


def expand(spec: str | Path, endings: Sequence[str] = ()) -> FileList:
    """Find the files that a path, a folder (searched to any depth) or a glob stands for.

    Parameters
    ----------
    spec : str or Path
        A file, a folder, or a glob such as ``data/**/*.jsonl.gz``.
    endings : sequence of str
        Formats to take from a folder, as :func:`format_of` returns them; all formats when empty.
        A file that is named, or matched by a glob, is taken whatever its ending.

    Returns
    -------
    FileList
        Hidden files are never read.

    Raises
    ------
    MoeProbeError
        When nothing exists at the path, it is neither file nor folder, or no file matches the glob.
    """
    path = Path(spec)
    if not str(spec):
        raise MoeProbeError("the path is empty", "a variable of the shell may be unset", "the path of a file or folder")
    try:
        if path.is_dir():
            return _files_below(path, endings)
        if path.exists():
            if not path.is_file() and not from_shell(path):  # a pipe would be waited for without end
                raise MoeProbeError(f"{path} cannot be read", "it is a pipe, a socket or a device", "the path of a file")
            return FileList((path,))
    except OSError as error:
        raise MoeProbeError(f"{str(spec)[:200]} cannot be read", error.strerror or str(error), "check the path") from error
    if not _GLOB.search(str(spec)):
        raise MoeProbeError(f"there is nothing at {spec}", "no such file or folder", "check the path")
    matches = [Path(match) for match in sorted(glob.glob(str(spec), recursive=True))]  # noqa: PTH207 absolute globs too
    matches = [match for match in matches if not any(is_hidden(part) for part in match.parts if part not in path.parts)]
    if not matches:
        raise MoeProbeError(
            f"no file matches {spec}", "", "check the pattern, and quote it so that the shell leaves it alone"
        )
    lists = [_files_below(match, endings) if match.is_dir() else FileList((match,)) for match in matches]
    files = {file: None for one in lists for file in one.files}
    return FileList(
        tuple(sorted(files)),
        tuple(sorted({file for one in lists for file in one.left_out} - set(files))),
        tuple(sorted({file for one in lists for file in one.hidden})),
    )


def _files_below(root: Path, endings: Sequence[str]) -> FileList:
    taken: list[Path] = []
    left: list[Path] = []
    hidden: list[Path] = []
    for file in sorted(_walk(root)):
        if file.is_file() or not file.exists():  # a link to nothing is an error when it is read, not a file fewer
            unseen = any(is_hidden(part) for part in file.relative_to(root).parts)
            (hidden if unseen else taken if not endings or format_of(file) in endings else left).append(file)
    return FileList(tuple(taken), tuple(left), tuple(hidden))


def _walk(folder: Path, above: tuple[str, ...] = ()) -> Iterator[Path]:
    """All files below a folder, also in folders that are links; a link to a folder above is not followed.

    `above` holds the real paths of the folders on the way. A folder that cannot be listed is an error, unless it is hidden.
    """
    here = os.path.realpath(folder)
    if any(f"{one}{os.sep}".startswith(f"{here.rstrip(os.sep)}{os.sep}") for one in above):
        return
    try:
        entries = sorted(folder.iterdir())
    except OSError as error:
        if above and is_hidden(folder):
            return
        raise MoeProbeError(f"{folder} cannot be read", error.strerror or str(error), "check its permissions") from error
    for entry in entries:
        if entry.is_dir():
            yield from _walk(entry, (*above, here))
        else:
            yield entry
