"""Progress of what takes longer than two seconds: a bar on a terminal, else a line from time to time.

Python callers see nothing unless they ask (`showing`); the command line shows progress unless it is called with ``--quiet``.
"""

from __future__ import annotations

import contextlib
import os
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sized
from contextvars import ContextVar
from typing import TYPE_CHECKING, TypeVar

from moe_probe.core.interrupt import raise_if_pressed
from moe_probe.core.text import one_line

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

Item = TypeVar("Item")
#: Shows a sentence to the user: the command line's console, or `print`.
Say = Callable[[str], None]

#: Seconds before anything is shown, between refreshed bars, and between lines (more as time goes on).
_PATIENCE, _BEAT, _BETWEEN_LINES = 2.0, 1.0, 5.0


def silent(message: str) -> None:
    """Show nothing: the `Say` of Python callers who did not ask for messages."""


class _Screen:
    """Standard error: on a terminal its last lines are the bars."""

    def __init__(self) -> None:
        self.draws = sys.stderr.isatty() and os.environ.get("TERM") != "dumb"
        self._bars: Progress | None = None
        self._tasks: dict[Bar, TaskID] = {}
        self._lock = threading.Lock()

    def draw(self, bar: Bar) -> None:
        """Draw a bar anew, or for the first time."""
        with self._lock:
            if self._bars is None:
                self._bars = _new_bars()
                self._bars.start()
            if bar not in self._tasks:
                self._tasks[bar] = self._bars.add_task("", total=bar.total)
            self._bars.update(self._tasks[bar], description=bar.line(), completed=bar.n, total=bar.total)
            self._bars.refresh()

    def remove(self, bar: Bar) -> None:
        """Wipe a bar off the terminal, if it was drawn."""
        with self._lock:
            if self._bars is None or bar not in self._tasks:
                return
            self._bars.remove_task(self._tasks.pop(bar))
            if not self._tasks:
                self._bars.stop()
                self._bars = None

    def write(self, text: str) -> None:
        """Write a line, above the bars."""
        if self._bars is not None:
            self._bars.console.print(text, markup=False, highlight=False, soft_wrap=True)
        else:
            _write(text)


_screen: ContextVar[_Screen | None] = ContextVar("moe_probe_screen", default=None)


@contextlib.contextmanager
def showing(on: bool = True) -> Iterator[None]:
    """Show progress (or not) inside a ``with`` block.

    Examples
    --------
    >>> with moe_probe.core.progress.showing():
    ...     moe_probe.expert_topics(trace)
    """
    before = _screen.set((_screen.get() or _Screen()) if on else None)
    try:
        yield
    finally:
        _screen.reset(before)


class _Relay(_Screen):
    """Nobody sits here: what bars would show goes to a function."""

    def __init__(self, to: Callable[[Bar], None]) -> None:
        self.draws, self._to = True, to

    def draw(self, bar: Bar) -> None:
        """Hand the bar on."""
        self._to(bar)

    def remove(self, bar: Bar) -> None:
        """Do nothing."""

    def write(self, text: str) -> None:
        """Drop the line."""


@contextlib.contextmanager
def relayed(to: Callable[[Bar], None]) -> Iterator[None]:
    """Hand progress inside a ``with`` block to a function instead of showing it, every second and from another thread.

    Parameters
    ----------
    to : callable
        Takes the bar: its count, total and note are those of the moment.

    Yields
    ------
    None
    """
    before = _screen.set(_Relay(to))
    try:
        yield
    finally:
        _screen.reset(before)


