"""The folder in which workers write parts of a trace, beside the trace: ``OUT.parts/00003-of-00016``."""

from __future__ import annotations

import contextlib
import json
import re
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from moe_probe.core.errors import MoeProbeError
from moe_probe.core.files import disk_errors, write_json
from moe_probe.core.own_files import TRACE_FILES

#: Says that the folder is one of parts, how many there are and in which batches, and by a mark of its own which folder it is.
_NOTE = "parts.json"
_PART, _LEASE = re.compile(r"\d{5,}-of-\d{5,}"), re.compile(r"\d{5,}-of-\d{5,}\.lease(\.partial)?")


class _Note(NamedTuple):
    mark: str
    n_parts: int
    batch_tokens: int


@dataclass(frozen=True)
class Parts:
    """Parts of a trace that are collected apart.

    Attributes
    ----------
    root : Path
    mark : str
        In the note of the folder: a worker that does not find it sees another file system.
    """

    root: Path
    mark: str = ""

    @classmethod
    def of(cls, trace: str | Path) -> Parts:
        """Name the folder of a trace's parts; nothing is read or written."""
        path = Path(trace).absolute()
        return cls(path.with_name(f"{path.name}.parts"))

    @property
    def exist(self) -> bool:
        """Whether parts were begun and not yet removed."""
        return (self.root / _NOTE).exists()

    def begin(self) -> Parts:
        """Make the folder, or go on with the one that is there.

        Returns
        -------
        Parts
            With the mark of the folder.

        Raises
        ------
        MoeProbeError
            When there is something else at its place, or the disk refuses.
        """
        if self.exist:
            return Parts(self.root, self._read().mark)
        with disk_errors(self.root):
            if self.root.exists() and (not self.root.is_dir() or any(self.root.iterdir())):
                raise MoeProbeError(
                    f"{self.root} is no folder of parts", "workers write theirs there", "another --out, or move it away"
                )
            mark = uuid.uuid4().hex
            write_json(self.root / _NOTE, {"mark": mark, "n_parts": 0, "batch_tokens": 0})
        return Parts(self.root, mark)

    def settle(self, n: int, batch_tokens: int) -> tuple[int, int]:
        """Return what the first call decides for all parts.

        Parameters
        ----------
        n : int
            Number of parts.
        batch_tokens : int
            Tokens of a batch.

        Returns
        -------
        (int, int)
            These, or what parts that were begun have.
        """
        before = self._read()
        if before.n_parts:
            return before.n_parts, before.batch_tokens
        with disk_errors(self.root):
            write_json(self.root / _NOTE, {"mark": self.mark, "n_parts": n, "batch_tokens": batch_tokens})
        return n, batch_tokens

    def folder(self, i: int, n: int) -> Path:
        """Name the folder of a part.

        Parameters
        ----------
        i, n : int
            Part, counted from 0, and number of parts.

        Returns
        -------
        Path
        """
        return self.root / f"{i:05d}-of-{n:05d}"

    def lease(self, i: int, n: int) -> Path:
        """Name the file that says which worker may write a part.

        Parameters
        ----------
        i, n : int
            Part, counted from 0, and number of parts.

        Returns
        -------
        Path
        """
        return self.folder(i, n).with_suffix(".lease")

    def check_seen(self) -> None:
        """Refuse, in a worker, a machine that does not see the folder of the driver.

        Raises
        ------
        MoeProbeError
        """
        if not self.exist or self._read().mark != self.mark:
            from platform import node

            raise MoeProbeError(
                f"the worker on {node()} does not see {self.root}",
                "workers write their parts there, and the driver joins them",
                "an --out on a file system that all nodes share",
            )

    def remove(self) -> None:
        """Remove the parts; what others put into the folder stays, and so does the folder then.

        Raises
        ------
        MoeProbeError
            When a part, or a file of one, is a link: nothing is removed then. When the disk refuses.
        """
        if not self.exist:
            return
        with disk_errors(self.root):
            self.check_removable()
            # by their names, not by the note: parts are also removed where it cannot be read
            parts = [path for path in sorted(self.root.glob("*-of-*")) if _PART.fullmatch(path.name)]
            for part in parts:
                TRACE_FILES.remove_folder(part)
            for lease in self.root.glob("*-of-*.lease*"):
                if _LEASE.fullmatch(lease.name):
                    lease.unlink(missing_ok=True)
            (self.root / _NOTE).unlink()
            if not any(self.root.iterdir()):  # nothing of others lies there
                self.root.rmdir()

    def check_removable(self) -> None:
        """Refuse, before anything is removed, a part or a file of one that is a link.

        Raises
        ------
        MoeProbeError
        """
        if self.root.is_symlink():
            raise MoeProbeError(
                f"{self.root} is a link to {self.root.readlink()}",
                "what lies outside is never removed; nothing was changed",
                "remove the link first, or another --out",
            )
        with disk_errors(self.root, keeps="nothing was changed"):
            for path in self.root.glob("*-of-*") if self.exist else ():
                if _PART.fullmatch(path.name):
                    TRACE_FILES.listed(path)

    def _read(self) -> _Note:
        with contextlib.suppress(ValueError, TypeError, KeyError, OSError):
            note = json.loads((self.root / _NOTE).read_text(encoding="utf-8"))
            return _Note(str(note["mark"]), int(note["n_parts"]), int(note["batch_tokens"]))
        raise MoeProbeError(
            f"{self.root / _NOTE} cannot be read", "it says how many parts there are", "--force to start over"
        )


def check_no_parts(trace: Path, mode: str) -> None:
    """Before a trace is collected in one process: refuse parts that workers began, or remove them.

    Parameters
    ----------
    trace : Path
        Folder of the trace.
    mode : {"new", "resume", "force"}

    Raises
    ------
    MoeProbeError
        Unless `mode` is "force".
    """
    parts = Parts.of(trace)
    if mode == "force":
        parts.remove()
    elif parts.exist:
        raise MoeProbeError(
            f"{parts.root} has parts of this trace",
            "they were collected with --ray",
            "add --ray and --resume to go on with them, or --force to start over",
        )
