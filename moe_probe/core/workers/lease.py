"""One owner at a time for what a task writes.

A worker counts as lost when nothing is heard of it. Mostly it has ended; where the network was cut, or its driver was
killed and started again, it may still be writing. So every attempt at a task writes its name into a file beside the output:
an owner that no longer finds its own name there ends its process, and a new one waits until it must have noticed.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
import uuid
from pathlib import Path

from moe_probe.core.files import disk_errors, write_text

#: Seconds between two looks at the file, and until a former owner has noticed for certain.
_BEAT, _NOTICED = 0.5, 2.0


class Lease:
    """Ownership of a task inside a ``with`` block.

    Parameters
    ----------
    path : Path
        File on the shared file system. It is there while somebody owns the task, and left behind by one that was killed.
    """

    def __init__(self, path: Path) -> None:
        self.path, self._name = path, uuid.uuid4().hex
        self._over = threading.Event()
        self._watch = threading.Thread(target=self._look, daemon=True)

    def __enter__(self) -> Lease:
        """Take the task, whoever had it.

        Raises
        ------
        MoeProbeError
            When the file cannot be written.
        """
        with disk_errors(self.path):
            former = self.path.exists()
            write_text(self.path, self._name)
        if former:
            time.sleep(_NOTICED)
        self._watch.start()
        return self

    def __exit__(self, *error: object) -> None:
        """Give the task back."""
        self._over.set()
        self._watch.join()
        if self._is_mine():
            with contextlib.suppress(OSError):
                self.path.unlink(missing_ok=True)

    def _is_mine(self) -> bool:
        try:
            return self.path.read_text(encoding="utf-8") == self._name
        except FileNotFoundError:
            return False  # somebody started over and removed all of it
        except OSError:
            return True  # the file system falters: that says nothing of the owner

    def _look(self) -> None:
        while not self._over.wait(_BEAT):
            if not self._is_mine():
                os._exit(1)  # at once: whatever this process still wrote would be in the way of another
