"""Ctrl-C that is not lost, also where its exception is raised inside native code."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from contextvars import ContextVar

#: Set when Ctrl-C was pressed inside `reraise_sigint`.
_interrupt: ContextVar[threading.Event | None] = ContextVar("moe_probe_interrupt", default=None)


@contextlib.contextmanager
def reraise_sigint() -> Iterator[None]:
    """Let Ctrl-C end the ``with`` block even where the exception it raises is lost.

    An exception raised while native code calls back into Python (a destructor, a callback of a library) is printed and
    forgotten. The press is remembered, and raised again when a `Bar` next counts. Does nothing outside the main thread.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    pressed = threading.Event()

    def press(*_: object) -> None:
        pressed.set()
        raise KeyboardInterrupt

    handler, before = signal.signal(signal.SIGINT, press), _interrupt.set(pressed)
    try:
        yield
        raise_if_pressed()
    finally:
        _interrupt.reset(before)
        signal.signal(signal.SIGINT, handler)


def raise_if_pressed() -> None:
    """Raise the press that `reraise_sigint` remembers, if there was one."""
    pressed = _interrupt.get()
    if pressed is not None and pressed.is_set():
        raise KeyboardInterrupt
