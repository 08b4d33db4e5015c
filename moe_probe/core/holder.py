"""Who writes to a folder: a note beside its lock, for the message that the second writer gets."""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import socket
import stat
import sys
import time
from pathlib import Path
from typing import NamedTuple

from moe_probe.core.own_files import LOCK_PREFIX

#: File of the note.
HOLDER = f"{LOCK_PREFIX}holder.json"
#: Characters that are read of each of its words.
_LONGEST = 200


class Holder(NamedTuple):
    """Who writes to a folder.

    Attributes
    ----------
    host : str
    pid : int
    command : str
    started : str
        Local time at which it took the lock.
    """

    host: str
    pid: int
    command: str
    started: str

    @classmethod
    def current(cls) -> Holder:
        """Describe this process."""
        return cls(socket.gethostname(), os.getpid(), _command(), time.strftime("%Y-%m-%d %H:%M:%S"))

    @property
    def is_here(self) -> bool:
        """Whether the process is one of this machine."""
        return self.host == socket.gethostname()

    @property
    def is_alive(self) -> bool:
        """Whether the process may still run: False only where it is certain that it does not."""
        if not self.is_here:
            return True
        try:
            os.kill(self.pid, 0)
        except ProcessLookupError:
            return False
        except OSError:
            return True  # another user's
        return True


def read_holder(root: str | Path) -> Holder | None:
    """Read who said last that it writes to a folder; the lock decides whether it still does.

    Parameters
    ----------
    root : str or Path

    Returns
    -------
    Holder or None
        None where nobody said so, or in no form that can be read.
    """
    path = Path(root) / HOLDER
    with contextlib.suppress(OSError, ValueError, TypeError, KeyError, RecursionError):
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
        with open(descriptor, "rb") as file:  # noqa: PTH123 (a descriptor)
            if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                return None
            said = json.loads(file.read(4096))
        if type(said["pid"]) is not int or not 0 < said["pid"] < 2**31:
            return None
        words = [" ".join(str(said[name]).split())[:_LONGEST] for name in ("host", "command", "started")]
        return Holder(words[0], said["pid"], words[1], words[2])
    return None


def write_holder(folder: Path) -> None:
    """Write that this process holds the lock of a folder, over what a killed holder left.

    Parameters
    ----------
    folder : Path

    Raises
    ------
    OSError
        When the disk refuses.
    """
    path = folder / HOLDER
    path.unlink(missing_ok=True)
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW
    with open(os.open(path, flags, 0o666), "w", encoding="utf-8") as file:  # noqa: PTH123 (a descriptor)
        json.dump(Holder.current()._asdict(), file)


def _command() -> str:
    """Words that this process was started with, as a user would type them."""
    program = Path(sys.argv[0] if sys.argv and sys.argv[0] else "python")
    if program.name == "__main__.py" and program.parent.name:
        program = program.parent
    name = "moe-probe" if program.name == "moe_probe" else program.name
    return " ".join(shlex.join([name, *sys.argv[1:]]).split())[:_LONGEST]
