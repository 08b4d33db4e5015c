"""Work beside other work: order and errors are those of work done in turn, and nothing runs on behind the caller's back."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Iterator

import pytest

from moe_probe.core.overlap import Ahead, Behind

PATIENCE = 20.0


def names() -> set[str]:
    return {thread.name for thread in threading.enumerate()}


def test_the_next_item_is_made_while_the_caller_has_one() -> None:
    """The caller holds item 0 until item 1 is being made: one after the other, this would never end."""
    begun = [threading.Event() for _ in range(3)]

    def items() -> Iterator[int]:
        for i in range(3):
            begun[i].set()
            yield i

    with Ahead(items(), depth=1, name="ahead") as ready:
        assert next(ready) == 0
        assert begun[1].wait(PATIENCE)
        assert list(ready) == [1, 2]
    assert "ahead" not in names()


@pytest.mark.parametrize("depth", [0, 1, 3])
def test_an_error_comes_in_its_turn(depth: int) -> None:
    def items() -> Iterator[int]:
        yield from range(4)
        raise ValueError("fifth")

    seen = []
    with pytest.raises(ValueError, match="fifth"), Ahead(items(), depth=depth, name="ahead") as ready:
        for item in ready:
            seen.append(item)
    assert seen == [0, 1, 2, 3]


def test_no_more_is_made_than_fits_and_what_is_left_is_closed() -> None:
    made, closed, waiting = [], [], threading.Semaphore(0)

    def items() -> Iterator[int]:
        try:
            for i in range(100):
                made.append(i)
                waiting.release()
                yield i
        finally:
            closed.append(threading.current_thread().name)

    with Ahead(items(), depth=2, name="ahead") as ready:
        assert next(ready) == 0
        for _ in range(3):  # 0 is taken, 1 and 2 are ready
            assert waiting.acquire(timeout=PATIENCE)
    assert len(made) == 3 and closed == ["ahead"]


def test_an_item_is_held_by_its_taker_alone() -> None:
    """Items may be large: the first is gone when the taker drops it, though the next is still being made."""
    making, seen = threading.Event(), list[object]()

    def items() -> Iterator[set[int]]:
        yield {1}
        making.wait(PATIENCE)
        yield {2}

    class Kept(set[int]):
        """A set that can be referred to weakly."""

    def look() -> None:
        seen.append(gone())
        making.set()

    with Ahead(map(Kept, items()), depth=1, name="ahead") as ready:
        first = next(ready)
        gone = weakref.ref(first)
        del first
        timer = threading.Timer(0.2, look)
        timer.start()
        assert next(ready) == {2}
        timer.join()
    assert seen == [None]


@pytest.mark.parametrize("depth", [0, 1, 3])
def test_items_are_put_away_in_order(depth: int) -> None:
    out: list[int] = []
    with Behind(out.append, depth=depth, name="behind") as behind:
        for item in range(20):
            behind.put(item)
    assert out == list(range(20)) and "behind" not in names()


def test_the_caller_goes_on_while_an_item_is_put_away() -> None:
    gone_on = threading.Event()

    def consume(_: int) -> None:
        assert gone_on.wait(PATIENCE)

    with Behind(consume, depth=2, name="behind") as behind:
        behind.put(0)
        gone_on.set()


def test_the_caller_waits_while_too_much_is_unfinished() -> None:
    release, put = threading.Event(), threading.Event()

    def consume(_: int) -> None:
        release.wait(PATIENCE)

    with Behind(consume, depth=1, name="behind") as behind:
        behind.put(0)

        def second() -> None:
            behind.put(1)
            put.set()

        thread = threading.Thread(target=second)
        thread.start()
        assert not put.wait(0.05)
        release.set()
        assert put.wait(PATIENCE)
        thread.join()


@pytest.mark.parametrize("depth", [0, 1])
def test_an_error_reaches_whoever_hands_over(depth: int) -> None:
    def consume(item: int) -> None:
        if item == 1:
            raise OSError("full")

    begun = []
    with pytest.raises(OSError, match="full"), Behind(consume, depth=depth, name="behind") as behind:
        for item in range(1000):
            behind.put(item)
            begun.append(item)
    assert len(begun) < 5 and "behind" not in names()


def test_the_last_item_can_fail_too() -> None:
    def consume(item: int) -> None:
        assert 1 // item

    with pytest.raises(ZeroDivisionError), Behind(consume, depth=4, name="behind") as behind:
        behind.put(0)


def test_what_was_handed_over_before_an_error_is_put_away() -> None:
    out: list[int] = []
    started = threading.Event()

    def consume(item: int) -> None:
        started.wait(PATIENCE)
        out.append(item)

    def work() -> None:
        with Behind(consume, depth=3, name="behind") as behind:
            for item in range(3):
                behind.put(item)
            started.set()
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        work()
    assert out == [0, 1, 2] and "behind" not in names()


def test_a_source_that_fails_while_it_is_closed_does_not_leave_the_caller_waiting() -> None:
    class Source:
        def __init__(self) -> None:
            self._items = iter([1, 2])

        def __iter__(self) -> Iterator[int]:
            return self

        def __next__(self) -> int:
            return next(self._items)

        def close(self) -> None:
            raise OSError("gone")

    seen: list[int] = []
    with pytest.raises(OSError, match="gone"), Ahead(Source(), depth=1, name="read") as ready:
        for item in ready:
            seen.append(item)
    assert seen == [1, 2]