class Bar:
    """Progress of one loop, on stderr: the same words beside a bar on a terminal, or as lines.

    Parameters
    ----------
    text : str
        What is being done, in a word or two.
    total : int, optional
        Number of units; without it neither share nor time left is known.
    unit : str
        What is counted, in the plural.
    initial : int
        Units done before.
    shown : bool, optional
        As `showing` says when omitted.
    """

    def __init__(
        self, text: str, *, total: int | None = None, unit: str = "steps", initial: int = 0, shown: bool | None = None
    ) -> None:
        self.text, self.total, self.unit, self.n, self.note = one_line(text), total, unit, initial, ""
        self._began, self._initial, self._closed = time.monotonic(), initial, threading.Event()
        self._screen = _screen.get() or (_Screen() if shown else None) if shown is not False else None
        self._n_lines = 0
        self._beat = threading.Thread(target=self._beats, daemon=True)

    def __enter__(self) -> Bar:
        """Begin to show."""
        if self._screen is not None:
            self._beat.start()
        return self

    def __exit__(self, *error: object) -> None:
        """Remove the bar; where lines were written, write a last one."""
        if self._screen is None:
            return
        self._closed.set()
        self._beat.join()
        self._screen.remove(self)
        if self._n_lines and not any(error):
            _write(f"{self.text}: {self.n:,} {self.unit} in {duration(time.monotonic() - self._began)}")

    def update(self, n: int = 1, *, note: str | None = None, total: int | None = None) -> None:
        """Count further units.

        Parameters
        ----------
        n : int
            Units done since the last call.
        note : str, optional
            What is being done now, where that has changed.
        total : int, optional
            Number of units, where that has changed.

        Raises
        ------
        KeyboardInterrupt
            When Ctrl-C was pressed inside `reraise_sigint`.
        """
        raise_if_pressed()
        self.n += n
        self.note = self.note if note is None else one_line(note)
        self.total = self.total if total is None else total

    def line(self) -> str:
        """Progress so far, as a line of text: count, share, rate, time left, note."""
        seconds = max(time.monotonic() - self._began, 1e-9)
        rate = (self.n - self._initial) / seconds
        text = f"{self.text}: {self.n:,}"
        text += f" of {self.total:,} {self.unit} ({self.n / self.total:.0%})" if self.total else f" {self.unit}"
        if rate > 0:
            text += f", {rate:,.1f} a second" if rate >= 1 else f", {1 / rate:,.1f} s each"
            text += f", {duration((self.total - self.n) / rate)} left" if self.total else ""
        else:
            text += f", {duration(seconds)} so far"
        return text + (f"; {self.note}" if self.note else "")

    def _beats(self) -> None:
        """Draw the bar every second, or write a line, also while a single unit takes its time."""
        assert self._screen is not None
        wait = _PATIENCE
        while not self._closed.wait(wait):
            if self._screen.draws:
                self._screen.draw(self)
                wait = _BEAT
            else:
                _write(self.line())
                self._n_lines += 1
                # lines become rarer: after hours, one in several minutes
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
    items : iterable
    text : str
        What is being done, in a word or two.
    total : int, optional
        Number of items; taken from `items` where they have a length.
    unit : str
        What an item is, in the plural.
    name : callable, optional
        Names an item; the name is shown while it is worked on.

    Yields
    ------
    object
        The items.
    """
    if total is None and isinstance(items, Sized):
        total = len(items)
    with Bar(text, total=total, unit=unit) as bar:
        for item in items:
            if name is not None:
                bar.update(0, note=name(item))
            yield item
            bar.update(1)


def count_up(n: int, text: str, *, unit: str, step: int = 1 << 14) -> Iterator[int]:
    """Go through the numbers from 0 to n - 1 with a `Bar` that moves once every `step`: for loops with little to do in each.

    Parameters
    ----------
    n : int
    text : str
        What is being done, in a word or two.
    unit : str
        What is counted, in the plural.
    step : int

    Yields
    ------
    int
        The numbers.
    """
    with Bar(text, total=n, unit=unit) as bar:
        for start in range(0, n, step):
            stop = min(start + step, n)
            yield from range(start, stop)
            bar.update(stop - start)


def duration(seconds: float) -> str:
    """Seconds in words: ``8 s``, ``2 min 05 s``, ``3 h 10 min``."""
    whole = round(max(seconds, 0))
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600:,} h {whole % 3600 // 60:02d} min"


def say_above(text: str) -> None:
    """Write a line on stderr, above the bars that may be drawn there; a line break in the text is shown by its code."""
    screen = _screen.get()
    (_write if screen is None else screen.write)(one_line(text))


def _new_bars() -> Progress:
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn
    from rich.table import Column

    words = TextColumn("{task.description}", markup=False, table_column=Column(no_wrap=True, overflow="ellipsis"))
    console = Console(file=sys.stderr, force_terminal=True, force_jupyter=False)
    # what a command prints on stdout stays there
    return Progress(
        BarColumn(20),
        words,
        console=console,
        transient=True,
        auto_refresh=False,
        redirect_stdout=False,
        redirect_stderr=False,
    )


def _write(text: str) -> None:
    sys.stderr.write(text + "\n")
    sys.stderr.flush()
