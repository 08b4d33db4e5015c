"""How far something is that takes longer than two seconds: a bar on a terminal, a line now and then where there is none.

Nothing is shown to a Python caller who has not asked (`showing`); the command line asks unless it is told ``--quiet``.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sized
from contextvars import ContextVar
from typing import Any, TypeVar

from moe_probe.core.text import printable

Item = TypeVar("Item")
#: Shows a sentence to the user: the command line's console, or `print`.
Say = Callable[[str], None]

#: Whether Ctrl-C was pressed inside `heeding_interrupts`.
_pressed = False
_shown: ContextVar[bool] = ContextVar("moe_probe_progress", default=False)
#: Seconds before anything is shown, between refreshed bars, and between lines (more as time goes on).
_PATIENCE, _BEAT, _BETWEEN_LINES = 2.0, 1.0, 5.0


def silent(message: str) -> None:
    """Show nothing: the `Say` of Python callers who did not ask for messages."""


@contextlib.contextmanager
def showing(on: bool = True) -> Iterator[None]:
    """Show progress (or not) inside a ``with`` block.

    Examples
    --------
    >>> with moe_probe.core.progress.showing():
    ...     moe_probe.expert_topics(trace)
    """
    before = _shown.set(on)
    try:
        yield
    finally:
        _shown.reset(before)


@contextlib.contextmanager
def heeding_interrupts() -> Iterator[None]:
    """Let Ctrl-C end the ``with`` block even where the exception it raises is lost.

    An exception raised while native code calls back into Python (a destructor, a callback of a library) is printed and
    forgotten. The press is remembered, and raised anew when a `Bar` next counts. Does nothing outside the main thread.
    """
    global _pressed
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    _pressed = False
    before = signal.signal(signal.SIGINT, _press)
    try:
        yield
        _raise_if_pressed()
    finally:
        _pressed = False
        signal.signal(signal.SIGINT, before)


def _press(signum: int, frame: object) -> None:
    global _pressed
    _pressed = True
    raise KeyboardInterrupt


def _raise_if_pressed() -> None:
    if _pressed and threading.current_thread() is threading.main_thread():
        raise KeyboardInterrupt


class Bar:
    """Progress of one loop, on stderr. A bar with rate and time left on a terminal; else lines of the same content.

    Parameters
    ----------
    text : str
        What is being done, in a word or two.
    total : int, optional
        Units there are; without it neither share nor time left is known.
    unit : str
        What is counted, in the plural.
    initial : int
        Units done before.
    shown : bool, optional
        As `showing` says when left out.
    """

    def __init__(
        self, text: str, *, total: int | None = None, unit: str = "steps", initial: int = 0, shown: bool | None = None
    ) -> None:
        self.text, self.total, self.unit, self.n, self.note = printable(text), total, unit, initial, ""
        self._began, self._initial, self._closed = time.monotonic(), initial, threading.Event()
        self._bar: Any = None
        self._said = 0
        self._beat = (
            threading.Thread(target=self._beats, daemon=True) if (_shown.get() if shown is None else shown) else None
        )

    def __enter__(self) -> Bar:
        if self._beat is not None:
            if sys.stderr.isatty():
                from tqdm import tqdm

                self._bar = tqdm(
                    desc=self.text,
                    total=self.total,
                    initial=self.n,
                    unit=f" {self.unit}",
                    delay=_PATIENCE,
                    file=sys.stderr,
                    leave=False,
                    **_width(),
                )
            self._beat.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._closed.set()
        if self._beat is not None:
            self._beat.join()
        if self._bar is not None:
            self._bar.close()
        elif self._said and not any(error):
            seconds = time.monotonic() - self._began
            _write(f"{self.text}: {self.n:,} {self.unit} in {duration(seconds)}")

    def update(self, n: int = 1, *, note: str | None = None, total: int | None = None) -> None:
        """Count `n` more; say what is being done just now, or how many there are, where that has changed."""
        _raise_if_pressed()
        self.n += n
        if note is not None:
            self.note = printable(note)
        if total is not None:
            self.total = total
        if self._bar is not None:
            self._bar.total = self.total
            self._bar.set_postfix_str(self.note, refresh=False)
            self._bar.update(n)

    def line(self) -> str:
        """How far it is, as a line of text."""
        seconds = max(time.monotonic() - self._began, 1e-9)
        rate = (self.n - self._initial) / seconds
        said = f"{self.text}: {self.n:,}"
        if self.total:
            said += f" of {self.total:,}"
        said += f" {self.unit}"
        if self.total:
            said += f" ({self.n / self.total:.0%})"
        if rate > 0:
            said += f", {rate:,.1f} a second" if rate >= 1 else f", {1 / rate:,.1f} s each"
            if self.total:
                said += f", {duration((self.total - self.n) / rate)} left"
        else:
            said += f", {duration(seconds)} so far"
        return said + (f"; {self.note}" if self.note else "")

    def _beats(self) -> None:
        """Keep the clock of a bar going, or say a line, while a single unit takes its time."""
        wait = _PATIENCE
        while not self._closed.wait(wait):
            if self._bar is not None:
                self._bar.refresh()
                wait = _BEAT
            else:
                _write(self.line())
                self._said += 1
                # a job of hours shall not fill its log
                wait = max(_BETWEEN_LINES, (time.monotonic() - self._began) / 20)


def track(
    items: Iterable[Item],
    text: str,
    *,
    total: int | None = None,
    unit: str = "steps",
    name: Callable[[Item], str] | None = None,
) -> Iterator[Item]:
    """Go through `items` with a `Bar`.

    Parameters
    ----------
    total : int, optional
        How many there are; taken from `items` where they know.
    name : callable, optional
        What an item is called, shown while it is worked on.
    """
    if total is None and isinstance(items, Sized):
        total = len(items)
    with Bar(text, total=total, unit=unit) as bar:
        for item in items:
            if name is not None:
                bar.update(0, note=name(item))
            yield item
            bar.update(1)


def duration(seconds: float) -> str:
    """Seconds as people say them: ``8 s``, ``2 min 05 s``, ``3 h 10 min``."""
    whole = round(max(seconds, 0))
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600:,} h {whole % 3600 // 60:02d} min"


def say_above(text: str) -> None:
    """Write a line on stderr, above a bar that may be drawn there."""
    if "tqdm" in sys.modules and sys.stderr.isatty():
        from tqdm import tqdm

        tqdm.write(text, file=sys.stderr)
    else:
        _write(text)


def _width() -> dict[str, Any]:
    """How wide a bar may be: as the terminal says, 80 columns where it does not know its size."""
    try:
        known = os.get_terminal_size(sys.stderr.fileno()).columns > 0
    except (OSError, ValueError):
        known = False
    return {"dynamic_ncols": True} if known else {"ncols": 80}


def _write(text: str) -> None:
    sys.stderr.write(text + "\n")
    sys.stderr.flush()
