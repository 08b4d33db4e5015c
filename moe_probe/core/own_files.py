"""Which files of a folder the program wrote, by name: only these are ever removed.

A folder of results is also a place where people leave notes. So whatever removes something (``--force``, ``--resume``) asks
an `OwnFiles` first. Links are never followed, and folders go only when nothing is left in them.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from moe_probe.core.errors import MoeProbeError
from moe_probe.core.schema import MANIFEST
from moe_probe.core.sites import ActivationSite

#: Files that are there while a folder is written, and after a process that was killed: they make no folder a full one.
LOCK_PREFIX = ".moe-probe."


def is_empty_folder(root: Path) -> bool:
    """Check whether a folder has nothing in it but what a killed process left of its lock.

    Parameters
    ----------
    root : Path
        An existing folder.

    Returns
    -------
    bool
        True also where its only folders are empty in the same sense, or, beside a lock, without anything: a process may be
        killed when it has made a folder, and before it has locked it.

    Raises
    ------
    OSError
        When it cannot be read.
    """
    entries = list(root.iterdir())
    locked = any(path.name.startswith(LOCK_PREFIX) for path in entries)
    return all(
        path.name.startswith(LOCK_PREFIX) or (_is_folder(path) and (locked or any(path.iterdir())) and is_empty_folder(path))
        for path in entries
    )


@dataclass(frozen=True)
class OwnFiles:
    """Names of the files that the program writes into a folder.

    Attributes
    ----------
    files : re.Pattern
        Matches their paths below the folder, with forward slashes. The unfinished file of each has ``.partial`` behind it.
    folders : re.Pattern
        Matches the folders that they lie in.
    marks : re.Pattern
        Matches files that no other program writes: a folder with none of them was not made by this program, whatever
        its ``report.md`` or ``documents.parquet`` may be.
    first : tuple of str
        Removed before all others: without them nothing takes what is left for whole.
    """

    files: re.Pattern[str]
    folders: re.Pattern[str]
    marks: re.Pattern[str]
    first: tuple[str, ...] = ()

    def is_own(self, relative: str) -> bool:
        """Check whether the program writes a file of this name.

        Parameters
        ----------
        relative : str
            Path below the folder, with forward slashes.

        Returns
        -------
        bool
        """
        return self.files.fullmatch(relative.removesuffix(".partial")) is not None

    def made(self, root: Path) -> bool:
        """Check whether the program has written into a folder.

        Parameters
        ----------
        root : Path

        Returns
        -------
        bool

        Raises
        ------
        OSError
            When the folder cannot be read.
        """
        names = (relative for relative, _ in self._walk(root))
        return any(self.marks.fullmatch(name.removesuffix(".partial")) for name in names)

    def listed(self, root: Path) -> list[Path]:
        """List the program's files in a folder; nothing is removed.

        Parameters
        ----------
        root : Path
            A folder; none where it is missing.

        Returns
        -------
        list of Path
            In the order in which they are removed.

        Raises
        ------
        MoeProbeError
            When the folder, or something of the program's in it, is a link, or is no file; or may not be removed.
        OSError
            When the folder cannot be read.
        """
        if root.is_symlink():
            raise MoeProbeError(
                f"{root} is a link to {root.readlink()}",
                "what lies outside is never removed; nothing was changed",
                "the folder that it leads to, or remove the link",
            )
        found = []
        for relative, path in self._walk(root):
            own = self.is_own(relative)
            if not own and not (path.is_symlink() and self.folders.fullmatch(relative)):
                continue
            if path.is_symlink():
                raise MoeProbeError(
                    f"{path} is a link to {path.readlink()}",
                    "what lies outside is never removed; nothing was changed",
                    "remove the link first, or another --out",
                )
            if path.is_dir():
                raise MoeProbeError(
                    f"{path} is a folder", "a file is written there; nothing was changed", "move it away, or another --out"
                )
            found.append(path)
        for folder in {path.parent for path in found}:
            if not os.access(folder, os.W_OK | os.X_OK):
                raise MoeProbeError(
                    f"files in {folder} cannot be removed",
                    "the folder may not be written to; nothing was changed",
                    "change its permissions, or another --out",
                )
        order = {name: place for place, name in enumerate(self.first)}
        return sorted(found, key=lambda path: (order.get(path.relative_to(root).as_posix(), len(order)), path))

    def remove(self, root: Path, *, below: str = "") -> None:
        """Remove the program's files from a folder, all of them or none; what others put there stays.

        Parameters
        ----------
        root : Path
            Stays, even where nothing is left in it.
        below : str
            Folder in it, of which alone the files are removed.

        Raises
        ------
        MoeProbeError
            As `listed`, before anything is removed.
        OSError
            When the disk refuses all the same.
        """
        for path in self.listed(root):
            if path.is_relative_to(root / below):
                path.unlink(missing_ok=True)
        self.remove_empty(root)

    def remove_folder(self, root: Path) -> None:
        """Remove the program's files, and the folder with them if nothing else is in it.

        Parameters
        ----------
        root : Path

        Raises
        ------
        MoeProbeError
            As `listed`, before anything is removed.
        OSError
            When the disk refuses all the same.
        """
        self.remove(root)
        if root.is_dir() and not any(root.iterdir()):
            root.rmdir()

    def remove_empty(self, root: Path) -> None:
        """Remove folders of the program's that are empty.

        Parameters
        ----------
        root : Path
            Stays.

        Raises
        ------
        OSError
            When a folder cannot be read.
        """
        folders = [path for relative, path in self._walk(root) if self.folders.fullmatch(relative) and _is_folder(path)]
        for folder in sorted(folders, reverse=True):  # what is deeper comes first
            if not any(folder.iterdir()):
                folder.rmdir()

    def _walk(self, root: Path) -> Iterator[tuple[str, Path]]:
        """Everything in the folder and in folders of the program's, links unfollowed."""
        if not root.is_dir():
            return
        for path in sorted(root.iterdir()):
            yield path.name, path
            if _is_folder(path) and self.folders.fullmatch(path.name):
                yield from self._below(root, path)

    def _below(self, root: Path, folder: Path) -> Iterator[tuple[str, Path]]:
        for path in sorted(folder.iterdir()):
            relative = path.relative_to(root).as_posix()
            yield relative, path
            if _is_folder(path) and self.folders.fullmatch(relative):
                yield from self._below(root, path)


