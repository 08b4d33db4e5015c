"""Threads that run calls side by side, and that nobody has to wait for when the program ends."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from queue import SimpleQueue
from typing import Any, Self

#: Seconds that the end waits for calls under way; a request may take many minutes, and Ctrl-C must not.
_PATIENCE_S = 2.0


class Workers:
    """A pool of daemon threads; a context manager.

    The standard library's pool lets a program end only when its calls have returned, however long these take.

    Parameters
    ----------
    n : int
        Threads.
    """

    def __init__(self, n: int) -> None:
        self._queue: SimpleQueue[tuple[Future[Any], Callable[[], Any]] | None] = SimpleQueue()
        self._stopped = threading.Event()
        self._threads = [threading.Thread(target=self._work, daemon=True) for _ in range(n)]

    def __enter__(self) -> Self:
        """Start the threads."""
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *reason: object) -> None:
        """Begin no further call, and wait for those under way, but not for long."""
        self._stopped.set()
        for _ in self._threads:
            self._queue.put(None)
        until = time.monotonic() + _PATIENCE_S
        for thread in self._threads:
            thread.join(max(0.0, until - time.monotonic()))

    def submit(self, call: Callable[[], Any]) -> Future[Any]:
        """Hand over a call.

        Parameters
        ----------
        call : callable
            Without arguments.

        Returns
        -------
        Future
            Has the result, or the error that the call raised.
        """
        future: Future[Any] = Future()
        self._queue.put((future, call))
        return future

    def _work(self) -> None:
        while (item := self._queue.get()) is not None:
            future, call = item
            if self._stopped.is_set() or not future.set_running_or_notify_cancel():
                continue
            try:
                future.set_result(call())
            except BaseException as error:  # whatever it is belongs to whoever asked
                future.set_exception(error)
