"""Files of one folder that become visible together: staged, named in a journal, renamed.

A writer fills the hidden folder `STAGED`, writes the journal `JOURNAL` (this is the moment at which all files count), renames
each file to its place and removes the journal. After a kill before that moment the folder is as it was; after it, readers look
into `STAGED` for what was not renamed yet, and the next writer finishes the renames.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import stat
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from moe_probe.core.errors import MoeProbeError
from moe_probe.core.files import PARTIAL, RUN_FOLDER, disk_errors, sha256_file, write_json, write_whole
from moe_probe.core.lock import run_of_results, writing
from moe_probe.core.own_files import LOCK_PREFIX
from moe_probe.core.text import quoted

#: Hidden folder of files that are not in their place yet; of this package alone.
STAGED = f"{LOCK_PREFIX}staged"
#: Names what is in `STAGED`, and with it makes it count; of this package alone.
JOURNAL = f"{LOCK_PREFIX}journal"
#: Names that a journal may hold: plain, and of kinds that this package publishes.
_NAME = re.compile(r"\w[\w.-]*\.(parquet|json|ipynb|html)")
_DIGEST = re.compile(r"[0-9a-f]{64}")


def read_plain(path: Path) -> bytes:
    """Read a file whole, if it is one.

    Parameters
    ----------
    path : Path

    Returns
    -------
    bytes

    Raises
    ------
    OSError
        As reading a file does, and for a pipe or a device, which could be waited for without end.
    """
    mode = path.stat().st_mode
    if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):
        raise OSError("it is a pipe or device, not a file")
    return path.read_bytes()


def read_object(path: Path) -> dict[str, Any]:
    """Read a file that holds a JSON object.

    Parameters
    ----------
    path : Path

    Returns
    -------
    dict of str to object

    Raises
    ------
    ValueError
        When it is not JSON, is nested too deeply, holds text that is no Unicode, or is not an object.
    OSError
        As reading a file does.
    """
    try:
        value = json.loads(read_plain(path))
        json.dumps(value, ensure_ascii=False).encode()  # half a surrogate pair could not be written anywhere
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error
    if not isinstance(value, dict):
        raise ValueError("it is not a JSON object")
    return value


@dataclass(frozen=True)
class Published:
    """What a folder holds at one moment: files in their place, and those that a journal names.

    Attributes
    ----------
    directory : Path
    files : dict of str to str
        SHA-256 of each file that a journal names; empty without one.
    removed : frozenset of str
        Names of files that count as removed though they may still be there.
    """

    directory: Path
    files: dict[str, str] = field(default_factory=dict)
    removed: frozenset[str] = frozenset()

    @classmethod
    def of(cls, directory: Path) -> Published:
        """Look at a folder, which need not exist.

        Raises
        ------
        MoeProbeError
            When it has a journal that cannot be read.
        """
        path = directory / JOURNAL
        if any(made.is_symlink() for made in (path, directory / STAGED)):  # this package makes no links there
            return cls(directory)
        try:
            read = read_object(path)
            files, removed = read.get("files"), read.get("removed")
            if not isinstance(files, dict) or not isinstance(removed, list):
                raise ValueError("it names no files")
            digests = files.values()
            if not all(isinstance(text, str) and _NAME.fullmatch(text) for text in (*files, *removed)):
                raise ValueError("it names a file that is no result")
            if not all(isinstance(text, str) and _DIGEST.fullmatch(text) for text in digests):
                raise ValueError("a checksum in it is invalid")
        except FileNotFoundError:
            return cls(directory)
        except (OSError, ValueError) as error:
            why = f"an interrupted command left it, and {error}"
            raise MoeProbeError(f"{path} cannot be read", why, f"moe-probe analyze {quoted(directory.parent)}") from error
        return cls(directory, files, frozenset(removed))

    def path(self, name: str) -> Path:
        """Say where a file is now; of one that is not there, where it would be."""
        staged = self.directory / STAGED / name
        return staged if name in self.removed or (name in self.files and staged.exists()) else self.directory / name

    def exists(self, name: str) -> bool:
        """Check whether a file counts."""
        return name not in self.removed and (name in self.files or (self.directory / name).exists())

    def names(self, ending: str) -> list[str]:
        """List the files that count and end so, in alphabetical order."""
        there = {path.name for path in self.directory.glob(f"[!.]*{ending}")}
        return sorted((there | {name for name in self.files if name.endswith(ending)}) - self.removed)


def settle(directory: str | Path) -> None:
    """Finish what an interrupted writer had published, and remove what it had not.

    Parameters
    ----------
    directory : str or Path
        A folder that is going to be written to; it need not exist.

    Raises
    ------
    OSError
        When the disk refuses.
    """
    directory = Path(directory)
    staged, journal = directory / STAGED, directory / JOURNAL
    try:
        published = Published.of(directory)
    except MoeProbeError:
        # its files lack a journal that vouches for them; what is in place is checked by use
        published = Published(directory)
    for name, digest in published.files.items():
        path = staged / name
        if path.is_symlink() or (path.is_file() and sha256_file(path) != digest):
            path.unlink()  # damaged since: the mix of tables that is left names itself when it is read
    _put_in_place(published)
    journal.unlink(missing_ok=True)
    journal.with_name(f"{JOURNAL}{PARTIAL}").unlink(missing_ok=True)
    _remove_staged(staged)


def _put_in_place(published: Published) -> None:
    directory = published.directory
    for name in published.files:
        with contextlib.suppress(FileNotFoundError):  # renamed before the writer ended
            os.replace(directory / STAGED / name, directory / name)
    for name in published.removed:
        (directory / name).unlink(missing_ok=True)
    if published.files or published.removed:
        _sync(directory)  # the journal must not vanish before the renames are on the disk


def _remove_staged(staged: Path) -> None:
    if staged.is_symlink() or staged.is_file():
        staged.unlink()
    elif staged.is_dir():
        shutil.rmtree(staged)


def _sync(folder: Path) -> None:
    """Write the names of a folder to the disk, where its file system can."""
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


class Publication:
    """Files that become visible together when the ``with`` block ends, and not at all when it fails.

    Parameters
    ----------
    directory : str or Path
        Made where it is missing. What an interrupted writer left is settled first.

    Raises
    ------
    MoeProbeError
        By the ``with`` block: when another process writes to the run, or the disk refuses.

    Examples
    --------
    >>> with Publication("runs/mine/results") as publication:
    ...     digest = publication.add("layers.parquet", table.to_parquet)
    ...     publication.remove("left_out.parquet")
    """

    def __init__(self, directory: str | Path) -> None:
        self._directory = Path(directory)
        self._files: dict[str, str] = {}
        self._removed: set[str] = set()
        self._held = contextlib.ExitStack()

    def __enter__(self) -> Self:
        """Take the lock of the run, since what another process stages would be removed, and make the folder ready."""
        with contextlib.ExitStack() as held:
            held.enter_context(writing(run_of_results(self._directory), RUN_FOLDER))
            with disk_errors(self._directory, keeps="what was published before is kept"):
                self._directory.mkdir(parents=True, exist_ok=True)
                settle(self._directory)
                (self._directory / STAGED).mkdir()
            self._held = held.pop_all()
        return self

    def add(self, name: str, write: Callable[[Path], object]) -> str:
        """Stage a file.

        Parameters
        ----------
        name : str
            Plain name with the ending .parquet, .json, .ipynb or .html.
        write : callable
            Fills the path that it is given.

        Returns
        -------
        str
            SHA-256 of the file.

        Raises
        ------
        MoeProbeError
            When the name is none that a journal may hold, or the disk refuses.
        """
        if not _NAME.fullmatch(name):
            what = f"{name!r} cannot be written into {self._directory}"
            raise MoeProbeError(what, "it is not a plain file name", "a name of letters, digits and _ . -")
        path = self._directory / STAGED / name
        with disk_errors(self._directory / name, keeps="what was published before is kept"):
            write_whole(path, write)
            self._files[name] = sha256_file(path)
        return self._files[name]

    def remove(self, names: Iterable[str]) -> None:
        """Let files vanish at the moment at which the others appear; those that are staged stay."""
        self._removed |= set(names)

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        """Publish what was staged, or nothing after an error."""
        staged, journal = self._directory / STAGED, self._directory / JOURNAL
        with self._held:
            if kind is not None:
                _remove_quietly(staged)
                return
            with disk_errors(self._directory):
                try:
                    self._publish(staged, journal)
                except OSError:
                    if not journal.exists():
                        _remove_quietly(staged)
                    raise

    def _publish(self, staged: Path, journal: Path) -> None:
        removed = sorted(name for name in self._removed - set(self._files) if os.path.lexists(self._directory / name))
        _sync(staged)
        write_json(journal, {"version": 1, "files": self._files, "removed": removed})
        _sync(self._directory)
        _put_in_place(Published(self._directory, self._files, frozenset(removed)))
        journal.unlink()
        _remove_staged(staged)


def _remove_quietly(staged: Path) -> None:
    with contextlib.suppress(OSError):  # the error that led here is the one to report; the next writer tries again
        _remove_staged(staged)
