"""A file of the answers that an endpoint gave."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Iterable
from pathlib import Path

from moe_probe.core.errors import MoeProbeError
from moe_probe.core.files import disk_errors
from moe_probe.core.untrusted import file_size


class AnswerCache:
    """Answers by request, appended as they come; half a line, left by an interruption, is skipped."""

    def __init__(self, path: Path) -> None:
        self.path, self._lock = path, threading.Lock()
        self._answers: dict[str, str] = {}
        self._broken = False
        if not os.path.lexists(path):
            return
        file_size(path, hint="another file for answers")
        try:
            with path.open(encoding="utf-8", errors="replace") as lines:
                self._read(lines)
        except OSError as error:
            raise MoeProbeError(f"{path} cannot be read", str(error.strerror), "another file for answers") from error

    def _read(self, lines: Iterable[str]) -> None:
        for line in lines:
            self._broken = not line.endswith("\n")
            try:
                entry = json.loads(line)
                self._answers[str(entry["key"])] = str(entry["answer"])
            except (ValueError, KeyError, TypeError, RecursionError):
                continue

    def get(self, key: str) -> str | None:
        """Return the answer to a request, None where there is none yet."""
        return self._answers.get(key)

    def put(self, key: str, answer: str) -> None:
        """Keep an answer.

        Parameters
        ----------
        key : str
            From `Endpoint.cache_key`.
        answer : str
        """
        with self._lock, disk_errors(self.path):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("a", encoding="utf-8") as file:
                file.write(("\n" if self._broken else "") + json.dumps({"key": key, "answer": answer}) + "\n")
            self._broken = False
            self._answers[key] = answer