def _is_folder(path: Path) -> bool:
    return path.is_dir() and not path.is_symlink()


_TABLES = r"(?:documents|tokens|usage)\.parquet"
_LAYERED = "|".join(sorted({site.folder for site in ActivationSite if site is not ActivationSite.LOGITS}))
_ARRAYS = rf"(?:routing|{ActivationSite.LOGITS.folder}|(?:{_LAYERED})/layer_\d{{2,}})"
_UNFINISHED = r"\.tmp[A-Za-z0-9]{6}"  # what safetensors fills before it renames it
_MARKS = rf"{re.escape(MANIFEST)}(?:\.sha256)?|{_ARRAYS}/\d{{5,}}\.safetensors|parts/\d{{5,}}\.json|parts/\d{{5,}}/{_TABLES}"
#: Files of a trace (docs/formats.md).
TRACE_FILES = OwnFiles(
    files=re.compile(rf"{_MARKS}|{_TABLES}|{_ARRAYS}/{_UNFINISHED}"),
    folders=re.compile(rf"{_ARRAYS}|{_LAYERED}|parts(?:/\d{{5,}})?"),
    marks=re.compile(_MARKS),
    first=(MANIFEST, f"{MANIFEST}.sha256"),
)
#: Files of a folder with a sparse autoencoder.
SAE_FILES = OwnFiles(
    files=re.compile(rf"cfg\.json|sae_weights\.safetensors|{_UNFINISHED}"),
    folders=re.compile(r"(?!)"),
    marks=re.compile(r"cfg\.json|sae_weights\.safetensors"),
    first=("cfg.json",),
)
#: Files of a folder with the checkpoint of a training.
CHECKPOINT_FILES = OwnFiles(
    files=re.compile(rf"state\.safetensors|{_UNFINISHED}"),
    folders=re.compile(r"(?!)"),
    marks=re.compile(r"state\.safetensors"),
)
