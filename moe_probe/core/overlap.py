"""Work beside other work: a thread makes ready what comes next, another puts away what is done, while the caller goes on.

Queues are bounded, so memory is. Order is kept, so results do not depend on which thread is slow. An error ends what
comes before it (nothing more is begun) and leaves what comes behind it to be finished, as if all had run in turn.
"""

from __future__ import annotations

import contextvars
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from types import TracebackType
from typing import Generic, Self, TypeVar

Item = TypeVar("Item")


class Ahead(Generic[Item]):
    """Iterates over items that a thread makes ready, a few ahead of the caller.

    Parameters
    ----------
    items : iterable
        Only the thread touches it, once the ``with`` block is entered.
    depth : int
        Items that are ready or being made at most, besides the one that was taken last. 0 starts no thread: every item is
        made when it is asked for.
    name : str
        Of the thread.

    Examples
    --------
    >>> with Ahead(map(tokenize, documents), depth=1, name="tokenize") as ready:
    ...     for item in ready:
    ...         model(item)
    """

    def __init__(self, items: Iterable[Item], *, depth: int, name: str) -> None:
        self._items, self._depth, self._name = iter(items), depth, name
        self._ready: deque[Item] = deque()
        self._change = threading.Condition()
        self._ended = self._left = False
        self._error: BaseException | None = None
        self._thread: threading.Thread | None = None

    def __enter__(self) -> Iterator[Item]:
        """Begin to make items ready."""
        if not self._depth:
            return self._items
        self._thread = _started(self._work, self._name)
        return self._take()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        """Stop behind the item that is being made, and wait for the thread."""
        with self._change:
            self._left = True
            self._change.notify_all()
        if self._thread is not None:
            self._thread.join()

    def _work(self) -> None:
        try:
            for item in self._items:
                with self._change:
                    self._ready.append(item)
                    del item  # it may be large: only who takes it holds it
                    self._change.notify_all()
                    self._change.wait_for(lambda: self._left or len(self._ready) < self._depth)
                    if self._left:
                        break
        except BaseException as error:
            self._error = error
        finally:
            try:
                close = getattr(self._items, "close", None)
                if close is not None:  # a generator: its files are closed by the thread that opened them
                    close()
            except BaseException as error:
                self._error = self._error or error
            with self._change:  # whatever happened: the caller may be waiting
                self._ended = True
                self._change.notify_all()

    def _take(self) -> Iterator[Item]:
        while True:
            with self._change:
                self._change.wait_for(lambda: self._ready or self._ended)
                if not self._ready:
                    break
                item = self._ready.popleft()
                self._change.notify_all()
            yield item
            del item
        if self._error is not None:
            raise self._error


class Behind(Generic[Item]):
    """Hands items to a thread that puts them away, in their order.

    Leaving the ``with`` block waits until everything handed over is put away, also when an exception ends it: what was
    finished before is kept. Interrupted once more while it waits, it drops what is not begun.

    Parameters
    ----------
    consume : callable
        Takes an item; runs in the thread.
    depth : int
        Items handed over and not yet put away at most, the one being worked on included: `put` waits until there are
        fewer. 0 starts no thread: `put` does the work.
    name : str
        Of the thread.
    """

    def __init__(self, consume: Callable[[Item], object], *, depth: int, name: str) -> None:
        self._consume, self._depth, self._name = consume, depth, name
        self._waiting: deque[Item] = deque()
        self._change = threading.Condition()
        self._unfinished = 0
        self._closed = False
        self._error: BaseException | None = None
        self._thread: threading.Thread | None = None

    def __enter__(self) -> Self:
        """Start the thread."""
        if self._depth:
            self._thread = _started(self._work, self._name)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        """Wait until all is put away; raise what went wrong there unless an error is on its way already."""
        with self._change:
            self._closed = True
            self._change.notify_all()
        if self._thread is not None:
            try:
                self._thread.join()
            except KeyboardInterrupt:
                with self._change:
                    self._waiting.clear()
                raise
        if error is None:
            self.check()

    def put(self, item: Item) -> None:
        """Hand an item over; waits while too many are unfinished.

        Raises
        ------
        BaseException
            Whatever an earlier item ended with; this one is then dropped.
        """
        if not self._depth:
            self._consume(item)
            return
        with self._change:
            self._change.wait_for(lambda: self._error is not None or self._unfinished < self._depth)
            if self._error is None:
                self._waiting.append(item)
                self._unfinished += 1
                self._change.notify_all()
        self.check()

    def check(self) -> None:
        """Raise the error that an item ended with, if one did."""
        if self._error is not None:
            raise self._error

    def _work(self) -> None:
        while True:
            with self._change:
                self._change.wait_for(lambda: self._waiting or self._closed)
                if not self._waiting:
                    return
                item = self._waiting.popleft()
            try:
                self._consume(item)
            except BaseException as error:
                with self._change:
                    self._error = error
                    self._waiting.clear()
                    self._change.notify_all()
                return
            del item  # its memory is free while the next one is awaited
            with self._change:
                self._unfinished -= 1
                self._change.notify_all()


def _started(work: Callable[[], None], name: str) -> threading.Thread:
    """Start a thread that sees the caller's context (progress bars); it does not keep a process alive that wants to end."""
    thread = threading.Thread(target=contextvars.copy_context().run, args=(work,), name=name, daemon=True)
    thread.start()
    return thread
